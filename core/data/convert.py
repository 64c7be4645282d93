"""Records to rows by a mapping.

A row is ``{"messages": [{"role", "content"}, ...]}`` or ``{"text": ...}``. Beside them may stand
``tools``; ``learn: false`` on an assistant turn that is shown and not learned; ``rejected``, the
worse answer of a pair; ``desirable``, the verdict of KTO; ``label``, ``group`` and ``columns``.
"""

import re
from collections.abc import Callable
from typing import Any

from core.data.errors import RowError, kind_of
from core.data.mapping import Mapping, fill, lookup
from core.data.shapes import turns_of
from core.data.turns import canonical, learnable, message, messages_of, text_value, tools_of

Row = dict[str, Any]
Converter = Callable[[dict[str, Any]], Row | list[Row]]
KEPT_LENGTH = 200  # characters of another column that are kept beside the row
_HH = re.compile(r"\n\n(Human|Assistant): ?")


def converter(mapping: Mapping) -> Converter:
    """A function from a record to its row, or rows; it raises RowError for what cannot be one."""
    make = {
        "conversation": _conversation,
        "exchange": _exchange,
        "text": _text,
        "preference": _preference,
        "kto": _kto,
        "squad": _squad,
        "instances": _instances,
    }[mapping.kind](mapping)
    used = mapping.columns()

    def convert(record: dict[str, Any]) -> Row | list[Row]:
        made = make(record)
        if made is record:
            return made
        rows = made if isinstance(made, list) else [made]
        for row in rows:
            _keep(row, record, mapping, used)
        return made

    return convert


def _keep(row: Row, record: dict[str, Any], mapping: Mapping, used: set[str]) -> None:
    """Label, group and the other short columns, as text, for splits, order and scores."""
    for part in ("label", "group"):
        column = getattr(mapping, part)
        if column and (value := lookup(record, column)) is not None:
            row[part] = label_text(value, column)
    others = {
        name: value if type(value) is str else plain_text(value)
        for name, value in record.items()
        if name not in used and _is_kept(value) and len(str(value)) <= KEPT_LENGTH
    }
    if others:
        row["columns"] = others


def _is_kept(value: Any) -> bool:
    # A whole number of more than 64 bits arrives as a float, with other digits than the file's.
    return type(value) in (str, int, bool) or (type(value) is float and abs(value) < 2**63)


def plain_text(value: float) -> str:
    """A number or truth value as JSON spells it."""
    return str(value).lower()


def label_text(value: Any, column: str) -> str:
    """A class as text: a text, a whole number or a truth value, exactly as it stands."""
    if type(value) is str:
        return value
    if type(value) is int or type(value) is bool:
        return plain_text(value)
    raise RowError(f"{column} is {kind_of(value)}, expected a text")


def _text_at(record: dict[str, Any], path: str) -> str:
    value = lookup(record, path)
    if type(value) is list and value and type(value[0]) is str:
        value = value[0]  # several right answers: the first
    if type(value) is not str:
        if value is None and path.split(".")[0] not in record:
            raise RowError(f"has no {path}; it has {', '.join(list(record)[:6]) or 'no columns'}")
        raise RowError(f"{path} is {kind_of(value)}, expected a text")
    return value


def _part(record: dict[str, Any], field: str) -> str:
    """A field of the mapping for this record. In a template a missing column is empty."""
    if "{" not in field or field in record:
        return _text_at(record, field)
    return fill(field, lambda name: "" if lookup(record, name) is None else _text_at(record, name))


def _conversation(mapping: Mapping) -> Converter:
    column, roles = mapping.turns, mapping.roles
    plain = column == "messages" and not (
        mapping.system or mapping.tools or mapping.desirable or mapping.label
    )

    def convert(record: dict[str, Any]) -> Row:
        turns = record.get(column)
        if type(turns) is list and turns and plain and len(record) == 1 and canonical(turns):
            return record  # as it is: nothing is written anew
        if turns is None:
            if column in record:
                raise RowError(f"{column} is null, expected a list of turns")
            raise RowError(f"has no {column}; it has {', '.join(list(record)[:6]) or 'no columns'}")
        messages = messages_of(turns, column, roles)
        if mapping.system and record.get(mapping.system):
            messages.insert(0, message("system", _text_at(record, mapping.system)))
        row: Row = {"messages": messages}
        if mapping.tools and record.get(mapping.tools):
            row["tools"] = tools_of(record[mapping.tools], mapping.tools)
        if mapping.desirable:
            row["desirable"] = _verdict(lookup(record, mapping.desirable), mapping.desirable)
        return learnable(row, column)

    return convert


def _verdict(value: Any, column: str) -> bool:
    if type(value) is bool:
        return value
    if value in (0, 1, "0", "1"):
        return value in (1, "1")
    if type(value) is str and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    raise RowError(f"{column} is {kind_of(value)}, expected true or false")


def _asked(record: dict[str, Any], mapping: Mapping) -> list[dict[str, Any]]:
    """Everything before the answer; answers in it are shown and not learned."""
    messages: list[dict[str, Any]] = []
    if mapping.system and record.get(mapping.system):
        messages.append(message("system", _text_at(record, mapping.system)))
    if mapping.history and record.get(mapping.history):
        messages += messages_of(record[mapping.history], mapping.history, mapping.roles)
    prompt = mapping.prompt
    value = lookup(record, prompt) if "{" not in prompt else None
    if isinstance(value, (list, dict)) and turns_of(value):
        before = messages_of(value, prompt, mapping.roles)
        return messages + [
            turn | {"learn": False} if turn["role"] == "assistant" else turn for turn in before
        ]
    text = _part(record, prompt)
    return [*messages, message("user", text)]


def _answer(record: dict[str, Any], field: str, roles: dict[str, str]) -> list[dict[str, Any]]:
    """An answer column as turns: a text, one message, or a list of them."""
    value = lookup(record, field)
    if isinstance(value, dict) and ("role" in value or "from" in value):
        value = [value]
    if isinstance(value, list) and turns_of(value) and type(value[0]) is dict:
        turns = messages_of(value, field, roles)
    else:
        # Numbers and truth values are classes here, kept exactly as they stand.
        known = type(value) in (int, bool)
        turns = [message("assistant", label_text(value, field) if known else _part(record, field))]
    for turn in turns:
        if turn["role"] == "assistant" and not turn["content"].strip() and not turn.get("tool_calls"):
            raise RowError(f"{field} is empty, so there is nothing to learn")
    return turns


def _exchange(mapping: Mapping) -> Converter:
    labelled = mapping.label == mapping.answer

    def convert(record: dict[str, Any]) -> Row:
        if labelled or type(lookup(record, mapping.answer)) not in (int, bool):
            answer = _answer(record, mapping.answer, mapping.roles)
        else:
            raise RowError(f"{mapping.answer} is {kind_of(lookup(record, mapping.answer))}, expected a text")
        return {"messages": [*_asked(record, mapping), *answer]}

    return convert


def _text(mapping: Mapping) -> Converter:
    def convert(record: dict[str, Any]) -> Row:
        text = _part(record, mapping.text)
        if not text or text.isspace():
            raise RowError(f"{mapping.text} is empty")
        return {"text": text}

    return convert


def _preference(mapping: Mapping) -> Converter:
    def convert(record: dict[str, Any]) -> Row:
        chosen = _whole(record, mapping.chosen, mapping.roles)
        rejected = _whole(record, mapping.rejected, mapping.roles)
        if mapping.prompt and len(chosen) == 1:
            asked = _asked(record, mapping)
        else:
            # Both sides hold the whole conversation: what they share is the prompt.
            shared = 0
            while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
                shared += 1
            asked = [t | {"learn": False} if t["role"] == "assistant" else t for t in chosen[:shared]]
            chosen, rejected = chosen[shared:], rejected[shared:]
        if not asked:
            raise RowError("has no prompt")
        if chosen == rejected:
            raise RowError(f"{mapping.chosen} and {mapping.rejected} are the same")
        return {"messages": [*asked, *chosen], "rejected": rejected}

    return convert


def _whole(record: dict[str, Any], field: str, roles: dict[str, str]) -> list[dict[str, Any]]:
    """One side of a pair, which may be a whole conversation in one text."""
    value = lookup(record, field)
    if type(value) is str and value.startswith("\n\nHuman:"):
        parts = _HH.split(value)[1:]
        return [
            message("user" if who == "Human" else "assistant", said)
            for who, said in zip(parts[::2], parts[1::2], strict=True)
        ]
    return _answer(record, field, roles)


def _kto(mapping: Mapping) -> Converter:
    def convert(record: dict[str, Any]) -> Row:
        answer = _answer(record, mapping.answer, mapping.roles)
        verdict = _verdict(lookup(record, mapping.desirable), mapping.desirable)
        return {"messages": [*_asked(record, mapping), *answer], "desirable": verdict}

    return convert


def _squad(mapping: Mapping) -> Converter:
    def convert(record: dict[str, Any]) -> list[Row]:
        rows = []
        for number, paragraph in enumerate(record.get(mapping.turns) or []):
            place = f"{mapping.turns}[{number}]"
            context = text_value(paragraph.get("context"), f"{place}.context")
            for question in paragraph.get("qas") or []:
                texts = [found.get("text") for found in question.get("answers") or []]
                if not texts or type(texts[0]) is not str or not texts[0].strip():
                    raise RowError(
                        f"{place} has a question without an answer (id {question.get('id')!r:.40})"
                    )
                asked = f"{context}\n\n{text_value(question.get('question'), place)}"
                rows.append({"messages": [message("user", asked), message("assistant", texts[0])]})
        return rows

    return convert


def _instances(mapping: Mapping) -> Converter:
    def convert(record: dict[str, Any]) -> list[Row]:
        task = _part(record, mapping.prompt)
        rows = []
        for number, instance in enumerate(record.get(mapping.turns) or []):
            place = f"{mapping.turns}[{number}]"
            if type(instance) is not dict:
                raise RowError(f"{place} is {kind_of(instance)}, expected an object")
            given = text_value(instance.get("input", ""), f"{place}.input")
            answer = text_value(instance.get("output"), f"{place}.output")
            if not answer.strip():
                raise RowError(f"{place}.output is empty, so there is nothing to learn")
            asked = f"{task}\n\n{given}" if given.strip() else task
            rows.append({"messages": [message("user", asked), message("assistant", answer)]})
        if not rows:
            raise RowError(f"{mapping.turns} is empty")
        return rows

    return convert
