"""Datasets on the Hugging Face Hub: what a repository offers, and its raw data files on this disk.

The files stay as their authors wrote them, for `plumbline.data.readers`; no code of a repository is ever run.
Where the Hub is, and the token, come from the environment alone (HF_ENDPOINT, HF_TOKEN).
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plumbline.errors import StudioError
from plumbline.hub import dataset_files
from plumbline.hub.errors import explained, is_cut, listed, understood
from plumbline.hub.progress import Progress, Report

HUB_SECONDS = 15.0
ATTEMPTS = 3  # to download one file
CONVERTED = "refs/convert/parquet"  # the branch where the Hub keeps its own Parquet copy
LISTED = 40
_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]*", re.ASCII)
_HELD_OUT = ("validation", "valid", "dev", "val", "test", "eval", "evaluation", "held_out")


@dataclass(frozen=True)
class HubDataset:
    """What a dataset repository offers at one commit.

    ``configs`` maps a config's name to its splits, a split to its files in the repository;
    ``sizes`` has the bytes of each file. ``default`` is the config meant when none is named.
    """

    id: str
    revision: str
    configs: dict[str, dataset_files.Splits]
    sizes: dict[str, int]
    default: str | None

    def config(self, requested: str | None) -> str:
        """:raises StudioError: when it is not there, or there are several and none was named"""
        name = requested or self.default
        if name is None:
            raise StudioError(self.id, "has several configs", f"Choose one: {_listed(self.configs)}.")
        if name not in self.configs:
            raise StudioError(self.id, f"has no config {name!r}", f"It has {_listed(self.configs)}.")
        return name

    def split(self, config: str, requested: str | None) -> str:
        """The split that is wanted; when none is named, ``train`` or the only one.

        :raises StudioError: when it is not there
        """
        splits = self.configs[config]
        name = requested or ("train" if len(splits) > 1 else next(iter(splits)))
        if name not in splits:
            raise StudioError(self.id, f"has no split {name!r}", f"It has {_listed(splits)}.")
        return name

    def held_out(self, config: str, split: str) -> list[str]:
        """Other splits of the config that are meant for evaluation."""
        return [name for name in self.configs[config] if name != split and name.lower() in _HELD_OUT]


@dataclass(frozen=True)
class Fetched:
    """Files on this disk, and exactly what they are.

    ``held_out`` is empty unless a split for it was named; ``offered`` lists those that could be.
    """

    files: list[Path]
    held_out: list[Path]
    config: str
    split: str
    revision: str
    offered: list[str]


def look(repo_id: str, revision: str | None = None) -> HubDataset:
    """What a dataset on the Hub offers: one request, no retries, no rows downloaded.

    Splits come from the card's ``configs``, else from the names of the files.

    :param revision: a branch, tag or commit
    :raises StudioError: when it cannot be had, or has no files that can be read
    """
    _check_names(repo_id, revision)
    from huggingface_hub import HfApi

    with explained(repo_id, revision, "the Hub cannot be reached", "Check the network, or import a file."):
        with understood(repo_id):
            info = HfApi().dataset_info(repo_id, revision=revision, timeout=HUB_SECONDS, files_metadata=True)
    commit, sizes = listed(info, repo_id)
    configs, default = _configs(repo_id, revision, info.card_data, sorted(sizes))
    if not configs:
        raise _nothing_to_read(repo_id, sorted(sizes))
    if default is None:
        default = next(iter(configs)) if len(configs) == 1 else "default" if "default" in configs else None
    return HubDataset(repo_id, commit, configs, sizes, default)


def fetch(
    repo_id: str,
    folder: Path,
    config: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    report: Report | None = None,
    *,
    held_out_split: str | None = None,
    limit_gb: float = 20.0,
    check_stop: Callable[[], None] | None = None,
) -> Fetched:
    """Download the data files of one split; those that ``folder`` already has whole are kept.

    :param report: called with a phase and the share that is done, at most twice a second
    :param held_out_split: a second split of the same config, to be held out from training
    :param limit_gb: most gigabytes that are downloaded, all files together
    :raises StudioError: when something named is not there, too large, or cannot be downloaded
    """
    dataset = look(repo_id, revision)
    config = dataset.config(config)
    split = dataset.split(config, split)
    files = dataset.configs[config][split]
    held_out = dataset.configs[config][dataset.split(config, held_out_split)] if held_out_split else []
    names = list(dict.fromkeys([*files, *held_out]))
    total = sum(dataset.sizes[name] for name in names)
    if total > limit_gb * 1e9:
        what = f"split {split!r} is {total / 1e9:,.1f} GB, the limit is {limit_gb:g} GB"
        raise StudioError(repo_id, what, "Choose a smaller config or split.")
    progress = Progress(total, report, check_stop)
    for name in names:
        with explained(
            repo_id, revision, f"{name} did not arrive whole", "Start again: whole files are kept."
        ):
            _download(dataset, name, folder, progress)
    return Fetched(
        [folder / name for name in files],
        [folder / name for name in held_out],
        config,
        split,
        dataset.revision,
        dataset.held_out(config, split),
    )


def _listed(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:LISTED]) + (f" and {len(shown) - LISTED} more" if len(shown) > LISTED else "")


def _check_names(repo_id: str, revision: str | None) -> None:
    """Refuse what is no plain name before anything is sent: a URL or path could lead anywhere."""
    if not _ID.fullmatch(repo_id) or ".." in repo_id or "--" in repo_id or len(repo_id) > 96:
        raise StudioError("dataset", f"{repo_id[:96]!r} is not a name on the Hub", "Use name or org/name.")
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise StudioError("revision", f"{revision[:96]!r} is none", "Name a branch, a tag or a commit.")


def _configs(
    repo_id: str, revision: str | None, card: Any, names: list[str]
) -> tuple[dict[str, dataset_files.Splits], str | None]:
    if revision == CONVERTED:
        return dataset_files.converted(names), None
    try:
        return dataset_files.configs((card.get("configs") if card else None) or [], names)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StudioError(repo_id, "has a card with malformed configs", "Its author can mend it.") from error


def _nothing_to_read(repo_id: str, names: list[str]) -> StudioError:
    fix = f"If the Hub made a Parquet copy, it is the revision {CONVERTED}."
    if f"{repo_id.split('/')[-1]}.py" in names:
        return StudioError(repo_id, "needs its own script to be read, and scripts are never run", fix)
    return StudioError(repo_id, dataset_files.what_else(names), fix)


def _download(dataset: HubDataset, name: str, folder: Path, progress: Progress) -> None:
    """One file, at the commit that was looked at. Within an attempt a broken connection resumes."""
    from huggingface_hub import HfApi

    before, size = progress.done, dataset.sizes[name]
    for attempt in range(ATTEMPTS):
        try:
            with understood(dataset.id):
                HfApi().hf_hub_download(
                    dataset.id,
                    name,
                    repo_type="dataset",
                    revision=dataset.revision,
                    local_dir=folder,
                    tqdm_class=progress.bar(name, size, before),
                )
        except Exception as error:
            if attempt + 1 == ATTEMPTS or not is_cut(error):
                raise
        else:
            progress.reached(before + size, name)
            return
