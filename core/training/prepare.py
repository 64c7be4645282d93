"""The rows of a recipe as tokens, ready to train on."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from core.config import RunConfig
from core.data import mix, stats
from core.data.xray import Encoded, encode_all, end_tokens
from core.errors import StudioError
from core.home import run_folder
from core.jobs.worker import Job
from core.models import load
from core.store import runs
from core.training.checkpoints import write_whole


@dataclass(frozen=True)
class Prepared:
    """Rows as tokens, ready to train on; ``sources`` names the dataset of each held-out row."""

    train: list[Encoded]
    held_out: list[Encoded]
    sources: list[str]


def prepare(config: RunConfig, job: Job | None = None) -> Prepared:
    """Choose, render and tokenise the rows of a recipe.

    :raises StudioError: when nothing would be learned
    """
    chosen = mix.choose(config.data)
    if job is not None:
        job.report("loading the tokenizer, tokenising")
        write_whole(run_folder(job.run_id) / "data.json", mix.record(chosen))
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


def total_steps(config: RunConfig, rows: int) -> int:
    """Optimizer steps of a run over this many rows (transformers' own arithmetic)."""
    if config.training.max_steps is not None:
        return config.training.max_steps
    per_epoch = math.ceil(rows / config.training.effective_batch)
    return max(1, math.ceil(config.training.epochs * per_epoch))
