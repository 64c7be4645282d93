"""Files as tools write them: JSON in every layout, tables of every dialect, Arrow, and what is no data."""

import gzip
import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest

from plumbline.config.mapping import Mapping
from plumbline.data import rows
from plumbline.data.formats.mapping_parser import refuse_incomplete
from plumbline.data.importing import preview
from plumbline.data.importing.importer import Options
from plumbline.data.readers.source_files import Reading
from plumbline.errors import StudioError
from tests.uploads import GOOD, every, first, growth, lines, refusal, source, stored, talk

TWO = [{"question": "a", "answer": "b"}, {"question": "c", "answer": "d"}]
TALKS = [talk("a", "b"), talk("c", "d")]


@pytest.fixture(autouse=True)
def _home(workspace: Path) -> None:
    """Every test has an empty workspace."""


LAYOUTS: dict[str, tuple[str, Any]] = {
    "records": ("a.json", TWO),
    "an object with one list": ("a.json", {"version": 1, "data": TWO}),
    "pandas columns": ("a.json", {"question": {"0": "a", "1": "c"}, "answer": {"0": "b", "1": "d"}}),
    "pandas split": (
        "a.json",
        {"columns": ["question", "answer"], "index": [0, 1], "data": [["a", "b"], ["c", "d"]]},
    ),
    "pandas index": ("a.json", {"0": TWO[0], "1": TWO[1]}),
    "names to records": ("a.json", {"first": TWO[0], "second": TWO[1]}),
    "lists by column": ("a.json", {"question": ["a", "c"], "answer": ["b", "d"]}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("indent", [None, 2])
def test_json_is_read_in_every_layout(tmp_path: Path, layout: str, indent: int | None) -> None:
    name, value = LAYOUTS[layout]
    content = json.dumps(value, indent=indent).encode()
    assert every(stored(tmp_path, name, content)) == TALKS
    assert every(stored(tmp_path, name + ".gz", gzip.compress(content))) == TALKS


def test_json_whose_name_says_the_other_kind_is_read_too(tmp_path: Path) -> None:
    assert every(stored(tmp_path, "a.json", lines(*TWO))) == TALKS
    assert every(stored(tmp_path, "a.jsonl", json.dumps(TWO, indent=2).encode())) == TALKS
    pretty = "\n".join(json.dumps(record, indent=2) for record in TWO).encode()
    assert every(stored(tmp_path, "a.jsonl", pretty)) == TALKS
    assert every(stored(tmp_path, "a.json", pretty)) == TALKS
    assert (
        every(stored(tmp_path, "a.json", json.dumps(TWO[0]).encode() + json.dumps(TWO[1]).encode())) == TALKS
    )
    assert rows.index(1, "train")["line"].tolist() == [1, 2]


def test_json_that_is_no_list_of_rows_is_explained(tmp_path: Path) -> None:
    both = json.dumps({"train": TWO, "test": TWO}).encode()
    assert "holds several lists of objects (train, test)" in refusal(tmp_path, "a.json", both)
    assert "is one object" in refusal(tmp_path, "a.json", json.dumps(GOOD).encode())
    values = json.dumps([["a", "b"], ["c", "d"]]).encode()
    assert "line 1: is a list, expected an object" in refusal(tmp_path, "a.json", values)
    commas = b'{"question": "a", "answer": "b"},\n{"question": "c", "answer": "d"},\n'
    assert "line 2: ends with a comma" in refusal(tmp_path, "a.jsonl", commas)


def test_a_large_document_is_read_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    with open(path, "w") as file:
        file.write('{"data": [' + json.dumps(TWO[0]))
        row = "," + json.dumps({"question": "q" * 500, "answer": "b" * 500})
        for _ in range(60):
            file.write(row * 1000)
        file.write("]}")
    text, grown, _ = growth(path, "a.json")
    assert text == "stored" and grown < 160 * 1024**2


TABLES = {
    "Excel in Europe": ("a.csv", '\ufeffquestion;answer\r\n"a";b\r\nc;d\r\n'),
    "Excel": ("a.csv", '\ufeffquestion,answer\r\na,b\r\n"c","d"\r\n'),
    "tabs": ("a.tsv", "question\tanswer\na\tb\nc\td\n"),
    "old Macs": ("a.csv", "question,answer\ra,b\rc,d"),
    "capitals": ("a.csv", "Question,Answer\na,b\nc,d\n"),
}


@pytest.mark.parametrize("dialect", TABLES)
def test_tables_of_every_dialect_are_read(tmp_path: Path, dialect: str) -> None:
    name, text = TABLES[dialect]
    assert every(stored(tmp_path, name, text.encode())) == TALKS


def test_a_table_without_header_keeps_its_first_row(tmp_path: Path) -> None:
    table = b"I liked this film a lot\tpositive\nTerrible\tnegative\n"
    seen = preview.of_file(source(tmp_path, "a.tsv", table))
    assert seen.columns["column 1"] == ["I liked this film a lot", "Terrible"]
    assert "columns that are not known: column 1, column 2" in refusal(tmp_path, "a.tsv", table)
    named = stored(tmp_path, "a.csv", b"text,label\na,b\n", reading=Reading(header=True))
    assert named["rows"] == 1


def test_columns_of_the_first_row_and_others_are_all_kept(tmp_path: Path) -> None:
    content = lines({"text": "a", "n": "1"}, {"text": "b", "n": "2", "rank": 0}, {"text": "c", "rank": 1})
    dataset = stored(tmp_path, "a.jsonl", content)
    assert json.loads(dataset["columns"]) == ["n", "rank"]
    assert [row["columns"] for row in every(dataset)] == [{"n": "1"}, {"n": "2", "rank": "0"}, {"rank": "1"}]


def arrow(tmp_path: Path, records: list[dict[str, Any]], features: Any = None) -> bytes:
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    Dataset.from_list(records, features=features).to_parquet(str(tmp_path / "table"))
    return (tmp_path / "table").read_bytes()


def test_nulls_that_arrow_puts_for_missing_keys_are_no_content(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": "1", "b": None}}}
    turns = [
        {"role": "user", "content": "a", "tool_calls": None, "weight": None},
        {"role": "assistant", "content": None, "tool_calls": [call], "weight": None},
        {"role": "tool", "content": "3", "tool_calls": None, "weight": None},
        {"role": "assistant", "content": "b", "tool_calls": None, "weight": 1.0},
    ]
    other = {**call, "function": {"name": "f", "arguments": {"a": None, "b": "2"}}}
    dataset = stored(tmp_path, "a.parquet", arrow(tmp_path, [
        {"messages": turns, "tools": None},
        {"messages": [turns[0], {**turns[1], "tool_calls": [other]}], "tools": None},
    ]))  # fmt: skip
    found = every(dataset)
    assert found[0]["messages"][0] == {"role": "user", "content": "a"}
    assert found[0]["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"a": "1"}
    assert found[1]["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"b": "2"}
    assert found[0]["messages"][3] == {"role": "assistant", "content": "b"} and "tools" not in found[0]


def test_classes_stored_as_numbers_have_their_names(tmp_path: Path) -> None:
    from datasets import ClassLabel, Features, List, Value

    names = ClassLabel(names=["neg", "pos"])
    one = Features({"text": Value("string"), "label": names})
    assert (
        first(stored(tmp_path, "a.parquet", arrow(tmp_path, [{"text": "x", "label": 1}], one)))["label"]
        == "pos"
    )
    several = Features({"text": Value("string"), "labels": List(names)})
    dataset = stored(tmp_path, "a.parquet", arrow(tmp_path, [{"text": "x", "labels": [0, 1]}], several))
    assert first(dataset)["messages"][1]["content"] == "neg, pos"


def test_classes_without_names_are_pointed_out(tmp_path: Path) -> None:
    from plumbline.store import datasets as store

    dataset = stored(tmp_path, "a.csv", b"sentence,label\na b c,0\nd e f,1\n")
    assert dataset["shape"] == "text/class number"
    found = [each["text"] for each in store.findings(dataset) if each["kind"] == "numbers"]
    assert found == ["the labels of rows are numbers (0, 1), without their names"]


def office() -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("[Content_Types].xml", "<x/>")
    return held.getvalue()


NO_DATA = {
    "a.png": (b"\x89PNG\r\n\x1a\n\x00\x00", "is a PNG picture"),
    "a.jpg": (b"\xff\xd8\xff\xe0\x00\x10JFIF", "is a JPEG picture"),
    "a.pdf": (b"%PDF-1.7\n", "is a PDF"),
    "a.mp3": (b"ID3\x03\x00\x00", "is a sound file"),
    "a.mp4": (b"\x00\x00\x00\x1cftypisom", "is a video"),
    "a.xlsx": (office(), "is an Office document"),
    "a.csv": (office(), "is an Office document"),
    "a.sqlite": (b"SQLite format 3\x00", "is an SQLite database"),
    "a.pkl": (pickle.dumps(TWO), "is a pickle, which is never opened"),
    "a.jsonl": (pickle.dumps(TWO), "is a pickle, which is never opened"),
    "a.tar": (b"x" * 100 + b"\x00" * 157 + b"ustar", "is a tar archive"),
    "a.bin": (bytes(range(256)), "has no known format (.bin)"),
    "a.txt": (b"abc" + b"\x00" * 300, "looks like UTF-16|holds bytes that are not text"),
    "a.html": (b"<html></html>", "has no known format (.html)"),
    "README": (b"Hello", "has no known format (no suffix)"),
}


@pytest.mark.parametrize("name", NO_DATA)
def test_what_is_no_data_is_called_what_it_is(tmp_path: Path, name: str) -> None:
    content, said = NO_DATA[name]
    assert any(part in refusal(tmp_path, name, content) for part in said.split("|"))


def test_a_text_may_begin_like_a_binary_file(tmp_path: Path) -> None:
    for text in ("GGUF is a format.", "BZh", "MZ and so on", "Rar! says the bird", "ORC and elf", "ID3 tags"):
        assert first(stored(tmp_path, "a.txt", text.encode())) == {"text": text}


def test_text_is_cut_into_pieces_that_are_the_whole(tmp_path: Path) -> None:
    text = "# One\n\n" + "A sentence of some words. " * 400 + "\n\n# Two\n\n" + "x" * 4990 + "\n\nThe end.\n"
    dataset = stored(tmp_path, "a.md", text.encode(), reading=Reading(chunk=1000))
    found = [row["text"] for row in every(dataset)]
    assert "".join(found) == text and max(map(len, found)) <= 1000
    line = ("word " * 200_000).strip()
    found = [row["text"] for row in every(stored(tmp_path, "a.txt", line.encode()))]
    assert "".join(found) == line


def test_yaml_holds_conversations_too(tmp_path: Path) -> None:
    text = "- messages:\n  - {role: user, content: a}\n  - {role: assistant, content: b}\n"
    assert first(stored(tmp_path, "a.yaml", text.encode())) == talk("a", "b")
    aliases = b"a: &a [x, x]\nb: [*a, *a]\n"
    assert "holds an alias" in refusal(tmp_path, "a.yaml", aliases)


def test_an_encoding_that_the_file_contradicts_is_refused(tmp_path: Path) -> None:
    umlauts = lines("Grün".join(['{"question": "', '", "answer": "b"}']).encode())
    for content, chosen, known in (
        (umlauts, "windows-1252", "UTF-8"),
        (b"\xef\xbb\xbf" + lines(*TWO), "utf-16", "UTF-8"),
        (umlauts.decode().encode("utf-16"), "iso-8859-1", "UTF-16"),
    ):
        text = refusal(tmp_path, "a.jsonl", content, reading=Reading(chosen))
        assert f"is {known} (reading it as {chosen} would garble it) Choose" in text.replace(". C", " C")
    assert "is not utf-16" in refusal(tmp_path, "a.jsonl", lines(*TWO), reading=Reading("utf-16"))
    for written, chosen in (("utf-16-le", "utf-16"), ("utf-16-be", "utf-16"), ("windows-1252",) * 2):
        dataset = stored(tmp_path, "a.jsonl", umlauts.decode().encode(written), reading=Reading(chosen))
        assert every(dataset) == [talk("Grün", "b")]


@pytest.mark.parametrize("template", ["{question: {answer}", "{}", "{answer!r:>10}"])
@pytest.mark.parametrize("part", ["prompt", "system"])
def test_a_template_whose_braces_name_no_column_is_refused(tmp_path: Path, template: str, part: str) -> None:
    mapping = Mapping.model_validate({"prompt": "question", "answer": "answer", part: template})
    text = refusal(tmp_path, "a.jsonl", lines(*TWO), mapping=mapping)
    assert f"{part} is '{template}'" in text and "{name}" in text
    seen = preview.of_file(source(tmp_path, "a.jsonl", lines(*TWO)), Options(mapping=mapping))
    assert seen.problem == text and seen.rows == []


def test_a_mapping_with_parts_missing_is_incomplete() -> None:
    with pytest.raises(StudioError, match="does not say which column is answer"):
        refuse_incomplete(Mapping(prompt="question"))
