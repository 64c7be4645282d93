"""How an adapter judges held-out answers: implicit rewards, their margin, and preference accuracy.

The reward of an answer is beta times how much likelier the adapter makes it than the base does (Rafailov et
al., 2023); for orpo, which has no reference, beta times its mean log-probability a token.
"""

from collections.abc import Callable
from typing import Any

import numpy

from plumbline.config.schema import RunConfig
from plumbline.data.rows import Row
from plumbline.data.selection import preference_rows
from plumbline.data.tokens.encode import Encoded, encode_all
from plumbline.evaluation.loss import row_losses
from plumbline.jobs.job import Job
from plumbline.models import adapters

NAMES = (
    ("accuracy", "preference accuracy", "{:.1%}"),
    ("margin", "reward margin", "{:.4f}"),
    ("chosen", "reward of better answers", "{:.4f}"),
    ("rejected", "reward of worse answers", "{:.4f}"),
)


def accuracy(margins: Any) -> Any:
    """The share of margins above 0; a tie counts half, so that a model which prefers nothing has 50 %.

    :param margins: rewards of better answers less those of worse ones, array or tensor
    """
    return ((margins > 0) + 0.5 * (margins == 0)).mean()


def measured(job: Job, model: Any, tokenizer: Any, config: RunConfig, rows: list[Row]) -> dict[str, Any]:
    """The judgement of held-out rows, for a method that learns from judged answers.

    :param model: base and adapter
    :returns: ``rows`` that were judged, ``left_out`` whose answers are cut off whole, and for ``adapter`` the
        figures of `NAMES`; for ``base`` too where the method has no reference, else None: it is the reference
    """
    sides, good = _sides(rows, config.method.name)
    length = config.training.max_length
    encoded = [list(encode_all(side, tokenizer, length)) for side in sides]
    judged = [number for number in range(len(rows)) if all(side[number].supervised for side in encoded)]
    encoded = [[side[number] for number in judged] for side in encoded]
    good = good[judged]
    result: dict[str, Any] = {
        "rows": len(judged),
        "left_out": len(rows) - len(judged),
        "method": config.method.name,
    }
    if not judged:
        return result | {"base": None, "adapter": None}

    def reporting(side: str) -> Callable[[int], None]:
        def each_batch(done: int) -> None:
            job.check_stop()
            job.report(f"{side}: judging answers, row {done} of {len(judged)}")

        return each_batch

    def likelihoods(side: str) -> list[Any]:
        """Of each answer, (answers a row, rows): summed, or for orpo the mean of its tokens."""
        batch, mean = config.evaluation.batch, config.method.name == "orpo"
        return [_likelihoods(model, part, tokenizer, batch, reporting(side), mean) for part in encoded]

    adapter = likelihoods("adapter")
    with adapters.switched_off(model):
        base = likelihoods("base")
    beta = config.method.beta
    if config.method.name == "orpo":
        both = {"base": [beta * part for part in base], "adapter": [beta * part for part in adapter]}
        return result | {side: _figures(rewards, good) for side, rewards in both.items()}
    rewards = [beta * (mine - its) for mine, its in zip(adapter, base, strict=True)]
    return result | {"base": None, "adapter": _figures(rewards, good)}


def _sides(rows: list[Row], method: str) -> tuple[list[list[Row]], Any]:
    """The judged answers of each row as conversations, and which rows have a good one."""
    if method == "kto":
        made = [preference_rows.preference_of(row, row) for row in rows]
        return [[preference[0] for preference in made]], numpy.array(
            [preference[2] for preference in made], bool
        )
    both = [preference_rows.both(row) for row in rows]
    return [[pair[side] for pair in both] for side in (0, 1)], numpy.ones(len(rows), bool)


def _likelihoods(
    model: Any, rows: list[Encoded], tokenizer: Any, batch: int, each_batch: Callable[[int], None], mean: bool
) -> Any:
    losses = numpy.array(row_losses(model, rows, tokenizer.pad_token_id, batch, each_batch))
    return -losses[:, 0] / (losses[:, 1] if mean else 1)


def _figures(rewards: list[Any], good: Any) -> dict[str, float | None]:
    """:param rewards: of better and of worse answers; or of single ones, and ``good`` says which is what"""
    if len(rewards) == 2:
        chosen, rejected = rewards
        margins = chosen - rejected
    else:
        (single,) = rewards
        chosen, rejected, margins = single[good], single[~good], numpy.where(good, single, -single)
    margin = float(chosen.mean() - rejected.mean()) if len(chosen) and len(rejected) else None
    figures_by_name = {"accuracy": float(accuracy(margins)), "margin": margin}
    for name, some in (("chosen", chosen), ("rejected", rejected)):
        figures_by_name[name] = float(some.mean()) if len(some) else None
    return figures_by_name


def figures(judgement: dict[str, Any]) -> list[list[str]]:
    """Rows of a table: what was measured, base, adapter."""
    return [
        [label, *(_said(judgement[side], name, form) for side in ("base", "adapter"))]
        for name, label, form in NAMES
    ]


def _said(side: dict[str, float | None] | None, name: str, form: str) -> str:
    value = None if side is None else side[name]
    return "-" if value is None else form.format(value)


def notes(judgement: dict[str, Any]) -> list[str]:
    """What has to be known to read the figures."""
    what = "verdicts" if judgement["method"] == "kto" else "pairs"
    sentences = [f"Preference is of {judgement['rows']:,} held-out {what}; ties count half."]
    if judgement["base"] is None:
        sentences[0] += " Rewards are held against the base, which by itself prefers nothing (50 %)."
    if judgement["left_out"]:
        sentences.append(f"{judgement['left_out']:,} rows are left out: an answer is cut off whole.")
    return sentences


def sentence(judgement: dict[str, Any]) -> str:
    """The result in words."""
    if judgement["adapter"] is None:
        return "No held-out row has an answer left to judge."
    now = f"{judgement['adapter']['accuracy']:.0%}"
    what = "verdicts" if judgement["method"] == "kto" else "pairs"
    if judgement["base"] is None:
        return (
            f"Against the base, the adapter agrees with {now} of the held-out {what}; half would be chance."
        )
    return f"Preference accuracy on held-out {what} went from {judgement['base']['accuracy']:.0%} to {now}."
