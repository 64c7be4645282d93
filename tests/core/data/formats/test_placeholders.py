"""Placeholders are told before Start and filled in by a mapping; files for testing are asked about."""

from pathlib import Path

import pytest

from plumbline.data.formats.held_out_marks import named_held_out
from plumbline.data.formats.mapping_parser import mapping_of
from plumbline.data.importing.importer import Options, add
from plumbline.data.readers.source_files import Source
from plumbline.errors import StudioError
from plumbline.planner import overview
from plumbline.store import datasets as store
from tests.runs import recipe
from tests.uploads import every, finding, lines, source, stored

ROWS = lines(
    *(
        {"instruction": f"Who {n}?", "output": "I am {{name}}, by {{ author }}, not {{title}}."}
        for n in range(6)
    )
)


def test_a_placeholder_is_told_before_start_with_what_fills_it(samples: Path, tmp_path: Path) -> None:
    dataset = stored(tmp_path, "identity.jsonl", ROWS)
    told = [check.text for check in overview.outlook(recipe(data={"dataset": "identity"})).checks]
    assert any("6 of 6 rows hold an unfilled placeholder" in text and "fill.name=" in text for text in told)
    assert finding(dataset, "placeholder") is not None


def test_a_mapping_fills_placeholders_in(workspace: Path, tmp_path: Path) -> None:
    mapping = mapping_of(
        "prompt=instruction,answer=output,fill.name=Ada,fill.author=Ada\\1 Ltd,fill.title=a bot"
    )
    dataset = stored(tmp_path, "identity.jsonl", ROWS, mapping=mapping)
    answers = {row["messages"][-1]["content"] for row in every(dataset)}
    assert answers == {"I am Ada, by Ada\\1 Ltd, not a bot."} and finding(dataset, "placeholder") is None
    some = mapping_of("prompt=instruction,answer=output,fill.name=Ada")
    left = stored(tmp_path, "half.jsonl", ROWS, mapping=some)
    assert every(left)[0]["messages"][-1]["content"] == "I am Ada, by {{ author }}, not {{title}}."
    assert finding(left, "placeholder") is not None
    # Rows that are stored as they stand otherwise, too.
    turns = [{"role": "user", "content": "Q {{name}}"}, {"role": "assistant", "content": "{{name}}"}]
    talk = stored(
        tmp_path, "talk.jsonl", lines({"messages": turns}), mapping=mapping_of("turns=messages,fill.name=Ada")
    )
    assert [turn["content"] for turn in every(talk)[0]["messages"]] == ["Q Ada", "Ada"]


@pytest.mark.parametrize(
    ("names", "held"),
    [
        (["train.csv", "test.csv"], ["test.csv"]),
        (
            ["data-train.jsonl", "data_validation.jsonl", "x-dev.jsonl"],
            ["data_validation.jsonl", "x-dev.jsonl"],
        ),
        (["Train.parquet", "held out.parquet"], ["held out.parquet"]),
        (["test.csv"], []),
        (["test-0.csv", "test-1.csv"], []),
        (["contest.csv", "devices.csv", "latest.csv", "evaluations.csv"], []),
    ],
)
def test_files_that_are_named_like_rows_to_hold_out(names: list[str], held: list[str]) -> None:
    assert named_held_out(names) == held


def test_train_and_test_that_are_given_together_are_asked_about(workspace: Path, tmp_path: Path) -> None:
    both = [source(tmp_path, name, ROWS) for name in ("train.jsonl", "test.jsonl")]
    with pytest.raises(StudioError, match="test.jsonl: is named like rows to hold out") as told:
        add(both)
    assert "say that all files are trained on" in told.value.text and store.listed() == []
    assert store.get(add(both, [], Options(all_trained=True)))["rows"] == 12
    held: list[Source] = [both[1]]
    assert store.get(add(both[:1], held, Options(name="split")))["held_out_rows"] == 6
