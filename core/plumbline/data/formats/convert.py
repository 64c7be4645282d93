"""Records to rows by a mapping.

A row is ``{"messages": [{"role", "content"}, ...]}`` or ``{"text": ...}``. Beside them may stand
``tools``; ``learn: false`` on an assistant turn that is shown and not learned; ``rejected``, the
worse answer of a pair; ``desirable``, the verdict of KTO; ``label``, ``group`` and ``columns``.
"""

import re
from collections.abc import Callable
from typing import Any

from plumbline.config.mapping import Mapping, lookup
from plumbline.data.errors import RowError, kind_of
from plumbline.data.formats import conversation_trees, prerendered, turn_masks
from plumbline.data.formats.conversations import (
    calls_of,
    canonical,
    learnable,
    message,
    messages_of,
    text_value,
    tools_of,
)
from plumbline.data.formats.fields import (
    answer_turns,
    has_others,
    label_text,
    part_text,
    plain_text,
    system_turns,
    tools_in,
    turns_before,
    verdict,
)
from plumbline.data.formats.multiple_choice import chosen_row
from plumbline.data.rows import Message, Row

Converter = Callable[[dict[str, Any]], Row | list[Row | RowError]]
READ_BACK = "hold a chat template written out; they are read as conversations"
KEPT_LENGTH = 200  # characters of another column that are kept beside the row
_HH = re.compile(r"\n\n(Human|Assistant): ?")


def converter(mapping: Mapping) -> Converter:
    """A function from a record to its row, or rows; it raises RowError for what cannot be one.

    Among several rows of one record stands a RowError for each that cannot be one.
    """
    make = {
        "conversation": _conversation,
        "exchange": _exchange,
        "text": _text,
        "preference": _preference,
        "kto": _kto,
        "squad": _squad,
        "instances": _instances,
        "written": _written,
        "tree": _tree,
    }[mapping.kind](mapping)
    used = mapping.columns()
    labelled = mapping.label == mapping.answer or mapping.choices
    parts = ("text", "prompt", "chosen", "rejected", *(() if labelled else ("answer",)))
    single = [field for part in parts if (field := getattr(mapping, part)) and "{" not in field]
    fill = _filler(mapping.fill)

    def convert(record: dict[str, Any]) -> Row | list[Row | RowError]:
        record = fill(record)
        made = make(record)
        if made is record:
            return made
        for row in made if isinstance(made, list) else [made]:
            if isinstance(row, dict):
                _keep(row, record, mapping, used)
                _note(row, record, single)
        return made

    return convert


def _filler(texts: dict[str, str]) -> Callable[[Any], Any]:
    """Writes texts where a record's own have placeholders such as ``{{name}}``."""
    if not texts:
        return lambda value: value
    pattern = re.compile(r"\{\{ ?(" + "|".join(map(re.escape, texts)) + r") ?\}\}")

    def fill(value: Any) -> Any:
        if type(value) is str:
            return pattern.sub(lambda match: texts[match[1]], value)
        if type(value) is list:
            return [fill(each) for each in value]
        return {name: fill(each) for name, each in value.items()} if type(value) is dict else value

    return fill


def _note(row: Row, record: dict[str, Any], single: list[str]) -> None:
    """Gather what the import tells of a row, and of each text that was not taken."""
    noted: dict[str, None] = {}
    for turn in (*row.get("messages", ()), *row.get("rejected", ())):
        if "noted" in turn:
            noted |= dict.fromkeys(turn.pop("noted"))
    for field in single:
        if has_others(record, field):
            noted[f"have several texts in {field[:40]!r}, of which the first is taken"] = None
    if noted:
        row["noted"] = [*row.get("noted", ()), *noted]


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
        # What a row says itself goes before what all are given.
        system = system_turns(record, mapping) if messages[0]["role"] != "system" else []
        turn_masks.by_list(record, messages, column)
        messages = [*system, *messages]
        row: Row = {"messages": messages}
        if tools := tools_in(record, mapping):
            row["tools"] = tools
        if mapping.desirable:
            row["desirable"] = verdict(lookup(record, mapping.desirable), mapping.desirable)
        return learnable(row, column)

    return convert


def _exchange(mapping: Mapping) -> Converter:
    labelled = mapping.label == mapping.answer

    def convert(record: dict[str, Any]) -> Row:
        value = lookup(record, mapping.answer)
        if mapping.choices:
            return chosen_row(record, mapping, value)
        if type(value) in (int, bool) and not labelled:
            what = f"{mapping.answer} is {kind_of(value)}, expected a text"
            both = f"answer={mapping.answer},label={mapping.answer}"
            raise RowError(what, f"To learn it as it is written, make it the label, too (mapping: {both})")
        row: Row = {}
        tools = tools_in(record, mapping)
        if tools:
            row["tools"] = tools
        if tools and type(value) is str and value.lstrip().startswith("[{"):
            calls = calls_of(value, mapping.answer)
            answer = [{"role": "assistant", "content": "", "tool_calls": calls}]
        elif labelled and type(value) is list:
            answer = [message("assistant", label_text(value, mapping.answer))]
        else:
            answer = answer_turns(record, mapping.answer, mapping.roles)
        return {"messages": [*turns_before(record, mapping), *answer], **row}

    return convert


def _text(mapping: Mapping) -> Converter:
    def convert(record: dict[str, Any]) -> Row:
        text = part_text(record, mapping.text)
        if not text or text.isspace():
            raise RowError(f"{mapping.text} is empty")
        return {"text": text}

    return convert


def _written(mapping: Mapping) -> Converter:
    def convert(record: dict[str, Any]) -> Row:
        messages = prerendered.messages_in(part_text(record, mapping.text), mapping.text)
        return {
            "messages": messages,
            "noted": ["hold a chat template written out; they are read as conversations"],
        }

    return convert


def _tree(mapping: Mapping) -> Converter:
    def convert(record: dict[str, Any]) -> Row:
        messages, others = conversation_trees.best_path(record.get(mapping.turns), mapping.turns)
        if messages[0]["role"] != "system":
            messages = [*system_turns(record, mapping), *messages]
        row: Row = learnable({"messages": messages}, mapping.turns)
        if others:
            row["noted"] = ["are trees with other replies, which are left out: the best path is taken"]
        return row

    return convert


def _preference(mapping: Mapping) -> Converter:
    def convert(record: dict[str, Any]) -> Row:
        chosen = _whole(record, mapping.chosen, mapping.roles)
        rejected = _whole(record, mapping.rejected, mapping.roles)
        if mapping.prompt and len(chosen) == 1:
            asked = turns_before(record, mapping)
        else:
            # Both sides hold the whole conversation: what they share is the prompt.
            shared = 0
            while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
                shared += 1
            asked = [t | {"learn": False} if t["role"] == "assistant" else t for t in chosen[:shared]]
            if asked and asked[0]["role"] != "system":
                asked = [*system_turns(record, mapping), *asked]
            chosen, rejected = chosen[shared:], rejected[shared:]
        if not asked:
            raise RowError("has no prompt")
        if chosen == rejected:
            raise RowError(f"{mapping.chosen} and {mapping.rejected} are the same")
        row: Row = {"messages": [*asked, *chosen], "rejected": rejected}
        if len(chosen) > 1:
            row["asked"] = len(asked)
        prompt = lookup(record, mapping.prompt)
        if type(prompt) is dict and prompt.get("tools"):
            row["tools"] = tools_of(prompt["tools"], f"{mapping.prompt}.tools")
        return row

    return convert


def _whole(record: dict[str, Any], field: str, roles: dict[str, str]) -> list[Message]:
    """One side of a pair, which may be a whole conversation in one text."""
    value = lookup(record, field)
    if type(value) is str and value.startswith("\n\nHuman:"):
        parts = _HH.split(value)[1:]
        return [
            message("user" if who == "Human" else "assistant", text)
            for who, text in zip(parts[::2], parts[1::2], strict=True)
        ]
    return answer_turns(record, field, roles)


def _kto(mapping: Mapping) -> Converter:
    def convert(record: dict[str, Any]) -> Row:
        answer = answer_turns(record, mapping.answer, mapping.roles)
        good = verdict(lookup(record, mapping.desirable), mapping.desirable)
        return {"messages": [*turns_before(record, mapping), *answer], "desirable": good}

    return convert


def _squad(mapping: Mapping) -> Converter:
    def convert(record: dict[str, Any]) -> list[Row | RowError]:
        rows: list[Row | RowError] = []
        for path, paragraph in _objects(record.get(mapping.turns), mapping.turns):
            context = text_value(paragraph.get("context"), f"{path}.context")
            for question_path, question in _objects(paragraph.get("qas"), f"{path}.qas"):
                asked = text_value(question.get("question"), f"{question_path}.question")
                answers = _objects(question.get("answers"), f"{question_path}.answers")
                texts = [answer.get("text") for _, answer in answers]
                if not texts or type(texts[0]) is not str or not texts[0].strip():
                    what = f"{question_path} is a question without an answer (id {question.get('id')!r:.40})"
                    rows.append(RowError(what))  # the others of this paragraph are good
                    continue
                turns = [message("user", f"{context}\n\n{asked}"), message("assistant", texts[0])]
                rows.append({"messages": [*system_turns(record, mapping), *turns]})
        if not rows:
            raise RowError(f"{mapping.turns} holds no question")
        return rows

    return convert


def _objects(value: Any, path: str) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a list, each with its place. :raises RowError: when it is none"""
    listed = value if type(value) is list else [] if value is None else [value]
    for number, part in enumerate(listed):
        if type(part) is not dict:
            raise RowError(f"{path}[{number}] is {kind_of(part)}, expected an object")
    return [(f"{path}[{number}]", part) for number, part in enumerate(listed)]


def _instances(mapping: Mapping) -> Converter:
    def convert(record: dict[str, Any]) -> list[Row | RowError]:
        task = part_text(record, mapping.prompt)
        rows: list[Row | RowError] = []
        for path, instance in _objects(record.get(mapping.turns), mapping.turns):
            task_input = text_value(instance.get("input", ""), f"{path}.input")
            answer = text_value(instance.get("output"), f"{path}.output")
            if not answer.strip():
                raise RowError(f"{path}.output is empty, so there is nothing to learn")
            asked = f"{task}\n\n{task_input}" if task_input.strip() else task
            turns = [message("user", asked), message("assistant", answer)]
            rows.append({"messages": [*system_turns(record, mapping), *turns]})
        if not rows:
            raise RowError(f"{mapping.turns} is empty")
        return rows

    return convert
