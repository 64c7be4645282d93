"""The shapes that datasets come in: recognised from a file's first records, never insisted on.

`recognise` guesses a mapping and says what it saw; the user may correct it before anything is stored.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from core.data.mapping import Mapping
from core.errors import StudioError

SHAPES = (
    "messages",
    "conversations (from, value)",
    "instruction/input/output",
    "prompt/completion",
    "question/answer",
    "SQuAD",
    "text",
    "text/label",
    "preference pairs",
    "KTO",
)


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TURNS = _names("messages conversations conversation dialogue dialog turns chat utterances data")
PROMPTS = _names(
    "instruction prompt question query problem user human request user_message input source input_text "
    "user_input user_prompt src text sentence"
)
ANSWERS = _names(
    "output completion response answer assistant solution reply target bot gpt answers model_answer "
    "output_text target_text best_answer expected_output assistant_message tgt summary translation highlights"
)
TEXTS = _names(
    "text content sentence document body raw_content passage article tweet comment review utterance post "
    "message input query question prompt story"
)
LABELS = _names("label labels category class intent sentiment topic label_text emotion target")
CHOSEN = _names("chosen chosen_response response_chosen preferred preferred_output better response_j winner")
REJECTED = _names(
    "rejected rejected_response response_rejected dispreferred non_preferred_output worse response_k loser"
)
SYSTEMS = _names("system system_prompt system_message")
GROUPS = _names("group groups subgroup identity ident demographic")
KTO_LABELS = _names("label kto_tag desirable kto_label")


@dataclass(frozen=True)
class Guess:
    """What a file seems to hold: the shape's usual name, and the mapping that reads it."""

    shape: str
    mapping: Mapping


class Columns:
    """The first records by column; names are compared without case, spaces and hyphens."""

    def __init__(self, sample: Sequence[dict[str, Any]]) -> None:
        self.values: dict[str, list[Any]] = {}
        for record in sample:
            for name, value in record.items():
                self.values.setdefault(name, []).append(value)
        self.by_plain = {re.sub(r"[\s-]+", "_", name.strip().lower()): name for name in reversed(self.values)}

    def find(self, names: Sequence[str], *, but: Sequence[str] = ()) -> str:
        """The first of these names that is a column, as the file spells it; else empty."""
        for name in names:
            found = self.by_plain.get(name)
            if found is not None and found not in but:
                return found
        return ""

    def first(self, name: str) -> Any:
        """The first value that is not null."""
        return next((value for value in self.values.get(name, []) if value is not None), None)

    def is_text(self, name: str) -> bool:
        return bool(name) and isinstance(self.first(name), str)


def recognise(sample: Sequence[dict[str, Any]], name: str) -> Guess:
    """The shape that the first records make.

    :raises StudioError: when it is none of the known ones, with the columns that were found
    """
    columns = Columns(sample)
    for look in (
        _preference,
        _kto,
        _conversation,
        _squad,
        _instances,
        _labelled_first,
        _exchange,
        _labelled,
        _text,
    ):
        guess = look(columns)
        if guess is not None:
            return guess
    listed = ", ".join(sorted(columns.values)) or "none"
    raise StudioError(
        name,
        f"has columns that are not known: {listed}",
        f"Say which is what (a mapping), or rename them to one of these: {'; '.join(SHAPES)}.",
    )


def turns_of(value: Any) -> list[Any] | None:
    """A value as a list of turns: a list, or a list written as JSON in a text."""
    if isinstance(value, str) and value.lstrip()[:2] in ("[{", "[ "):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            return None
    if isinstance(value, dict) and isinstance(value.get("messages"), list):
        value = value["messages"]
    return value if isinstance(value, list) else None


def holds_turns(value: Any) -> bool:
    """Whether a value is a conversation: turns with a role, pairs, or alternating texts."""
    turns = turns_of(value)
    if not turns:
        return False
    if isinstance(turns[0], dict):
        return bool({"role", "from", "speaker", "author"} & turns[0].keys()) or is_pair(turns[0])
    return isinstance(turns[0], list) and len(turns[0]) == 2 and all(isinstance(x, str) for x in turns[0])


PAIRS = (
    ("user", "assistant"),
    ("human", "assistant"),
    ("user", "bot"),
    ("question", "answer"),
    ("input", "output"),
)


def is_pair(turn: dict[str, Any]) -> bool:
    return any(set(pair) <= turn.keys() for pair in PAIRS)


def _conversation(columns: Columns) -> Guess | None:
    named = [columns.by_plain[name] for name in TURNS if name in columns.by_plain]
    for name in (*named, *columns.values):
        value = columns.first(name)
        texts = name in named and isinstance(value, list) and value and all(isinstance(x, str) for x in value)
        empty = name == "messages" and (value is None or isinstance(value, (list, str)))
        if not (holds_turns(value) or texts or empty):
            continue
        first = (turns_of(value) or [None])[0]
        sharegpt = isinstance(first, dict) and "from" in first
        tools = columns.find(("tools", "functions"))
        mapping = Mapping(
            kind="conversation",
            turns=name,
            system=columns.find(SYSTEMS),
            tools=tools,
            **_label_and_group(columns, name),
        )
        if sharegpt:
            return Guess("conversations (from, value)", mapping)
        return Guess("messages with tools" if tools else "messages", mapping)
    return None


def _preference(columns: Columns) -> Guess | None:
    chosen, rejected = columns.find(CHOSEN), columns.find(REJECTED)
    if not (chosen and rejected):
        return None
    prompt = columns.find((*TURNS, *PROMPTS), but=(chosen, rejected))
    if columns.find(("instruction",)) and columns.find(("input",)) and not holds_turns(columns.first(prompt)):
        prompt = f"{{{columns.find(('instruction',))}}}\n\n{{{columns.find(('input',))}}}"
    mapping = Mapping(
        kind="preference", prompt=prompt, chosen=chosen, rejected=rejected, system=columns.find(SYSTEMS)
    )
    return Guess("preference pairs", mapping)


def _kto(columns: Columns) -> Guess | None:
    verdict = columns.find(KTO_LABELS)
    if not verdict or not isinstance(columns.first(verdict), bool):
        return None
    turns = next((name for name in columns.values if holds_turns(columns.first(name))), "")
    prompt, answer = columns.find(PROMPTS), columns.find(ANSWERS)
    if columns.find(("completion",)) and prompt:
        return Guess(
            "KTO", Mapping(kind="kto", prompt=prompt, answer=columns.find(("completion",)), desirable=verdict)
        )
    if turns and turns not in (prompt, answer):
        return Guess("KTO", Mapping(kind="conversation", turns=turns, desirable=verdict))
    if prompt and answer:
        return Guess("KTO", Mapping(kind="kto", prompt=prompt, answer=answer, desirable=verdict))
    return None


def _squad(columns: Columns) -> Guess | None:
    paragraphs = columns.find(("paragraphs",))
    first = columns.first(paragraphs) if paragraphs else None
    if isinstance(first, list) and first and isinstance(first[0], dict) and "qas" in first[0]:
        return Guess("SQuAD", Mapping(kind="squad", turns=paragraphs))
    question, answers = columns.find(("question",)), columns.find(("answers",))
    if question and isinstance(columns.first(answers), dict) and "text" in columns.first(answers):
        context = columns.find(("context",))
        prompt = f"{{{context}}}\n\n{{{question}}}" if context else question
        return Guess("SQuAD", Mapping(kind="exchange", prompt=prompt, answer=f"{answers}.text"))
    return None


def _instances(columns: Columns) -> Guess | None:
    instances, prompt = columns.find(("instances",)), columns.find(("instruction", "definition", "task"))
    first = columns.first(instances) if instances else None
    if prompt and isinstance(first, list) and first and isinstance(first[0], dict) and "output" in first[0]:
        return Guess("instruction with instances", Mapping(kind="instances", prompt=prompt, turns=instances))
    return None


def _exchange(columns: Columns) -> Guess | None:
    prompt = columns.find(PROMPTS)
    answer = columns.find(ANSWERS, but=(prompt,))
    if not (prompt and answer):
        return None
    if prompt == columns.find(("text", "sentence")) and answer == columns.find(("target",)):
        return None  # a text and its class
    asked, shape = prompt, f"{prompt}/{answer}"
    extra = columns.find(("input", "context"), but=(prompt, answer))
    if extra and columns.is_text(prompt):
        after = prompt == columns.find(("instruction", "prompt"))
        asked = f"{{{prompt}}}\n\n{{{extra}}}" if after else f"{{{extra}}}\n\n{{{prompt}}}"
        shape = f"{prompt}/{extra}/{answer}"
    mapping = Mapping(
        kind="exchange",
        prompt=asked,
        answer=answer,
        system=columns.find(SYSTEMS),
        history=columns.find(("history",)),
        **_label_and_group(columns, prompt, answer, extra),
    )
    return Guess(shape, mapping)


def _labelled_first(columns: Columns) -> Guess | None:
    """A text and a column called label: a class, whatever else the file holds."""
    label = columns.find(("label", "labels", "label_text"))
    answer = columns.find(ANSWERS[:8])
    return _labelled(columns) if label and not answer else None


def _labelled(columns: Columns) -> Guess | None:
    label = columns.find(LABELS) or next(
        (name for name in columns.values if "label" in _words(name) and _few(columns.values[name])), ""
    )
    if not label or isinstance(columns.first(label), (dict, list)):
        return None
    text = columns.find(TEXTS, but=(label,)) or _longest(columns, label)
    if not columns.is_text(text):
        return None
    parts = _label_and_group(columns, text) | {"label": label}
    return Guess("text/label", Mapping(kind="exchange", prompt=text, answer=label, **parts))


def _text(columns: Columns) -> Guess | None:
    text = columns.find(TEXTS[:8])
    if not columns.is_text(text) and len(columns.values) == 1:
        text = next(iter(columns.values))
    if not columns.is_text(text) and not (text and columns.find(("text",))):
        return None
    return Guess("text", Mapping(kind="text", text=text, **_label_and_group(columns, text)))


def _label_and_group(columns: Columns, *but: str) -> dict[str, Any]:
    """Columns kept beside the row; they are not learned from."""
    group = next((name for name in columns.values if name not in but and set(_words(name)) & set(GROUPS)), "")
    label = columns.find(("label", "category"), but=but)
    plain = {
        part: name
        for part, name in (("label", label), ("group", group))
        if name and not isinstance(columns.first(name), (dict, list))
    }
    return plain


def _words(name: str) -> list[str]:
    return re.split(r"[\W_]+", name.lower())


def _few(values: list[Any]) -> bool:
    """Whether values repeat, as classes do."""
    return len({str(value) for value in values}) <= max(2, len(values) // 2)


def _longest(columns: Columns, label: str) -> str:
    """The column with the longest and most varied texts."""

    def score(name: str) -> float:
        texts = [value for value in columns.values[name] if isinstance(value, str)]
        if not texts:
            return 0.0
        return sum(map(len, texts)) / len(texts) * len(set(texts)) / len(texts)

    others = [name for name in columns.values if name != label]
    return max(others, key=score, default="")
