"""A mapping as a person writes it: pairs in one line, a YAML or JSON file, or the name of a saved one.

Whatever is wrong with it is told with the parts that there are, before any row is read.
"""

import re
from collections.abc import Mapping as Pairs
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import ValidationError

from plumbline import untrusted
from plumbline.config.mapping import (
    MAY,
    NEEDS,
    NOT_PARTS,
    WRITTEN,
    Kind,
    Mapping,
    constant,
    is_whole,
    places,
    quoted,
)
from plumbline.errors import StudioError
from plumbline.store import datasets as store

ROLES = ("system", "user", "assistant", "tool")
WHERE = "mapping"
# A part of the line: its text in quotes may hold commas and equals signs.
_PAIR = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*"|"|,(?!\s*[\w.-]+\s*=))+')
# In this order, the first kind whose parts are all named is meant.
_GUESSED: tuple[Kind, ...] = ("kto", "exchange", "preference", "instances", "conversation", "text")


def mapping_of(source: Mapping | Pairs[str, Any] | str | Path | None) -> Mapping | None:
    """The mapping that is meant.

    :param source: ``prompt=question,answer=reply,roles.bot=assistant,fill.name=Ada``, a file, a saved
        mapping's name, or its parts as a dict; the kind may be left out
    :raises StudioError: when it is none, with the parts that it may have
    """
    if source is None or isinstance(source, Mapping):
        return source
    if isinstance(source, Pairs):
        return _checked(dict(source))
    text = str(source)
    if isinstance(source, Path) or "=" not in text:
        return _named(text)
    return _checked(_pairs(text))


def _pairs(text: str) -> dict[str, Any]:
    raw: dict[str, Any] = {}
    for pair in _PAIR.findall(text):
        name, sign, value = (word.strip() for word in pair.partition("="))
        if not sign or not value:
            raise StudioError(WHERE, f"{pair.strip()!r:.80} is no part=column", parts_of(None))
        inside, dot, key = name.partition(".")
        if dot and inside in ("roles", "fill"):
            raw.setdefault(inside, {})[key] = value
        else:
            raw[name] = value
    return raw


def _named(text: str) -> Mapping:
    saved = store.mappings()
    if text in saved:
        return Mapping.model_validate_json(saved[text])
    path = Path(text)
    if not path.is_file():
        known = f"Saved: {', '.join(saved)}." if saved else "None is saved yet."
        fix = f"{known} Or write prompt=COLUMN,answer=COLUMN."
        raise StudioError(WHERE, f"{text!r:.80} is neither a file nor a saved mapping", fix)
    try:
        with open(path, encoding="utf-8") as file:
            raw = untrusted.value_of(file.read(untrusted.LARGEST + 1))
    except UnicodeDecodeError:
        raise StudioError(path.name, "is not UTF-8", "Save it as UTF-8.") from None
    except untrusted.Refused as refused:
        raise refused.at(path.name) from None
    if not isinstance(raw, dict):
        raise StudioError(path.name, "must be parts and their columns", parts_of(None))
    inner = raw.get("mapping")
    return _checked(inner if isinstance(inner, dict) else raw, path.name)


def _checked(raw: dict[str, Any], where: str = WHERE) -> Mapping:
    parts = {name for name, value in raw.items() if value}
    named_kind = raw.get("kind") or next((each for each in _GUESSED if parts >= {*NEEDS[each]}), "exchange")
    if named_kind not in get_args(Kind):
        raise StudioError(where, f"has no kind {named_kind!r:.40}", f"Kinds: {', '.join(get_args(Kind))}.")
    kind = cast(Kind, named_kind)
    allowed = {*NOT_PARTS, *NEEDS[kind], *MAY[kind]}
    if unknown := sorted(parts - allowed):
        raise StudioError(where, f"{kind} has no part {', '.join(map(repr, unknown))}", parts_of(kind))
    try:
        mapping = Mapping.model_validate(raw | {"kind": kind})
    except ValidationError as error:
        part = ".".join(map(str, error.errors()[0]["loc"]))
        raise StudioError(where, f"{part} must be the name of a column", parts_of(kind)) from None
    if bad := [role for role in mapping.roles.values() if role not in ROLES]:
        raise StudioError(where, f"{bad[0]!r:.40} is no role", f"Roles are {', '.join(ROLES)}.")
    refuse_incomplete(mapping, where)
    return mapping


def parts_of(kind: Kind | None) -> str:
    """The parts that a kind has, or that each kind has; those in brackets may be left out."""
    kinds = [kind] if kind else list(get_args(Kind))
    known = (f"{each}: {', '.join([*NEEDS[each], *(f'[{part}]' for part in MAY[each])])}" for each in kinds)
    return f"Parts of {'; '.join(known)}."


def refuse_incomplete(mapping: Mapping, where: str = WHERE) -> None:
    """:raises StudioError: when no column plays a part that the mapping's kind needs

    :param where: what the message is about
    """
    if missing := mapping.missing():
        what = f"does not say which column is {' and '.join(missing)}"
        raise StudioError(where, what, parts_of(mapping.kind))


def _refuse_bad_templates(mapping: Mapping, columns: list[str]) -> None:
    """:raises StudioError: at a part whose braces are not all around a column's name, or at a text in
    quotes where only a column can be"""
    for part, value in mapping:
        if part in NOT_PARTS or value in columns:
            continue
        if constant(value) is not None:
            if part not in WRITTEN:
                what = f"{part} is the text {value!r:.80}, and must be a column"
                raise StudioError(WHERE, what, f"Texts may be given to {', '.join(WRITTEN)}.")
            continue
        if "{" not in value:
            continue
        unknown = [name for name in places(value) if name not in columns]
        if not is_whole(value) or any(set(name) & set("!:") for name in unknown):
            what = f"{part} is {value!r:.80}, whose braces do not all hold a column's name"
            raise StudioError(WHERE, what, "Write {name} for a column's text, and no other braces.")


def refuse_missing_columns(mapping: Mapping, columns: list[str], name: str) -> None:
    """:raises StudioError: when a part names a column that a file does not have, or is a template with
    braces that name none

    In a template a missing column is empty text: a slip in its name would go unnoticed in every row.

    :param columns: those of the file's first rows
    """
    _refuse_bad_templates(mapping, columns)
    for part, value in mapping:
        if part in NOT_PARTS or not value or constant(value) is not None:
            continue
        named = [value] if value in columns else places(value) or [value]
        for column in named:
            if column not in columns and column.split(".")[0] not in columns:
                known = ", ".join(columns[:40]) or "none"
                what = f"{part} is column {column!r:.80}, which {name} does not have"
                text = f' For the same text in every row write {part}="..." with the quotes.'
                fix = f"Its columns: {known}.{text if part in WRITTEN else ''} {parts_of(mapping.kind)}"
                raise StudioError(WHERE, what, fix)


def said(mapping: str | None) -> str:
    """A dataset's stored mapping in one line."""
    if not mapping:
        return "not kept (stored by an earlier version)"
    known = Mapping.model_validate_json(mapping)
    return f"{known.kind}: {known.said()}"


def with_system(mapping: Mapping, text: str, name: str) -> Mapping:
    """A mapping that gives every row a system prompt. :raises StudioError: when rows cannot have it"""
    if not text.strip():
        return mapping
    if "system" not in (*NEEDS[mapping.kind], *MAY[mapping.kind]):
        raise StudioError(name, f"is {mapping.kind}, whose rows have no system prompt", "Leave it empty.")
    if mapping.system and constant(mapping.system) is None:
        what = f"has a system prompt in its column {mapping.system}"
        raise StudioError(name, what, "Leave the one for every row empty, or map system to nothing.")
    return mapping.model_copy(update={"system": quoted(text.strip())})
