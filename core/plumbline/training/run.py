"""One training run from its recipe to its artifact. The worker calls `train`.

Only adapter parameters are trained; the base's digest is taken before and after.
"""

import contextlib
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plumbline.batches.prepare import Prepared, prepare
from plumbline.checkpoints import base_digest, disk_space, folders, inherit, resume
from plumbline.checkpoints.identity import identity
from plumbline.checkpoints.summary import verdicts
from plumbline.config.schema import RunConfig, dumps
from plumbline.distributed import process_group
from plumbline.distributed.process_group import current
from plumbline.errors import Interrupted, StopRequested, StudioError
from plumbline.files import write_whole
from plumbline.home import run_folder
from plumbline.jobs import queue
from plumbline.jobs.job import Job
from plumbline.models import adapters, hardware, load, out_of_memory
from plumbline.planner import plan, smaller
from plumbline.planner.plan import Outcome
from plumbline.program import command
from plumbline.store import runs
from plumbline.training import assembly, learned, outputs
from plumbline.training.ranks import launcher
from plumbline.training.ranks.launcher import RankLauncher
from plumbline.training.ranks.task import RankTask


def train(job: Job) -> dict[str, Any]:
    """Train, or go on from the newest good checkpoint when the payload says ``resume``.

    :returns: the summary that training_summary.json holds
    :raises StudioError: for everything the user can mend; when memory ran out, the job's result has
        smaller settings under ``suggestion``
    :raises StopRequested: after the state was saved, when the user pressed Stop
    :raises Interrupted: after the state was saved, when `queue.end` was called
    """
    folder = run_folder(job.run_id)
    try:
        with disk_space.reserved(folder):
            return _train(job, folder)
    except StopRequested:
        if queue.ending(job.id):
            raise Interrupted() from None
        raise
    except StudioError:
        raise
    except Exception as error:
        made = folders.listed(folder / "checkpoints")
        size = folders.size_of(made[-1]) if made else disk_space.MB
        if found := disk_space.explained(error, folder, size):
            raise found from error
        raise


def _train(job: Job, folder: Path) -> dict[str, Any]:
    began = time.perf_counter()
    inherit.refuse_too_early(job.run_id)
    checkpoint = resume.checkpoint(job, folder / "checkpoints")
    config = load.pinned(runs.recipe(job.run_id))
    runs.update(job.run_id, recipe=dumps(config))
    write_whole(folder / "recipe.yaml", dumps(config))
    if config.machines.num_machines > 1 and process_group.rank_and_size()[1] == 1:
        raise StudioError(
            "machines.num_machines",
            "several machines are started by a command on each",
            f"`{command('forecast')}` prints them, or start the run in the studio.",
        )
    job.report("reading the data")
    prepared = prepare(config, job)
    job.check_stop()
    arranged = assembly.arranged(config, prepared)
    with launcher.launched_ranks(job, arranged) as together:
        order = RankTask.of(config, prepared, arranged, checkpoint)
        current().broadcast(order)
        return _computed(job, order.begun(), folder, checkpoint, together, began)


def _computed(
    job: Job, order: RankTask, folder: Path, checkpoint: Path | None, together: RankLauncher, began: float
) -> dict[str, Any]:
    """A run's steps and what they leave, once all of its processes know what to do."""
    from plumbline.training.loop.record import Record

    config, prepared = order.config, order.prepared

    def note(digest: dict[str, Any]) -> dict[str, Any]:
        outputs.write_json(folder / "baseline_checksums.json", digest)
        made_of = identity(config, digest["sha256"])
        if checkpoint is not None:
            resume.refuse_other(checkpoint, made_of, job)
        return made_of

    built = build(job, order, folder, checkpoint, Record(job, folder / "metrics_history.jsonl"), note)
    trainer, planned = built.trainer, built.planned
    trainable, total = adapters.trainable_share(built.model)
    job.event(f"{trainable:,} of {total:,} parameters are trainable ({trainable / total:.2%})")
    if checkpoint is None and (told := inherit.inherit(built.model, job.run_id)):
        job.event(told)
    trainer.identity = built.identity | {"optimizer": planned.plan.optimizer}
    run = runs.get(job.run_id)
    runs.update(
        job.run_id,
        device=hardware.device().value,
        decisions=json.dumps({name: choice._asdict() for name, choice in built.decisions.items()}),
        # What was shown before Start is what the run is held against.
        forecast=run["forecast"] or assembly.expected(config, prepared, planned),
        # Should this process be killed, nobody knows what it took.
        outcome=None,
    )
    resume.truncate_history(job, folder, checkpoint)
    begin_alike(built.model)
    if checkpoint is None:
        learned.note(built.model, folder)
    loaded = time.perf_counter()
    stopped = _fit(trainer, job, checkpoint, config, prepared, planned, together)
    fitted = time.perf_counter()
    if stopped and queue.ending(job.id):
        job.event(f"interrupted: step {trainer.state.global_step} is saved, and Resume goes on from it")
        raise Interrupted()

    job.report("checking that the base is unchanged")
    after = agreed_digest(built.model)
    if after["sha256"] != built.digest["sha256"]:
        raise StudioError(
            "base weights", "changed during training", "Please report this; do not use the adapter."
        )
    seconds = time.perf_counter() - began
    summary = outputs.summary(job, trainer, folder, trainable, total, built.digest, seconds)
    for told in verdicts(summary):
        job.event(told, "warning")
    outputs.write(folder, config, job, trainer, prepared, summary)
    parts = outputs.parts(trainer.clock, began, loaded, fitted, resumed=checkpoint is not None)
    earlier = run["outcome"] if checkpoint is not None else "{}"
    outcome = outputs.outcome(trainer, folder, summary, parts, earlier)
    runs.update(job.run_id, summary=json.dumps(summary), outcome=json.dumps(outcome), seconds_left=0.0)
    together.in_step = True
    if stopped:
        raise StopRequested()
    return summary


@dataclass(frozen=True)
class Built:
    """What one process of a run trains with.

    :param identity: what its checkpoints are of; empty in a process that writes none
    """

    model: Any
    trainer: Any
    planned: Outcome
    digest: dict[str, Any]
    identity: dict[str, Any]
    decisions: dict[str, hardware.Choice]


def build(
    job: Job,
    order: RankTask,
    folder: Path,
    checkpoint: Path | None,
    record: Any,
    note: Callable[[dict[str, Any]], dict[str, Any]] = lambda digest: {},
) -> Built:
    """Load the base, attach the adapter, plan, and make the trainer; in every process of a run.

    :param folder: of the run, or of this process
    :param note: given the base's digest, before anything is made of it; returns the identity
    :raises StudioError: when processes have loaded other bases
    """
    from transformers import set_seed

    config = order.config
    kinds = current().all_gather((hardware.device().value, hardware.compute_dtype(config).value))
    for rank, kind in enumerate(kinds):
        if kind != kinds[0]:
            what = f"has {' and '.join(kind)}, the first one {' and '.join(kinds[0])}"
            raise StudioError(f"process {rank + 1}", what, "Give every process a GPU of the same kind.")
    set_seed(config.training.seed)
    hardware.forget_peak()
    job.report("loading the base model")
    if order.plan.sharded:
        from plumbline.training.ranks.sharded_base import spread

        base = spread(config, current(), hardware.device().value, job.report, job.check_stop)
    else:
        base = load.base_model(config, job.report, job.check_stop)
    job.check_stop()
    job.report("taking the base's checksum")
    digest = agreed_digest(base)
    identity = note(digest)
    model = adapters.attach(base, config)
    adapters.refuse_other_trainables(model)
    planned = assembly.planned(_with_its_optimizer(config, checkpoint), order.prepared, order.plan)
    trainer, decisions = assembly.trainer(config, job, model, order.prepared, folder, planned.plan, record)
    return Built(model, trainer, planned, digest, identity, decisions)


def agreed_digest(model: Any) -> dict[str, Any]:
    """The digest of the base, which all processes take together.

    :raises StudioError: when it is not the same in all of them
    """
    found = base_digest.base_digest(model)
    for rank, other in enumerate(current().all_gather(found["sha256"])):
        if other != found["sha256"]:
            what = f"is not the same in process {rank + 1} of {current().size}"
            raise StudioError("the base", what, "Give every machine the same files.")
    return found


def begin_alike(model: Any) -> None:
    """Every process has the adapter that the first one begins with."""
    current().match([p.data for p in model.parameters() if p.requires_grad])


def _with_its_optimizer(config: RunConfig, checkpoint: Path | None) -> RunConfig:
    """A run goes on with the optimizer that it began with: the states of another do not fit it."""
    chosen = folders.identity_of(checkpoint).get("optimizer") if checkpoint else None
    if chosen is None or config.training.optimizer != "auto":
        return config
    return config.model_copy(update={"training": config.training.model_copy(update={"optimizer": chosen})})


def _fit(
    trainer: Any,
    job: Job,
    checkpoint: Path | None,
    config: RunConfig,
    prepared: Prepared,
    planned: Outcome,
    together: RankLauncher,
) -> bool:
    """Train to the end or to Stop; True when stopped."""

    def suggested() -> dict[str, Any]:
        work = plan.workload(config, prepared.lengths, prepared.supervised)
        settings = smaller.smaller(config, work.shared(planned.plan.processes), planned)
        queue.suggest(job.id, settings)
        return settings

    job.running()
    together.on_memory = lambda: smaller.OutOfMemory("", suggested()).fix
    try:
        stopped = steps(trainer, job, checkpoint)
    except Exception as error:
        _keep_what_was_measured(trainer)
        if not out_of_memory.ran_out(error):
            raise
        job.log("".join(traceback.format_exception(error)))
        settings = suggested()
        # Its frames hold what did not fit.
        traceback.clear_frames(error.__traceback__)
        raise smaller.explained(error, trainer.where, planned, settings) from None
    trainer.record.write(trainer.state, wait=True)
    return stopped


def _keep_what_was_measured(trainer: Any) -> None:
    """Whatever ended the run; that a full disk takes no more of it is told by what ended the run."""
    # A GPU that failed gives no more figures; what it failed with is told already.
    with contextlib.suppress(Exception):
        trainer.flush_log()
    try:
        trainer.record.write(trainer.state, wait=True)
    except Exception as error:
        if disk_space.explained(error, Path(trainer.args.output_dir).parent, disk_space.MB) is None:
            raise


def steps(trainer: Any, job: Job, checkpoint: Path | None) -> bool:
    """A run's steps and evaluations; True when it was asked to stop."""
    try:
        if checkpoint is None:
            job.report("measuring the base on the held-out rows")
            trainer.measure_base()
            hardware.forget_peak()
        complete = checkpoint is not None and trainer.load_finished(checkpoint)
        if not complete:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if trainer.state.global_step < trainer.state.max_steps:
            return True
        if not trainer.evaluated():
            trainer.evaluate()
        if complete:
            trainer.finish()
    except StopRequested:
        # Stop came during an evaluation: the weights of the last step are whole, keep them.
        if trainer.state.global_step > 0 and trainer.optimizer is not None:
            trainer.save_now()
            return True
        raise
    return False
