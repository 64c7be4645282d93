"""A column that says which rows are held out: they are, and it is told; or they are not, and that is told."""

import html
import json
from pathlib import Path
from typing import Any

import pytest

from plumbline import api
from plumbline.cli import main
from plumbline.config.mapping import Mapping
from plumbline.data import rows
from plumbline.data.formats.held_out_marks import side_of, split_column
from plumbline.data.importing import importer
from plumbline.data.selection import mix, split_labels
from plumbline.errors import StudioError
from plumbline.planner import overview
from plumbline.store import datasets as store
from plumbline_studio.tabs.data import add as pane
from plumbline_studio.tabs.data import tab
from tests.runs import recipe

MARKS = ["train", "validation", "train", "test", "train", "train", "test", "train"]


def written(folder: Path, marks: list[Any], column: str = "split", name: str = "all.jsonl") -> Path:
    """A file with a question that names its number, for each mark."""
    file = folder / name
    lines = [
        {"prompt": f"What is {n}?", "completion": str(n), column: mark} for n, mark in enumerate(marks, 1)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def answers(dataset: dict[str, Any], part: str) -> list[int]:
    return [int(row["messages"][1]["content"]) for row in rows.page(dataset["id"], part)]


def added(file: Path, **options: Any) -> dict[str, Any]:
    return store.get(api.add_data(file, **options))


def warnings(dataset: dict[str, Any]) -> list[str]:
    return [found["text"] for found in store.findings(dataset) if found["kind"] == "split"]


@pytest.mark.parametrize(
    ("value", "side"),
    [
        *((value, "train") for value in ("train", "Training", "TRAIN", "train_sft", " train ")),
        *((value, "held_out") for value in ("test", "dev", "val", "valid", "eval", "held_out", "Held-out")),
        *((value, "held_out") for value in ("validation", "heldout", "test_sft", "PublicTest", "val2")),
        *((value, None) for value in ("", "a", "train_test", "contest", "latest", 1, None, "test " * 20)),
    ],
)
def test_the_usual_spellings_are_known(value: object, side: str | None) -> None:
    assert side_of(value) == side


@pytest.mark.parametrize(
    "column", ["split", "Data Split", "partition", "subset", "fold", "__split__", "Usage"]
)
def test_rows_that_a_column_marks_are_held_out(workspace: Path, tmp_path: Path, column: str) -> None:
    dataset = added(written(tmp_path, MARKS, column))
    assert (dataset["rows"], dataset["held_out_rows"]) == (5, 3)
    assert answers(dataset, "train") == [1, 3, 5, 6, 8] and answers(dataset, "held_out") == [2, 4, 7]
    by = {"column": column, "values": {"validation": 1, "test": 2}}
    assert json.loads(dataset["origin"]) == {"held_out_by": by} and not warnings(dataset)


@pytest.mark.parametrize(
    ("column", "marks"),
    [
        ("split", [1, 2, 3]),
        ("fold", ["0", "1", "2"]),
        ("topic", ["train", "test"]),
        ("split", ["a", "b", "a"]),
    ],
)
def test_another_column_is_none(column: str, marks: list[Any]) -> None:
    assert split_column([{"text": "x", column: mark} for mark in marks], set()) == ""


def test_a_column_that_a_mapping_uses_plays_its_own_part(workspace: Path, tmp_path: Path) -> None:
    mapping = Mapping(prompt="prompt", answer="completion", label="split")
    assert added(written(tmp_path, MARKS), mapping=mapping)["held_out_rows"] == 0


def test_it_is_said_wherever_the_dataset_is_seen(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = written(tmp_path, MARKS)
    by = "by the column 'split': 2 test, 1 validation"
    foreseen = "by the column 'split': 3 of its 8 rows (2 test, 1 validation), unless a held-out file"
    assert main.main(["data", "add", str(file), "--preview"], lambda *_: None) == 0
    assert foreseen in " ".join(capsys.readouterr().out.split())
    assert main.main(["data", "add", str(file)], lambda *_: None) == 0
    assert by in capsys.readouterr().out
    dataset = store.by_name("all")
    told = html.unescape(tab._added(dataset["id"], "", "sft")[0])
    assert f"5 rows of the shape prompt/completion; 3 held out {by}" in told
    values = [False, "exchange", *[""] * len(pane.PARTS), "", "", *pane.FRESH[2:]]
    values[-6] = False
    shown, box, *_ = pane.look([str(file)], *values)
    assert foreseen in html.unescape(shown) and box.visible
    values[-6] = True
    assert "3 of 8 rows are trained on although" in pane.look([str(file)], *values)[0]
    config = recipe(data={"dataset": "all", "max_rows": None})
    assert ("good", f"held out {by}") in split_labels.lines(mix.choose(config.data), config.data)


def test_all_is_trained_on_where_that_is_said_and_told_then(workspace: Path, tmp_path: Path) -> None:
    file = written(tmp_path, MARKS)
    given = added(file, all_trained=True)
    assert (given["rows"], given["held_out_rows"]) == (8, 0)
    by_hand = added(file, held_out=written(tmp_path, ["test"], name="asked.jsonl"))
    assert (by_hand["rows"], by_hand["held_out_rows"]) == (8, 1)
    alone = added(written(tmp_path, ["test"] * 4, name="only.jsonl"))
    assert (alone["rows"], alone["held_out_rows"]) == (4, 0)
    for dataset, marked, why in (
        (given, "3 of 8 rows", "as was asked for"),
        (by_hand, "3 of 8 rows", "a held-out file was given"),
        (alone, "4 of 4 rows", "no row is marked for training"),
    ):
        (text,) = warnings(dataset)
        assert text.startswith(marked) and text.endswith(why), text
        told = overview._not_meant(mix.choose(recipe(data={"dataset": dataset["name"]}).data))
        assert text in told[0].text
    assert not warnings(added(written(tmp_path, ["train"] * 4)))


def test_a_row_that_says_neither_is_named_with_every_other_bad_row(workspace: Path, tmp_path: Path) -> None:
    file = written(tmp_path, ["train", "test"] * 150 + [None, "extra", "test"])
    lines = file.read_text().splitlines()
    lines[-1] = json.dumps({"prompt": "What?", "completion": "", "split": "test"})
    file.write_text("\n".join(lines))
    with pytest.raises(StudioError) as caught:
        added(file)
    said = caught.value.text
    assert "3 rows cannot be used" in said and "line 303: completion" in said
    assert "line 301: split is empty" in said and "line 302: split is 'extra', which is neither" in said
    kept = added(file, leave_out=True)
    assert (kept["rows"], kept["held_out_rows"], kept["left_out"]) == (150, 150, "3")


def test_a_column_of_other_values_too_is_not_followed_and_told(workspace: Path, tmp_path: Path) -> None:
    dataset = added(written(tmp_path, ["train", "test", "unsup"]))
    (text,) = warnings(dataset)
    assert "marks rows as test, and others as 'unsup'" in text and dataset["rows"] == 3


def test_large_files_are_parted_alike(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, MARKS * 30)
    alone = added(file)
    monkeypatch.setattr(importer, "PARALLEL_FROM", 1)
    monkeypatch.setattr(importer, "RANGE", 4000)
    monkeypatch.setattr(importer, "cores", lambda: 2)
    together = added(file)
    assert together["sha256"] == alone["sha256"] and together["origin"] == alone["origin"]
    assert (together["rows"], together["held_out_rows"]) == (150, 90)
