"""Files to stored rows: every common shape, names that are safe, seeded splits, and deletion."""

import json
from pathlib import Path

import pytest

from plumbline.config.schema import DataSection
from plumbline.data import rows
from plumbline.data.errors import DataError
from plumbline.data.importing.importer import Options, add
from plumbline.data.readers.source_files import Source
from plumbline.data.selection import datasets, mix
from plumbline.errors import StudioError
from plumbline.store import datasets as store
from tests.uploads import GOOD, every, first, lines, refusal, source, stored, talk


def split(dataset: dict, share: float, seed: int) -> tuple[list[int], list[int]]:
    data = DataSection(dataset=dataset["name"], held_out_share=share, split_seed=seed)
    train, held_out = mix.split(dataset, data)
    return train.tolist(), held_out.tolist()


def test_every_bad_line_is_counted_and_the_first_are_listed(workspace: Path, tmp_path: Path) -> None:
    values = [{"prompt": "x", "completion": ""}] * 30 + [{"prompt": "x", "completion": "y"}]
    with pytest.raises(DataError) as caught:
        add([source(tmp_path, "a.jsonl", lines(*values))])
    assert (len(caught.value.problems), caught.value.count) == (30, 30)
    assert "30 rows cannot be used:\nline 1: " in caught.value.text
    assert "and 22 more" in caught.value.text


def test_bad_rows_are_left_out_on_request_and_counted(workspace: Path, tmp_path: Path) -> None:
    dataset = stored(tmp_path, "a.jsonl", lines(GOOD, b"{", GOOD), leave_out=True)
    assert (dataset["rows"], dataset["left_out"]) == (2, "1")


def test_a_file_without_one_good_row_is_refused_even_so(workspace: Path, tmp_path: Path) -> None:
    text = refusal(tmp_path, "a.jsonl", lines({"prompt": "x", "completion": ""}), leave_out=True)
    assert "line 1: completion is empty" in text


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
        dataset = stored(tmp_path, name, content)
        assert (dataset["shape"], dataset["rows"]) == (shape, 1), name
    found = {dataset["name"]: first(dataset) for dataset in store.listed()}
    assert found["c"]["messages"][0]["content"] == 'a, "b"\nc'
    assert found["c"]["messages"][1]["content"] == "007"
    assert found["d"]["messages"][0]["content"] == "Add.\n\n1 2"
    assert (found["e"]["label"], found["e"]["group"]) == ("good", "x")
    assert found["f"] == {"text": "once upon"}


def test_a_line_separator_inside_a_string_is_not_a_new_line(workspace: Path, tmp_path: Path) -> None:
    dataset = stored(tmp_path, "a.jsonl", '{"text": "a\u2028b\x85c"}\n'.encode())
    assert every(dataset) == [{"text": "a\u2028b\x85c"}]


def test_two_files_of_one_name_get_different_names(workspace: Path, tmp_path: Path) -> None:
    names = [stored(tmp_path, "mine.jsonl", lines(GOOD))["name"] for _ in range(3)]
    assert names == ["mine", "mine-2", "mine-3"]


def test_several_files_become_one_dataset_that_knows_where_each_row_came_from(
    workspace: Path, tmp_path: Path
) -> None:
    sources = [source(tmp_path, f"{n}.jsonl", lines({"text": f"a{n}"}, {"text": f"b{n}"})) for n in range(2)]
    dataset = store.get(add(sources, [], Options(name="both")))
    assert [row["text"] for row in every(dataset)] == ["a0", "b0", "a1", "b1"]
    index = rows.index(dataset["id"], "train")
    assert index["file"].tolist() == [0, 0, 1, 1] and index["line"].tolist() == [1, 2, 1, 2]


def test_files_of_two_shapes_are_not_one_dataset(workspace: Path, tmp_path: Path) -> None:
    sources = [
        source(tmp_path, "a.jsonl", lines(GOOD)),
        source(tmp_path, "b.jsonl", lines({"text": "x"})),
    ]
    with pytest.raises(StudioError, match="b.jsonl: has the shape text, a.jsonl has messages"):
        add(sources)
    assert not store.listed()


def test_the_split_is_seeded_and_no_row_is_on_both_sides(workspace: Path, tmp_path: Path) -> None:
    dataset = stored(tmp_path, "a.jsonl", lines(*({"text": f"row {n}"} for n in range(50))))
    train, held_out = split(dataset, 0.2, seed=1)
    assert (train, held_out) == split(dataset, 0.2, seed=1)
    assert (train, held_out) != split(dataset, 0.2, seed=2)
    assert len(train) == 40 and len(held_out) == 10 and not set(train) & set(held_out)


def test_a_single_row_cannot_be_split(workspace: Path, tmp_path: Path) -> None:
    dataset = stored(tmp_path, "a.jsonl", lines(GOOD))
    with pytest.raises(StudioError, match="would take all 1 rows"):
        split(dataset, 0.1, seed=0)


def test_a_held_out_file_is_never_trained_on(samples: Path) -> None:
    chosen = mix.choose(DataSection(dataset="cited-answers", held_out_share=0.5, max_rows=10))
    assert (len(chosen[0].train), len(chosen[0].held_out)) == (10, 100)
    assert chosen[0].held_out_part == "held_out"


def test_large_files_are_read_by_several_processes_with_the_same_result(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = lines(*({"prompt": f"Say {n}.", "completion": "x" * 300, "topic": n % 3} for n in range(3000)))
    alone = stored(tmp_path, "a.jsonl", content)
    monkeypatch.setattr("plumbline.data.importing.importer.PARALLEL_FROM", 1)
    monkeypatch.setattr("plumbline.data.importing.importer.RANGE", 64 * 1024)
    together = stored(tmp_path, "a.jsonl", content)
    assert alone["sha256"] == together["sha256"]
    ours, theirs = (rows.index(each["id"], "train") for each in (alone, together))
    assert (ours == theirs).all()
    broken = content.replace(b'"Say 2000."', b'"Say 2000.')
    assert "a.jsonl line 2001: is not valid JSON" in refusal(tmp_path, "a.jsonl", broken)


def test_a_dataset_in_use_is_not_deleted(samples: Path) -> None:
    from tests.runs import add as add_run
    from tests.runs import recipe

    add_run(recipe())
    with pytest.raises(StudioError, match="is used by"):
        datasets.remove(store.by_name("cited-answers")["id"])
    unused = store.by_name("plain-style")["id"]
    datasets.remove(unused)
    assert not (samples / "datasets" / str(unused)).exists()


def test_an_import_without_files_is_explained(workspace: Path) -> None:
    with pytest.raises(StudioError, match="has no file"):
        add([])


def test_a_source_keeps_its_name_for_messages_only(workspace: Path, tmp_path: Path) -> None:
    given = Source(source(tmp_path, "x", lines(GOOD)).path, "nice name.jsonl")
    assert store.get(add([given]))["name"] == "nice-name"


def test_a_search_looks_in_texts_alone_and_in_any_case(workspace: Path, tmp_path: Path) -> None:
    values = [
        {"text": "One\nnut", "label": "Good", "group": "zoo"},
        {"text": "Große ÜBUNG", "label": "user", "group": "x"},
        {"text": 'say "role": "user"', "label": "bad", "group": "x"},
    ]
    stored(tmp_path, "a.jsonl", lines(*values))
    stored(tmp_path, "b.jsonl", lines(*[GOOD] * 3, talk("Привет", "the USER said")))
    answers = {
        "ONE\nNUT": [0], "\\n": [], "nnut": [], "good": [0], "ZOO": [0], "übung": [1], "GROSSE ü": [1],
        "\"ROLE\": \"user": [2], "user": [1, 2], "desirable": [], "\ud800": [], "": [],
    }  # fmt: skip
    assert {words: rows.search(1, "train", words) for words in answers} == answers
    assert rows.search(2, "train", "role") == []
    assert rows.search(2, "train", "user") == rows.search(2, "train", "привет") == [3]
    assert rows.search(2, "train", "HELLO", start=1, count=1) == [1]
    assert rows.search(2, "train", "hello", start=4) == []
