"""The job that holds our engine against TRL: the first steps of a run's recipe, trained by both.

Three short trainings see the same rows in the same order, with the recipe's own learning rates, from a fresh
adapter: ours and TRL's with the adapter that the recipe's seed draws, and TRL's once more with the adapter,
and the dropout, of the next seed. How far the two curves of TRL are apart is the spread: what mere chance
does to a curve. Other seeds in the order of rows would tell less: every step would then be of other rows,
whose losses differ by far more than two right engines may, and an error would hide in it.

Before the first step both seeds compute the base, so there only rounding is let through.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plumbline.config.schema import RunConfig
from plumbline.jobs import queue
from plumbline.jobs.job import Job
from plumbline.store import runs

STEPS = 20
KIND: queue.Kind = "reference"  # of the job
# What rounding alone may change of a step's loss, as a share of it, by the type that is computed in.
ROUNDING = {"float32": 1e-4, "float16": 2e-3, "bfloat16": 1e-2}


def start(run_id: int, steps: int = STEPS) -> int:
    """Queue the check of a run, unless one waits or is worked on. :returns: the job's id

    :param steps: of each training, at least 2
    :raises StudioError: when there is no such run, or TRL cannot compute its recipe
    """
    _with_engine(runs.recipe(run_id), "trl")
    return queue.enqueue_once(KIND, run_id, steps=steps)


def check(job: Job) -> dict[str, Any]:
    """Do the job. :returns: what `compared` gives, and the curves as ``ours``, ``trl``, ``other_seed``

    :raises StudioError: when TRL cannot compute the recipe
    :raises StopRequested: when the user pressed Stop
    """
    from plumbline.batches.prepare import prepare
    from plumbline.models import hardware, load

    config = load.pinned(runs.recipe(job.run_id))
    steps, seed = job.payload["steps"], config.training.seed
    ours, trl = _with_engine(config, "plumbline"), _with_engine(config, "trl")
    job.report("reading the data")
    prepared = prepare(ours)
    job.running()
    curves = []
    parts = (
        ("Plumbline", ours, seed),
        ("TRL", trl, seed),
        ("TRL, next seed", trl, seed + 1),
    )
    for number, (name, recipe, drawn) in enumerate(parts):

        def told(step: int, name: str = name, number: int = number) -> None:
            job.check_stop()
            job.report(f"{name}: step {step} of {steps}", (number + step / steps) / len(parts))

        curves.append(_curve(recipe, job, prepared, drawn, steps, told))
        hardware.release_memory()
    dtype = hardware.compute_dtype(config).value
    own, theirs, other = curves
    result = compared(own, theirs, other, ROUNDING[dtype])
    result |= {"ours": own, "trl": theirs, "other_seed": other}
    result |= {"compute_type": dtype, "version": dict(hardware.versions())["trl"]}
    job.event(sentence(result), "info" if result["agrees"] else "error")
    return result


def compared(ours: list[float], trl: list[float], other_seed: list[float], rounding: float) -> dict[str, Any]:
    """How far our losses are from TRL's, and how far TRL's are from each other.

    :param rounding: the share of a loss that rounding may change
    :returns: ``largest`` distance in nats and the ``step`` where it is, ``spread``, ``rounding`` in nats,
        and whether it ``agrees``: nowhere farther than spread or rounding, at the first step than rounding
    """
    apart = [abs(one - other) for one, other in zip(ours, trl, strict=True)]
    spread = max(abs(one - other) for one, other in zip(trl, other_seed, strict=True))
    allowed = rounding * max(map(abs, trl))
    largest = max(apart)
    return {
        "steps": len(apart),
        "largest": largest,
        "step": apart.index(largest) + 1,
        "first": apart[0],
        "spread": spread,
        "rounding": allowed,
        "agrees": apart[0] <= allowed and largest <= max(spread, allowed),
    }


def sentence(result: dict[str, Any]) -> str:
    """:param result: of the job"""
    far = (
        f"over {result['steps']} steps the losses are at most {result['largest']:.2g} apart (step "
        f"{result['step']}); two seeds of TRL are {result['spread']:.2g} apart, and rounding in "
        f"{result['compute_type']} may be {result['rounding']:.2g}"
    )
    if result["agrees"]:
        return f"Agrees with TRL {result['version']}: {far}."
    first = f" At the first step, before anything is learned, they are {result['first']:.2g} apart."
    return f"Disagrees with TRL {result['version']}: {far}.{first} Do not trust this run; please report it."


def _with_engine(config: RunConfig, engine: str) -> RunConfig:
    """The recipe on one GPU with this engine. :raises RecipeError: when that does not compute it"""
    from plumbline.config import schema

    one = {"machines.gpus": 1, "machines.num_machines": 1, "machines.sharding": "none"}
    return schema.changed(config, {"training.engine": engine, **one}, "the check against TRL")


def _curve(
    config: RunConfig, job: Job, prepared: Any, seed: int, steps: int, told: Callable[[int], None]
) -> list[float]:
    """Losses of the first steps in nats. :param seed: of adapter and dropout; rows keep the recipe's"""
    from transformers import set_seed

    from plumbline.models import adapters, load
    from plumbline.training import assembly
    from plumbline.training.loop.first_steps import FirstSteps

    set_seed(seed)
    model = adapters.attach(load.base_model(config, check_stop=job.check_stop), config)
    plan = assembly.planned(config, prepared, assembly.arranged(config, prepared)).plan
    record = FirstSteps(min(steps, assembly.total_steps(config, len(prepared.train))), told)
    with tempfile.TemporaryDirectory() as folder:
        trainer, _ = assembly.trainer(config, job, model, prepared, Path(folder), plan, record)
        for interval in ("eval_strategy", "save_strategy"):
            setattr(trainer.args, interval, "no")
        trainer.args.logging_steps = 1
        set_seed(seed)
        trainer.train()
    return record.losses
