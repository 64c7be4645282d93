"""Runs, from Python: what they would take, training, what came of it."""

from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

from plumbline.api.datasets import Files, add_data
from plumbline.api.jobs import finish
from plumbline.api.results import (
    Answer,
    Answers,
    Difference,
    EngineCheck,
    Evaluation,
    Measured,
    Point,
    Preference,
    Run,
)
from plumbline.config.schema import RunConfig
from plumbline.data.selection import datasets
from plumbline.home import export_folder, run_folder
from plumbline.jobs import queue
from plumbline.models import fit
from plumbline.planner import overview
from plumbline.runs import delete as removal
from plumbline.runs import lineage, start
from plumbline.runs import submit as schedulers
from plumbline.store import datasets as dataset_store
from plumbline.store import evaluations, runs
from plumbline.store.records import RunRow
from plumbline.training import against_trl
from plumbline.worker import measure as probe_job
from plumbline.worker.worker import recover

if TYPE_CHECKING:
    from plumbline.chat.session import Generation
    from plumbline.planner.forecast import Forecast


def forecast(recipe: RunConfig, probe: bool = False) -> "Forecast":
    """What a recipe would take on this machine; ``problem`` says why it would not fit, if it would not.

    A recipe that was measured here before has what was measured then.

    :param probe: measure it first: two steps at the worst length, about 20 s
    :raises StudioError: when a dataset or the base cannot be had, nothing would be learned, or the
        measurement does not complete
    """
    datasets.ensure_samples()
    if probe:
        finish(probe_job.start(recipe))
    return overview.expected(recipe)


def train(recipe: RunConfig, data: int | Files | None = None) -> int:
    """Train a new run, or with a rank schedule one after the other. :returns: the id of the last

    :param data: a dataset's id, or files to import, to train on in place of the recipe's datasets
    :raises StudioError: when a run does not complete
    """
    stored = add(recipe, data)
    for job_id in start.queued(stored):
        finish(job_id)
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
    finish(queue.resume_run(run_id))


def evaluate(run_id: int, rows: int | Literal["all"] | None = None) -> Evaluation:
    """Compare a run's adapter with its base on the held-out rows.

    :param rows: held-out rows at most, a sample that stands for all; None takes the recipe's number
    :raises StudioError: when there is no such run, it has no adapter, or the job does not complete
    """
    from plumbline.evaluation.compare import sentence

    runs.get(run_id)
    finish(queue.enqueue("evaluate", run_id, rows=rows))
    stored = evaluations.latest(run_id)
    assert stored is not None
    result = stored["result"]
    preference = result.get("preference", {})
    return Evaluation(
        run_id,
        result["rows"],
        result["answers"],
        _measured(result["base"]),
        _measured(result["adapter"]),
        Difference(**result["difference"]) if "difference" in result else None,
        _preference(preference.get("base")),
        _preference(preference.get("adapter")),
        sentence(result),
    )


def check_against_trl(run_id: int, steps: int = against_trl.STEPS) -> EngineCheck:
    """Train the first steps of a run's recipe with our engine and with TRL's, and compare the losses.

    :param steps: of each of the three trainings
    :raises StudioError: when there is no such run, TRL cannot compute it, or the job does not complete
    """
    result = finish(against_trl.start(run_id, steps))["result"]
    figures = result["agrees"], result["largest"], result["step"], result["spread"]
    return EngineCheck(*figures, tuple(result["ours"]), tuple(result["trl"]), tuple(result["other_seed"]))


def _measured(side: dict[str, Any]) -> Measured:
    return Measured(
        side["loss"], side["perplexity"], side["tokens"], side.get("exact_match"), side.get("token_f1")
    )


def _preference(side: dict[str, Any] | None) -> Preference | None:
    return None if side is None else Preference(side["accuracy"], side["margin"])


def ask(run_id: int, question: str, system: str = "", generation: "Generation | None" = None) -> Answers:
    """Ask a run's base and its adapter the same. Their model stays loaded for the next question.

    :param question: what the user says; a run on plain texts continues it
    :param generation: how answers are sampled; None takes the defaults
    :raises StudioError: when the run has no adapter, a setting is wrong, or the model is in use
    """
    from plumbline.chat import session
    from plumbline.evaluation.generate import Task

    turns = [{"role": "system", "content": system}] if system else []
    task: Task | str = Task([*turns, {"role": "user", "content": question}], "")
    if runs.recipe(run_id).method.name == "pretraining":
        task = question
    settings = generation or session.Generation()
    *_, last = session.answer(run_id, dict.fromkeys(session.SIDES, task), settings, Event())
    base, tuned = (Answer(last[side].text, last[side].note) for side in session.SIDES)
    return Answers(base, tuned)


def adapter(run_id: int) -> Path:
    """The folder of a run's adapter, as peft opens it. :raises StudioError: when the run has none"""
    from plumbline.evaluation.compare import refuse_without_adapter

    refuse_without_adapter(run_id)
    return run_folder(run_id) / "artifact"


def merge(run_id: int) -> Path:
    """Merge a run's adapter into its 16-bit base. :returns: the model's folder

    :raises StudioError: when the run has no adapter, or the job does not complete
    """
    runs.get(run_id)
    job = finish(queue.enqueue("merge", run_id))
    return export_folder(job["id"]) / job["result"]["folder"]


def export_adapter(run_id: int) -> Path:
    """Zip a run's adapter with the base's tokenizer and checksums. :returns: the file

    :raises StudioError: when the run has no adapter, or a file of it has changed
    """
    runs.get(run_id)
    job = finish(queue.enqueue("adapter", run_id))
    return export_folder(job["id"]) / job["result"]["file"]


def list_runs(limit: int | None = None) -> list[Run]:
    """All runs, or the newest ``limit`` of them; the newest first."""
    recover()
    return [_run(row) for row in runs.listed(-1 if limit is None else limit)]


def get_run(run_id: int) -> Run:
    """:raises StudioError: when there is no such run"""
    recover()
    return _run(runs.get(run_id))


def _run(row: RunRow) -> Run:
    return Run(
        id=row["id"],
        name=row["name"],
        state=row["state"],
        base=row["base"],
        dataset=row["dataset_id"],
        step=row["step"] or 0,
        total_steps=row["total_steps"],
        loss=row["loss"],
        eval_loss=row["eval_loss"],
        base_eval_loss=row["base_eval_loss"],
        best_eval_loss=row["best_eval_loss"],
        best_step=row["best_step"],
        parent=row["parent"],
        error=row["error"],
        created_at=row["created_at"],
    )


def metrics(run_id: int) -> list[Point]:
    """What a run has measured, one point for each optimizer step with a measurement, in their order.

    :raises StudioError: when there is no such run
    """
    runs.get(run_id)
    renamed = ({"eval_loss_of": row.pop("sources"), **row} for row in runs.metrics(run_id))
    return [Point(**values) for values in renamed]


def stop(run_id: int) -> None:
    """Ask a run to save its state and stop, from another thread or program than the one that trains it.

    :raises StudioError: when it is not queued or running
    """
    queue.stop_run(run_id)


def submit(
    run_id: int,
    scheduler: Literal["slurm", "skypilot"],
    machines: dict[str, str | int] | None = None,
    time: str = "",
    partition: str = "",
    accelerator: str = "",
    package: str = "",
) -> Path:
    """Write a run out as a job for a scheduler; nothing is handed in. :returns: the job's folder

    :param machines: settings of the section machines, like ``{"num_machines": 2, "gpus": 8}``
    :param time: Slurm: most it may take, like ``2-12:00:00``; ``partition``: where it is to wait
    :param accelerator: SkyPilot: what each machine has, like ``H100:8``; ``package``: what pip installs
        Plumbline from
    :raises StudioError: when the run cannot be a job, or an option is not the scheduler's
    """
    changes = {f"machines.{name}": str(value) for name, value in (machines or {}).items()}
    if scheduler == "slurm":
        return schedulers.write(schedulers.slurm(run_id, changes, time, partition))
    return schedulers.write(schedulers.skypilot(run_id, changes, accelerator, package))


def delete(run_id: int) -> None:
    """Delete a run with all it has saved, its evaluations and its exports. Runs that come from it stay.

    :raises StudioError: while a job of it waits or is being worked on, or a run has yet to begin with it
    """
    recover()
    removal.remove(run_id)


def _finish_training(run_id: int) -> None:
    job = queue.latest(run_id, "train")
    assert job is not None
    finish(job["id"])
