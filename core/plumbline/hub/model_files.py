"""Models on the Hub: which commit a name stands for, and its files in the Hub's cache on this disk.

Only config, tokenizer and safetensors are ever fetched. Where the Hub is, and the token, come from
the environment alone (HF_ENDPOINT, HF_TOKEN).
"""

import hashlib
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from plumbline.errors import StudioError
from plumbline.hub.errors import explained, is_cut, listed, understood
from plumbline.hub.progress import Progress, Report

HUB_SECONDS = 10.0
ATTEMPTS = 3  # to download one file; each goes on where the last one broke off
ROOM = 200 * 1024**2  # bytes of the disk that a download leaves free
CHUNK = 16 * 1024**2
COMMIT = re.compile(r"[0-9a-f]{40}")
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]*", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SMALL = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab"
    r"|chat_template|processor_config|model\.safetensors\.index|adapter_config)\.json"
    r"|merges\.txt|vocab\.txt|chat_template\.jinja|additional_chat_templates/[\w.-]+\.jinja"
    r"|(tokenizer|spiece|sentencepiece\.bpe)\.model|tekken\.json"
)


@dataclass(frozen=True)
class Listing:
    """A model repository at one commit: the bytes of each of its files.

    :param named: what the commit was asked for by: a branch, a tag, or itself
    """

    id: str
    named: str
    commit: str
    sizes: dict[str, int]


def look(repo_id: str, revision: str | None) -> Listing:
    """What the Hub lists, or, where there is no answer, what was downloaded before.

    :raises StudioError: when neither is there
    """
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise StudioError("model.revision", f"{revision[:96]!r} is none", "Name a branch, a tag or a commit.")
    with _explained(repo_id, revision):
        try:
            return _asked(repo_id, revision)
        except Exception as error:
            if not _unanswered(error):
                raise
            before = _cached(repo_id, revision)
            if before is not None:
                return before
            what = f"the Hub cannot be reached, and {repo_id} was not downloaded before"
            fix = "Check the network and HF_HUB_OFFLINE, or use starter or a local folder."
            raise StudioError("model.base", what, fix) from error


def commit_of(repo_id: str, revision: str | None) -> str:
    """The commit that a branch or tag stands for now. :raises StudioError: when it cannot be had"""
    if revision and COMMIT.fullmatch(revision):
        return revision
    _asked.cache_clear()
    return look(repo_id, revision).commit


@lru_cache(maxsize=32)
def _asked(repo_id: str, revision: str | None) -> Listing:
    """One request without retries: the library's own take most of a minute."""
    from huggingface_hub import HfApi

    with understood(repo_id):
        info = HfApi().model_info(repo_id, revision=revision, timeout=HUB_SECONDS, files_metadata=True)
    return Listing(repo_id, revision or "main", *listed(info, repo_id))


def _unanswered(error: Exception) -> bool:
    from huggingface_hub.errors import OfflineModeIsEnabled

    return isinstance(error, OfflineModeIsEnabled) or is_cut(error)


def _cached(repo_id: str, revision: str | None) -> Listing | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo_id, "config.json", revision=revision)
    if not isinstance(path, str):
        return None
    folder = Path(path).parent
    files = [file for file in folder.rglob("*") if file.is_file()]
    sizes = {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}
    return Listing(repo_id, revision or "main", folder.name, sizes)


def small_files(listing: Listing) -> Path:
    """The folder of this commit in the cache, with all that is needed but the weights.

    :raises StudioError: when a file cannot be had
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    for name in sorted(name for name in listing.sizes if _SMALL.fullmatch(name)):
        with _explained(listing.id, listing.commit), understood(listing.id):
            if not isinstance(try_to_load_from_cache(listing.id, name, revision=listing.commit), str):
                HfApi().hf_hub_download(listing.id, name, revision=listing.commit)
    if listing.named != listing.commit:  # so that it is found again without a network
        ref = _repository(listing.id) / "refs" / listing.named
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(listing.commit, encoding="utf-8")
    return _folder(listing)


def weights(
    listing: Listing,
    names: tuple[str, ...],
    report: Report | None = None,
    check_stop: Callable[[], None] | None = None,
) -> None:
    """Bring the weights into the commit's folder; what arrived before a cut or a stop is kept.

    :param report: called with bytes done of all bytes, and the share
    :raises StudioError: when the disk has no room, or a file cannot be had or is not what the Hub lists
    """
    folder = _folder(listing)
    missing = [name for name in names if not (folder / name).exists()]
    if not missing:
        return
    total = sum(listing.sizes[name] for name in missing)
    _refuse_full_disk(listing, total)
    progress = Progress(total, report, check_stop)
    for name in missing:
        cut = f"{name} did not arrive whole"
        go_on = "Start again: it goes on from there."
        with explained(listing.id, listing.commit, cut, go_on, "model"), understood(listing.id):
            _download(listing, name, progress)


def _download(listing: Listing, name: str, progress: Progress) -> None:
    before = progress.done
    for attempt in range(ATTEMPTS):
        try:
            _fetch(listing, name, progress.bar(name, listing.sizes[name], before))
        except Exception as error:
            if attempt + 1 == ATTEMPTS or not is_cut(error):
                raise
        else:
            progress.reached(before + listing.sizes[name], name)
            return


def _fetch(listing: Listing, name: str, bar: Any) -> None:
    """One file into the cache, under the name that the cache gives it.

    The library starts a broken file anew; here its part stays, and the rest is asked for.
    """
    from filelock import FileLock
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    about = get_hf_file_metadata(hf_hub_url(listing.id, name, revision=listing.commit))
    if not about.etag or not re.fullmatch(r"[\w.-]+", about.etag) or about.size != listing.sizes[name]:
        raise StudioError(listing.id, f"the Hub lists {name} in two ways", "Try again later.")
    blob = _repository(listing.id) / "blobs" / about.etag
    part = blob.with_name(f"{about.etag}.part")
    blob.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{part}.lock"):
        if not blob.exists():
            headers = build_hf_headers()
            if _host(about.location) != _host(hf_hub_url(listing.id, name)):
                headers.pop("authorization", None)
            with open(part, "ab") as file:
                if file.tell() > about.size:
                    file.truncate(0)
                http_get(
                    about.location,
                    file,
                    resume_size=file.tell(),
                    headers=headers,
                    expected_size=about.size,
                    tqdm_class=bar,
                )
            _check(listing, name, part, about.etag)
            part.replace(blob)
    HfApi().hf_hub_download(listing.id, name, revision=listing.commit)  # finds it, and names it


def _check(listing: Listing, name: str, part: Path, etag: str) -> None:
    """The Hub names large files by their SHA-256."""
    if not _SHA256.fullmatch(etag):
        return
    digest = hashlib.sha256()
    with open(part, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != etag:
        part.unlink()
        what = f"{name} is not what the Hub lists (sha256 {digest.hexdigest()[:12]}, listed {etag[:12]})"
        raise StudioError(listing.id, what, "Start again: it is downloaded anew.")


def _refuse_full_disk(listing: Listing, needed: int) -> None:
    repository = _repository(listing.id)
    repository.mkdir(parents=True, exist_ok=True)
    arrived = sum(part.stat().st_size for part in (repository / "blobs").glob("*.part"))
    free = shutil.disk_usage(repository).free
    if free < needed - arrived + ROOM:
        what = f"{free / 1e9:.1f} GB are free, {listing.id} needs {needed / 1e9:.1f} GB"
        raise StudioError("disk", what, "Free some, or point HF_HOME to another disk.")


def _host(address: str) -> str:
    from urllib.parse import urlsplit

    return urlsplit(address).netloc


def _repository(repo_id: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model")


def _folder(listing: Listing) -> Path:
    return _repository(listing.id) / "snapshots" / listing.commit


def _explained(repo_id: str, revision: str | None) -> Any:
    fix = "Check the network, or use starter or a local folder."
    return explained(repo_id, revision, "the Hub cannot be reached", fix, "model")
