"""YAML and JSON that others wrote: read under limits, wherever it comes in."""

from pathlib import Path

import pytest

from plumbline.config import schema
from plumbline.data.formats.mapping_parser import mapping_of
from plumbline.data.readers import plain_text
from plumbline.errors import StudioError
from tests.uploads import first, refusal, stored


def bomb(levels: int) -> str:
    """Aliases of aliases: a few hundred bytes that stand for six to the power of ``levels`` values."""
    links = [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 6)}]" for level in range(1, levels)]
    return "\n".join(["a0: &a0 [x, x, x, x, x, x]", *links])


@pytest.mark.parametrize("key", ["mix", "mapping"])
def test_aliases_in_a_setting_of_the_form_are_refused(key: str) -> None:
    said = schema.problems({"data": {key: bomb(4)}})[f"data.{key}"]
    assert "holds an alias (*)" in said and len(said) < 400
    flow = f"{{{', '.join(bomb(4).splitlines())}}}"
    assert "holds an alias (*)" in schema.problems({"data": {key: flow}})[f"data.{key}"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{kind: text, kind: kto}", "gives 'kind' a second time"),
        ("[" * 200, "is nested deeper than 32"),
        ('{"kind": ' * 40 + "1" + "}" * 40, "is nested deeper than 32"),
        (f"[{'1,' * 60_000}]", "is past 50,000 values"),
        ("x" * 300_000, "is longer than 256 kB"),
        ("!!python/name:os.system", "has the tag"),
        ("!!int ''", "has the tag"),
        ("{kind: text", "is not valid YAML"),
        ("1__:x\n  - y: 2000-99-99", "is not valid YAML"),
    ],
    ids=lambda value: value[:16],
)
@pytest.mark.parametrize("place", ["mix", "mapping", "recipe", "mapping file"])
def test_a_text_past_a_limit_is_a_sentence_wherever_it_comes_in(
    place: str, text: str, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "given.yaml"
    file.write_text(text)
    if place in ("mix", "mapping"):
        assert said in schema.problems({"data": {place: text}})[f"data.{place}"]
        return
    with pytest.raises(StudioError) as caught:
        schema.read_recipe(file) if place == "recipe" else mapping_of(file)
    assert said in caught.value.text and "given.yaml" in caught.value.text


def test_json_is_read_as_json() -> None:
    named = schema.RunConfig(name="tea 🍵")
    assert schema.loads(schema.dumps(named, "json")) == named
    assert schema.loads('{\n\t"name": "tabs"\n}').name == "tabs"


def test_yaml_data_keeps_its_texts_and_its_lines(tmp_path: Path) -> None:
    listed = (
        b"version: 1\nrows:\n- {question: 007, answer: no}\n- question: |\n    two\n    lines\n  answer: ~\n"
    )
    dataset = stored(tmp_path, "a.yaml", listed)
    assert [turn["content"] for turn in first(dataset)["messages"]] == ["007", "no"]
    assert "a.yaml line 3: is a text" in refusal(tmp_path, "a.yaml", b"- {text: a}\n- {text: b}\n- c\n")
    documents_of_their_own = b"text: one\n---\ntext: two\n---\n- three\n"
    assert "a.yaml line 5 (row 3): is a list" in refusal(tmp_path, "a.yaml", documents_of_their_own)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"- text: a\n- {text: b, text: c}\n", "a.yaml line 2: names the key 'text' twice"),
        (b"- text: a\n- {text: " + b"[" * 40 + b"]" * 40 + b"}\n", "a.yaml line 2: is nested deeper than 32"),
        (b"- text: a\n- ? [x]\n  : y\n", "a.yaml line 2: has a key that is no text"),
        (b"- text: a\n- !!python/name:os.system x\n", "a.yaml line 2: has the tag"),
        (b"- text: &a b\n- text: *a\n", "a.yaml line 2: holds an alias (*)"),
        (b"a: [{b: 1}]\nc: [{d: 1}]\n", "a.yaml: holds no list of mappings"),
    ],
)
def test_yaml_data_past_a_limit_names_its_line(tmp_path: Path, content: bytes, said: str) -> None:
    assert said in refusal(tmp_path, "a.yaml", content)


def test_yaml_data_of_very_many_values_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_text, "MAX_YAML_VALUES", 100, raising=False)
    assert "a.yaml line 100: is past 100 values" in refusal(tmp_path, "a.yaml", b"- []\n- []\n" * 500)
