"""The shapes of public datasets: each read as a person would read it, or refused in one sentence.

Rows are written as ``user> ...`` lines; a turn that is shown and not learned has a star.
"""

import copy
import random
from typing import Any

import pytest

from plumbline.data.errors import RowError
from plumbline.data.formats.convert import converter
from plumbline.data.formats.detect import recognise
from plumbline.data.importing.chunk import as_line
from plumbline.data.rows import prompt_of
from plumbline.errors import StudioError

Record = dict[str, Any]
CHAT = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
BAD = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "B"}]
FROM = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
SAID = '{"name": "f", "arguments": {"a": 1}}'
TOOL = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
QA = "user> Q\nassistant> A"
PAIR = f"{QA}\nrejected> B"
GOOD = f"{QA}\ndesirable> True"
LETTERS = "user> Q\n\nA. x\nB. y\nassistant> B. y"

# name: (first records, shape, their first row)
READ: dict[str, tuple[list[Record], str, str]] = {
    "messages": ([{"messages": CHAT, "source": "x"}], "messages", QA),
    "a prompt beside messages": ([{"prompt": "Q", "messages": CHAT}], "messages", QA),
    "ShareGPT": ([{"id": 1, "conversations": FROM}], "conversations (from, value)", QA),
    "ShareGPT with weights": (
        [{"conversations": [{**FROM[0], "weight": 0.0}, {**FROM[1], "weight": 1.0}]}],
        "conversations (from, value)",
        QA,
    ),
    "alternating texts": ([{"data": ["Q", "A", "R", "B"]}], "messages", f"{QA}\nuser> R\nassistant> B"),
    "pairs": ([{"conversation": [{"input": "Q", "output": "A"}]}], "messages", QA),
    "parts": (
        [{"systemInstruction": {"parts": [{"text": "S"}]}, "contents": [
            {"role": "user", "parts": [{"text": "Q"}]}, {"role": "model", "parts": [{"text": "A"}]}]}],
        "messages",
        f"system> S\n{QA}",
    ),
    "capital roles": (
        [{"messages": [{"role": "User", "content": "Q"}, {"role": "Assistant", "content": "A"}]}],
        "messages",
        QA,
    ),
    "weights of zero": (
        [{"messages": [*CHAT[:1], {**CHAT[1], "weight": 0}, *CHAT]}],
        "messages",
        f"user> Q\nassistant*> A\n{QA}",
    ),
    "nulls for keys that are not there": (
        [{"messages": [{**turn, "tool_calls": None, "weight": None} for turn in CHAT], "tools": None}],
        "messages with tools",
        QA,
    ),
    "tool calls": (
        [{"messages": [CHAT[0], {"role": "assistant", "content": None, "tool_calls": [{"id": "1", **CALL}]},
                       {"role": "tool", "tool_call_id": "1", "content": "3"}, CHAT[1]], "tools": [TOOL]}],
        "messages with tools",
        "user> Q\nassistant> f{'a': 1}\ntool> 3\nassistant> A",
    ),
    "tool calls of ShareGPT": (
        [{"conversations": [FROM[0], {"from": "function_call", "value": SAID},
                            {"from": "observation", "value": "3"}, FROM[1]], "tools": "[]"}],
        "conversations (from, value)",
        "user> Q\nassistant> f{'a': 1}\ntool> 3\nassistant> A",
    ),
    "a query whose answer is tool calls": (
        [{"query": "Q", "answers": f"[{SAID}]", "tools": [TOOL]}],
        "query/answers",
        "user> Q\nassistant> f{'a': 1}",
    ),
    "instructions": (
        [{"instruction": "Q", "input": "", "output": "A", "text": "Below is ..."}],
        "instruction/input/output",
        QA,
    ),
    "instructions with a context": (
        [{"instruction": "Q", "context": "C", "response": "A", "category": "qa"}],
        "instruction/context/response",
        "user> Q\n\nC\nassistant> A",
    ),
    "history and system": (
        [{"system": "S", "instruction": "Q", "input": "", "output": "A", "history": [["R", "B"]]}],
        "instruction/input/output",
        f"system> S\nuser> R\nassistant> B\n{QA}",
    ),
    "an empty history": (
        [{"instruction": "Q", "output": "A", "history": turns} for turns in ([], [["R", "B"]])],
        "instruction/output",
        QA,
    ),
    "system and question": (
        [{"system_prompt": "S", "question": "Q", "response": "A"}],
        "question/response",
        f"system> S\n{QA}",
    ),
    "several right answers": ([{"question": "Q", "answer": ["A", "B"]}], "question/answer", QA),
    "an answer inside an object": (
        [{"question": "Q", "answer": {"value": "A", "aliases": ["B"]}}],
        "question/answer",
        QA,
    ),
    "problem and solution": ([{"problem": "Q", "solution": "A", "seed": "s"}], "problem/solution", QA),
    "a passage and yes or no": (
        [{"question": "Q", "answer": True, "passage": "P"}],
        "question/passage/answer",
        "user> P\n\nQ\nassistant> true",
    ),
    "SQuAD": (
        [{"context": "C", "question": "Q", "answers": {"text": ["A"], "answer_start": [0]}}],
        "SQuAD",
        "user> C\n\nQ\nassistant> A",
    ),
    "article and highlights": ([{"article": "Q", "highlights": "A", "id": "1"}], "article/highlights", QA),
    "dialogue and summary": ([{"dialogue": "Q", "summary": "A", "topic": "t"}], "dialogue/summary", QA),
    "article and abstract": ([{"article": "Q", "abstract": "A"}], "article/abstract", QA),
    "choices and a letter": (
        [{"question": "Q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}],
        "multiple choice",
        LETTERS,
    ),
    "choices and an index from 0": (
        [{"question": "Q", "choices": ["x", "y"], "answer": n} for n in (1, 0)],
        "multiple choice",
        LETTERS,
    ),
    "choices with their letters": (
        [{"question": "Q", "options": ["A)x", "B)y"], "correct": "B", "rationale": "because"}],
        "multiple choice",
        LETTERS,
    ),
    "choices in columns": (
        [{"goal": "Q", "sol1": "x", "sol2": "y", "label": n} for n in (1, 0)],
        "multiple choice",
        LETTERS,
    ),
    "choices to an article": (
        [{"article": "P", "question": "Q", "options": ["x", "y"], "answer": "B"}],
        "multiple choice",
        LETTERS.replace("Q", "P\n\nQ"),
    ),
    "a text and its class": ([{"text": "Q", "label": "A"}], "text/label", QA),
    "a review and its sentiment": ([{"review": "Q", "sentiment": "A"}], "text/label", QA),
    "a class that is a number": ([{"text": "Q", "label": 2}], "text/class number", "user> Q\nassistant> 2"),
    "several classes": ([{"text": "Q", "labels": ["A", "B"]}], "text/label", "user> Q\nassistant> A, B"),
    "two texts and their class": (
        [{"premise": "P", "hypothesis": "Q", "label": "A", "idx": 1}],
        "pair of texts/label",
        "user> P\n\nQ\nassistant> A",
    ),
    "text": ([{"text": "T", "meta": {"a": 1}, "url": "http://x"}], "text", "text> T"),
    "pairs of answers": ([{"prompt": "Q", "chosen": "A", "rejected": "B"}], "preference pairs", PAIR),
    "pairs of conversations": (
        [{"prompt": "Q", "chosen": CHAT, "rejected": BAD, "score_chosen": 8.5}],
        "preference pairs",
        PAIR,
    ),
    "pairs of transcripts": (
        [{"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B"}],
        "preference pairs",
        PAIR,
    ),
    "preferred outputs": (
        [{"input": {"messages": CHAT[:1], "tools": []}, "preferred_output": CHAT[1:],
          "non_preferred_output": BAD[1:]}],
        "preference pairs",
        PAIR,
    ),
    "pairs in ShareGPT": (
        [{"conversations": FROM[:1], "chosen": FROM[1], "rejected": {"from": "gpt", "value": "B"}}],
        "preference pairs",
        PAIR,
    ),
    "verdicts": ([{"prompt": "Q", "completion": "A", "label": False}], "KTO", f"{QA}\ndesirable> False"),
    "verdicts as numbers": ([{"prompt": "Q", "completion": "A", "label": 1}], "KTO", GOOD),
    "verdicts on messages": (
        [{"prompt": CHAT[:1], "completion": CHAT[1:], "label": True}],
        "KTO",
        GOOD,
    ),
    "verdicts on conversations": ([{"conversations": FROM, "kto_tag": True}], "KTO", GOOD),
}  # fmt: skip

# name: (first records, what the refusal says)
REFUSED: dict[str, tuple[list[Record], str]] = {
    "a tree of messages": (
        [{"message_id": "1", "parent_id": None, "text": "Q", "role": "prompter"}],
        "holds one message a row (role)",
    ),
    "pictures": (
        [{"image": {"bytes": b"x", "path": "a"}, "question": "Q", "answer": "A"}],
        "pictures or sound (image)",
    ),
    "names of pictures": ([{"image": "a.jpg", "conversations": FROM}], "pictures or sound (image)"),
    "sound": ([{"audio": {"bytes": b"x", "path": "a"}, "text": "T"}], "pictures or sound (audio)"),
    "choices counted from 1": (
        [{"sentence": "Q", "option1": "x", "option2": "y", "answer": n} for n in ("1", "2")],
        "numbers the right choice (answer)",
    ),
    "choices without an answer": (
        [{"question": "Q", "choices": ["x", "y"]}],
        "holds choices without a known column",
    ),
    "translations": ([{"translation": {"en": "Q", "de": "A"}}], "not known: translation.en, translation.de"),
    "one column a class": ([{"id": "1", "comment": "Q", "toxic": 1, "insult": 0}], "not known: comment, id"),
    "texts with a verdict of people": (
        [{"history": "Q", "human_ref_A": "A", "human_ref_B": "B", "labels": 0}],
        "holds several texts beside a label",
    ),
    "several long texts": (
        [{"text": "Write a function to add.", "code": "def add(a, b): return a + b"}],
        "holds several texts",
    ),
    "tokens and tags": ([{"tokens": ["EU", "rejects"], "ner_tags": [3, 0]}], "not known: ner_tags, tokens"),
    "words of another language": ([{"Frage": "Q", "Antwort": "A"}], "not known: Antwort, Frage"),
}  # fmt: skip


def written(row: Record) -> str:
    """A row in the notation of the table."""
    if "text" in row:
        return f"text> {row['text']}"
    lines = []
    for turn in row["messages"]:
        calls = "".join(
            f"{c['function']['name']}{c['function']['arguments']}" for c in turn.get("tool_calls", [])
        )
        lines.append(f"{turn['role']}{'*' if turn.get('learn') is False else ''}> {turn['content']}{calls}")
    lines += [f"rejected> {turn['content']}" for turn in row.get("rejected", [])]
    lines += [f"desirable> {row['desirable']}"] if "desirable" in row else []
    return "\n".join(lines)


@pytest.mark.parametrize("case", READ)
def test_a_known_shape_is_read_as_a_person_would(case: str) -> None:
    records, shape, expected = READ[case]
    guess = recognise(records, "a.jsonl")
    row = converter(guess.mapping)(copy.deepcopy(records[0]))
    assert isinstance(row, dict)
    assert (guess.shape, written(row)) == (shape, expected)


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_in_one_way_is_refused_in_one_sentence(case: str) -> None:
    records, expected = REFUSED[case]
    with pytest.raises(StudioError) as caught:
        recognise(records, "a.jsonl")
    text = caught.value.text
    assert text.startswith("a.jsonl: ") and expected in text
    assert "a mapping" in text and len(text) <= 400 and "\n" not in text


def test_tools_go_along_with_the_row() -> None:
    for name in ("tool calls", "a query whose answer is tool calls"):
        records, _, _ = READ[name]
        row = converter(recognise(records, "a").mapping)(copy.deepcopy(records[0]))
        assert isinstance(row, dict) and row["tools"] == [{"type": "function", "function": TOOL}]
    pair = {"input": {"messages": CHAT[:1], "tools": [TOOL]}, "chosen": CHAT[1:], "rejected": BAD[1:]}
    row = converter(recognise([pair], "a").mapping)(pair)
    assert isinstance(row, dict) and row["tools"] == [{"type": "function", "function": TOOL}]


def test_a_question_without_answer_costs_only_itself() -> None:
    questions = [
        {"id": "1", "question": "Q", "answers": [{"text": "A"}]},
        {"id": "2", "question": "R", "is_impossible": True, "answers": []},
    ]
    record = {"title": "T", "paragraphs": [{"context": "C", "qas": questions}]}
    rows = converter(recognise([record], "a").mapping)(record)
    assert isinstance(rows, list) and isinstance(rows[0], dict) and isinstance(rows[1], RowError)
    assert "paragraphs[0].qas[1] is a question without an answer (id '2')" in str(rows[1])


def test_an_answer_that_is_none_of_the_choices_is_named() -> None:
    records = READ["choices and a letter"][0]
    convert = converter(recognise(records, "a").mapping)
    with pytest.raises(RowError, match="answerKey is 'E', which is none of the choices"):
        convert({**records[0], "answerKey": "E"})


def test_a_column_called_after_classes_is_one_only_if_its_values_repeat() -> None:
    varied = [{"text": f"text {n}", "intent": f"How do I do number {n} of many?"} for n in range(20)]
    with pytest.raises(StudioError, match="holds several texts"):
        recognise(varied, "a")
    classes = [{"text": f"text {n}", "intent": f"class {n % 3}"} for n in range(20)]
    assert recognise(classes, "a").shape == "text/label"


STRANGE: list[Any] = [
    None, 5, 1.5, True, "", " ", "x", "[{", "[1]", [], {}, [1], [None], [[]], [["a", "b"]], [["a", 1]],
    {"a": 1}, [{}], {"role": "user"}, [{"role": 5}], {"text": None}, {"messages": []}, "\ud83d", 10**30,
]  # fmt: skip


def _places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(found for key, part in inside for found in _places(part, (*place, key)))]


def test_no_record_however_broken_raises_anything_but_its_own_errors() -> None:
    chance = random.Random(1)
    for records, _, _ in READ.values():
        known = converter(recognise(records, "a").mapping)
        for _ in range(60):
            broken = copy.deepcopy(records[0])
            *way, last = chance.choice(_places(broken)[1:])
            inner = broken
            for key in way:
                inner = inner[key]
            inner[last] = copy.deepcopy(chance.choice(STRANGE))
            for guessed in (False, True):
                try:
                    convert = converter(recognise([broken], "a").mapping) if guessed else known
                    made = convert(copy.deepcopy(broken))
                    for row in made if isinstance(made, list) else [made]:
                        if isinstance(row, dict):
                            as_line(row)
                            prompt_of(row)
                except (RowError, StudioError):
                    continue
