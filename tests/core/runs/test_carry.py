"""Datasets as files that travel: the rows of a run's job are those of the run."""

from pathlib import Path
from typing import Any

import pytest

from plumbline.cli import main
from plumbline.config import schema
from plumbline.config.mapping import Mapping
from plumbline.data import rows
from plumbline.data.selection import mix
from plumbline.runs import bundle
from plumbline.store import datasets as store
from tests.uploads import lines, stored, talk

CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "it"}}, "id": "a1"}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
USING = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is it?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "a line", "name": "look", "tool_call_id": "a1"},
    {"role": "assistant", "content": "Hm.", "weight": 0},
    {"role": "assistant", "content": "A line.", "reasoning_content": "Seen."},
]
NAMED = ("messages", "text", "label", "group", "tools", "columns", "learn", "chosen", "a.b", "label_")
COLUMNS: list[dict[str, Any]] = [
    {"question": f"Q{n}", "reply": f"A\u2028{n}", "kind": "xyz"[n % 3], "who": n % 4}
    | {name: f"{name} {n}" for name in NAMED}
    for n in range(12)
]
PARTED = Mapping(prompt="question", answer="reply", label="kind", group="who")
PAIRS = [{"prompt": f"Q{n}", "chosen": f"good {n}", "rejected": f"bad {n}", "source": "s"} for n in range(4)]
WHOLE = [
    {
        "chosen": talk("Q", "A", "R", end, "S", "T")["messages"],
        "rejected": talk("Q", "A", "R", "no")["messages"],
    }
    for end in ("yes", "well")
]
ROWS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "conversations": ([talk(f"Hi {n}", "Hello, ünd ☃.") for n in range(5)], {}),
    "conversations, some with tools": ([{"messages": USING, "tools": [TOOL]}, talk("Hi", "Hello.")], {}),
    "columns called like parts of a row": (COLUMNS, {"mapping": PARTED}),
    "texts": ([{"text": f"Text {n}."} for n in range(4)], {}),
    "texts with a class": (
        [{"text": f"Text {n}.", "label": "b" if n else "a", "n": 1.5} for n in range(4)],
        {"mapping": Mapping(kind="text", text="text", label="label")},
    ),
    "pairs": (PAIRS, {}),
    "pairs of whole conversations": (WHOLE, {}),
    "pairs with tools": (
        [
            {
                "prompt": {"messages": USING[:3], "tools": [TOOL]},
                "chosen": {"role": "assistant", "content": "yes"},
                "rejected": {"role": "assistant", "content": f"no {n}"},
            }
            for n in range(3)
        ],
        {"mapping": Mapping(kind="preference", prompt="prompt", chosen="chosen", rejected="rejected")},
    ),
    "verdicts": ([{"prompt": f"Q{n}", "completion": "A", "label": n % 2 == 0} for n in range(4)], {}),
}


def travelled(dataset: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A dataset as it is in another workspace, after the verb that a job imports it with."""
    (parcel,) = bundle.parcels(schema.validated({"data": {"dataset": dataset["name"]}}))
    folder = tmp_path / "job"
    folder.mkdir()
    bundle.write(parcel, folder)
    monkeypatch.setenv("PLUMBLINE_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.chdir(folder)
    assert main.main(parcel.words, lambda *_: None) == 0
    return store.by_name(parcel.name)


@pytest.mark.parametrize("shape", ROWS)
def test_rows_arrive_byte_for_byte(
    shape: str, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, options = ROWS[shape]
    held_out = lines(*values[:1])
    here = stored(tmp_path, "mine.jsonl", lines(*values), held_out, **options)
    before = [rows.paths(here["id"], part)[0].read_bytes() for part in rows.PARTS]
    there = travelled(here, tmp_path, monkeypatch)
    assert [rows.paths(there["id"], part)[0].read_bytes() for part in rows.PARTS] == before
    assert (there["name"], there["sha256"], there["rows"]) == ("mine", here["sha256"], len(values))
    assert there["columns"] == here["columns"] and there["held_out_rows"] == 1


@pytest.mark.parametrize("split", ["random", "stratified", "grouped"])
def test_what_is_held_out_stays_held_out(
    split: str, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(name: str) -> Any:
        raw = {"dataset": name, "split": split, "held_out_share": 0.3, "order": "by column"}
        data = schema.validated({"data": raw | {"order_column": "text"}}).data
        chosen = mix.choose(data)
        every = [*mix.train_rows(data, chosen), *mix.held_out_rows(chosen)]
        return [row for _, row in every], len(chosen[0].held_out)

    here = stored(tmp_path, "mine.jsonl", lines(*COLUMNS), mapping=PARTED)
    before = drawn("mine")
    assert before[1] > 1
    travelled(here, tmp_path, monkeypatch)
    assert drawn("mine") == before
