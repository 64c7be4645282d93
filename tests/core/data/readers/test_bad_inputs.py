"""Files that are wrong, row by row of the reliability table (D01 to D22): refused, with the place.

Every refusal also proves that nothing was stored and nothing of the workspace changed (see `refusal`).
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from plumbline.config.mapping import Mapping
from plumbline.data import rows
from plumbline.data.importing import preview
from plumbline.data.readers.source_files import Reading
from plumbline.errors import StudioError
from plumbline.home import assets
from plumbline.planner import overview
from plumbline.store import datasets as store
from tests.runs import recipe
from tests.uploads import GOOD, answered, every, first, growth, lines, refusal, source, stored, talk

LINE = lines(GOOD)


@pytest.fixture(autouse=True)
def _earlier(workspace: Path, tmp_path: Path) -> None:
    """Every file meets a workspace that already holds a dataset, which must stay as it is."""
    stored(tmp_path, "earlier.jsonl", LINE)


def test_d01_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    for name in ("data.jsonl", "data.json", "data.csv", "data.txt", "data.parquet", "data.yaml"):
        assert refusal(tmp_path, name, b"").startswith(f"{name}: is empty.")


def test_d02_blank_lines_or_a_header_are_no_rows(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.json", "a.csv", "a.txt", "a.md", "a.yaml"):
        assert "has no rows in its 3 lines" in refusal(tmp_path, name, b"\n\n\n")
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
    monkeypatch.setattr("plumbline.data.readers.encoding.CHUNK", 3)
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
    assert where in refusal(tmp_path, "a.yaml", b"- text: " + deep)
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
        "picture": (
            {"content": [{"type": "image_url", "image_url": {}}]},
            "holds a part of type 'image_url'",
        ),
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
    seen = preview.of_file(source(tmp_path, "a.jsonl", content))
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
