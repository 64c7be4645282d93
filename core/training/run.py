"""One training run from its recipe to its artifact. The worker calls `train`.

Only adapter parameters are trained; the base's digest is taken before and after.
"""

import json
import math
import time
from pathlib import Path
from typing import Any

from core.config import RunConfig, dumps
from core.errors import StopRequested, StudioError
from core.home import run_folder
from core.jobs.worker import Job
from core.models import adapters, hardware, load
from core.store import datasets as dataset_store
from core.store import runs
from core.training import artifact, assembly, checkpoints, proof
from core.training.prepare import Prepared, prepare


def train(job: Job) -> dict[str, Any]:
    """Train, or go on from the newest good checkpoint when the payload says ``resume``.

    :returns: the summary that training_summary.json holds
    :raises StudioError: for everything the user can mend
    :raises StopRequested: after the state was saved, when the user pressed Stop
    """
    began = time.perf_counter()
    config = runs.recipe(job.run_id)
    folder = run_folder(job.run_id)
    (folder / "recipe.yaml").write_text(dumps(config), encoding="utf-8")

    job.report("reading the data")
    prepared = prepare(config, job)
    job.report("loading the base model")
    from transformers import set_seed

    set_seed(config.training.seed)
    hardware.forget_peak()
    base = load.base_model(config)
    job.check_stop()
    job.report("taking the base's checksum")
    digest = proof.base_digest(base)
    _write_json(folder / "baseline_checksums.json", digest)
    model = adapters.attach(base, config)
    adapters.refuse_other_trainables(model)
    trainable, total = adapters.trainable_share(model)
    runs.event(
        f"{trainable:,} of {total:,} parameters are trainable ({trainable / total:.2%})", job.run_id, job.id
    )

    planned = assembly.planned(config, prepared)
    trainer, decisions = assembly.trainer(config, job, model, prepared, folder, planned.plan)
    runs.update(
        job.run_id,
        device=hardware.device().value,
        decisions=json.dumps({name: choice._asdict() for name, choice in decisions.items()}),
        forecast=assembly.expected(config, prepared, planned),
    )
    checkpoint = _checkpoint(job, folder)
    stopped = _fit(trainer, job, checkpoint)

    job.report("checking that the base is unchanged")
    after = proof.base_digest(model)
    if after["sha256"] != digest["sha256"]:
        raise StudioError(
            "base weights", "changed during training", "Please report this; do not use the adapter."
        )
    summary = _summary(job, trainer, trainable, total, digest, time.perf_counter() - began)
    _write_outputs(folder, config, job, trainer, prepared, summary)
    outcome = _outcome(trainer, folder, summary)
    runs.update(job.run_id, summary=json.dumps(summary), outcome=json.dumps(outcome), seconds_left=0.0)
    if stopped:
        raise StopRequested()
    return summary


def _checkpoint(job: Job, folder: Path) -> Path | None:
    """Where to go on from, with history cut to that step; None for a fresh start."""
    from core.training.record import cut_history

    checkpoint = None
    if job.payload.get("resume"):
        checkpoint, bad = checkpoints.newest_good(folder / "checkpoints")
        for name in bad:
            runs.event(f"{name} does not verify and was set aside", job.run_id, job.id, "warning")
    step = checkpoints.step_of(checkpoint) if checkpoint else -1
    runs.update(job.run_id, step=max(step, 0), seconds_left=None)
    runs.forget_after(job.run_id, step)
    cut_history(folder / "metrics_history.jsonl", step)
    if checkpoint is not None:
        runs.event(f"resumed from step {step}", job.run_id, job.id)
    return checkpoint


def _fit(trainer: Any, job: Job, checkpoint: Path | None) -> bool:
    """Train to the end or to Stop; True when stopped."""
    job.running()
    try:
        if checkpoint is None:
            job.report("measuring the base on the held-out rows")
            trainer.evaluate()
            hardware.forget_peak()
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if trainer.state.global_step < trainer.state.max_steps:
            return True
        if not any(
            entry["step"] == trainer.state.global_step and "eval_loss" in entry
            for entry in trainer.state.log_history
        ):
            trainer.evaluate()
    except StopRequested:
        # Stop came during an evaluation: the weights of the last step are whole, keep them.
        if trainer.state.global_step > 0 and trainer.optimizer is not None:
            trainer._save_checkpoint(trainer.model, None)
            return True
        raise
    finally:
        # Whatever ended it, what was measured is kept.
        trainer.record.write(trainer.state)
    return False


def _summary(
    job: Job, trainer: Any, trainable: int, total: int, digest: dict[str, Any], seconds: float
) -> dict[str, Any]:
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


def _outcome(trainer: Any, folder: Path, summary: dict[str, Any]) -> dict[str, Any]:
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


def _write_outputs(
    folder: Path, config: RunConfig, job: Job, trainer: Any, prepared: Prepared, summary: dict[str, Any]
) -> None:
    job.report("writing the adapter")
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
    }
    artifact.write(folder / "artifact", trainer.model, config, metadata, summary)
    _write_json(folder / "training_summary.json", summary)
    _write_json(folder / "training_results.json", {"log_history": trainer.state.log_history})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
