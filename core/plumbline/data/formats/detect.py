"""The shapes that datasets come in: recognised from a file's first records, never insisted on.

`recognise` guesses a mapping and says what it saw; the user may correct it before anything is stored.
What could be read in two ways, or only without a part that matters, is refused with its columns.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from plumbline.config.mapping import Mapping
from plumbline.data.formats import conversation_trees, detect_tasks, prerendered
from plumbline.data.formats.cell_values import value_in
from plumbline.data.formats.columns import (
    ANSWERS,
    BAD,
    CHOSEN,
    CONTEXTS,
    GOOD,
    KTO_LABELS,
    PROMPTS,
    REJECTED,
    ROLE_NAMES,
    SOURCES,
    SUMMARIES,
    SYSTEMS,
    TURNS,
    Columns,
    Guess,
    Unclear,
    label_and_group,
    plain,
    verdict_in,
)
from plumbline.errors import StudioError

FIX = (
    "Say which is what (a mapping), or use names such as messages, prompt and completion, "
    "question and answer, text, text and label, chosen and rejected."
)


def recognise(sample: Sequence[dict[str, Any]], name: str) -> Guess:
    """The shape that the first records make.

    :raises StudioError: when it is none of the known ones, with the columns that were found
    """
    columns = Columns(sample)
    try:
        detect_tasks.refuse_pictures(columns)
        for look in (
            _written,
            _preference,
            _kto,
            _tree,
            _instances,
            _conversation,
            _refuse_single_turns,
            _squad,
            detect_tasks.choices,
            _summary,
            detect_tasks.pairs,
            detect_tasks.labelled_first,
            _exchange,
            detect_tasks.labelled,
            detect_tasks.text,
        ):
            guess = look(columns)
            if guess is not None:
                return guess
    except Unclear as unclear:
        raise StudioError(name, str(unclear), FIX) from None
    raise StudioError(name, f"has columns that are not known: {columns.listed()}", FIX)


def turns_of(value: Any) -> list[Any] | None:
    """A value as a list of turns: a list, or a list written as JSON or by Python in a text."""
    if isinstance(value, str):
        value = value_in(value)
    if isinstance(value, dict) and isinstance(value.get("messages"), list):
        value = value["messages"]
    return value if isinstance(value, list) else None


def holds_turns(value: Any) -> bool:
    """Whether a value is a conversation: turns with a role, pairs, or alternating texts."""
    turns = turns_of(value)
    if not turns:
        return False
    if isinstance(turns[0], dict):
        return bool({*ROLE_NAMES} & turns[0].keys()) or is_pair(turns[0])
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


def _written(columns: Columns) -> Guess | None:
    """One column of texts in which a chat template is written out, in most of the first rows."""
    name = columns.find_text(("text", "content", "prompt", "data"))
    if not name and len(columns.values) == 1:
        name = next(iter(columns.values))
    if not columns.is_text(name) or columns.find(ANSWERS) or columns.find(CHOSEN):
        return None
    texts = [value for value in columns.known(name) if isinstance(value, str)]
    forms = Counter(filter(None, map(prerendered.form_of, texts)))
    if 2 * sum(forms.values()) <= len(texts):
        return None
    mapping = Mapping(kind="written", text=name, **label_and_group(columns, name))
    return Guess(f"text with a template written out: {', '.join(forms)}", mapping)


def _tree(columns: Columns) -> Guess | None:
    name = next((name for name in columns.values if conversation_trees.is_tree(columns.first(name))), "")
    return Guess("a tree of replies", Mapping(kind="tree", turns=name)) if name else None


def _conversation(columns: Columns) -> Guess | None:
    named = [columns.by_plain[name] for name in TURNS if name in columns.by_plain]
    earlier = columns.find(("history",))  # what went before a prompt and its answer
    for name in (*named, *columns.values):
        value = columns.first(name)
        texts = name in named and isinstance(value, list) and value and all(isinstance(x, str) for x in value)
        empty = name == "messages" and (value is None or isinstance(value, (list, str)))
        if name == earlier or not (holds_turns(value) or texts or empty):
            continue
        first = (turns_of(value) or [None])[0]
        sharegpt = isinstance(first, dict) and "from" in first
        tools = columns.find(("tools", "functions"))
        mapping = Mapping(
            kind="conversation",
            turns=name,
            system=columns.find(SYSTEMS),
            tools=tools,
            **label_and_group(columns, name),
        )
        if sharegpt:
            return Guess("conversations (from, value)", mapping)
        return Guess("messages with tools" if tools else "messages", mapping)
    return None


_SPEAKERS = {"user", "assistant", "system", "human", "gpt", "bot", "prompter", "model"}


def _refuse_single_turns(columns: Columns) -> None:
    """:raises Unclear: when every record is one message, as in the export of a forum or a message tree"""
    role = columns.find(ROLE_NAMES)
    content = columns.find_text(("text", "content", "value", "message"), but=(role,))
    if role and content and all(str(value).lower() in _SPEAKERS for value in columns.known(role)):
        raise Unclear(
            f"holds one message a row ({role}), and which of them make a conversation is not read; "
            "a file with one tree or conversation a line is (OASST: the one whose name ends in trees)"
        )


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
    known = columns.known(verdict) if verdict else []
    if not known or any(verdict_in(value) is None for value in known):
        return None
    # Words that say nothing but a verdict, unlike 0 and 1 or yes and no, which may be classes.
    sure = all(type(value) is bool or plain(str(value)) in (*GOOD, *BAD) for value in known)
    turns = next((name for name in columns.values if holds_turns(columns.first(name))), "")
    prompt, answer = columns.find(PROMPTS), columns.find(ANSWERS, but=(verdict,))
    completion = columns.find(("completion", "response"))
    if completion and prompt:
        return Guess("KTO", Mapping(kind="kto", prompt=prompt, answer=completion, desirable=verdict))
    if turns and turns not in (prompt, answer) and sure:
        return Guess("KTO", Mapping(kind="conversation", turns=turns, desirable=verdict))
    if prompt and answer and sure:
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


def _summary(columns: Columns) -> Guess | None:
    """A text and its summary, unless an instruction says that it is more than that."""
    source, summary = columns.find_text(SOURCES), columns.find_text(SUMMARIES)
    if not (source and summary) or columns.find(PROMPTS[:6]):
        return None
    mapping = Mapping(prompt=source, answer=summary, **label_and_group(columns, source, summary))
    return Guess(f"{source}/{summary}", mapping)


def _exchange(columns: Columns) -> Guess | None:
    prompt = columns.find(PROMPTS)
    answer = columns.find(ANSWERS, but=(prompt,))
    if not (prompt and answer):
        return None
    if prompt == columns.find(("text", "sentence")) and answer == columns.find(("target",)):
        return None  # a text and its class
    asked, shape = prompt, f"{prompt}/{answer}"
    extra = columns.find(CONTEXTS, but=(prompt, answer))
    if extra and columns.is_text(prompt):
        after = prompt == columns.find(("instruction", "prompt"))
        asked = f"{{{prompt}}}\n\n{{{extra}}}" if after else f"{{{extra}}}\n\n{{{prompt}}}"
        shape = f"{prompt}/{extra}/{answer}"
    parts = label_and_group(columns, prompt, answer, extra)
    if all(isinstance(value, bool) for value in columns.known(answer)):
        parts |= {"label": answer}  # yes or no: a class
    mapping = Mapping(
        prompt=asked,
        answer=_inside(columns, answer),
        system=columns.find(SYSTEMS),
        history=columns.find(("history",)),
        tools=columns.find(("tools", "functions"), but=(answer,)),
        **parts,
    )
    return Guess(shape, mapping)


def _inside(columns: Columns, answer: str) -> str:
    """The path of an answer that is an object with its text in it."""
    value = columns.first(answer)
    if isinstance(value, dict) and not {*ROLE_NAMES} & value.keys():
        for key in ("text", "value", "content"):
            if isinstance(value.get(key), (str, list)):
                return f"{answer}.{key}"
    return answer
