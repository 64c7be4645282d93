"""How a file's columns become rows. Guessed from the file, corrected on the page, kept in the recipe.

A field names a column, a path into one (``answers.text``), or is a template: ``{question}`` stands
for a column's text, and a paragraph whose columns are all empty is left out. A text in double quotes is
the same for every row.
"""

import json
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Kind = Literal[
    "conversation", "exchange", "text", "preference", "kto", "squad", "instances", "written", "tree"
]
# What each kind cannot do without; the page asks for these first.
NEEDS: dict[Kind, tuple[str, ...]] = {
    "conversation": ("turns",),
    "exchange": ("prompt", "answer"),
    "text": ("text",),
    "preference": ("chosen", "rejected"),
    "kto": ("prompt", "answer", "desirable"),
    "squad": ("turns",),
    "instances": ("prompt", "turns"),
    "written": ("text",),
    "tree": ("turns",),
}
MAY: dict[Kind, tuple[str, ...]] = {
    "conversation": ("system", "tools", "desirable", "label", "group"),
    "exchange": ("system", "history", "choices", "tools", "label", "group"),
    "text": ("label", "group"),
    "preference": ("prompt", "system", "group"),
    "kto": ("system", "group"),
    "squad": ("system",),
    "instances": ("system",),
    "written": ("label", "group"),
    "tree": ("system",),
}
# The parts that are text, and so may be a template or a text in quotes; the others are columns.
WRITTEN = ("system", "prompt", "answer", "text", "chosen", "rejected")
NOT_PARTS = ("kind", "roles", "fill")  # fields of a mapping that name no column
_PLACE = re.compile(r"\{([^{}\n]+)\}")


def part(default: Any, help: str) -> Any:
    """One field, with what the page says of it."""
    return Field(default, description=help)


class Mapping(BaseModel):
    """Which column plays which part."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind = part("exchange", "What one record holds")
    turns: str = part("", "Column with the list of turns (for SQuAD its paragraphs)")
    system: str = part("", "What the system message says")
    prompt: str = part("", "What the user asks")
    answer: str = part("", "What the model is to answer")
    text: str = part("", "Plain text to continue")
    chosen: str = part("", "The better answer")
    rejected: str = part("", "The worse answer")
    desirable: str = part("", "Whether the answer is good (true or false)")
    history: str = part("", "Earlier exchanges, as pairs")
    choices: str = part("", "Choices of a question; its answer is a letter, the text, or counted from 0")
    tools: str = part("", "Tools that the model may call")
    label: str = part("", "Class of the row, for balance, stratified splits and scores")
    group: str = part("", "Group of the row, for splits and scores by group")
    roles: dict[str, str] = part({}, "Names of roles in the file: bot = assistant")
    fill: dict[str, str] = part({}, "What stands for {{name}} in the rows: name = Ada")

    def columns(self) -> set[str]:
        """Every column that plays a part."""
        found: set[str] = set()
        for name, value in self:
            if name in NOT_PARTS or not value or constant(value) is not None:
                continue
            found |= {place.split(".")[0] for place in _PLACE.findall(value)} if "{" in value else {value}
            found.add(value.split(".")[0])
        return found

    def missing(self) -> list[str]:
        """Parts that this kind needs and that no column plays."""
        return [part for part in NEEDS[self.kind] if not getattr(self, part)]

    def said(self) -> str:
        """The mapping in one line: ``user = {instruction} {input}, answer = output``."""
        parts = [
            f"{name} = {' '.join(value.split())}" for name, value in self if value and name not in NOT_PARTS
        ]
        parts += [f"{old} = {new}" for old, new in self.roles.items()]
        parts += [f"{{{{{name}}}}} = {text}" for name, text in self.fill.items()]
        return ", ".join(parts)


def constant(field: str) -> str | None:
    """The text that a part in quotes gives to every row; None for a column or a template."""
    if len(field) < 2 or not (field[0] == field[-1] == '"'):
        return None
    try:
        return json.loads(field, strict=False)
    except ValueError:  # quotes or backslashes inside that nobody escaped
        return field[1:-1]


def quoted(text: str) -> str:
    """A text as a part of a mapping that gives it to every row."""
    return json.dumps(text, ensure_ascii=False)


def lookup(record: dict[str, Any], path: str) -> Any:
    """A column, or a path into one; a list of texts on the way stands for its first."""
    if path in record:
        return record[path]
    value: Any = record
    for part in path.split("."):
        if isinstance(value, list):
            value = value[0] if value else None
        value = value.get(part) if isinstance(value, dict) else None
    return value


def places(template: str) -> list[str]:
    """Names of the columns in a template."""
    return _PLACE.findall(template)


def is_whole(template: str) -> bool:
    """Whether every brace of a template belongs to a column's name: ``{name}``."""
    rest = _PLACE.sub("", template)
    return "{" not in rest and "}" not in rest


def fill(template: str, text_of: Any) -> str:
    """A template's text; ``text_of`` gives a column's text for its name."""
    kept = []
    for paragraph in template.split("\n\n"):
        texts = {name: text_of(name) for name in _PLACE.findall(paragraph)}
        if texts and not any(text.strip() for text in texts.values()):
            continue
        kept.append(_PLACE.sub(lambda match, texts=texts: texts[match[1]], paragraph))  # type: ignore[misc]
    return "\n\n".join(kept)
