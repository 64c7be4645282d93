"""One training run from its recipe to its artifact. The worker calls `train`.

Only adapter parameters are trained; the base's digest is taken before and after.
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.config import RunConfig, dumps
from core.data import mix, stats
from core.data.xray import Encoded, encode_all, end_tokens
from core.errors import StopRequested, StudioError
from core.home import run_folder
from core.jobs.worker import Job
from core.models import adapters, hardware, load
from core.store import datasets as dataset_store
from core.store import runs
from core.training import artifact, checkpoints, proof


@dataclass(frozen=True)
class Prepared:
    """Rows as tokens, ready to train on; ``sources`` names the dataset of each held-out row."""

    train: list[Encoded]
    held_out: list[Encoded]
    sources: list[str]


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

    trainer, decisions = _trainer(config, job, model, prepared, folder)
    runs.update(
        job.run_id,
        device=hardware.device().value,
        decisions=json.dumps({name: choice._asdict() for name, choice in decisions.items()}),
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
    runs.update(job.run_id, summary=json.dumps(summary), seconds_left=0.0)
    if stopped:
        raise StopRequested()
    return summary


def prepare(config: RunConfig, job: Job | None = None) -> Prepared:
    """Choose, render and tokenise the rows of a recipe.

    :raises StudioError: when nothing would be learned
    """
    chosen = mix.choose(config.data)
    if job is not None:
        job.report("loading the tokenizer, tokenising")
        (run_folder(job.run_id) / "data.json").write_text(mix.record(chosen), encoding="utf-8")
    tokenizer = load.tokenizer(config.model.base, config.model.revision)
    length = config.training.max_length
    train_rows = list(_encoded(mix.train_rows(config.data, chosen), tokenizer, length, job))
    held_rows = list(_encoded(mix.held_out_rows(chosen, config.evaluation.max_rows), tokenizer, length, job))
    summary = stats.measured((row for _, row in train_rows), end_tokens(tokenizer)).at(length)
    stats.refuse_nothing_to_learn(summary, length)
    if not any(row.supervised for _, row in held_rows):
        raise StudioError("training.max_length", f"leaves no held-out row an answer at {length}", "Raise it.")
    if job is not None and summary.empty_rows:
        runs.event(
            f"{summary.empty_rows} of {summary.rows} rows have no answer within {length} tokens "
            "and are left out",
            job.run_id,
            job.id,
            "warning",
        )
    learned = [row for _, row in train_rows if row.supervised]
    return Prepared(learned, [row for _, row in held_rows], [source for source, _ in held_rows])


def _encoded(
    rows: Iterator[tuple[str, dict[str, Any]]], tokenizer: Any, length: int, job: Job | None
) -> Iterator[tuple[str, Encoded]]:
    """Rows as tokens, each with its dataset's name. :raises StopRequested: when the user pressed Stop"""
    sources: list[str] = []

    def only_rows() -> Iterator[dict[str, Any]]:
        for number, (source, row) in enumerate(rows):
            if job is not None and number % 500 == 0:
                job.check_stop()
            sources.append(source)
            yield row

    for number, encoded in enumerate(encode_all(only_rows(), tokenizer, length)):
        yield sources[number], encoded


def _trainer(
    config: RunConfig, job: Job, model: Any, prepared: Prepared, folder: Path
) -> tuple[Any, dict[str, hardware.Choice]]:
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTConfig

    from core.training.trainer import Record, Trainer

    training = config.training
    decisions = {
        "device": hardware.device(),
        "compute type": hardware.compute_dtype(config),
        "optimizer": hardware.optimizer(config),
    }
    cuda = decisions["device"].value == "cuda"
    if not cuda:
        decisions["threads"] = hardware.threads()
    micro = min(training.micro_batch, training.effective_batch)
    steps = total_steps(config, len(prepared.train))
    arguments = SFTConfig(
        output_dir=str(folder / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=config.accumulation,
        learning_rate=training.learning_rate,
        lr_scheduler_type="constant_with_warmup" if training.schedule == "constant" else training.schedule,
        warmup_steps=math.ceil(steps * training.warmup_share),
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim=decisions["optimizer"].value,
        seed=training.seed,
        data_seed=training.seed,
        bf16=decisions["compute type"].value == "bfloat16",
        fp16=decisions["compute type"].value == "float16",
        use_cpu=not cuda,
        gradient_checkpointing=training.gradient_checkpointing,
        logging_steps=training.logging_steps,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=training.eval_steps or max(1, steps // 10),
        save_strategy="steps",
        save_steps=training.save_steps or max(1, steps // 5),
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_pin_memory=cuda,
        disable_tqdm=True,
        report_to=[],
    )
    rows = [{"input_ids": row.input_ids, "labels": row.labels} for row in prepared.train]
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=load.tokenizer(config.model.base, config.model.revision),
        held_out=prepared.held_out,
        sources=prepared.sources,
        shuffled=config.data.order == "shuffled",
        eval_batch=config.evaluation.batch,
        keep=training.keep_checkpoints,
        job=job,
        callbacks=[Record(job, folder / "metrics_history.jsonl")],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer, decisions


def total_steps(config: RunConfig, rows: int) -> int:
    """Optimizer steps of a run over this many rows (transformers' own arithmetic)."""
    if config.training.max_steps is not None:
        return config.training.max_steps
    micro_batches = math.ceil(rows / min(config.training.micro_batch, config.training.effective_batch))
    per_epoch = max(1, math.ceil(micro_batches / config.accumulation))
    return max(1, math.ceil(config.training.epochs * per_epoch))


def _checkpoint(job: Job, folder: Path) -> Path | None:
    """Where to go on from, with history cut to that step; None for a fresh start."""
    from core.training.trainer import cut_history

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
    return False


def _summary(
    job: Job, trainer: Any, trainable: int, total: int, digest: dict[str, Any], seconds: float
) -> dict[str, Any]:
    run = runs.get(job.run_id)
    return {
        "steps": trainer.state.global_step,
        "total_steps": trainer.state.max_steps,
        "seconds": round(seconds, 1),
        "trainable_parameters": trainable,
        "all_parameters": total,
        "base_eval_loss": run["base_eval_loss"],
        "base_perplexity": _perplexity(run["base_eval_loss"]),
        "eval_loss": run["eval_loss"],
        "perplexity": _perplexity(run["eval_loss"]),
        "best_eval_loss": run["best_eval_loss"],
        "best_step": run["best_step"],
        "base_unchanged": True,
        "base_sha256": digest["sha256"],
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
