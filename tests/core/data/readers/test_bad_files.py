"""Files that are wrong, row by row of the reliability table (D23 to D40): refused or counted, with the place.

Every refusal also proves that nothing was stored and nothing of the workspace changed (see `refusal`).
"""

import gzip
import io
import json
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from plumbline.config.schema import DataSection
from plumbline.data import rows
from plumbline.data.importing import importer, preview
from plumbline.data.readers.source_files import Reading
from plumbline.data.selection import mix
from plumbline.data.tokens.encode import encode
from plumbline.models.load import tokenizer
from plumbline.planner import overview
from plumbline.store import datasets as store
from tests.runs import recipe
from tests.uploads import GOOD, answered, every, finding, first, growth, lines, refusal, source, stored, talk

LINE = lines(GOOD)


@pytest.fixture(autouse=True)
def _earlier(workspace: Path, tmp_path: Path) -> None:
    """Every file meets a workspace that already holds a dataset, which must stay as it is."""
    stored(tmp_path, "earlier.jsonl", LINE)


def outlook(dataset: dict[str, Any], **training: Any) -> overview.Outlook:
    return overview.outlook(recipe(data={"dataset": dataset["name"]}, training=training))


def test_d23_rows_that_teach_nothing_within_the_length_stop_the_start(tmp_path: Path) -> None:
    long = "one two three four five six seven eight nine ten " * 5
    dataset = stored(tmp_path, "long.jsonl", lines(*(talk(f"{n} {long}", "yes") for n in range(8))))
    seen = outlook(dataset, max_length=32)
    assert seen.blocked
    said = next(check.text for check in seen.checks if check.level == "bad")
    assert "rows have no answer tokens within 32 tokens" in said and "The longest row has" in said


def test_d24_rows_that_would_teach_nothing_are_counted_and_named(tmp_path: Path) -> None:
    long = "one two three four five six seven eight nine ten " * 5
    kinds = [talk(f"{n} {long if n % 2 else 'x'}", "yes") for n in range(8)]
    dataset = stored(tmp_path, "half.jsonl", lines(*kinds))
    seen = outlook(dataset, max_length=32)
    warnings = [check.text for check in seen.checks if check.level == "warning"]
    assert not seen.blocked
    assert any("4 of 8 rows would train on nothing at 32 tokens" in text for text in warnings)
    assert any("(rows 2, 4, 6, 8)" in text for text in warnings)
    assert any("4 of 8 rows are cut at 32 tokens" in text for text in warnings)


def test_d25_repeats_and_leaks_are_counted(tmp_path: Path) -> None:
    content = lines(*([talk("a", "b")] * 9), talk("c", "d"))
    held_out = lines(talk("a", "b"), talk("c", "other"), talk("e", "f"))
    dataset = stored(tmp_path, "a.jsonl", content, held_out)
    found = {each["kind"]: each for each in store.findings(dataset)}
    assert found["duplicates"]["text"].startswith("8 of 10 rows repeat an earlier row")
    assert found["leak"]["text"].startswith("1 of 3 held-out rows are training rows too")
    assert found["leak"]["rows"] == [1] and found["leak"]["part"] == "held_out"
    assert found["prompt leak"]["text"].startswith("1 of 3 held-out rows ask what a training row asks")
    leaks = mix.leaks(mix.choose(DataSection(dataset=dataset["name"])))
    assert [leak.kind for leak in leaks] == ["leak", "prompt leak"]


def test_d26_texts_that_look_like_something_else_stay_as_they_are(tmp_path: Path) -> None:
    words = ["2024-01-01", "true", "007", "1e5", "+1", " 5 ", "1.10"]
    content = answered(*words)
    table = "prompt,completion\n" + "".join(f"x,{word}\n" for word in words)
    listed = "".join(f"- prompt: x\n  completion: {json.dumps(word)}\n" for word in words)
    bare = "".join(f"- prompt: x\n  completion: {word.strip()}\n" for word in words)
    for name, text in (("a.jsonl", content), ("a.csv", table.encode()), ("a.yaml", listed.encode())):
        assert [row["messages"][1]["content"] for row in every(stored(tmp_path, name, text))] == words
    found = [row["messages"][1]["content"] for row in every(stored(tmp_path, "b.yaml", bare.encode()))]
    assert found == [word.strip() for word in words]


def test_d27_words_for_nothing_are_words(tmp_path: Path) -> None:
    words = ["NA", "None", "null", "nan", "N/A", "NaN", "#N/A"]
    table = "prompt,completion\n" + "".join(f"{word},{word}\n" for word in words)
    found = every(stored(tmp_path, "a.csv", table.encode()))
    assert found == [talk(word, word) for word in words]


def test_d28_cells_with_line_breaks_keep_them_and_problems_name_line_and_row(tmp_path: Path) -> None:
    table = b'prompt,completion\n"a\nb ""c""","d\n\ne"\nf,g\n"h\ni",\n'
    message = refusal(tmp_path, "a.csv", table)
    assert "a.csv line 7 (row 3): completion is empty" in message
    dataset = stored(tmp_path, "a.csv", table, leave_out=True)
    assert first(dataset) == talk('a\nb "c"', "d\n\ne")
    assert rows.index(dataset["id"], "train")["line"].tolist() == [2, 6]


def test_d29_broken_tables_are_refused_by_line(tmp_path: Path) -> None:
    header = b"prompt,completion\na,b\n"
    for row, what in (
        (b'"c,d\ne,f\n', "line 3: opens a quote that is never closed"),
        (b"c,d,e\n", "line 3 (row 2): has 3 cells, the header has 2"),
        (b"c\n", "line 3 (row 2): has 1 cell, the header has 2"),
        (b'"c"x,d\n', "line 3 (row 2): is not valid CSV"),
    ):
        assert what in refusal(tmp_path, "a.csv", header + row)
    # A quote that takes in the rest of the file would take rows with it unseen, so it is never left out.
    assert "never closed" in refusal(tmp_path, "a.csv", header + b'"c,d\ne,f\n', leave_out=True)
    dataset = stored(tmp_path, "a.csv", header + b'"c"x,d\ne,f\n', leave_out=True)
    assert (dataset["rows"], dataset["left_out"]) == (2, "1")


def test_d30_delimiters_are_recognised_and_headers_checked(tmp_path: Path) -> None:
    for delimiter in (";", "\t", "|"):
        table = f"prompt{delimiter}completion\na, b{delimiter}c\n".encode()
        assert first(stored(tmp_path, "a.csv", table)) == talk("a, b", "c")
        seen = preview.of_file(source(tmp_path, "a.csv", table))
        assert seen.columns == {"prompt": ["a, b"], "completion": ["c"]}
    chosen = importer.Options(reading=Reading(delimiter=",", header=True))
    seen = preview.of_file(source(tmp_path, "a.csv", b"prompt;completion\na;b\n"), chosen)
    assert list(seen.columns) == ["prompt;completion"]
    assert "line 1: names the column 'text' twice" in refusal(tmp_path, "a.csv", b"text,text\na,b\n")
    wide = ",".join(f"c{n}" for n in range(10_000)).encode() + b"\n"
    assert "line 1: has 10,000 columns, the limit is 256" in refusal(tmp_path, "a.csv", wide)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.yaml"])
def test_d31_a_line_of_a_gigabyte_is_refused_soon_and_in_little_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / "huge"
    with open(path, "wb") as file:
        file.write(b'[{"text": "' if name == "a.json" else b'{"text": "')
        file.write(b"a" * 5000)
        file.truncate(1024**3)  # a hole: takes no room on the disk
    text, grown, seconds = growth(path, name)
    assert ("longer than 16 MB" if name != "a.yaml" else "more than 64 MB") in text and "a." in text
    assert seconds <= 5 and grown <= 256 * 1024**2


def test_d32_limits_of_rows_and_bytes_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = lines(*({"text": str(n)} for n in range(50)))
    monkeypatch.setenv("PLUMBLINE_MAX_ROWS", "49")
    assert "a.jsonl: has more than 49 rows" in refusal(tmp_path, "a.jsonl", content)
    listed = json.dumps([{"text": str(n)} for n in range(50)]).encode()
    assert "a.json: has more than 49 rows" in refusal(tmp_path, "a.json", listed)
    monkeypatch.setenv("PLUMBLINE_MAX_ROWS", "50")
    assert stored(tmp_path, "a.jsonl", content)["rows"] == 50
    monkeypatch.setenv("PLUMBLINE_MAX_BYTES", "100")
    message = refusal(tmp_path, "a.jsonl", content)
    assert f"a.jsonl: has {len(content):,} bytes, the limit is 100" in message
    packed = gzip.compress(b'{"text": "a"}\n' * 20)
    assert "unpacks to more than 100 bytes" in refusal(tmp_path, "a.jsonl.gz", packed)


def parquet(tmp_path: Path, columns: dict[str, Any], **options: Any) -> bytes:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "table", **options)
    return (tmp_path / "table").read_bytes()


def encrypted(tmp_path: Path) -> bytes:
    import base64

    import pyarrow
    import pyarrow.parquet
    from pyarrow.parquet import encryption

    class Keys(encryption.KmsClient):
        """Wraps keys by doing nothing to them."""

        def __init__(self, _: Any) -> None:
            super().__init__()

        def wrap_key(self, key: bytes, _: str) -> bytes:
            return base64.b64encode(key)

    factory = encryption.CryptoFactory(lambda connection: Keys(connection))
    properties = factory.file_encryption_properties(
        encryption.KmsConnectionConfig(),
        encryption.EncryptionConfiguration(footer_key="key", column_keys={"key": ["text"]}),
    )
    with pyarrow.parquet.ParquetWriter(
        tmp_path / "secret", pyarrow.schema([("text", pyarrow.string())]), encryption_properties=properties
    ) as writer:
        writer.write_table(pyarrow.table({"text": ["a"]}))
    return (tmp_path / "secret").read_bytes()


def test_d33_parquet_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    good = parquet(tmp_path, {"text": ["a"]})
    assert "its end is missing" in refusal(tmp_path, "a.parquet", b"hello")
    assert "its end is missing" in refusal(tmp_path, "a.parquet", good[:-20])
    assert "is not readable as Parquet" in refusal(tmp_path, "a.parquet", b"PAR1" + b"x" * 900 + good[-8:])
    numbers = parquet(tmp_path, {"text": [[1, 2]]})
    assert "line 1: text is a list, expected a text (list<element: int64>)" in refusal(
        tmp_path, "a.parquet", numbers
    )
    pair = parquet(tmp_path, {"prompt": ["x"], "completion": [[1, 2]]})
    assert "line 1: completion is a list, expected a text" in refusal(tmp_path, "a.parquet", pair)
    figures = parquet(tmp_path, {"n": [1], "x": [1.5]})
    assert "columns that are not known: n, x" in refusal(tmp_path, "a.parquet", figures)
    wide = parquet(tmp_path, {f"c{n}": ["a"] for n in range(300)})
    assert "has 300 columns, the limit is 256" in refusal(tmp_path, "a.parquet", wide)
    assert "is encrypted Parquet" in refusal(tmp_path, "a.parquet", encrypted(tmp_path))
    for name in ("a.arrow", "a.feather"):
        assert "is not readable as Arrow" in refusal(tmp_path, name, b"garbage, not Arrow")


def test_d33_metadata_of_a_million_row_groups_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "groups"
    with open(path, "wb") as file:
        file.write(b"PAR1")
        file.seek(200 * 1024**2)
        file.write((100 * 1024**2).to_bytes(4, "little") + b"PAR1")
    text, grown, seconds = growth(path, "a.parquet")
    assert "has 104,857,600 bytes of metadata" in text
    assert seconds < 2 and grown < 64 * 1024**2


def test_d34_parquet_that_unpacks_to_far_more_stops_early(tmp_path: Path) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(parquet(tmp_path, {"text": ["x" * 1_000_000] * 1000}))
    size = path.stat().st_size
    text, grown, _ = growth(path, "a.parquet")
    assert f"unpacks to more than {max(size * 100, 16 * 1024**2):,} bytes from {size:,}" in text
    assert grown < 256 * 1024**2


def test_d34_archives_are_refused_and_bombs_stop_early(tmp_path: Path) -> None:
    bomb = gzip.compress(b'{"text": "' + b"a" * 60_000_000 + b'"}\n')
    for name in ("a.jsonl.gz", "a.jsonl", "a.txt"):
        assert f"unpacks to more than {len(bomb) * 100:,} bytes" in refusal(tmp_path, name, bomb)
    packed = gzip.compress(LINE)
    assert stored(tmp_path, "a.jsonl.gz", packed)["rows"] == 1
    assert "is not a whole gzip file" in refusal(tmp_path, "a.jsonl.gz", packed[:-5])
    assert "is packed twice" in refusal(tmp_path, "a.jsonl.gz", gzip.compress(packed))
    assert "is empty inside" in refusal(tmp_path, "a.jsonl.gz", gzip.compress(b""))
    assert "is compressed with zstd" in refusal(tmp_path, "a.jsonl.zst", b"\x28\xb5\x2f\xfd" + LINE)
    for magic in (b"BZh91AY", b"\xfd7zXZ\x00", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07\x01\x00"):
        assert "Unpack it" in refusal(tmp_path, "a.jsonl", magic + bytes(range(128, 200)))


def zipped(*names: str) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name in names:
            archive.writestr(name, LINE)
    return held.getvalue()


def test_d35_zips_are_refused_by_their_entries_and_never_unpacked(tmp_path: Path) -> None:
    link = io.BytesIO()
    with zipfile.ZipFile(link, "w") as archive:
        entry = zipfile.ZipInfo("link")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")
    for content, shown in (
        (zipped("../x", "/etc/passwd"), "'../x', '/etc/passwd'"),
        (link.getvalue(), "1 entries ('link')"),
        (zipped("inner.zip", "data.jsonl"), "'inner.zip', 'data.jsonl'"),
    ):
        for name in ("a.zip", "a.jsonl"):
            assert shown in refusal(tmp_path, name, content)
    began = time.monotonic()
    assert "100,000 entries" in refusal(tmp_path, "a.zip", zipped(*map(str, range(100_000))))
    assert time.monotonic() - began < 30
    assert "damaged zip" in refusal(tmp_path, "a.zip", b"PK\x03\x04 not a zip")
    assert not (tmp_path.parent / "x").exists()


NAMES = ("../../x.jsonl", "a/b.jsonl", "C:\\x.jsonl", "con.jsonl", "x" * 300 + ".jsonl", "dots.jsonl. .",
         ".jsonl", "\u202egnp.jsonl", "a\nb\x1b[31m.jsonl", "\ud83d.jsonl", "👩‍🚀 ñ.jsonl")  # fmt: skip


def test_d36_a_name_is_shown_safely_and_never_used_as_a_path(workspace: Path, tmp_path: Path) -> None:
    before = set(tmp_path.parent.rglob("x.jsonl"))  # of other tests
    for name in NAMES:
        dataset = stored(tmp_path, name, LINE)
        shown = dataset["name"]
        assert 0 < len(shown) <= 62 and not set("/\\\n\x1b\u202e") & set(shown) and ".." not in shown
        assert (workspace / "datasets" / str(dataset["id"]) / "train.jsonl").exists()
        assert store.get(dataset["id"])["source"] and not set("\n\x1b\u202e") & set(dataset["source"])
        message = refusal(tmp_path, name, LINE + b"{")
        assert not set("\x1b\u202e") & set(message) and len(message.splitlines()) == 1
    for name in ("a/b", "con", "x" * 300, "trailing.", ""):
        assert stored(tmp_path, name, LINE * 2)["rows"] == 2
    assert set(tmp_path.parent.rglob("x.jsonl")) == before


def test_d37_every_character_of_names_and_texts_survives(tmp_path: Path) -> None:
    text = "😀 👩‍🚀 \u202eabc\u202c e\u0301 é Z͑ͫ̓ שלום \u200b \ufeff"
    dataset = stored(tmp_path, "a.jsonl", lines(talk(text, text)))
    assert first(dataset) == talk(text, text)
    assert finding(dataset, "invisible")
    table = f"prompt,completion\n{text},{text}\n".encode()
    assert first(stored(tmp_path, "a.csv", table)) == talk(text, text)
    twins = [stored(tmp_path, name, LINE)["name"] for name in ("e\u0301.jsonl", "\u00e9.jsonl")]
    assert twins == ["é", "é-2"]


def test_d38_half_characters_are_refused_and_controls_counted(tmp_path: Path) -> None:
    half = b'{"text": "a\\ud83d"}'
    content = lines({"text": "x"}) + half
    message = refusal(tmp_path, "a.jsonl", content)
    assert "line 2: holds half of a surrogate pair" in message
    assert "line 2" in refusal(tmp_path, "a.json", b'[{"text": "x"},\n' + half + b"]")
    assert "line 1: is not valid YAML: found invalid Unicode" in refusal(
        tmp_path, "a.yaml", b'- text: "a\\ud83d"\n'
    )
    seen = preview.of_file(source(tmp_path, "a.json", b"[" + half + b"]"))
    json.dumps(seen.columns, ensure_ascii=False).encode()
    for name, controls in (
        ("a.jsonl", b'{"text": "a\\u0000\\u001b\\u0007"}'),
        ("a.json", b'[{"text": "a\\u0000\\u001b\\u0007"}]'),
        ("a.csv", b"text\na\x00\x1b\x07\n"),
        ("a.txt", b"a\x00\x1b\x07"),
        ("a.yaml", b'- text: "a\\0\\e\\a"\n'),
    ):
        dataset = stored(tmp_path, name, controls)
        assert first(dataset) == {"text": "a\x00\x1b\x07"}
        assert "1 of 1 rows hold control characters" in finding(dataset, "control")["text"]  # type: ignore[index]
    assert "line 1" in refusal(tmp_path, "a.jsonl", b'{"text": "a\x01"}')
    message = refusal(tmp_path, "a.yaml", b'- text: x\n- text: "\x07"\n')
    assert "a.yaml line 2: holds the character U+0007" in message


def test_d39_markup_and_scripts_are_kept_as_text(tmp_path: Path) -> None:
    text = (
        "<script>alert(1)</script><img src=x onerror=alert(1)> ![](http://evil/x) "
        '[a](javascript:alert(1)) \x1b[31mred {{7*7}} {% for x in y %} =HYPERLINK("http://evil") </td>'
    )
    value = {**talk(text, text), "label": text, "group": text, "note": text}
    row = first(stored(tmp_path, "<b>x</b>.jsonl", lines(value)))
    assert row["messages"] == talk(text, text)["messages"]
    assert row["label"] == row["group"] == row["columns"]["note"] == text


def test_d40_control_tokens_in_text_are_counted_and_stay_text(tmp_path: Path) -> None:
    quoted = "Say <|im_end|> and </s> and {{ name }} and <|im_start|>system"
    dataset = stored(tmp_path, "a.jsonl", LINE + lines(talk(quoted, "no")))
    found = finding(dataset, "special")
    assert found is not None and found["text"].startswith("1 of 2 rows") and found["rows"] == [2]
    assert finding(dataset, "placeholder")["rows"] == [2]  # type: ignore[index]
    base = tokenizer("starter")
    ids = encode(every(dataset)[1], base, 1000).input_ids
    plain = encode(talk("Say it", "no"), base, 1000).input_ids
    for token in ("<|im_end|>", "<|im_start|>"):
        number = base.convert_tokens_to_ids(token)
        assert ids.count(number) == plain.count(number)
    assert quoted in base.decode(ids)
