"""What a whole dataset comes to for a base and a max_length, quick enough to follow a slider."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from core.config import RunConfig
from core.data import datasets
from core.data.xray import IGNORED, Encoded, Summary, encode, refuse_nothing_to_learn, summarise
from core.models import hardware, load
from core.store import datasets as store

SAMPLE = 2000  # rows; a larger dataset is judged by its first ones
UNCUT = 1 << 30


@lru_cache(maxsize=8)
def _encoded(dataset_id: int, sha256: str, base: str, revision: str | None) -> tuple[Encoded, ...]:
    """Rows as tokens, uncut. ``sha256`` only tells one content from another."""
    tokenizer = load.tokenizer(base, revision)
    return tuple(encode(row, tokenizer, UNCUT) for row in datasets.rows(dataset_id, count=SAMPLE))


def cut(row: Encoded, max_length: int) -> Encoded:
    """The same row at another ``max_length``."""
    learned = sum(label != IGNORED for label in row.labels[max_length:])
    return Encoded(row.input_ids[:max_length], row.labels[:max_length], row.input_ids[max_length:], learned)


def summary(dataset: dict[str, Any], config: RunConfig) -> Summary:
    """:param dataset: a row of the store"""
    model, length = config.model, config.training.max_length
    return _summary(dataset["id"], dataset["sha256"], model.base, model.revision, length)


@lru_cache(maxsize=256)
def _summary(dataset_id: int, sha256: str, base: str, revision: str | None, max_length: int) -> Summary:
    rows = _encoded(dataset_id, sha256, base, revision)
    return summarise([cut(row, max_length) for row in rows], load.tokenizer(base, revision).eos_token_id)


@dataclass(frozen=True)
class Check:
    """One line of "Before you start". ``level``: ``good``, ``warning`` or ``bad``."""

    level: str
    text: str


@dataclass(frozen=True)
class Outlook:
    """What Start would do: figures as label and text, checks, and whether it may."""

    figures: list[tuple[str, str]]
    checks: list[Check]

    @property
    def blocked(self) -> bool:
        return any(check.level == "bad" for check in self.checks)


def outlook(config: RunConfig) -> Outlook:
    """:raises StudioError: when dataset or base cannot be had at all"""
    from core.training.run import total_steps

    dataset = store.by_name(config.data.dataset)
    counted = summary(dataset, config)
    scale = dataset["rows"] / counted.rows
    rows = dataset["rows"]
    if not dataset["held_out_rows"]:
        rows -= max(1, round(rows * config.data.held_out_share))
    rows = min(rows, config.data.max_rows or rows)
    held_out = dataset["held_out_rows"] or dataset["rows"] - rows
    steps = total_steps(config, max(1, rows))
    share = counted.supervised / max(counted.tokens, 1)
    length = config.training.max_length
    about = "" if scale == 1 else "about "
    figures = [
        ("Rows", f"{rows:,} train + {held_out:,} held out"),
        ("Steps", f"{steps:,} of {config.training.effective_batch} rows"),
        ("Tokens", f"{about}{round(counted.tokens * scale):,} per pass"),
        ("In the loss", f"{share:.0%} of the tokens"),
        ("Longest row", f"{counted.longest:,} tokens"),
        *((name.capitalize(), f"{choice.value} ({choice.why})") for name, choice in _choices(config)),
    ]
    return Outlook(figures, _checks(counted, length))


def _choices(config: RunConfig) -> list[tuple[str, hardware.Choice]]:
    return [
        ("device", hardware.device()),
        ("compute type", hardware.compute_dtype(config)),
        ("optimizer", hardware.optimizer(config)),
    ]


def _checks(counted: Summary, length: int) -> list[Check]:
    try:
        refuse_nothing_to_learn(counted, length)
    except Exception as error:
        return [Check("bad", str(error))]
    if counted.end_learned_rows == 0:
        return [Check("bad", "no row teaches the end of a turn: the model would never stop")]
    checks = []
    if counted.empty_rows:
        checks.append(
            Check(
                "warning",
                f"{counted.empty_rows} of {counted.rows} rows lose all of their answer at {length} tokens "
                "and are left out",
            )
        )
    else:
        checks.append(Check("good", "every row has an answer to learn"))
    if counted.cut_rows:
        checks.append(
            Check("warning", f"{counted.cut_rows} of {counted.rows} rows are cut at {length} tokens")
        )
    else:
        checks.append(Check("good", f"no row is cut at {length} tokens"))
    ends = counted.end_learned_rows / counted.rows
    level = "good" if ends == 1 else "warning"
    checks.append(Check(level, f"the end of a turn is learned in {ends:.0%} of the rows"))
    return checks
