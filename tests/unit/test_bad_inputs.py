"""Files that are wrong, row by row of the reliability table (D01 to D40): refused or counted, with the place.

Every refusal also proves that nothing was stored and nothing of the workspace changed (see `refusal`).
"""

import gzip
import io
import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from core.config import DataSection
from core.data import importing, mix, overview, rows
from core.data.files import Reading
from core.data.mapping import Mapping
from core.data.xray import encode
from core.errors import StudioError
from core.home import assets
from core.models.load import tokenizer
from core.store import datasets as store
from tests.runs import recipe
from tests.uploads import GOOD, every, finding, first, lines, refusal, source, stored, talk

ROOT = Path(__file__).resolve().parents[2]
LINE = lines(GOOD)


@pytest.fixture(autouse=True)
def _earlier(workspace: Path, tmp_path: Path) -> None:
    """Every file meets a workspace that already holds a dataset, which must stay as it is."""
    stored(tmp_path, "earlier.jsonl", LINE)


def answered(*values: Any) -> bytes:
    """Rows of prompt and completion."""
    return lines(*({"prompt": "x", "completion": value} for value in values))


def growth(path: Path, name: str) -> tuple[str, int, float]:
    """Import a file in a process of its own. :returns: the message, bytes its memory grew by, seconds"""
    code = """
import json, resource, sys, time
from pathlib import Path
from core.data.files import Source
from core.data.importing import add
from core.errors import StudioError
import numpy, orjson, pyarrow.parquet, yaml
before, began, text = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic(), "stored"
try:
    add([Source(Path(sys.argv[1]), sys.argv[2])])
except StudioError as error:
    text = error.text
children = max(0, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss - before)
own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps([text, 1024 * max(own, children), time.monotonic() - began]))
"""
    command = [sys.executable, "-c", code, str(path), name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    text, grown, seconds = json.loads(done.stdout)
    return text, grown, seconds


def test_d01_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    for name in ("data.jsonl", "data.json", "data.csv", "data.txt", "data.parquet", "data.yaml"):
        assert refusal(tmp_path, name, b"").startswith(f"{name}: is empty.")


def test_d02_blank_lines_or_a_header_are_no_rows(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.json", "a.csv", "a.txt", "a.md", "a.yaml"):
        assert "has no rows" in refusal(tmp_path, name, b"\n\n\n")
    assert "has no rows" in refusal(tmp_path, "a.csv", b"prompt,completion\n")
    assert "has no rows" in refusal(tmp_path, "a.json", b"[]")


def test_d03_a_byte_order_mark_is_not_part_of_the_first_name(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    files = {
        "a.jsonl": lines({"text": "x"}),
        "a.json": b'[{"text": "x"}]',
        "a.csv": b"text\nx\n",
        "a.txt": b"x",
        "a.yaml": b"- text: x\n",
    }
    for name, content in files.items():
        assert first(stored(tmp_path, name, mark + content)) == {"text": "x"}


def test_d04_every_kind_of_line_end_gives_the_same_rows(tmp_path: Path) -> None:
    inside = lines(GOOD, talk("a\r\nb", "c\rd"))
    tabled = b'prompt,completion\n"a ""b""",c\nd,e\n'
    for name, content in (("a.jsonl", inside), ("a.csv", tabled)):
        expected = every(stored(tmp_path, name, content))
        mixed = content.replace(b"\n", b"\r\n", 1)
        for changed in (content.replace(b"\n", b"\r\n"), content.replace(b"\n", b"\r"), mixed):
            assert every(stored(tmp_path, name, changed)) == expected
    dataset = stored(tmp_path, "b.csv", b'prompt,completion\r\na,"b\r\nc\nd"\r\n')
    assert first(dataset)["messages"][1]["content"] == "b\r\nc\nd"


def test_d05_utf16_is_named_and_read_when_chosen(tmp_path: Path) -> None:
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        for name, text in (("a.jsonl", '{"text": "é"}'), ("a.csv", "text\nhé\n"), ("a.txt", "A line.")):
            message = refusal(tmp_path, name, text.encode(encoding))
            assert message.startswith(f"{name} line 1: looks like UTF-16")
    content = '{"text": "é"}'.encode("utf-16")
    assert first(stored(tmp_path, "a.jsonl", content, reading=Reading("utf-16"))) == {"text": "é"}


def test_d06_bytes_that_are_not_utf8_are_named_by_line_and_byte(tmp_path: Path) -> None:
    broken = lines({"text": "x"}) + b'{"text": "abc\xff"}\n'
    assert "a.jsonl line 2: byte 14: 0xff is not UTF-8" in refusal(tmp_path, "a.jsonl", broken)
    latin = b'{"text": "x"}\n{"text": "\xe9"}\n'
    for name in ("a.jsonl", "a.json"):
        message = refusal(tmp_path, name, latin)
        assert "line 2: byte 11: 0xe9 is not UTF-8; the file looks like windows-1252" in message
    table = b"text\nx\nh\xe9\n"
    assert "a.csv line 3, byte 2: 0xe9 is not UTF-8" in refusal(tmp_path, "a.csv", table)
    assert "a.txt line 2, byte 1: 0x96" in refusal(tmp_path, "a.txt", b"A\n\x96 b")
    japanese = '[{"text": "日本語の文章です"}]'.encode("shift_jis")
    assert "looks like shift_jis" in refusal(tmp_path, "a.json", japanese)
    kept = stored(tmp_path, "a.csv", table, reading=Reading("windows-1252"))
    assert every(kept)[1] == {"text": "hé"}


def test_d06_a_character_between_two_blocks_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.data.encoding.CHUNK", 3)
    assert first(stored(tmp_path, "a.txt", "aé€😀é".encode())) == {"text": "aé€😀é"}
    message = refusal(tmp_path, "a.txt", "é€é\n€€".encode() + b"\xff\n")
    assert "line 2, byte 7: 0xff" in message
    assert "line 1, byte 9: 0xe2" in refusal(tmp_path, "a.txt", "é€é".encode() + b"a\xe2\x82")


def test_d07_a_jsonl_cut_in_mid_line_names_the_line(tmp_path: Path) -> None:
    cut = LINE + LINE + b'{"messages": [{"role": "user", "content": "Hi th'
    message = refusal(tmp_path, "a.jsonl", cut)
    assert "a.jsonl line 3: is not valid JSON: it ends inside a string (file cut off?)" in message
    message = refusal(tmp_path, "a.json", b'[{"text": "a"},\n{"text": "b')
    assert "a.json line 2: is not valid JSON" in message and "file cut off?" in message
    assert "file cut off?" in refusal(tmp_path, "a.json", b'[{"text": "a"},')


def test_d08_bad_json_far_into_a_million_rows_is_found_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "million.jsonl"
    with open(path, "wb") as file:
        file.write(lines({"text": "a"}) * 500_000)
        file.write(b'{"text": "b}\n')
        file.write(lines({"text": "c"}) * 500_000)
    before = store.listed()
    text, grown, _ = growth(path, "a.jsonl")
    assert text.startswith("a.jsonl line 500001: is not valid JSON")
    assert grown < 256 * 1024**2
    assert store.listed() == before


def test_d09_blank_lines_are_passed_over_and_counted_as_lines(tmp_path: Path) -> None:
    content = b"\n" + LINE + b"\n\n" + LINE
    dataset = stored(tmp_path, "a.jsonl", content)
    assert rows.index(dataset["id"], "train")["line"].tolist() == [2, 5]
    assert "a.jsonl line 6" in refusal(tmp_path, "a.jsonl", content + b"{\n")


def test_d10_a_list_is_read_and_other_json_is_refused_by_line(tmp_path: Path) -> None:
    for name in ("a.json", "a.jsonl"):
        assert stored(tmp_path, name, b'[{"text": "a"},\n {"text": "b"}]')["rows"] == 2
        assert "line 1: is not valid JSON at column 17: a comma before ]" in refusal(
            tmp_path, name, b'[{"text": "a"}, ]'
        )
    for single in (b'{"text": "a"}', b'{"id": 1, "tags": ["a", "b"], "more": ["c", "d"]}'):
        assert "line 1: is one object, expected a list of objects" in refusal(tmp_path, "a.json", single)
    conversation = json.dumps(GOOD).encode()
    assert "is one object" in refusal(tmp_path, "a.json", conversation)
    message = refusal(tmp_path, "a.jsonl", b'1\n"x"\n')
    assert "line 1: is a number, expected an object" in message
    assert "line 2: is a text, expected an object" in message
    assert "line 1" in refusal(tmp_path, "a.json", b'1\n"x"\n')
    message = refusal(tmp_path, "a.json", b'[{"text": "a"},\n 5]')
    assert "line 2 (row 2)" not in message and "line 2: is a number, expected an object" in message


def test_d11_a_key_that_comes_twice_is_named_with_its_line(tmp_path: Path) -> None:
    twice = (
        b'{"text": "a", "text": "b"}',
        b'{"text" : "a", "text" : "b"}',
        b'{"text": "a", "te\\u0078t": "b"}',
        b'{"text": "a", "meta": {"text": 1, "text": 2}}',
    )
    for line in twice:
        content = lines({"text": "x"}) + line
        assert "a.jsonl line 2: names the key 'text' twice" in refusal(tmp_path, "a.jsonl", content)
        content = b'[{"text": "x"},\n' + line + b"]"
        assert "a.json line 2: names the key 'text' twice" in refusal(tmp_path, "a.json", content)
    inside = LINE + (
        b'{"messages": [{"role": "user", "role": "user", "content": "a"},'
        b' {"role": "assistant", "content": "b"}]}'
    )
    assert "line 2: names the key 'role' twice" in refusal(tmp_path, "a.jsonl", inside)


def test_d12_deep_nesting_is_refused_and_the_process_lives(tmp_path: Path) -> None:
    deep = b"[" * 5000 + b"]" * 5000
    where = "line 1: is nested deeper than 32"
    assert where in refusal(tmp_path, "a.jsonl", b'{"text": ' + deep + b"}")
    assert where in refusal(tmp_path, "a.json", b'[{"text": ' + deep + b"}]")
    assert where in refusal(tmp_path, "a.json", deep)
    assert "nested too deeply" in refusal(tmp_path, "a.yaml", b"- text: " + deep)
    tool = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    arguments: Any = {}
    for _ in range(40):
        arguments = {"a": arguments}
    tool["tool_calls"][0]["function"]["arguments"] = arguments  # type: ignore[index]
    message = refusal(tmp_path, "a.jsonl", lines({"messages": [{"role": "user", "content": "x"}, tool]}))
    assert "line 1: messages[1].tool_calls is nested deeper than 32" in message


def test_d13_an_empty_conversation_is_refused(tmp_path: Path) -> None:
    content = LINE + lines({"messages": []})
    assert "line 2: has no turns: messages is an empty list" in refusal(tmp_path, "a.jsonl", content)
    assert "line 1: has no turns" in refusal(tmp_path, "a.jsonl", lines({"messages": []}))


def test_d14_a_role_that_is_not_known_is_refused_until_a_mapping_says_what_it_is(tmp_path: Path) -> None:
    content = lines({"messages": [{"role": "human", "content": "x"}, {"role": "bot", "content": "y"}]})
    message = refusal(tmp_path, "a.jsonl", content)
    assert "line 1: messages[0].role is 'human', expected one of system, user, assistant, tool" in message
    assert "a mapping can say which it is" in message
    mapping = Mapping(kind="conversation", turns="messages", roles={"human": "user", "bot": "assistant"})
    assert first(stored(tmp_path, "a.jsonl", content, mapping=mapping)) == talk("x", "y")


def test_d15_a_conversation_without_an_answer_is_refused_or_left_out_by_count(tmp_path: Path) -> None:
    content = LINE + lines(talk("x"))
    assert "line 2: has no assistant turn" in refusal(tmp_path, "a.jsonl", content)
    assert stored(tmp_path, "a.jsonl", content, leave_out=True)["left_out"] == "1"


def strict_base(tmp_path: Path) -> str:
    """The starter with a template that wants turns to alternate."""
    import shutil

    folder = tmp_path / "strict"
    shutil.copytree(assets() / "starter", folder)
    template = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Roles must alternate') }}{% endif %}"
        "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    )
    (folder / "chat_template.jinja").write_text(template)
    return str(folder)


def test_d16_a_conversation_that_the_template_refuses_is_named_before_start(tmp_path: Path) -> None:
    two = {"messages": [{"role": "user", "content": "a"}, *GOOD["messages"]]}
    middle = talk("a", "b", "c", "d")
    middle["messages"].insert(2, {"role": "system", "content": "s"})
    base = strict_base(tmp_path)
    for number, bad in enumerate((two, middle)):
        dataset = stored(tmp_path, "turns.jsonl", LINE * 3 + b"\n" + lines(bad) + LINE)
        config = recipe(model={"base": base}, data={"dataset": dataset["name"], "held_out_share": 0.2})
        with pytest.raises(StudioError) as caught:
            overview.outlook(config)
        name = "turns" if number == 0 else "turns-2"
        assert f"dataset '{name}' row 4 (line 5 of its file)" in caught.value.text
        assert "Roles must alternate" in caught.value.text


def test_d17_content_that_is_not_text_is_named(tmp_path: Path) -> None:
    said = {
        "missing": ({}, "is missing"),
        "null": ({"content": None}, "is null, expected a text"),
        "number": ({"content": 5}, "is a number, expected a text"),
        "empty list": ({"content": []}, "is a list, expected a text"),
        "list of texts": ({"content": ["a"]}, "is a list, expected a text"),
        "picture": ({"content": [{"type": "image_url", "image_url": {}}]}, "holds a part of type 'image_url'"),
    }
    for given, what in said.values():
        for role in ("user", "assistant"):
            turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
            turns[role == "assistant"] = {"role": role, **given}  # type: ignore[dict-item]
            place = f"line 2: messages[{int(role == 'assistant')}].content {what}"
            assert place in refusal(tmp_path, "a.jsonl", LINE + lines({"messages": turns}))
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "y"}]  # type: ignore[dict-item]
    assert first(stored(tmp_path, "a.jsonl", lines({"messages": turns}))) == talk("ab", "y")


def test_d18_a_prompt_or_completion_that_is_null_is_named(tmp_path: Path) -> None:
    assert "line 2: completion is null" in refusal(tmp_path, "a.jsonl", answered("y", None))
    content = answered("y") + lines({"prompt": None, "completion": "y"})
    assert "line 2: prompt is null" in refusal(tmp_path, "a.jsonl", content)
    message = refusal(tmp_path, "a.jsonl", answered("y") + lines({"prompt": "x"}))
    assert "line 2: has no completion; it has prompt" in message


def test_d19_an_empty_answer_is_refused_or_left_out_by_count(tmp_path: Path) -> None:
    content = answered("y", "", " \n\t", "z")
    message = refusal(tmp_path, "a.jsonl", content)
    assert "2 rows cannot be used" in message and "line 2: completion is empty" in message
    assert stored(tmp_path, "a.jsonl", content, leave_out=True)["left_out"] == "2"
    assert "messages[1] is an assistant turn that is empty" in refusal(
        tmp_path, "a.jsonl", LINE + lines(talk("x", "  "))
    )


def test_d20_rows_of_two_shapes_are_told_apart_by_line(tmp_path: Path) -> None:
    message = refusal(tmp_path, "a.jsonl", LINE + answered("y"))
    assert "line 2: has no messages; it has prompt, completion" in message
    assert "has no messages; it has prompt, completion" in refusal(tmp_path, "a.jsonl", answered("y") + LINE)


def test_d21_columns_that_are_not_known_are_listed_and_can_be_mapped(tmp_path: Path) -> None:
    content = lines({"foo": "x", "bar": "y"})
    message = refusal(tmp_path, "a.jsonl", content)
    assert "columns that are not known: bar, foo. Say which is what (a mapping)" in message
    seen = importing.preview(source(tmp_path, "a.jsonl", content))
    assert seen.problem == message and list(seen.columns) == ["foo", "bar"]
    mapping = Mapping(prompt="foo", answer="bar")
    assert first(stored(tmp_path, "a.jsonl", content, mapping=mapping)) == talk("x", "y")
    known = stored(tmp_path, "a.jsonl", lines({"question": "x", "answer": "y"}))
    assert first(known) == talk("x", "y")


def test_d22_a_number_is_never_taken_for_text(tmp_path: Path) -> None:
    wide = b"123456789012345678901234567890"
    for value, what in (
        (b"5", "completion is a number"),
        (b"1.5", "completion is a number"),
        (wide, "completion is a number"),
        (b"true", "completion is a truth value"),
        (b"NaN", "holds NaN"),
        (b"-Infinity", "Infinity"),
        (b"1e400", "1e400|number that is too large"),
    ):
        row = b'{"prompt": "x", "completion": ' + value + b"}"
        for name, content in (
            ("a.jsonl", answered("y") + row),
            ("a.json", b'[{"prompt": "x", "completion": "y"},\n' + row + b"]"),
        ):
            message = refusal(tmp_path, name, content)
            assert "line 2" in message and any(part in message for part in what.split("|"))
    beside = b'{"prompt": "x", "completion": "y", "id": ' + wide + b', "n": 12}'
    kept = first(stored(tmp_path, "a.jsonl", beside))
    assert kept["columns"] == {"n": "12"}  # an id that JSON readers round is left out, not changed
    assert first(stored(tmp_path, "a.json", b"[" + beside + b"]"))["columns"]["id"] == wide.decode()
    assert "too large" in refusal(tmp_path, "a.json", b'[{"text": "a", "n": ' + b"1" * 5000 + b"}]")


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
        seen = importing.preview(source(tmp_path, "a.csv", table))
        assert seen.columns == {"prompt": ["a, b"], "completion": ["c"]}
    chosen = importing.Options(reading=Reading(delimiter=",", header=True))
    seen = importing.preview(source(tmp_path, "a.csv", b"prompt;completion\na;b\n"), chosen)
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
        encryption.KmsConnectionConfig(), encryption.EncryptionConfiguration(footer_key="key", column_keys={"key": ["text"]})
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
    assert "line 1: text is a list, expected a text" in refusal(tmp_path, "a.parquet", numbers)
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
    found = {path.name for path in tmp_path.parent.rglob("x.jsonl")}
    assert not found


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
    assert "line 1: holds half" in refusal(tmp_path, "a.yaml", b'- text: "a\\ud83d"\n')
    seen = importing.preview(source(tmp_path, "a.json", b"[" + half + b"]"))
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
        '<script>alert(1)</script><img src=x onerror=alert(1)> ![](http://evil/x) '
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
