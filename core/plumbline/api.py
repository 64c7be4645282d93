"""Plumbline from Python: each function does one job and returns when it has ended.

```python
from plumbline import api
from plumbline.config import schema

dataset = api.add_data("answers.csv", mapping={"prompt": "question", "answer": "reply"})
print(api.check(dataset)["repeated"])
run = api.train(schema.preset("starter"), dataset)
print(api.evaluate(run)["adapter"]["perplexity"])
print(api.merge(run))
```
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

from plumbline.config.schema import RunConfig
from plumbline.data.formats.mapping_parser import mapping_of
from plumbline.data.importing import from_hub, importer
from plumbline.data.importing.importer import Options
from plumbline.data.importing.preview import Preview, of_file
from plumbline.data.readers.source_files import Reading, Source
from plumbline.data.selection import datasets
from plumbline.errors import StudioError
from plumbline.home import export_folder
from plumbline.jobs import queue
from plumbline.jobs.job_names import dataset_name, recipe_name
from plumbline.models import fit
from plumbline.planner import overview
from plumbline.runs import delete as removal
from plumbline.runs import lineage, start
from plumbline.store import datasets as dataset_store
from plumbline.store import evaluations, runs
from plumbline.store.records import JobRow
from plumbline.training import against_trl
from plumbline.worker import measure as probe_job
from plumbline.worker import near_duplicates as check_job
from plumbline.worker.wait import until_ended
from plumbline.worker.worker import recover

if TYPE_CHECKING:
    from plumbline.planner.forecast import Forecast

Files = str | Path | Sequence[str | Path]
COLUMNS_FROM = 200  # rows of a file that its columns are known from


def add_data(
    files: Files,
    held_out: Files = (),
    report: importer.Report = lambda text, share: None,
    **options: Any,
) -> int:
    """Check files and store them as one dataset. :returns: its id

    :param held_out: files whose rows are held out from training
    :param report: told what is being done, and the share done where it is known
    :param options: as `import_options` takes them
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
    **options: Any,
) -> int:
    """Download a split of a dataset on the Hugging Face Hub and store it. :returns: its id

    :param dataset: its name there, like ``org/name``
    :param held_out_split: a second split, held out from training
    :param report: told what is being done, and the share done where it is known
    :param options: as `import_options` takes them
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


def import_options(
    name: str = "",
    mapping: Any = None,
    leave_out: bool = False,
    encoding: str = "utf-8",
    delimiter: str = "",
    header: bool | None = None,
    system: str = "",
    all_trained: bool = False,
) -> Options:
    """How an import is done.

    :param mapping: a `Mapping`, its parts as a dict, ``prompt=question,answer=reply``, a file, or the name
        of a saved one; None takes the guess
    :param leave_out: store the good rows although some are bad
    :param delimiter: of CSV, when it is not recognised
    :param header: whether the first CSV line names the columns, when that is not recognised
    :param system: a system prompt for every row that has none of its own
    :param all_trained: train on files too whose names say that they are held out, such as test.csv, and on
        rows that a column says it of
    :raises StudioError: when the mapping is none
    """
    reading = Reading(encoding, delimiter, header)
    return Options(name, mapping_of(mapping), system, reading, leave_out, all_trained)


def sources(files: Files) -> list[Source]:
    """:raises StudioError: with the first path that is no file"""
    paths = [Path(file) for file in ([files] if isinstance(files, (str, Path)) else files)]
    for path in paths:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "is not there"
            raise StudioError(str(path), what, "Give the path of a data file.")
    return [Source(path, path.name) for path in paths]


def check(dataset: int | str, threshold: float = check_job.THRESHOLD) -> dict[str, Any]:
    """Look for training rows that say nearly the same; the finding is kept with the dataset.

    :param dataset: its id or name
    :param threshold: how alike rows are that count as nearly the same, from 0.7 to 1
    :returns: how many ``rows``, ``groups`` and ``repeated`` rows there are, and the ``first`` of these
    :raises StudioError: when there is no such dataset, or the job does not complete
    """
    dataset_id = dataset if isinstance(dataset, int) else dataset_store.by_name(dataset)["id"]
    return _finish(check_job.start(dataset_id, threshold))["result"]


def forecast(recipe: RunConfig, probe: bool = False) -> "Forecast":
    """What a recipe would take on this machine; ``problem`` says why it would not fit, if it would not.

    A recipe that was measured here before has what was measured then.

    :param probe: measure it first: two steps at the worst length, about 20 s
    :raises StudioError: when a dataset or the base cannot be had, nothing would be learned, or the
        measurement does not complete
    """
    datasets.ensure_samples()
    if probe:
        _finish(probe_job.start(recipe))
    return overview.expected(recipe)


def train(recipe: RunConfig, data: int | Files | None = None) -> int:
    """Train a new run, or with a rank schedule one after the other. :returns: the id of the last

    :param data: a dataset's id, or files to import, to train on in place of the recipe's datasets
    :raises StudioError: when a run does not complete
    """
    stored = add(recipe, data)
    for job_id in start.queued(stored):
        _finish(job_id)
    return stored[-1]


def add(recipe: RunConfig, data: int | Files | None = None, leave_out: bool = False) -> list[int]:
    """Store a recipe's runs without starting them: one, or one for each rank of its schedule.

    :param data: a dataset's id, or files, which are imported with the recipe's mapping
    :param leave_out: import the good rows of files although some are bad
    :returns: their ids
    """
    datasets.ensure_samples()
    if data is not None:
        known = data if isinstance(data, int) else _imported(recipe, data, leave_out)
        named = {"dataset": dataset_store.get(known)["name"], "mix": ()}
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update=named)})
    parts = [dataset_store.by_name(part.dataset) for part in recipe.data.parts]
    fit.check_fits(recipe)
    return start.store(datasets.described(recipe), parts[0]["id"])


def branch(run_id: int, step: int | None = None, changes: dict[str, Any] | None = None) -> int:
    """Train a new run that begins with the adapter of a step of another. :returns: its id

    :param step: a step that was kept (`lineage.steps`); None means the last
    :param changes: settings by key, like ``{"training.learning_rate": 1e-4}``
    :raises StudioError: when there is no such step, or the run does not complete
    """
    child = start.branch(run_id, step, changes or {}, uuid4().hex)
    _finish_training(child)
    return child


def reproduce(run_id: int) -> "lineage.Agreement":
    """Train a run's recipe again, and say whether the curves agree."""
    again = start.reproduce(run_id, uuid4().hex)
    _finish_training(again)
    return lineage.agreement(again)


def _imported(recipe: RunConfig, files: Files, leave_out: bool) -> int:
    return add_data(files, mapping=recipe.data.mapping, leave_out=leave_out)


def resume(run_id: int) -> None:
    """Go on with a stopped, interrupted or failed run."""
    recover()
    _finish(queue.resume_run(run_id))


def evaluate(run_id: int, rows: int | Literal["all"] | None = None) -> dict[str, Any]:
    """Compare a run's adapter with its base. :returns: the result, as the studio shows it

    :param rows: held-out rows at most, a sample that stands for all; None takes the recipe's number
    """
    runs.get(run_id)
    _finish(queue.enqueue("evaluate", run_id, rows=rows))
    found = evaluations.latest(run_id)
    assert found is not None
    return found["result"]


def check_against_trl(run_id: int, steps: int = against_trl.STEPS) -> dict[str, Any]:
    """Train the first steps of a run's recipe with our engine and with TRL's, and compare the losses.

    :param steps: of each of the three trainings
    :returns: whether it ``agrees``, the ``largest`` distance of the losses in nats and its ``step``, the
        ``spread`` of two seeds of TRL, and the curves ``ours``, ``trl`` and ``other_seed``
    :raises StudioError: when there is no such run, TRL cannot compute it, or the job does not complete
    """
    found: dict[str, Any] = _finish(against_trl.start(run_id, steps))["result"]
    return found


def merge(run_id: int) -> Path:
    """Merge a run's adapter into its 16-bit base. :returns: the model's folder"""
    runs.get(run_id)
    job = _finish(queue.enqueue("merge", run_id))
    return export_folder(job["id"]) / job["result"]["folder"]


def delete(run_id: int) -> None:
    """Delete a run with all it has saved, its evaluations and its exports. Runs that come from it stay.

    :raises StudioError: while a job of it waits or is being worked on, or a run has yet to begin with it
    """
    recover()
    removal.remove(run_id)


def _finish(job_id: int) -> JobRow:
    job = until_ended(job_id)
    if job["state"] != "completed":
        raise StudioError(f"{job['kind']} of {_owner(job)}", job["error"] or f"was {job['state']}")
    return job


def _finish_training(run_id: int) -> None:
    job = queue.latest(run_id, "train")
    assert job is not None
    _finish(job["id"])


def _owner(job: JobRow) -> str:
    if job["kind"] == "check":
        return dataset_name(job)
    return recipe_name(job) if job["kind"] == "probe" else f"run {job['run_id']}"
