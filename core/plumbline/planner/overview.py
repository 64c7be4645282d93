"""What Start would do: figures and checks over everything a recipe learns from, and what that would take.

Quick enough for a form: a measurement of the same recipe is shown when there is one, else a forecast.
"""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy

from plumbline.config.schema import RunConfig
from plumbline.data import rows
from plumbline.data.selection import dropped_content, mix, preference_rows, split_labels, stats
from plumbline.data.selection.mix import Chosen
from plumbline.data.selection.stats import UNCUT, Measured, Summary
from plumbline.errors import StudioError
from plumbline.home import home
from plumbline.models import fit, hardware, load
from plumbline.models.hardware import Choice
from plumbline.planner import early_stopping, figures, measurements, preference_lengths
from plumbline.store import datasets as store
from plumbline.store.records import DatasetRow

if TYPE_CHECKING:
    from plumbline.planner.forecast import Forecast


@dataclass(frozen=True)
class Check:
    """One line of "Before you start". ``level``: ``good``, ``warning`` or ``bad``."""

    level: str
    text: str


@dataclass(frozen=True)
class Outlook:
    """What Start would do: figures as label and text, checks, and whether it may.

    :param decisions: what is chosen for this machine and why
    :param forecast: None when nothing would be learned, or it cannot be had
    :param left_out: rows that would train on nothing; whoever starts agrees to leave them out
    """

    figures: list[tuple[str, str]]
    decisions: dict[str, Choice]
    checks: list[Check]
    forecast: Forecast | None = None
    left_out: int = 0

    @property
    def blocked(self) -> bool:
        return any(check.level == "bad" for check in self.checks)

    @property
    def learns(self) -> bool:
        """Whether there is something to learn; it may still not fit."""
        return self.forecast is not None


@dataclass(frozen=True)
class Share:
    """What one dataset of a mix comes to in an epoch; tokens are estimated from its sample.

    :param lengths: tokens, cut, of the rows of its sample that are trained on
    :param too_long: rows of its sample whose answer is longer than one that is tried may be
    """

    chosen: Chosen
    summary: Summary
    rows: int
    tokens: int
    supervised: int
    lengths: Any
    too_long: int = 0

    @property
    def empty(self) -> int:
        """Rows that would train on nothing, and are left out."""
        return round(self.summary.empty_rows * self.rows / max(1, self.summary.rows))


def shares(config: RunConfig, chosen: list[Chosen] | None = None) -> list[Share]:
    """Effective rows and tokens of every dataset. :raises StudioError: when one cannot be had"""
    model, length, dataset_shares = config.model, config.training.max_length, []
    for choice in chosen if chosen is not None else mix.choose(config.data):
        measured = stats.of_part(choice.part, choice.dataset, model.base, model.revision, config.data.day)
        if config.method.name == "pretraining":
            dataset_shares.append(_windows(choice, measured, length))
        elif config.method.judges and (both := preference_lengths.both(choice, measured, config)):
            dataset_shares.append(_share(choice, *both))
        elif config.method.name == "grpo":
            share = _share(choice, measured.at(length), _asked(choice, measured, config))
            dataset_shares.append(dataclasses.replace(share, too_long=_too_long(choice, measured, config)))
        else:
            dataset_shares.append(_share(choice, measured.at(length), measured.trained(choice.train, length)))
    return dataset_shares


def _share(choice: Chosen, summary: Summary, lengths: Any) -> Share:
    """:param summary: of a sample, ``lengths`` those of its rows that are trained on"""
    scale = len(choice.train) / max(1, summary.rows)
    tokens, supervised = round(summary.tokens * scale), round(summary.supervised * scale)
    return Share(choice, summary, len(choice.train), tokens, supervised, lengths)


def _asked(choice: Chosen, measured: Measured, config: RunConfig) -> Any:
    """Tokens of what rows ask, and of an answer that is taken to be as long as it may get."""
    # What is learned last in a row is the answer that it brings.
    asked = numpy.zeros(len(measured.lengths), int)
    numpy.maximum.at(asked, measured.row, measured.start)
    at = measured.places(choice.train)
    learned = measured.learned(config.training.max_length)[at] > 0
    return asked[at[learned]] + config.evaluation.max_new_tokens


def _too_long(choice: Chosen, measured: Measured, config: RunConfig) -> int:
    """Rows that no answer of the model's own can pass the check with."""
    if config.method.check not in ("exact", "contains"):
        return 0
    answer = numpy.zeros(len(measured.lengths), int)
    answer[measured.row] = measured.stop - measured.start - 1  # the last one's stays; its end need not come
    return int((answer[measured.places(choice.train)] > config.evaluation.max_new_tokens).sum())


def _windows(choice: Chosen, measured: Measured, max_length: int) -> Share:
    """Where nothing is cut: long texts become several rows."""
    lengths = measured.lengths
    counts = numpy.maximum(1, -(-(lengths - 1) // (max_length - 1)))
    parts = numpy.full(int(counts.sum()), max_length)
    parts[numpy.cumsum(counts) - 1] = lengths - (counts - 1) * (max_length - 1)
    scale = len(choice.train) / max(1, len(lengths))
    tokens = round(int(parts.sum()) * scale)
    uncut = dataclasses.replace(measured.at(UNCUT), longest=int(parts.max(initial=0)))
    return Share(choice, uncut, round(len(parts) * scale), tokens, tokens, parts)


def expected(config: RunConfig, dataset_shares: list[Share] | None = None) -> Forecast:
    """What a recipe would take: as measured on this machine where it was, else as forecast.

    :param dataset_shares: its `shares`, where they are known
    :raises StudioError: when a dataset or the base cannot be had, or nothing would be learned
    """
    from plumbline.planner.forecast import Forecast, forecast

    dataset_shares = shares(config) if dataset_shares is None else dataset_shares
    for share in dataset_shares:
        stats.refuse_nothing_to_learn(share.summary, config.training.max_length)
    count = sum(share.rows - share.empty for share in dataset_shares)
    lengths = stats.together([(share.lengths, share.rows - share.empty) for share in dataset_shares])
    # In the loss of the rows that stand for all.
    supervised = sum(share.supervised for share in dataset_shares) * len(lengths) / max(1, count)
    held_out = min(config.evaluation.max_rows, sum(len(share.chosen.held_out) for share in dataset_shares))
    quick = forecast(config, count, lengths, round(supervised), held_out)
    measured_before = measurements.known(config)
    if measured_before is None:
        return quick
    measured = Forecast.from_json(measured_before)
    if measured.peak_gib > quick.free_gib or measured.plan.processes != quick.plan.processes:
        return quick  # there was more memory when it was measured, or there were other GPUs
    price = config.training.price_per_hour
    cost = None if price is None else price * measured.total_seconds / 3600
    return dataclasses.replace(measured, free_gib=quick.free_gib, cost=cost)


def outlook(config: RunConfig) -> Outlook:
    """:raises StudioError: when a dataset or the base cannot be had at all"""
    from plumbline.config.steps import total_steps

    fit.check_fits(config)
    chosen = mix.choose(config.data)
    base = load.inspected(config.model.base, config.model.revision)
    dataset_shares = shares(config, chosen)
    count = sum(share.rows for share in dataset_shares)
    held_out = sum(len(choice.held_out) for choice in chosen)
    tokens = sum(share.tokens for share in dataset_shares)
    supervised = sum(share.supervised for share in dataset_shares)
    empty = sum(share.empty for share in dataset_shares)
    steps = total_steps(config, max(1, count - empty))
    exact = all(len(share.chosen.train) == share.summary.rows for share in dataset_shares)
    shown = [
        ("Rows", f"{count:,} train + {held_out:,} held out"),
        ("Measured on", _measured_on(config, chosen)),
        *(_source(share, supervised) for share in dataset_shares if len(dataset_shares) > 1),
        ("Steps", f"{steps:,} of {config.training.effective_batch} rows"),
        ("Tokens", f"{'' if exact else 'about '}{tokens:,} per pass"),
        ("In the loss", f"{supervised / max(tokens, 1):.0%} of the tokens"),
        ("Longest row", f"{max(share.summary.longest for share in dataset_shares):,} tokens"),
    ]
    checks = _unfit(config, chosen)
    if not any(check.level == "bad" for check in checks):  # else there is nothing to learn, for that reason
        checks = _together(dataset_shares, [_checks(share, config) for share in dataset_shares]) + checks
    checks += [Check("warning", text) for text in fit.remarks(config, steps)]
    checks += [Check("warning", finding.text) for finding in mix.leaks(chosen)]
    checks += [Check(level, text) for level, text in split_labels.lines(chosen, config.data)]
    checks += _not_meant(chosen)
    checks += _stages(config)
    checks += [Check("warning", f"{config.model.base}: {note}") for note in base.notes]
    decisions = {"device": hardware.device(), "compute type": hardware.compute_dtype(config)}
    forecast = None
    if not any(check.level == "bad" for check in checks):
        try:
            forecast = expected(config, dataset_shares)
        except StudioError as error:
            checks.append(Check("bad", error.text))
        else:
            checks += _room(forecast)
            decisions |= forecast.plan.choices | early_stopping.choices(config, steps)
    return Outlook(shown, decisions, checks, forecast, empty)


def _measured_on(config: RunConfig, chosen: list[Chosen]) -> str:
    """Which held-out rows the evaluation takes; where it can, training measures others."""
    numbers = mix.sample(chosen, config.evaluation.max_rows)
    rows, pool = sum(map(len, numbers)), sum(len(choice.held_out) for choice in chosen)
    class_counts = [
        f"{some:,} of {every:,} {name}" for name, (some, every) in mix.classes_of(chosen, numbers).items()
    ]
    return ", ".join([f"{rows:,} of {pool:,} held-out rows", *class_counts])


def _not_meant(chosen: list[Chosen]) -> list[Check]:
    """Placeholders that would be learned as they stand, and marked rows that are trained on."""
    return [
        Check("warning", f"{one.name}: {finding['text']}")
        for one in chosen
        for finding in store.findings(one.dataset)
        if finding["kind"] in ("placeholder", "split")
    ]


def _stages(config: RunConfig) -> list[Check]:
    """What the figures leave out."""
    warnings = []
    if ranks := config.lora.rank_schedule:
        text = f"starts {len(ranks)} runs, one after the other; the figures are of one with r {config.lora.r}"
        warnings.append(Check("warning", text))
    return warnings


def _unfit(config: RunConfig, chosen: list[Chosen]) -> list[Check]:
    """What says that a dataset has not what the method learns from, or more than it learns from."""
    for choice in chosen:
        for row in rows.page(choice.dataset["id"], "train", 0, 1):
            try:
                preference_rows.check_fits(row, config.method.name, choice.name)
            except StudioError as error:
                return [Check("bad", error.text)]
            if config.method.name == "sft" and "text" in row:
                what = f"{choice.name} holds plain texts, and sft learns from answers"
                return [
                    Check(
                        "bad",
                        f"method.name: {what}. Set the method to {preference_rows.methods_for(row)[0]}.",
                    )
                ]
            if config.method.name == "sft" and ("rejected" in row or "desirable" in row):
                method = "dpo or orpo learns from both" if "rejected" in row else "kto learns from all"
                text = f"{choice.name}: only the better answers are learned; the method {method}"
                return [Check("warning", text)]
    return []


def _room(forecast: Forecast) -> list[Check]:
    """What says that there is not enough memory or disk."""
    checks = [Check("bad", forecast.problem)] if forecast.problem else []
    free = shutil.disk_usage(home()).free / hardware.GIB
    if forecast.disk_gib > free:
        text = f"the run would write {figures.gib(forecast.disk_gib)} GiB; {figures.gib(free)} GiB are free"
        checks.append(Check("bad", text))
    return checks


def _source(share: Share, supervised: int) -> tuple[str, str]:
    part = share.supervised / max(1, supervised)
    weight = share.chosen.part.weight
    return f"· {share.chosen.name}", f"{share.rows:,} rows (× {weight:g}), {part:.0%} of the loss"


def _together(dataset_shares: list[Share], checks: list[list[Check]]) -> list[Check]:
    """The checks of all datasets: what is good in every one is said once, the rest with its dataset."""
    if len(dataset_shares) == 1:
        return checks[0]
    common = set.intersection(*(set(each) for each in checks))
    named = [
        Check(check.level, f"{share.chosen.name}: {check.text}")
        for share, each in zip(dataset_shares, checks, strict=True)
        for check in each
        if check not in common
    ]
    return [
        *named,
        *(Check(check.level, f"everywhere, {check.text}") for check in checks[0] if check in common),
    ]


def _checks(share: Share, config: RunConfig) -> list[Check]:
    counted, length = share.summary, config.training.max_length
    try:
        stats.refuse_nothing_to_learn(counted, length)
    except StudioError as error:
        return [Check("bad", error.text)]
    if counted.end_learned_rows == 0:
        return [Check("bad", "no row teaches the end of a turn: the model would never stop")]
    lost = dropped_content.sentences(counted.left_out, config.model.base, config.model.revision)
    checks = [Check("warning", text) for text in lost]
    if counted.empty_rows:
        text = (
            f"{counted.empty_rows:,} of {counted.rows:,} rows would train on nothing at {length} tokens and "
            f"are left out ({_rows(counted.empty_numbers, counted.empty_rows)})"
        )
        checks.append(Check("warning", text))
    else:
        checks.append(Check("good", "every row has an answer to learn"))
    if counted.cut_rows:
        text = f"{counted.cut_rows:,} of {counted.rows:,} rows are cut at {length} tokens"
        checks.append(Check("warning", text))
    else:
        checks.append(Check("good", f"no row is cut at {length} tokens"))
    if share.too_long:
        most = config.evaluation.max_new_tokens
        text = f"{share.too_long:,} of {counted.rows:,} rows have answers of more than {most} tokens"
        checks.append(Check("warning", f"{text}: no answer that is tried can pass the check there"))
    ends = counted.end_learned_rows / counted.rows
    level = "good" if ends == 1 else "warning"
    checks.append(Check(level, f"the end of a turn is learned in {ends:.0%} of the rows"))
    return checks


def _rows(numbers: tuple[int, ...], count: int, shown: int = 4) -> str:
    """``rows 1, 3, 7 and 9 more``."""
    listed = ", ".join(f"{number:,}" for number in numbers[:shown])
    more = count - len(numbers[:shown])
    return f"row{'s' if count > 1 else ''} {listed}" + (f" and {more:,} more" if more > 0 else "")


def live(dataset: DatasetRow, part: str, base: str, revision: str | None, max_length: int) -> Summary:
    """The whole set at a cut, for the slider."""
    return stats.of_dataset(dataset, part, base, revision).at(max_length)
