"""The columns of a file's first records, found by the names that datasets usually give them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plumbline.config.mapping import Mapping


def names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TURNS = names("messages conversations conversation dialogue dialog turns chat utterances data")
PROMPTS = names(
    "instruction prompt question query problem user human request user_message input source input_text "
    "user_input user_prompt src text sentence"
)
ANSWERS = names(
    "output completion response answer assistant solution reply target bot gpt answers model_answer "
    "output_text target_text best_answer expected_output assistant_message tgt summary translation highlights"
)
CONTEXTS = names("input context passage article support background premise")
SOURCES = names("document article dialogue text passage transcript content body")
SUMMARIES = names("summary highlights abstract tldr")
TEXTS = names(
    "text content sentence document body raw_content passage article tweet comment review utterance post "
    "message input query question prompt story"
)
LABELS = names("label labels category class intent sentiment topic label_text emotion target")
CHOSEN = names("chosen chosen_response response_chosen preferred preferred_output better response_j winner")
REJECTED = names(
    "rejected rejected_response response_rejected dispreferred non_preferred_output worse response_k loser"
)
SYSTEMS = names("system system_prompt system_message systeminstruction")
GROUPS = names("group groups subgroup identity ident demographic")
KTO_LABELS = names("label kto_tag desirable kto_label verdict feedback vote thumb thumbs rating judgement")
GOOD = names(
    "good desirable chosen accepted preferred like liked up upvote upvoted thumbs_up thumbsup thumb_up 👍"
)
BAD = names(
    "bad undesirable rejected dispreferred dislike disliked down downvote downvoted thumbs_down thumbsdown "
    "thumb_down 👎"
)
CHOICES = names("choices options endings candidates alternatives")
STEMS = names("question question_stem query ctx sentence goal premise problem prompt stem text")
KEYS = names("answer answerkey answer_key correct correct_answer label gold answer_idx cop target")
ROLE_NAMES = names("role from speaker author")


@dataclass(frozen=True)
class Guess:
    """What a file seems to hold: the shape's usual name, and the mapping that reads it."""

    shape: str
    mapping: Mapping


class Unclear(Exception):
    """Records that are known for what they are, and still not clear enough to read; says why."""


class Columns:
    """The first records by column; names are compared without case, spaces and hyphens."""

    def __init__(self, sample: Sequence[dict[str, Any]]) -> None:
        self.values: dict[str, list[Any]] = {}
        for record in sample:
            for name, value in record.items():
                self.values.setdefault(name, []).append(value)
        self.by_plain = {plain(name): name for name in reversed(self.values)}

    def find(self, names: Sequence[str], *, but: Sequence[str] = ()) -> str:
        """The first of these names that is a column, as the file spells it; else empty."""
        for name in names:
            column = self.by_plain.get(name)
            if column is not None and column not in but:
                return column
        return ""

    def find_text(self, names: Sequence[str], *, but: Sequence[str] = ()) -> str:
        """As `find`, among the columns of text."""
        return self.find([name for name in names if self.is_text(self.by_plain.get(name, ""))], but=but)

    def first(self, name: str) -> Any:
        """The first value that is not null."""
        return next((value for value in self.values.get(name, []) if value is not None), None)

    def known(self, name: str) -> list[Any]:
        """Its values but null."""
        return [value for value in self.values.get(name, []) if value is not None]

    def is_text(self, name: str) -> bool:
        return bool(name) and isinstance(self.first(name), str)

    def families(self) -> dict[str, list[str]]:
        """Columns of text that are told apart by a number or letter: ``option1``, ``option2``."""
        members_of_stem: dict[str, list[str]] = {}
        for name in self.values:
            match = re.fullmatch(r"(.*?)_?([1-9]|[a-e])", plain(name))
            if match and self.is_text(name):
                members_of_stem.setdefault(match[1], []).append(name)
        return {stem: members for stem, members in members_of_stem.items() if len(members) > 1}

    def listed(self, most: int = 24) -> str:
        """Their names for a message; inside an object with its own: ``translation.en``."""
        names: list[str] = []
        for name in sorted(self.values):
            value = self.first(name)
            inside = [f"{name}.{key}" for key in value][:4] if isinstance(value, dict) else []
            names += inside or [name]
        shown = ", ".join(name[:40] for name in names[:most])[:150]
        return f"{shown} and more" if len(names) > most else shown or "none"


def plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def verdict_in(value: Any) -> bool | None:
    """Whether a value says that an answer is good; None when it says neither."""
    if type(value) is bool:
        return value
    if type(value) in (int, float):
        return {1: True, 0: False, -1: False}.get(value)
    word = plain(value) if type(value) is str else ""
    if word in (*GOOD, "1", "1.0", "true", "yes"):
        return True
    return False if word in (*BAD, "0", "0.0", "-1", "-1.0", "false", "no") else None


def words(name: str) -> list[str]:
    return re.split(r"[\W_]+", name.lower())


def few(values: list[Any]) -> bool:
    """Whether values repeat, as classes do."""
    return len({str(value) for value in values}) <= max(2, len(values) // 2)


def are_numbers(values: Sequence[Any]) -> bool:
    """Whether all are whole numbers, written as numbers or as text."""
    return bool(values) and all(
        type(value) is int or (type(value) is str and value.isdigit()) for value in values
    )


def label_and_group(columns: Columns, *but: str) -> dict[str, Any]:
    """Columns kept beside the row; they are not learned from."""
    group = next((name for name in columns.values if name not in but and set(words(name)) & set(GROUPS)), "")
    label = columns.find(("label", "category"), but=but)
    return {
        part: name
        for part, name in (("label", label), ("group", group))
        if name and not isinstance(columns.first(name), (dict, list))
    }
