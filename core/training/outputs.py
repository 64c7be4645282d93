"""What a run leaves at its end: its summary, what it took, and the artifact."""

import json
import math
from pathlib import Path
from typing import Any

from core.config import RunConfig
from core.jobs.worker import Job
from core.models import hardware, load
from core.store import datasets as dataset_store
from core.store import runs
from core.training import artifact, guard, proof
from core.training.checkpoints import write_whole
from core.training.prepare import Prepared


def summary(
    job: Job, trainer: Any, trainable: int, total: int, digest: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """The figures that training_summary.json holds."""
    run = runs.get(job.run_id)
    likelihood = runs.recipe(job.run_id).method.is_likelihood
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
        "base_unchanged": True,
        "base_sha256": digest["sha256"],
    }


def outcome(trainer: Any, folder: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """What the run took, under the names of its forecast; total_seconds is of steps alone."""
    seconds = trainer.record.median_step_seconds()
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {
        "peak_gib": trainer.record.peak_gib,
        "seconds_per_step": seconds,
        "total_seconds": None if seconds is None else seconds * summary["steps"],
        "disk_gib": size / hardware.GIB,
    }


def _perplexity(loss: float | None) -> float | None:
    return None if loss is None else math.exp(min(loss, 700))


def write(
    folder: Path, config: RunConfig, job: Job, trainer: Any, prepared: Prepared, summary: dict[str, Any]
) -> None:
    """Write the artifact and the summary into the run's folder.

    :raises StudioError: when a weight of the adapter is not finite; an earlier artifact stays then
    """
    job.report("writing the adapter")
    guard.refuse_unfinite_weights(trainer.model, None, summary["steps"])
    run = runs.get(job.run_id)
    dataset = dataset_store.get(run["dataset_id"])
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
        "dataset": {
            "name": dataset["name"],
            "sha256": dataset["sha256"],
            "train_rows": len(prepared.train),
            "held_out_rows": len(prepared.held_out),
        },
        "tokenizer": load.fingerprint(load.tokenizer(config.model.base, config.model.revision)),
        "decisions": json.loads(run["decisions"]),
        "environment": hardware.environment(),
        "code": proof.code(),
    }
    artifact.write(folder / "artifact", trainer.model, config, metadata, summary)
    write_json(folder / "training_summary.json", summary)
    write_json(folder / "training_results.json", {"log_history": trainer.state.log_history})


def write_json(path: Path, value: Any) -> None:
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
