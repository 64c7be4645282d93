"""Files to rows: known shapes, and messages that name the line for everything else."""

import json
from pathlib import Path

import pytest

from core.data import datasets
from core.data.read import DataError
from core.errors import StudioError
from core.store import datasets as store

GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}


def lines(*rows: object) -> bytes:
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


def add(folder: Path, name: str, content: bytes, **options: object) -> dict:
    path = folder / "upload"
    path.write_bytes(content)
    return store.get(datasets.import_file(path, name, **options))


REFUSED = {
    "an empty file": ("a.jsonl", b"", "a.jsonl: is empty"),
    "blank lines only": ("a.jsonl", b"\n\n\n", "a.jsonl: has no rows"),
    "a header only": ("a.csv", b"prompt,completion\n", "a.csv: has no rows"),
    "broken JSON on line 3": (
        "a.jsonl",
        lines(GOOD, GOOD, b'{"messages": ['),
        "a.jsonl line 3: is not valid JSON",
    ),
    "a row without an assistant turn": (
        "a.jsonl",
        lines(GOOD, {"messages": [{"role": "user", "content": "Hi"}]}),
        "a.jsonl line 2: has no assistant turn",
    ),
    "an unknown column set": (
        "a.jsonl",
        lines({"foo": "x", "bar": "y"}),
        "columns that are not known: bar, foo",
    ),
    "an unknown role": (
        "a.jsonl",
        lines({"messages": [{"role": "bot", "content": "x"}]}),
        "line 1: messages[0].role is 'bot'",
    ),
    "content that is null": (
        "a.jsonl",
        lines({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": None}]}),
        "line 1: messages[1].content is not a text",
    ),
    "an empty answer": ("a.jsonl", lines({"prompt": "x", "completion": "  "}), "line 1: completion is empty"),
    "a scalar line": ("a.jsonl", lines(GOOD, 5), "line 2: is a number, expected an object"),
    "UTF-16": ("a.jsonl", '{"text": "é"}'.encode("utf-16"), "line 1: looks like UTF-16"),
    "latin-1": ("a.jsonl", lines(GOOD) + b'{"text": "\xe9"}', "line 2, byte 11: 0xe9 is not UTF-8"),
    "a ragged CSV row": (
        "a.csv",
        b"prompt,completion\na,b\na,b,c\n",
        "line 3: has 3 cells, the header has 2",
    ),
    "an open CSV quote": ("a.csv", b'prompt,completion\na,b\n"a,b\n', "line 3: is not valid CSV"),
    "a CSV column twice": ("a.csv", b"text,text\na,b\n", "names the column 'text' twice"),
    "no list in JSON": ("a.json", b'{"text": "x"}', "expected a list of objects"),
    "not Parquet": ("a.parquet", b"PAR1 no", "is not readable as Parquet"),
    "an unknown suffix": ("a.docx", b"x", "has no known format (.docx)"),
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_a_bad_file_is_refused_with_its_place_and_nothing_is_stored(
    samples: Path, tmp_path: Path, case: str
) -> None:
    name, content, message = REFUSED[case]
    before = store.listed()
    folders = sorted((samples / "datasets").iterdir())
    with pytest.raises(StudioError) as caught:
        add(tmp_path, name, content)
    assert message in caught.value.text
    assert store.listed() == before
    assert sorted((samples / "datasets").iterdir()) == folders


def test_every_bad_line_is_counted_and_the_first_are_listed(workspace: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "x", "completion": ""}] * 30 + [{"prompt": "x", "completion": "y"}]
    with pytest.raises(DataError) as caught:
        add(tmp_path, "a.jsonl", lines(*rows))
    assert len(caught.value.problems) == 30
    assert "30 rows cannot be used:\nline 1: " in caught.value.text
    assert "and 22 more" in caught.value.text


def test_bad_rows_are_left_out_on_request_and_counted(workspace: Path, tmp_path: Path) -> None:
    dataset = add(tmp_path, "a.jsonl", lines(GOOD, b"{", GOOD), leave_out=True)
    assert (dataset["rows"], dataset["left_out"]) == (2, "1")


def parquet(tmp_path: Path) -> bytes:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a"], "completion": ["b"]}), tmp_path / "t")
    return (tmp_path / "t").read_bytes()


def test_each_shape_is_recognised_and_becomes_a_conversation(workspace: Path, tmp_path: Path) -> None:
    files = {
        "a.jsonl": (lines(GOOD), "messages"),
        "b.json": (json.dumps([GOOD]).encode(), "messages"),
        "c.csv": (b'prompt,completion\n"a, ""b""\nc",007\n', "prompt/completion"),
        "d.jsonl": (
            lines({"instruction": "Add.", "input": "1 2", "output": "3"}),
            "instruction/input/output",
        ),
        "e.csv": (b"text,label,group\nnice,good,x\n", "text/label"),
        "f.jsonl": (lines({"text": "once upon"}), "text"),
        "g.parquet": (parquet(tmp_path), "prompt/completion"),
    }
    for name, (content, shape) in files.items():
        dataset = add(tmp_path, name, content)
        assert (dataset["shape"], dataset["rows"]) == (shape, 1), name
    rows = {dataset["name"]: datasets.rows(dataset["id"])[0] for dataset in store.listed()}
    assert rows["c"]["messages"][0]["content"] == 'a, "b"\nc'
    assert rows["c"]["messages"][1]["content"] == "007"
    assert rows["d"]["messages"][0]["content"] == "Add.\n\n1 2"
    assert (rows["e"]["label"], rows["e"]["group"]) == ("good", "x")
    assert rows["f"] == {"text": "once upon"}


def test_byte_order_mark_crlf_and_blank_lines_change_nothing(workspace: Path, tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf" + lines(GOOD, GOOD).replace(b"\n", b"\r\n\r\n")
    assert add(tmp_path, "a.jsonl", content)["rows"] == 2


def test_a_line_separator_inside_a_string_is_not_a_new_line(workspace: Path, tmp_path: Path) -> None:
    content = '{"text": "a\u2028b\x85c"}\n'.encode()
    dataset = add(tmp_path, "a.jsonl", content)
    assert datasets.rows(dataset["id"]) == [{"text": "a\u2028b\x85c"}]


def test_a_file_name_is_never_used_as_a_path(workspace: Path, tmp_path: Path) -> None:
    for name in ("../../evil.jsonl", "a/b\\c.jsonl", "\u202egnp.jsonl", ".jsonl.jsonl"):
        dataset = add(tmp_path, name, lines(GOOD))
        assert "/" not in dataset["name"] and "\\" not in dataset["name"] and ".." not in dataset["name"]
        assert (workspace / "datasets" / str(dataset["id"]) / "train.jsonl").exists()
    assert not (workspace.parent / "evil.jsonl").exists()


def test_two_files_of_one_name_get_different_names(workspace: Path, tmp_path: Path) -> None:
    names = [add(tmp_path, "mine.jsonl", lines(GOOD))["name"] for _ in range(3)]
    assert names == ["mine", "mine-2", "mine-3"]


def test_the_split_is_seeded_and_no_row_is_on_both_sides(workspace: Path, tmp_path: Path) -> None:
    dataset = add(tmp_path, "a.jsonl", lines(*({"text": f"row {n}"} for n in range(50))))
    first = datasets.split(dataset["id"], 0.2, seed=1)
    assert first == datasets.split(dataset["id"], 0.2, seed=1)
    assert first != datasets.split(dataset["id"], 0.2, seed=2)
    train, held_out = ({row["text"] for row in part} for part in (first.train, first.held_out))
    assert len(train) == 40 and len(held_out) == 10 and not train & held_out


def test_a_single_row_cannot_be_split(workspace: Path, tmp_path: Path) -> None:
    dataset = add(tmp_path, "a.jsonl", lines(GOOD))
    with pytest.raises(StudioError, match="would take all 1 rows"):
        datasets.split(dataset["id"], 0.1, seed=0)


def test_a_held_out_file_is_never_trained_on(samples: Path) -> None:
    dataset = store.by_name("cited-answers")
    split = datasets.split(dataset["id"], 0.5, seed=0, max_rows=10)
    assert (len(split.train), len(split.held_out)) == (10, 100)


def test_a_dataset_in_use_is_not_deleted(samples: Path) -> None:
    from tests.runs import add as add_run
    from tests.runs import recipe

    add_run(recipe())
    with pytest.raises(StudioError, match="is used by"):
        datasets.remove(store.by_name("cited-answers")["id"])
    unused = store.by_name("plain-style")["id"]
    datasets.remove(unused)
    assert not (samples / "datasets" / str(unused)).exists()
