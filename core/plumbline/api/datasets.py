"""Datasets, from Python."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from typing_extensions import Unpack

from plumbline.api.jobs import finish
from plumbline.api.results import NearDuplicates
from plumbline.config.mapping import Mapping
from plumbline.data.formats.mapping_parser import mapping_of
from plumbline.data.importing import from_hub, importer
from plumbline.data.importing.importer import Options
from plumbline.data.importing.preview import Preview, of_file
from plumbline.data.readers.source_files import Reading, Source
from plumbline.data.selection import datasets
from plumbline.errors import StudioError
from plumbline.store import datasets as dataset_store
from plumbline.worker import near_duplicates as check_job

Files = str | Path | Sequence[str | Path]
COLUMNS_FROM = 200  # rows of a file that its columns are known from


class ImportOptions(TypedDict, total=False):
    """How an import is done.

    :param name: of the dataset; empty means the first file's
    :param mapping: a `Mapping`, its parts as a dict, ``prompt=question,answer=reply``, a file, or the name
        of a saved one; None takes the guess
    :param leave_out: store the good rows although some are bad
    :param encoding: where a file is not UTF-8
    :param delimiter: of CSV, when it is not recognised
    :param header: whether the first CSV line names the columns, when that is not recognised
    :param system: a system prompt for every row that has none of its own
    :param all_trained: train on files too whose names say that they are held out, such as test.csv, and on
        rows that a column says it of
    """

    name: str
    mapping: Mapping | dict[str, Any] | str | Path | None
    leave_out: bool
    encoding: str
    delimiter: str
    header: bool | None
    system: str
    all_trained: bool


def add_data(
    files: Files,
    held_out: Files = (),
    report: importer.Report = lambda text, share: None,
    **options: Unpack[ImportOptions],
) -> int:
    """Check files and store them as one dataset. :returns: its id

    :param held_out: files whose rows are held out from training
    :param report: told what is being done, and the share done where it is known
    :param options: `ImportOptions`
    :raises StudioError: with file, line and field of everything wrong; nothing is stored then
    """
    datasets.ensure_samples()
    chosen, train = import_options(**options), sources(files)
    if chosen.mapping:
        preview(train[0], chosen)
    return importer.add(train, sources(held_out), chosen, report)


def add_hub(
    dataset: str,
    config: str | None = None,
    split: str | None = None,
    held_out_split: str | None = None,
    revision: str | None = None,
    report: importer.Report = lambda text, share: None,
    **options: Unpack[ImportOptions],
) -> int:
    """Download a split of a dataset on the Hugging Face Hub and store it. :returns: its id

    :param dataset: its name there, like ``org/name``
    :param held_out_split: a second split, held out from training
    :param report: told what is being done, and the share done where it is known
    :param options: `ImportOptions`
    :raises StudioError: when it cannot be had, or with everything wrong in it; nothing is stored then
    """
    datasets.ensure_samples()
    chosen = import_options(**options)
    return from_hub.add(dataset, config, split, held_out_split, revision, chosen, report)


def preview(source: Source, options: Options) -> Preview:
    """What an import would do, seen from a file's first rows; nothing is stored.

    :raises StudioError: when the file cannot be read
    """
    return of_file(source, options, COLUMNS_FROM)


def import_options(**options: Unpack[ImportOptions]) -> Options:
    """How an import is done. :raises StudioError: when the mapping is none"""
    reading = Reading(options.get("encoding", "utf-8"), options.get("delimiter", ""), options.get("header"))
    return Options(
        options.get("name", ""),
        mapping_of(options.get("mapping")),
        options.get("system", ""),
        reading,
        options.get("leave_out", False),
        options.get("all_trained", False),
    )


def sources(files: Files) -> list[Source]:
    """:raises StudioError: with the first path that is no file"""
    paths = [Path(file) for file in ([files] if isinstance(files, (str, Path)) else files)]
    for path in paths:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "is not there"
            raise StudioError(str(path), what, "Give the path of a data file.")
    return [Source(path, path.name) for path in paths]


def check(dataset: int | str, threshold: float = check_job.THRESHOLD) -> NearDuplicates:
    """Look for training rows that say nearly the same; the finding is kept with the dataset.

    :param dataset: its id or name
    :param threshold: how alike rows are that count as nearly the same, from 0.7 to 1
    :raises StudioError: when there is no such dataset, or the job does not complete
    """
    dataset_id = dataset if isinstance(dataset, int) else dataset_store.by_name(dataset)["id"]
    result = finish(check_job.start(dataset_id, threshold))["result"]
    return NearDuplicates(
        result["rows"], result["groups"], result["repeated"], tuple(result["first"]), result["threshold"]
    )
