"""The rows of a recipe as tokens, ready to train on."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from plumbline.config.schema import RunConfig
from plumbline.data import rows
from plumbline.data.rows import Row
from plumbline.data.selection import mix, preference_rows, stats
from plumbline.data.tokens.encode import IGNORED, Encoded, encode_all, end_tokens, prompt_ids
from plumbline.errors import StudioError
from plumbline.files import write_whole
from plumbline.home import run_folder
from plumbline.jobs.job import Job
from plumbline.models import load
from plumbline.store import runs

Question = tuple[list[int], str]


@dataclass(frozen=True)
class Prepared:
    """Rows as tokens, ready to train on; ``sources`` names the dataset of each held-out row, and
    ``train_sources`` that of each training row.

    Where answers are judged, ``others`` holds for each row its worse answer (for KTO: its prompt with
    another row's answer), and ``good`` whether its own is desirable; ``held_others`` and ``held_good``
    are the same for held-out rows. Where answers are tried, ``questions`` holds for each row the tokens
    that it asks with and the answer it brings, ``held_questions`` for held-out rows; tried answers have at
    most ``answer_tokens``.
    """

    train: list[Encoded]
    held_out: list[Encoded]
    sources: list[str]
    others: list[Encoded] = field(default_factory=list)
    good: list[bool] = field(default_factory=list)
    held_others: list[Encoded] = field(default_factory=list)
    held_good: list[bool] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    held_questions: list[Question] = field(default_factory=list)
    answer_tokens: int = 0
    train_sources: list[str] = field(default_factory=list)

    @property
    def lengths(self) -> list[int]:
        """Most tokens of what stays together in a pack: a row, or both answers of a pair."""
        if self.questions:
            return [len(prompt) + self.answer_tokens for prompt, _ in self.questions]
        sides = [self.train, self.others] if self.others else [self.train]
        return [sum(len(row.input_ids) for row in rows) for rows in zip(*sides, strict=True)]

    @property
    def supervised(self) -> int:
        """Tokens in the loss, of all training rows."""
        return sum(row.supervised for row in (*self.train, *self.others))


def prepare(config: RunConfig, job: Job | None = None) -> Prepared:
    """Choose, render and tokenise the rows of a recipe.

    :raises StudioError: when nothing would be learned
    """
    before = None if job is None else mix.recorded(job.run_id)
    chosen = mix.choose(config.data, before)
    watched = mix.watched(chosen, config.evaluation.max_rows, before)
    for choice in chosen:
        for row in rows.page(choice.dataset["id"], "train", 0, 1):
            preference_rows.check_fits(row, config.method.name, choice.name)
    if job is not None:
        job.report("loading the tokenizer, tokenising")
        record = mix.record(chosen, None if mix.is_earlier(before) else watched)
        write_whole(run_folder(job.run_id) / "data.json", record)
    tokenizer = load.tokenizer(config.model.base, config.model.revision)
    encoder = _Encoder(tokenizer, config, job)
    train = encoder.lines(mix.train_rows(config.data, chosen))
    held_out = encoder.lines(mix.held_out_at(chosen, watched))
    if not mix.is_earlier(before):
        # A long text is many windows.
        held_out = evenly(held_out, config.evaluation.max_rows)
    length = config.training.max_length
    summary = stats.measured((line.row for line in train), end_tokens(tokenizer)).at(length)
    stats.refuse_nothing_to_learn(summary, length)
    learned = [line for line in train if line.learns]
    held_out = [line for line in held_out if line.learns]
    if not held_out or not learned:
        what = "leaves no held-out row an answer" if learned else "leaves no pair both of its answers"
        raise StudioError("training.max_length", f"{what} at {length}", "Raise it.")
    if job is not None and len(learned) < len(train):
        runs.event(
            f"{len(train) - len(learned)} of {len(train)} rows have no answer within {length} tokens "
            "and are left out",
            job.run_id,
            job.id,
            "warning",
        )
    return Prepared(
        train=[line.row for line in learned],
        held_out=[line.row for line in held_out],
        sources=[line.source for line in held_out],
        train_sources=[line.source for line in learned],
        others=[line.other for line in learned if line.other],
        good=[line.good for line in learned if line.other],
        held_others=[line.other for line in held_out if line.other],
        held_good=[line.good for line in held_out if line.other],
        questions=[line.question for line in learned if line.question],
        held_questions=[line.question for line in held_out if line.question],
        answer_tokens=config.evaluation.max_new_tokens,
    )


@dataclass(frozen=True)
class _Line:
    source: str
    row: Encoded
    other: Encoded | None = None
    good: bool = True
    question: Question | None = None

    @property
    def learns(self) -> bool:
        return bool(self.row.supervised and (self.other is None or self.other.supervised))


class _Encoder:
    """Rows to tokens, as the recipe's method wants them."""

    def __init__(self, tokenizer: Any, config: RunConfig, job: Job | None) -> None:
        self.tokenizer, self.job = tokenizer, job
        self.day = config.data.day
        self.length, self.method = config.training.max_length, config.method.name

    def lines(self, named_rows: Iterator[tuple[str, Row]]) -> list[_Line]:
        """:raises StopRequested: when the user pressed Stop"""
        sourced = list(self._watched(named_rows))
        sources = [source for source, _ in sourced]
        plain = [row for _, row in sourced]
        if self.method in ("dpo", "orpo"):
            both = [preference_rows.both(row) for row in plain]
            sides = [self._encoded([pair[side] for pair in both]) for side in (0, 1)]
            return [_Line(*line) for line in zip(sources, *sides, strict=True)]
        if self.method == "kto":
            # The answer of the row before: each prompt gets one that was not written for it.
            made = [preference_rows.preference_of(row, plain[number - 1]) for number, row in enumerate(plain)]
            sides = [self._encoded([preference[side] for preference in made]) for side in (0, 1)]  # type: ignore[misc]
            good = [preference[2] for preference in made]
            return [_Line(*line) for line in zip(sources, *sides, good, strict=True)]
        encoded = zip(sources, self._encoded(plain), strict=True)
        if self.method == "grpo":
            asked = [preference_rows.asked_and_answer(row) for row in plain]
            return [
                _Line(source, row, question=(self._asking(turns, whole_row), answer))
                for (source, row), (turns, answer), whole_row in zip(encoded, asked, plain, strict=True)
            ]
        if self.method == "pretraining":
            return [_Line(source, part) for source, row in encoded for part in windows(row, self.length)]
        return [_Line(source, row) for source, row in encoded]

    def _asking(self, turns: list[Row], row: Row) -> list[int]:
        return prompt_ids(turns, self.tokenizer, row.get("tools"), self.day)

    def _encoded(self, some: list[Row]) -> list[Encoded]:
        encoded = encode_all(some, self.tokenizer, self.length, self.day)
        return [row for _, row in self._watched(enumerate(encoded))]

    def _watched(self, some: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        for number, each in enumerate(some):
            if self.job is not None and number % 500 == 0:
                self.job.check_stop()
            yield each


def evenly(some: list[Any], limit: int) -> list[Any]:
    """At most so many of them, the same distance apart; all of them where there are no more."""
    if len(some) <= limit:
        return some
    return [some[(2 * number + 1) * len(some) // (2 * limit)] for number in range(limit)]


def windows(row: Encoded, length: int) -> list[Encoded]:
    """A text that is longer than ``length`` as several rows; none of its tokens is left out.

    A window begins with the token that the one before it ends with, which it could not predict else.
    """
    ids, learned = [*row.input_ids, *row.cut], row.supervised + row.cut_supervised > 0
    starts = range(0, max(1, len(ids) - 1), length - 1)
    parts = [ids[start : start + length] for start in starts]
    return [Encoded(part, part if learned else [IGNORED] * len(part), [], 0) for part in parts]
