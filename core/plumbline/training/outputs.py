"""What a run leaves at its end: its summary, what it took, and the artifact."""

import json
import math
import time
from collections import Counter
from pathlib import Path
from typing import Any

from plumbline.batches.prepare import Prepared
from plumbline.checkpoints import artifact, base_digest
from plumbline.config.schema import RunConfig
from plumbline.files import write_whole
from plumbline.jobs.job import Job
from plumbline.models import hardware, load
from plumbline.planner.figures import perplexity
from plumbline.store import runs
from plumbline.training import learned
from plumbline.training.loop import guard
from plumbline.training.loop.pace import EVALUATION, SAVE, StepClock


def summary(
    job: Job,
    trainer: Any,
    folder: Path,
    trainable: int,
    total: int,
    digest: dict[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """The figures that training_summary.json holds. :param folder: of the run"""
    run = runs.get(job.run_id)
    method = runs.recipe(job.run_id).method
    likelihood = method.is_likelihood
    return {
        "steps": trainer.state.global_step,
        "total_steps": trainer.state.max_steps,
        "seconds": round(seconds, 1),
        "trainable_parameters": trainable,
        "all_parameters": total,
        "base_eval_loss": run["base_eval_loss"],
        "base_perplexity": _perplexity(run["base_eval_loss"]) if likelihood else None,
        "eval_loss": run["eval_loss"],
        "perplexity": _perplexity(run["eval_loss"]) if likelihood else None,
        "best_eval_loss": run["best_eval_loss"],
        "best_step": run["best_step"],
        "adapter_step": (trainer.ending and trainer.ending.taken) or trainer.state.global_step,
        "method": method.name,
        "learned_nothing": learned.nothing(trainer.model, folder),
        "base_unchanged": True,
        "base_sha256": digest["sha256"],
    }


def parts(clock: StepClock, began: float, loaded: float, fitted: float, resumed: bool) -> dict[str, float]:
    """Seconds of what a run spent its time on, by the names of `figures.PARTS`; they add up to all of it.

    :param began: when the job began, ``loaded`` when it was ready to measure, ``fitted`` when all was trained
    """
    evaluations = clock.pauses[EVALUATION]
    base = 0.0 if resumed else sum(evaluations[:1])
    return {
        "loading": loaded - began,
        "base": base,
        "steps": fitted - loaded - clock.left_out,
        "evaluations": sum(evaluations) - base,
        "saving": sum(clock.pauses[SAVE]) + time.perf_counter() - fitted,
    }


def outcome(
    trainer: Any, folder: Path, summary: dict[str, Any], taken: dict[str, float], earlier: str | None
) -> dict[str, Any]:
    """What the run took, under the names of its forecast.

    :param taken: `parts` of this process
    :param earlier: the outcome of a stop that the run went on from, as JSON; None when nobody knows what
        the run took until then, and so what it took altogether
    """
    before = json.loads(earlier).get("parts", {}) if earlier is not None else None
    if before is not None:
        taken = {name: seconds + before.get(name, 0.0) for name, seconds in taken.items()}
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {
        "peak_gib": trainer.record.peak_gib,
        "seconds_per_step": trainer.record.median_step_seconds(),
        "total_seconds": None if before is None else sum(taken.values()),
        "parts": {} if before is None else taken,
        "steps": summary["steps"],
        "disk_gib": size / hardware.GIB,
    }


def _perplexity(loss: float | None) -> float | None:
    """None also where it is larger than any number."""
    found = math.inf if loss is None else perplexity(loss)
    return found if math.isfinite(found) else None


def write(
    folder: Path, config: RunConfig, job: Job, trainer: Any, prepared: Prepared, summary: dict[str, Any]
) -> None:
    """Write the artifact and the summary into the run's folder.

    :raises StudioError: when a weight of the adapter is not finite; an earlier artifact stays then
    """
    job.report("writing the adapter")
    guard.check_finite_weights(trainer.model, None, summary["steps"])
    run = runs.get(job.run_id)
    metadata = {
        "name": config.display_name,
        "run": job.run_id,
        "step": summary["steps"],
        "base": {
            "id": config.model.base,
            "revision": config.model.revision,
            "quantisation": config.quantisation.method,
            "sha256_before": summary["base_sha256"],
            "sha256_after": summary["base_sha256"],
        },
        "datasets": _datasets(folder, prepared),
        "tokenizer": load.fingerprint(load.tokenizer(config.model.base, config.model.revision)),
        "decisions": json.loads(run["decisions"] or "{}"),
        "environment": hardware.environment(),
        "code": base_digest.code(),
    }
    artifact.write(folder / "artifact", trainer.model, config, metadata, summary)
    write_json(folder / "training_summary.json", summary)
    write_json(folder / "training_results.json", {"log_history": trainer.state.log_history})


def _datasets(folder: Path, prepared: Prepared) -> list[dict[str, Any]]:
    """What was read, dataset by dataset: rows learned, and their share of the tokens in the loss."""
    record = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    rows, held_out = Counter(prepared.train_sources), Counter(prepared.sources)
    tokens: Counter[str] = Counter()
    for side in filter(None, (prepared.train, prepared.others)):
        for source, row in zip(prepared.train_sources, side, strict=True):
            tokens[source] += row.supervised
    return [
        {
            "name": one["dataset"],
            "sha256": one["sha256"],
            "train_rows": rows[one["dataset"]],
            "held_out_rows": held_out[one["dataset"]],
            "share_of_loss": round(tokens[one["dataset"]] / max(1, tokens.total()), 4),
            "weight": one["weight"],
            "prefix": one["prefix"],
        }
        for one in record
    ]


def write_json(path: Path, value: Any) -> None:
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
