"""Runs that come from other runs: branches, the stages of a rank schedule, and reproductions.

A branch begins with the adapter of a step of its parent, and with an optimizer of its own. A stage of a
rank schedule begins with the whole of the stage before: a larger adapter that computes the same.
"""

import json
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

from plumbline.checkpoints.inherit import steps
from plumbline.config import schema
from plumbline.data.selection import mix
from plumbline.errors import StudioError
from plumbline.home import run_folder
from plumbline.store import datasets, runs
from plumbline.store.records import RunRow

TOLERANCE = 0.02  # nats between two curves of the same recipe on devices that sum in another order


@dataclass(frozen=True)
class Branch:
    """A run to be: it goes on from a step of another one with some settings changed."""

    run_id: int
    step: int
    config: schema.RunConfig

    def store(self) -> int:
        """:returns: the id of the new run

        :raises StudioError: when its run was deleted, or its step was rotated away, since it was looked at
        """
        runs.get(self.run_id)
        if self.step not in steps(self.run_id):
            raise StudioError(f"step {self.step}", f"of run {self.run_id} is not kept any more")
        dataset = datasets.by_name(self.config.data.parts[0].dataset)
        return runs.add(self.config, dataset["id"], self.run_id, self.step, "branch")


def branch(run_id: int, step: int | None = None, changes: dict[str, Any] | None = None) -> Branch:
    """What a branch would be; nothing is stored yet.

    :param step: one of `steps`; None means the last
    :param changes: settings by key, like ``{"training.learning_rate": 1e-4}``
    :raises StudioError: when there is no such step, or the changes do not go with its adapter or its data
    """
    known = steps(run_id)
    if not known:
        raise StudioError(f"run {run_id}", "has no checkpoint to begin with", "Train it first.")
    step = known[-1] if step is None else step
    if step not in known:
        listed = ", ".join(map(str, known))
        raise StudioError(f"step {step}", f"of run {run_id} was not kept", f"Kept are: {listed}.")
    parent = runs.recipe(run_id)
    changes = schema.by_current_names(changes or {})
    config = schema.changed(parent, changes)
    for section, name in (("model", "base"), ("model", "revision"), ("lora", "target_modules")):
        if getattr(getattr(config, section), name) != getattr(getattr(parent, section), name):
            raise StudioError(f"{section}.{name}", "cannot change in a branch", "Start a new run instead.")
    if config.lora.r < parent.lora.r:
        raise StudioError("lora.r", f"cannot become smaller than run {run_id}'s {parent.lora.r}")
    if config.lora.rank_schedule:
        raise StudioError("lora.rank_schedule", "is not for a branch", "Give lora.r the next rank.")
    config = _as_long_as_the_rest(run_id, step, config, changes)
    if "name" not in changes:
        config = config.model_copy(update={"name": parent.name_with(f"from {step}")})
    mix.choose(config.data)
    return Branch(run_id, step, config)


def _as_long_as_the_rest(
    run_id: int, step: int, config: schema.RunConfig, changes: dict[str, Any]
) -> schema.RunConfig:
    """A branch makes the steps that its parent had left, unless the changes say how many there are.

    From the last step, where none are left, it makes as many as the recipe says.
    """
    total = runs.get(run_id)["total_steps"] or 0
    counts = {"training.max_steps", "training.epochs", "training.effective_batch"}
    if step >= total or counts & changes.keys() or any(key.startswith("data.") for key in changes):
        return config
    training = config.training.model_copy(update={"max_steps": total - step})
    return config.model_copy(update={"training": training})


def reproduce(run_id: int) -> int:
    """Store a run that trains another one's recipe again. :returns: its id"""
    row = runs.get(run_id)
    config = runs.recipe(run_id)
    again = config.model_copy(update={"name": config.name_with("again")})
    return runs.add(again, row["dataset_id"], run_id, None, "reproduction")


def origin(run: RunRow, known: Container[int]) -> str:
    """Where a run comes from, as in ``from step 30 of run 4``; empty for one that comes from nowhere.

    :param run: its row
    :param known: numbers of the runs there are; another one was deleted
    """
    parent = f"run {run['parent']}" + ("" if run["parent"] in known else " (deleted)")
    if run["relation"] == "branch":
        return f"from step {run['parent_step']} of {parent}"
    if run["relation"] == "rank":
        return f"after {parent}"
    return f"{parent} again" if run["relation"] == "reproduction" else ""


@dataclass(frozen=True)
class Agreement:
    """How close the curves of two runs of one recipe are.

    :param steps: with a loss in both
    :param largest: largest distance of a step's losses, in nats
    :param held_out: distance of the last held-out losses, in nats; None where one has none
    :param differences: what was not the same: versions, device, data, code
    """

    steps: int
    largest: float
    held_out: float | None
    differences: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        return bool(self.steps) and max(self.largest, self.held_out or 0.0) <= TOLERANCE

    @property
    def sentence(self) -> str:
        if not self.steps:
            return "There are no steps to compare."
        if not self.largest and not self.held_out:
            return f"The curves agree bit for bit over {self.steps} steps."
        apart = f"at most {self.largest:.2g} nats apart over {self.steps} steps"
        verdict = "The curves agree" if self.agrees else "The curves do not agree"
        known = f" Different: {'; '.join(self.differences)}." if self.differences else ""
        return f"{verdict}: {apart}.{known}"


def agreement(run_id: int) -> Agreement:
    """A reproduction against the run that it trains again. :raises StudioError: when it is none"""
    run = runs.get(run_id)
    if run["relation"] != "reproduction":
        raise StudioError(f"run {run_id}", "is no reproduction of another run")
    parent = runs.parent_of(run)
    first, second = ({point["step"]: point for point in runs.metrics(each)} for each in (parent, run_id))
    both = sorted(
        step
        for step in first.keys() & second.keys()
        if None not in (first[step]["loss"], second[step]["loss"])
    )
    apart = [abs(first[step]["loss"] - second[step]["loss"]) for step in both]
    before, after = (runs.get(each)["eval_loss"] for each in (parent, run_id))
    held_out = None if before is None or after is None else abs(before - after)
    return Agreement(len(both), max(apart, default=0.0), held_out, _differences(parent, run_id))


def _differences(run: int, other: int) -> tuple[str, ...]:
    """What two runs recorded of data, code and environment, where it is not the same."""
    sentences = []
    left, right = (_metadata(run_id) for run_id in (run, other))
    for section in ("environment", "code", "datasets"):
        before, after = (_named(side.get(section, {})) for side in (left, right))
        for name in sorted(before.keys() & after.keys()):
            if before[name] != after[name]:
                sentences.append(f"{name} {str(before[name])[:20]}, now {str(after[name])[:20]}")
    return tuple(sentences)


def _named(section: Any) -> dict[str, Any]:
    """A section of the metadata by name; of datasets, their digests."""
    if isinstance(section, dict):
        return section
    return {f"dataset {dataset['name']}": dataset["sha256"] for dataset in section}


def _metadata(run_id: int) -> dict[str, Any]:
    path = run_folder(run_id) / "artifact" / "metadata.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
