"""What the parts of a mapping may be: columns, templates and texts, for every role; nothing is dropped."""

from pathlib import Path
from typing import Any

import pytest

from plumbline.data.formats.mapping_parser import mapping_of
from tests.uploads import every, first, lines, refusal, stored

ROWS = lines({"q": "Who?", "a": "Me.", "who": "kind"}, {"q": "Where?", "a": "Here.", "who": "brief"})
PAIRS = lines(
    {"q": "Q", "good": "A", "bad": "B", "who": "kind"}, {"q": "R", "good": "C", "bad": "D", "who": "x"}
)
QA = "prompt=q,answer=a"


def system(row: dict[str, Any]) -> str | None:
    head = row["messages"][0]
    return head["content"] if head["role"] == "system" else None


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("system=who", ["kind", "brief"]),
        ("system=You are {who}.", ["You are kind.", "You are brief."]),
        ('system="You are kind."', ["You are kind."] * 2),
        ('system="Be kind, who=all, and say \\"yes\\"."', ['Be kind, who=all, and say "yes".'] * 2),
        ('system="Two\\nlines {who}"', ["Two\nlines {who}"] * 2),
    ],
)
def test_a_system_prompt_is_a_column_a_template_or_a_text(
    workspace: Path, tmp_path: Path, written: str, said: list[str]
) -> None:
    for order in (f"{written},{QA}", f"{QA},{written}"):
        found = stored(tmp_path, f"{order[:6]}.jsonl", ROWS, mapping=mapping_of(order))
        assert [system(row) for row in every(found)] == said
        assert [row["messages"][-1]["content"] for row in every(found)] == ["Me.", "Here."]


@pytest.mark.parametrize("kind", ["preference", "kto", "squad", "instances", "conversation"])
def test_every_kind_has_the_system_prompt_of_its_mapping(workspace: Path, tmp_path: Path, kind: str) -> None:
    paragraph = {"context": "C", "qas": [{"question": "Q", "answers": [{"text": "A"}]}]}
    given, parts = {
        "preference": (PAIRS, "prompt=q,chosen=good,rejected=bad"),
        "kto": (lines({"q": "Q", "a": "A", "ok": True}), "kind=kto,prompt=q,answer=a,desirable=ok"),
        "squad": (lines({"p": [paragraph]}), "kind=squad,turns=p"),
        "instances": (
            lines({"t": "T", "i": [{"input": "", "output": "O"}]}),
            "kind=instances,prompt=t,turns=i",
        ),
        "conversation": (
            lines({"c": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}),
            "turns=c",
        ),
    }[kind]
    found = stored(tmp_path, "a.jsonl", given, mapping=mapping_of(f'{parts},system="Be kind."'))
    assert system(first(found)) == "Be kind."


@pytest.mark.parametrize("part", ["system", "prompt", "answer", "label", "group", "tools"])
def test_a_column_that_is_not_there_is_refused_for_every_part(
    workspace: Path, tmp_path: Path, part: str
) -> None:
    mapping = mapping_of(
        ",".join(
            f"{name}={value}" for name, value in ({"prompt": "q", "answer": "a"} | {part: "sytem"}).items()
        )
    )
    text = refusal(tmp_path, "a.jsonl", ROWS, mapping=mapping)
    assert f"{part} is column 'sytem', which a.jsonl does not have. Its columns: q, a, who." in text
    assert ("the same text in every row" in text) == (part in ("system", "prompt", "answer"))


def test_a_template_names_columns_that_there_are(workspace: Path, tmp_path: Path) -> None:
    text = refusal(tmp_path, "a.jsonl", ROWS, mapping=mapping_of(f"system=You are {{whom}}.,{QA}"))
    assert "system is column 'whom', which a.jsonl does not have" in text


def test_what_must_be_a_column_is_no_text(workspace: Path, tmp_path: Path) -> None:
    text = refusal(tmp_path, "a.jsonl", ROWS, mapping=mapping_of(f'label="joy",{QA}'))
    assert "label is the text '\"joy\"', and must be a column" in text


def test_a_question_may_be_a_text_that_is_the_same_for_all(workspace: Path, tmp_path: Path) -> None:
    found = stored(tmp_path, "a.jsonl", ROWS, mapping=mapping_of('prompt="Write a line.",answer=a'))
    assert first(found)["messages"][0]["content"] == "Write a line."


def test_a_system_prompt_is_given_to_a_whole_dataset(workspace: Path, tmp_path: Path) -> None:
    own = {"messages": [{"role": "system", "content": "Own."}, {"role": "user", "content": "Q"}]}
    own["messages"].append({"role": "assistant", "content": "A"})
    none = {"messages": own["messages"][1:]}
    found = stored(tmp_path, "a.jsonl", lines(none, own), system='Say "yes".')
    assert [system(row) for row in every(found)] == ['Say "yes".', "Own."]
    text = refusal(
        tmp_path, "b.jsonl", lines({"system": "S", "instruction": "Q", "output": "A"}), system="Be kind."
    )
    assert "has a system prompt in its column system" in text
    text = refusal(tmp_path, "c.txt", b"Only text.\n\nAnd more of it.\n", system="Be kind.")
    assert "rows have no system prompt" in text
