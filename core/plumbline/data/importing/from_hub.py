"""A dataset of the Hugging Face Hub, downloaded and imported like any upload."""

import tempfile
from dataclasses import replace
from pathlib import Path

from plumbline.data.importing import importer
from plumbline.data.importing.importer import Options
from plumbline.data.readers.source_files import Source
from plumbline.home import folder as workspace_folder
from plumbline.hub.dataset_repository import fetch
from plumbline.hub.progress import Report
from plumbline.store import datasets


def add(
    repo_id: str,
    config: str | None = None,
    split: str | None = None,
    held_out_split: str | None = None,
    revision: str | None = None,
    options: Options = Options(),  # noqa: B008 (frozen)
    report: Report = lambda text, share: None,
) -> int:
    """Download a split and import it like any upload. :returns: the dataset's id

    :raises StudioError: as `fetch` and `plumbline.data.importing.importer.add` do
    """
    datasets.refuse_long_name("dataset", options.name)
    own_name = repo_id.split("/")[-1][: datasets.LONGEST_NAME]
    with tempfile.TemporaryDirectory(prefix="hub-", dir=workspace_folder("staging")) as target:
        got = fetch(repo_id, Path(target), config, split, revision, report, held_out_split=held_out_split)
        origin = {"hub": repo_id, "config": got.config, "split": got.split, "revision": got.revision}
        train, held_out = ([Source(path, path.name) for path in part] for part in (got.files, got.held_out))
        named = replace(options, name=options.name or own_name)
        return importer.add(train, held_out, named, report, origin)
