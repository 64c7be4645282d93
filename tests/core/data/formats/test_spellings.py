"""What other tools write: marks of turns, Python's spelling, verdicts, several answers, reasoning."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from plumbline.data.formats.detect import turns_of
from plumbline.data.formats.mapping_parser import mapping_of
from plumbline.store import datasets as store
from tests.uploads import every, first, lines, refusal, stored


@pytest.fixture(autouse=True)
def _workspace(workspace: Path) -> None:
    return


def two(**mark: Any) -> dict[str, Any]:
    """Two exchanges, the first answer with a mark."""
    said = [("user", "a"), ("assistant", "A"), ("user", "b"), ("assistant", "B")]
    turns: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in said]
    turns[1] |= mark
    return {"messages": turns}


def learned(row: dict[str, Any]) -> list[bool]:
    return [turn.get("learn") is not False for turn in row["messages"] if turn["role"] == "assistant"]


def told(dataset: dict[str, Any]) -> list[str]:
    return [found["text"] for found in store.findings(dataset) if found["kind"] == "reading"]


@pytest.mark.parametrize(
    "mark",
    [
        *({name: False} for name in ("loss", "train", "training", "learnable", "trainable", "loss_mask")),
        *({"weight": value} for value in (0, 0.0, "0", "0.0", False, "false", "no")),
        *({name: True} for name in ("masked", "is_masked", "no_loss")),
        {"loss_mask": [0, 0, 0]},
        {"training_detail": [{"begin_offset": 0, "end_offset": 0, "train": False}]},
    ],
    ids=json.dumps,
)
def test_a_turn_that_is_marked_as_not_learned_is_shown_only(tmp_path: Path, mark: dict[str, Any]) -> None:
    row = first(stored(tmp_path, "a.jsonl", lines(two(**mark))))
    assert learned(row) == [False, True]
    assert not {*mark} & row["messages"][1].keys()


@pytest.mark.parametrize(
    "mark", [{"loss": True}, {"weight": "1"}, {"weight": 1.0}, {"masked": 0}, {"loss": None}]
)
def test_a_turn_that_is_marked_as_learned_is_learned(tmp_path: Path, mark: dict[str, Any]) -> None:
    assert learned(first(stored(tmp_path, "a.jsonl", lines(two(**mark))))) == [True, True]


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        ({"weight": 0.5}, "messages[1].weight is 0.5, and a turn is learned whole or not at all"),
        ({"weight": 2}, "messages[1].weight is 2"),
        ({"loss": "maybe"}, "messages[1].loss is 'maybe'"),
        ({"loss_mask": [0, 1, 1]}, "messages[1].loss_mask leaves out a part of a turn"),
        ({"training_detail": [{"train": True}, {"train": False}]}, "leaves out a part of a turn"),
        ({"train": True, "weight": 0}, "is marked as learned and as not learned (train and weight)"),
    ],
    ids=str,
)
def test_a_mark_that_is_neither_yes_nor_no_is_refused_by_name(
    tmp_path: Path, mark: dict[str, Any], said: str
) -> None:
    message = refusal(tmp_path, "a.jsonl", lines(two(**mark)))
    assert said in message and "Mend the file" not in message


def test_marks_of_sharegpt_and_marks_in_a_list_are_read(tmp_path: Path) -> None:
    turns = [("human", "a", None), ("gpt", "A", False), ("human", "b", None), ("gpt", "B", True)]
    marked = [
        {"from": who, "value": text} | ({} if loss is None else {"loss": loss}) for who, text, loss in turns
    ]
    assert learned(first(stored(tmp_path, "a.jsonl", lines({"conversations": marked})))) == [False, True]
    for marks in ([0, 0, 0, 1], [0, 1], [False, True]):
        assert learned(first(stored(tmp_path, "b.jsonl", lines(two() | {"loss_mask": marks})))) == [
            False,
            True,
        ]
    assert "loss_mask has 3 marks, and there are 4 turns (2 of the assistant)" in refusal(
        tmp_path, "c.jsonl", lines(two() | {"loss_mask": [1, 0, 1]})
    )


def test_what_looks_like_a_mark_and_is_not_read_is_told_with_its_count(tmp_path: Path) -> None:
    dataset = stored(tmp_path, "a.jsonl", lines(two(), two(maskable=True), two(maskable=False)))
    assert told(dataset) == ["2 of 3 rows have 'maskable' on a turn, which is not read"]
    asked = two()
    asked["messages"][0]["training"] = True
    (said,) = told(stored(tmp_path, "b.jsonl", lines(asked)))
    assert said == "1 of 1 rows mark a turn of the user as learned; only answers are"


def test_conversations_as_python_prints_them_are_read(tmp_path: Path) -> None:
    talks = [
        "[{'role': 'user', 'content': \"it's b?\"}, {'role': 'assistant', 'content': 'B\\n\"x\"'}]",
        "[{'content': 'a?', 'role': 'user'}\n {'content': 'A', 'role': 'assistant'}]",
        "array([{'content': 'a?', 'role': 'user'},\n {'content': 'A', 'role': 'assistant'}], dtype=object)",
    ]
    table = "messages\n" + "".join('"' + each.replace('"', '""') + '"\n' for each in talks)
    dataset = stored(tmp_path, "a.csv", table.encode())
    found = [[turn["content"] for turn in row["messages"]] for row in every(dataset)]
    assert found == [["it's b?", 'B\n"x"'], ["a?", "A"], ["a?", "A"]]
    (said,) = told(dataset)
    assert said.startswith("3 of 3 rows hold a conversation written as a text")


def test_pairs_as_python_or_json_prints_them_are_read(tmp_path: Path) -> None:
    def sides(spell: Any) -> list[str]:
        return [
            spell([{"role": "user", "content": "a?"}, {"role": "assistant", "content": text}])
            for text in "AZ"
        ]

    for spell in (str, json.dumps):
        chosen, rejected = sides(spell)
        dataset = stored(tmp_path, "a.jsonl", lines({"prompt": "a?", "chosen": chosen, "rejected": rejected}))
        row = first(dataset)
        assert [turn["content"] for turn in row["messages"]] == ["a?", "A"]
        assert [turn["content"] for turn in row["rejected"]] == ["Z"]
        assert len(told(dataset)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000 + "]" * 5000,
        "['a', " + "[" * 40 + "]" * 40 + "]",
        "[" + "-" * 100_000 + "1]",
        "[__import__('os')]",
        "[1, 2",
        "['a' * 9]",
        "['a'" + "," * 10 + "]",
        "['" + "x" * 2_000_000 + "']",
    ],
    ids=lambda text: text[:12],
)
def test_what_is_no_value_in_pythons_spelling_stays_a_text(text: str) -> None:
    assert turns_of(text) is None


def test_verdicts_in_words_are_seen(tmp_path: Path) -> None:
    for good, bad in (
        ("good", "bad"),
        ("👍", "👎"),
        ("Thumbs up", "thumbs-down"),
        ("chosen", "rejected"),
        ("yes", "no"),
    ):
        rows = [
            {"prompt": "a?", "completion": "A", "label": good},
            {"prompt": "b?", "completion": "Z", "label": bad},
        ]
        dataset = stored(tmp_path, "a.jsonl", lines(*rows))
        assert dataset["shape"] == "KTO" and [row["desirable"] for row in every(dataset)] == [True, False]
    mixed = [
        {"prompt": "a?", "completion": "A", "label": "spam"},
        {"prompt": "b?", "completion": "Z", "label": "bad"},
    ]
    assert stored(tmp_path, "b.jsonl", lines(*mixed))["shape"] != "KTO"


def test_several_answers_are_told_and_the_first_is_taken(tmp_path: Path) -> None:
    rows = [{"question": "primes", "answer": ["2", "3"]}, {"question": "odd", "answer": ["1"]}]
    rows.append({"question": "same", "answer": ["4", "4"]})
    dataset = stored(tmp_path, "a.jsonl", lines(*rows))
    assert [row["messages"][1]["content"] for row in every(dataset)] == ["2", "1", "4"]
    assert told(dataset) == ["1 of 3 rows have several texts in 'answer', of which the first is taken"]
    squad = {"context": "C", "question": "Q", "answers": {"text": ["x", "y"], "answer_start": [0, 1]}}
    assert told(stored(tmp_path, "b.jsonl", lines(squad))) == [
        "1 of 1 rows have several texts in 'answers.text', of which the first is taken"
    ]


def test_a_task_with_instances_keeps_its_instruction(tmp_path: Path) -> None:
    row = {"id": "t1", "instruction": "Add.", "instances": [{"input": "1+1", "output": "2"}]}
    assert first(stored(tmp_path, "a.jsonl", lines(row)))["messages"][0]["content"] == "Add.\n\n1+1"


def test_parts_of_reasoning_are_reasoning(tmp_path: Path) -> None:
    thinking = [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Yes."}]
    reasoning = [{"type": "reasoning", "text": "Hm."}, {"type": "output_text", "text": "Yes."}]
    for parts in (thinking, reasoning):
        turns = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": parts}]
        answer = first(stored(tmp_path, "a.jsonl", lines({"messages": turns})))["messages"][1]
        assert answer == {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}


def test_a_number_as_an_answer_names_what_helps(tmp_path: Path) -> None:
    content = lines({"question": "1+1", "answer": 2}, {"question": "1+2", "answer": 3})
    message = refusal(tmp_path, "a.jsonl", content)
    assert "answer is a number" in message and "answer=answer,label=answer" in message
    mapping = mapping_of("prompt=question,answer=answer,label=answer")
    dataset = stored(tmp_path, "a.jsonl", content, mapping=mapping)
    assert first(dataset)["messages"][1]["content"] == "2"


def test_a_role_that_is_not_known_names_the_mapping_that_helps(tmp_path: Path) -> None:
    row = {"messages": [{"role": "robot", "content": "a"}, {"role": "assistant", "content": "b"}]}
    message = refusal(tmp_path, "a.jsonl", lines(row))
    assert "roles.robot=user" in message and "Mend the file" not in message


def test_a_binary_column_of_text_is_text(tmp_path: Path) -> None:
    def table(*values: bytes) -> bytes:
        path = tmp_path / "made.parquet"
        columns = {
            "prompt": pyarrow.array(["a"] * len(values)),
            "completion": pyarrow.array(values, pyarrow.binary()),
        }
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
        return path.read_bytes()

    dataset = stored(tmp_path, "a.parquet", table("Grün".encode()))
    assert first(dataset)["messages"][1]["content"] == "Grün"
    assert "holds bytes that are no UTF-8 text (completion)" in refusal(
        tmp_path, "b.parquet", table(b"\xff\x00\x01")
    )
    assert "pictures or sound" in refusal(tmp_path, "c.parquet", table(b"\x89PNG\r\n\x1a\n"))
