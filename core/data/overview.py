"""What Start would do: figures and checks over everything a recipe learns from, quick enough for a form."""

from dataclasses import dataclass
from typing import Any

from core.config import RunConfig
from core.data import mix, stats
from core.data.mix import Chosen
from core.data.stats import Summary
from core.errors import StudioError
from core.models import hardware


@dataclass(frozen=True)
class Check:
    """One line of "Before you start". ``level``: ``good``, ``warning`` or ``bad``."""

    level: str
    text: str


@dataclass(frozen=True)
class Outlook:
    """What Start would do: figures as label and text, checks, and whether it may.

    :param left_out: rows that would train on nothing; whoever starts agrees to leave them out
    """

    figures: list[tuple[str, str]]
    checks: list[Check]
    left_out: int = 0

    @property
    def blocked(self) -> bool:
        return any(check.level == "bad" for check in self.checks)


@dataclass(frozen=True)
class Share:
    """What one dataset of a mix comes to in an epoch; tokens are estimated from its sample."""

    chosen: Chosen
    summary: Summary
    rows: int
    tokens: int
    supervised: int


def shares(config: RunConfig, chosen: list[Chosen] | None = None) -> list[Share]:
    """Effective rows and tokens of every dataset. :raises StudioError: when one cannot be had"""
    model, found = config.model, []
    for one in chosen if chosen is not None else mix.choose(config.data):
        measured = stats.of_part(one.part, one.dataset, model.base, model.revision)
        summary = measured.at(config.training.max_length)
        scale = len(one.train) / max(1, summary.rows)
        found.append(
            Share(
                one, summary, len(one.train), round(summary.tokens * scale), round(summary.supervised * scale)
            )
        )
    return found


def outlook(config: RunConfig) -> Outlook:
    """:raises StudioError: when a dataset or the base cannot be had at all"""
    from core.training.run import total_steps

    chosen = mix.choose(config.data)
    found = shares(config, chosen)
    rows = sum(share.rows for share in found)
    held_out = sum(len(one.held_out) for one in chosen)
    tokens = sum(share.tokens for share in found)
    supervised = sum(share.supervised for share in found)
    steps = total_steps(config, max(1, rows))
    exact = all(share.rows == share.summary.rows for share in found)
    figures = [
        ("Rows", f"{rows:,} train + {held_out:,} held out"),
        *(_source(share, supervised) for share in found if len(found) > 1),
        ("Steps", f"{steps:,} of {config.training.effective_batch} rows"),
        ("Tokens", f"{'' if exact else 'about '}{tokens:,} per pass"),
        ("In the loss", f"{supervised / max(tokens, 1):.0%} of the tokens"),
        ("Longest row", f"{max(share.summary.longest for share in found):,} tokens"),
        *((name.capitalize(), f"{choice.value} ({choice.why})") for name, choice in _choices(config)),
    ]
    checks = _together(found, [_checks(share, config) for share in found])
    checks += [Check("warning", finding.text) for finding in mix.leaks(chosen)]
    empty = sum(round(share.summary.empty_rows * share.rows / share.summary.rows) for share in found)
    return Outlook(figures, checks, empty)


def _source(share: Share, supervised: int) -> tuple[str, str]:
    part = share.supervised / max(1, supervised)
    weight = share.chosen.part.weight
    return f"· {share.chosen.name}", f"{share.rows:,} rows (× {weight:g}), {part:.0%} of the loss"


def _choices(config: RunConfig) -> list[tuple[str, hardware.Choice]]:
    return [
        ("device", hardware.device()),
        ("compute type", hardware.compute_dtype(config)),
        ("optimizer", hardware.optimizer(config)),
    ]


def _together(found: list[Share], checks: list[list[Check]]) -> list[Check]:
    """The checks of all datasets: what is good in every one is said once, the rest with its dataset."""
    if len(found) == 1:
        return checks[0]
    common = set.intersection(*(set(each) for each in checks))
    named = [
        Check(check.level, f"{share.chosen.name}: {check.text}")
        for share, each in zip(found, checks, strict=True)
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
    checks = []
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
    ends = counted.end_learned_rows / counted.rows
    level = "good" if ends == 1 else "warning"
    checks.append(Check(level, f"the end of a turn is learned in {ends:.0%} of the rows"))
    return checks


def _rows(numbers: tuple[int, ...], count: int, shown: int = 4) -> str:
    """``rows 1, 3, 7 and 9 more``."""
    listed = ", ".join(f"{number:,}" for number in numbers[:shown])
    more = count - len(numbers[:shown])
    return f"row{'s' if count > 1 else ''} {listed}" + (f" and {more:,} more" if more > 0 else "")


def live(dataset: dict[str, Any], part: str, base: str, revision: str | None, max_length: int) -> Summary:
    """The whole set at a cut, for the slider."""
    return stats.of_dataset(dataset, part, base, revision).at(max_length)
