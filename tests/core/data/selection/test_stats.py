"""Figures at any cut equal what encoding at that cut gives; turns, roles and scripts are counted."""

import json
from pathlib import Path
from typing import Any

import pytest

from plumbline.config.schema import RunConfig
from plumbline.data import rows
from plumbline.data.importing import importer
from plumbline.data.importing.importer import Options
from plumbline.data.readers.source_files import Source
from plumbline.data.selection import stats
from plumbline.data.tokens.encode import IGNORED, encode, encode_all, end_tokens
from plumbline.errors import StudioError
from plumbline.models.load import tokenizer
from plumbline.planner import overview
from plumbline.store import datasets as store


def add(folder: Path, name: str, given: list[dict[str, Any]]) -> dict[str, Any]:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return store.get(importer.add([Source(path, path.name)], options=Options(name=name)))


@pytest.mark.parametrize("length", [16, 40, 55, 64, 4096])
def test_a_cut_by_arithmetic_equals_a_cut_by_encoding(samples: Path, length: int) -> None:
    dataset, chosen = store.by_name("cited-answers"), tokenizer("starter")
    summary = stats.of_dataset(dataset, "train", "starter", None).at(length)
    encoded = [encode(row, chosen, length) for row in rows.page(dataset["id"], "train")]
    ends = end_tokens(chosen)
    assert summary.rows == 400
    assert summary.tokens == sum(len(row.input_ids) for row in encoded)
    assert summary.supervised == sum(row.supervised for row in encoded)
    assert summary.cut_rows == sum(bool(row.cut) for row in encoded)
    assert summary.cut_tokens == sum(len(row.cut) for row in encoded)
    empty = [number for number, row in enumerate(encoded, start=1) if row.supervised == 0]
    assert (summary.empty_rows, summary.empty_numbers) == (len(empty), tuple(empty[: stats.SHOWN]))
    assert summary.end_learned_rows == sum(
        any(label in ends for label in row.labels if label != IGNORED) for row in encoded
    )
    assert summary.longest == max(len(row.input_ids) + len(row.cut) for row in encoded)


def test_measuring_rows_that_are_cut_already_gives_what_is_left_of_them(samples: Path) -> None:
    dataset, chosen = store.by_name("cited-answers"), tokenizer("starter")
    given = rows.page(dataset["id"], "train", 0, 50)
    ends = end_tokens(chosen)
    whole = stats.measured(encode_all(given, chosen, 1 << 20), ends).at(50)
    cut = stats.measured(encode_all(given, chosen, 50), ends).at(50)
    assert whole == cut


def test_a_large_set_is_sampled_with_a_fixed_seed_and_says_so(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats, "SAMPLE", 20)
    dataset = add(tmp_path, "many", [{"text": f"row number {n}"} for n in range(50)])
    measured = stats.of_dataset(dataset, "train", "starter", None)
    assert not measured.exact and len(measured.lengths) == 20 and measured.total == 50
    assert stats.sample(50).tolist() == stats.sample(50).tolist()


def test_turns_roles_labels_and_scripts_are_counted(workspace: Path, tmp_path: Path) -> None:
    given: list[dict[str, Any]] = [
        {"text": "Guten Tag", "label": "de"},
        {"text": "Добрый день", "label": "ru"},
        {"text": "日本の本", "label": "ja"},
    ]
    profile = stats.profile(add(tmp_path, "mixed", given), "train")
    assert (profile.rows, profile.turns, profile.roles) == (3, {2: 3}, {"user": 3, "assistant": 3})
    assert profile.labels == {"de": 1, "ru": 1, "ja": 1}
    shares = dict(profile.scripts)
    assert set(shares) == {"Latin", "Cyrillic", "Chinese characters", "Japanese kana"}
    assert sum(shares.values()) == pytest.approx(1)


def recipe(dataset: str, **training: Any) -> RunConfig:
    return RunConfig.model_validate({"data": {"dataset": dataset}, "training": training})


def test_start_is_blocked_when_nothing_is_learned_and_warned_about_rows(samples: Path) -> None:
    blocked = overview.outlook(recipe("cited-answers", max_length=16))
    assert blocked.blocked and "have no answer tokens within 16 tokens" in blocked.checks[0].text
    warned = overview.outlook(recipe("cited-answers", max_length=56))
    assert not warned.blocked
    texts = [check.text for check in warned.checks if check.level == "warning"]
    assert any(
        "of 400 rows would train on nothing at 56 tokens and are left out (rows " in text for text in texts
    )
    assert any("rows are cut at 56 tokens" in text for text in texts)


def test_a_row_that_the_template_refuses_is_named_before_start(
    samples: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    talk = [
        {"role": "user", "content": "a"},
        {"role": "system", "content": "b"},
        {"role": "assistant", "content": "c"},
    ]
    add(tmp_path, "middle", [{"messages": [talk[0], talk[2]]}, {"messages": talk}])
    chosen = tokenizer("starter", None)
    strict = "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    strict += "{{ raise_exception('system must come first') }}{% endif %}"
    strict += "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    strict += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    monkeypatch.setattr(chosen, "chat_template", strict)
    with pytest.raises(StudioError, match="row 2.*system must come first"):
        overview.outlook(recipe("middle"))


def test_labels_are_counted_in_all_rows(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats, "SAMPLE", 5)
    dataset = add(tmp_path, "many", [{"text": f"row {n}", "label": f"l{n % 40}"} for n in range(80)])
    assert stats.profile(dataset, "train").labels == {f"l{n}": 2 for n in range(40)}
