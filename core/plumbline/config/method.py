"""The settings of what is learned from a row."""

import re
from typing import Any, Literal

from pydantic import field_validator

from plumbline.config.field import Section, setting


def current_method(value: Any) -> Any:
    """A method by the name that is written; ``sft`` was ``supervised`` in earlier versions."""
    return "sft" if value == "supervised" else value


class MethodSection(Section):
    """What is learned from a row."""

    name: Literal["sft", "pretraining", "dpo", "orpo", "kto", "grpo"] = setting(
        "sft",
        "Method",
        "sft, supervised fine-tuning, learns the answers; pretraining every token of plain texts, long ones "
        "in windows; dpo and orpo better answers against worse ones; kto answers with a verdict; grpo tries "
        "answers of its own and learns from those that pass a check",
        simple=True,
    )
    beta: float = setting(
        0.1,
        "Beta",
        "dpo, kto: how close to the base's answers; orpo: weight of the judgement; 0.1 is usual",
        methods=("dpo", "orpo", "kto"),
        gt=0,
        le=100,
    )
    desirable_weight: float = setting(
        1.0,
        "Desirable weight",
        "Weight of good answers; raise it where they are few",
        methods=("kto",),
        gt=0,
        le=1000,
    )
    undesirable_weight: float = setting(
        1.0,
        "Undesirable weight",
        "Weight of bad answers; raise it where they are few",
        methods=("kto",),
        gt=0,
        le=1000,
    )
    check: Literal["exact", "contains", "regex", "json"] = setting(
        "exact",
        "Check",
        "An answer passes when it equals the row's, contains it, matches the pattern, or is a JSON object or "
        "list",
        methods=("grpo",),
    )
    pattern: str = setting(
        "",
        "Pattern",
        "For the check regex: a Python regular expression, found anywhere in the answer",
        methods=("grpo",),
        max_length=500,
    )
    answers: int = setting(
        8,
        "Answers",
        "Tried for each question; more = steadier, slower steps",
        methods=("grpo",),
        ge=2,
        le=64,
    )
    temperature: float = setting(
        1.0,
        "Temperature",
        "Of the tried answers; lower = less variety to learn from",
        methods=("grpo",),
        gt=0,
        le=5,
    )

    @field_validator("name", mode="before")
    @classmethod
    def _current(cls, value: Any) -> Any:
        return current_method(value)

    @property
    def judges(self) -> bool:
        """Whether rows hold judged answers."""
        return self.name in ("dpo", "orpo", "kto")

    @property
    def is_likelihood(self) -> bool:
        """Whether the loss is a mean negative log-likelihood, so that its exponential is a perplexity."""
        return self.name in ("sft", "pretraining")

    @property
    def loss_is(self) -> str:
        """What the loss is, in words."""
        return "nats per supervised token" if self.is_likelihood else f"that of {self.name}"

    def conflicts(self) -> dict[str, str]:
        """Settings that contradict each other, by key."""
        if self.name != "grpo" or self.check != "regex":
            return {}
        if not self.pattern:
            return {"method.pattern": "must be given when the check is regex"}
        try:
            re.compile(self.pattern)
        except re.error as error:
            return {"method.pattern": f"is no regular expression: {error}"}
        return {}
