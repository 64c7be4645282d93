"""What a run learns from: seeded splits, weights, prefixes, order, and no row on both sides."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy
import pytest

from plumbline.config.schema import DataSection
from plumbline.data.importing import importer
from plumbline.data.importing.importer import Options
from plumbline.data.readers.source_files import Source
from plumbline.data.selection import mix, split_labels
from plumbline.errors import StudioError
from plumbline.planner import overview
from tests.runs import recipe


def add(folder: Path, name: str, rows: list[dict[str, Any]]) -> str:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    importer.add([Source(path, path.name)], options=Options(name=name))
    return name


def section(**values: Any) -> DataSection:
    return DataSection.model_validate(values)


def labelled(count: int) -> list[dict[str, Any]]:
    """Three quarters "a", one quarter "b", in groups of five."""
    return [
        {"text": f"row {n}", "label": "b" if n % 4 == 0 else "a", "group": f"g{n // 5}", "difficulty": n % 7}
        for n in range(count)
    ]


def split_sides(data: DataSection) -> tuple[set[str], set[str]]:
    chosen = mix.choose(data)
    text = lambda rows: {row["messages"][0]["content"] for _, row in rows}  # noqa: E731
    return text(mix.train_rows(data, chosen)), text(mix.held_out_rows(chosen))


@pytest.fixture
def rated(workspace: Path, tmp_path: Path) -> str:
    return add(tmp_path, "rated", labelled(100))


def test_a_random_split_is_seeded_and_no_row_is_on_both_sides(rated: str) -> None:
    first = split_sides(section(dataset=rated, held_out_share=0.2, split_seed=1))
    assert first == split_sides(section(dataset=rated, held_out_share=0.2, split_seed=1))
    assert first != split_sides(section(dataset=rated, held_out_share=0.2, split_seed=2))
    assert len(first[0]) == 80 and len(first[1]) == 20 and not first[0] & first[1]


def test_a_stratified_split_keeps_the_share_of_every_label(rated: str) -> None:
    chosen = mix.choose(section(dataset=rated, held_out_share=0.2, split="stratified"))
    labels = Counter(row["label"] for _, row in mix.held_out_rows(chosen))
    assert labels == {"a": 15, "b": 5}


def test_a_grouped_split_keeps_every_group_on_one_side(rated: str) -> None:
    data = section(dataset=rated, held_out_share=0.2, split="grouped")
    chosen = mix.choose(data)
    train = {row["group"] for _, row in mix.train_rows(data, chosen)}
    held_out = {row["group"] for _, row in mix.held_out_rows(chosen)}
    assert len(held_out) == 4 and not train & held_out


def test_a_column_that_is_missing_is_named_with_those_there_are(rated: str) -> None:
    with pytest.raises(StudioError, match="has no column 'tone'. It has label, group, difficulty"):
        mix.choose(section(dataset=rated, split="grouped", split_column="tone"))


def test_a_split_by_a_column_of_one_value_is_refused(workspace: Path, tmp_path: Path) -> None:
    add(tmp_path, "flat", [{"text": f"{n}", "label": "x", "group": "one"} for n in range(10)])
    with pytest.raises(StudioError, match="leaves one side empty"):
        mix.choose(section(dataset="flat", split="grouped"))


def test_weights_repeat_rows_and_a_fraction_is_a_seeded_part(rated: str) -> None:
    data = section(mix=[{"dataset": rated, "weight": 2.5}], held_out_share=0.2)
    chosen = mix.choose(data)
    counts = Counter(chosen[0].train.tolist())
    assert len(chosen[0].train) == 200 and Counter(counts.values()) == {2: 40, 3: 40}
    assert numpy.array_equal(chosen[0].train, mix.choose(data)[0].train)
    assert not set(chosen[0].train.tolist()) & set(chosen[0].held_out.tolist())


def test_a_mix_has_every_datasets_rows_and_its_task_prefix(rated: str, tmp_path: Path) -> None:
    add(tmp_path, "more", [{"text": f"other {n}", "label": "x"} for n in range(20)])
    parts = [{"dataset": rated}, {"dataset": "more", "weight": 0.5, "prefix": "[more] "}]
    data = section(mix=parts, held_out_share=0.2)
    chosen = mix.choose(data)
    sources = Counter(source for source, _ in mix.train_rows(data, chosen))
    assert sources == {"rated": 80, "more": 8}
    asked = {
        row["messages"][0]["content"] for source, row in mix.train_rows(data, chosen) if source == "more"
    }
    assert all(text.startswith("[more] other ") for text in asked)
    held_out = [
        row["messages"][0]["content"] for source, row in mix.held_out_rows(chosen) if source == "more"
    ]
    assert len(held_out) == 4 and all(text.startswith("[more] ") for text in held_out)


def test_a_row_limit_on_a_mix_is_a_seeded_part_of_all(rated: str, tmp_path: Path) -> None:
    add(tmp_path, "more", [{"text": f"other {n}", "label": "x"} for n in range(50)])
    data = section(mix=[{"dataset": rated}, {"dataset": "more"}], max_rows=30)
    counts = [len(one.train) for one in mix.choose(data)]
    assert sum(counts) == 30 and all(counts)
    assert counts == [len(one.train) for one in mix.choose(data)]


@pytest.mark.parametrize(
    ("order", "column"), [("short to long", ""), ("long to short", ""), ("by column", "difficulty")]
)
def test_a_curriculum_orders_rows_across_datasets(
    workspace: Path, tmp_path: Path, order: str, column: str
) -> None:
    for name, start in (("one", 0), ("two", 3)):
        rows = [
            {"text": "x" * (n * 7 % 11 + start), "label": "y", "difficulty": n * 5 % 9} for n in range(1, 12)
        ]
        add(tmp_path, name, rows)
    data = section(mix=[{"dataset": "one"}, {"dataset": "two"}], order=order, order_column=column)
    rows = [row for _, row in mix.train_rows(data, mix.choose(data))]
    if column:
        keys: list[float] = [float(row["columns"]["difficulty"]) for row in rows]
    else:
        sign = 1 if order == "short to long" else -1
        keys = [sign * len(row["messages"][0]["content"]) for row in rows]
    assert keys == sorted(keys) and len(set(keys)) > 3


def test_a_datasets_own_held_out_file_is_never_trained_on(samples: Path) -> None:
    chosen = mix.choose(section(dataset="cited-answers", held_out_share=0.5, max_rows=10))[0]
    assert (len(chosen.train), len(chosen.held_out), chosen.held_out_part) == (10, 100, "held_out")


def test_a_row_that_another_dataset_of_the_mix_holds_out_is_a_leak(rated: str, tmp_path: Path) -> None:
    add(tmp_path, "copy", labelled(100)[:50])
    found = mix.leaks(mix.choose(section(mix=[{"dataset": rated}, {"dataset": "copy"}])))
    assert [finding.kind for finding in found] == ["leak"]
    assert mix.leaks(mix.choose(section(dataset=rated))) == []


def test_the_form_gives_a_mix_as_a_line_of_yaml(rated: str) -> None:
    data = section(mix="[{dataset: rated, weight: 2}]", mapping="")
    assert data.mix[0].weight == 2 and data.mapping is None
    assert section(mix="").mix == ()


def test_a_random_split_is_drawn_as_earlier_versions_drew_it(rated: str) -> None:
    import random

    chosen = mix.choose(section(dataset=rated, held_out_share=0.2, split_seed=42))
    assert chosen[0].held_out.tolist() == sorted(random.Random(42).sample(range(100), 20))


def test_an_order_by_a_column_that_is_not_there_is_refused_at_once(rated: str) -> None:
    with pytest.raises(StudioError, match="has no column 'taste'. It has label, group"):
        mix.choose(section(dataset=rated, order="by column", order_column="taste"))


def add_sorted(folder: Path, labels: int, rows_each: int) -> str:
    """Training rows, and a held-out file that is sorted by its labels, as published ones often are."""
    train = folder / "train.jsonl"
    held_out = folder / "test.jsonl"
    train.write_text(
        "".join(json.dumps({"text": f"t{n}", "label": f"l{n % labels}"}) + "\n" for n in range(50))
    )
    lines = [
        json.dumps({"text": f"asks {label} {n}", "label": f"l{label}"}) + "\n"
        for label in range(labels)
        for n in range(rows_each)
    ]
    held_out.write_text("".join(lines))
    files = [Source(path, path.name) for path in (train, held_out)]
    importer.add(files[:1], files[1:], Options(name="sorted"))
    return "sorted"


def measured_labels(data: DataSection, limit: int) -> Counter[str]:
    return Counter(row["label"] for _, row in mix.held_out_rows(mix.choose(data), limit))


def test_what_is_measured_stands_for_the_whole_held_out_file(workspace: Path, tmp_path: Path) -> None:
    data = section(dataset=add_sorted(tmp_path, labels=20, rows_each=30))
    counts = measured_labels(data, 100)
    assert len(counts) == 20 and set(counts.values()) <= {4, 5, 6}
    assert sum(counts.values()) == 100
    assert measured_labels(section(dataset="sorted", split_seed=7), 100) == counts


def test_a_rare_label_is_measured_by_its_share(workspace: Path, tmp_path: Path) -> None:
    rows = [{"text": f"row {n}", "label": "hateful" if n < 700 else "fine"} for n in range(1000)]
    data = section(dataset=add(tmp_path, "head", rows), held_out_share=0.5)
    counts = measured_labels(data, 100)
    whole = Counter(row["label"] for _, row in mix.held_out_rows(mix.choose(data)))
    assert abs(counts["hateful"] - 100 * whole["hateful"] / 500) <= 1


def test_groups_are_measured_within_labels(workspace: Path, tmp_path: Path) -> None:
    rows = [{"text": f"row {n}", "label": f"l{n // 200}", "group": f"g{n // 20 % 10}"} for n in range(400)]
    chosen = mix.choose(section(dataset=add(tmp_path, "both", rows), held_out_share=0.5))
    found = Counter((row["label"], row["group"]) for _, row in mix.held_out_rows(chosen, 40))
    assert len(found) == 20 and max(found.values()) <= 4


def test_the_sample_is_of_what_rows_hold_and_not_of_where_they_stand(workspace: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"asks {n}", "label": f"l{n % 3}"}) + "\n" for n in range(300)]
    texts = []
    for name, ordered in (("one", lines), ("other", sorted(lines, reverse=True))):
        train, held_out = tmp_path / f"{name}.jsonl", tmp_path / f"{name}-test.jsonl"
        train.write_text('{"text": "t", "label": "l0"}\n' * 3)
        held_out.write_text("".join(ordered))
        files = [Source(path, path.name) for path in (train, held_out)]
        importer.add(files[:1], files[1:], Options(name=name))
        rows = mix.held_out_rows(mix.choose(section(dataset=name)), 60)
        texts.append({row["messages"][0]["content"] for _, row in rows})
    assert texts[0] == texts[1] and len(texts[0]) == 60
    assert texts[0] != {f"asks {n}" for n in range(60)}


def test_training_watches_other_rows_than_are_scored_as_far_as_there_are(
    workspace: Path, tmp_path: Path
) -> None:
    chosen = mix.choose(section(dataset=add_sorted(tmp_path, labels=4, rows_each=30)))
    for limit, shared in ((60, 0), (80, 40), (500, 120)):
        scored, watched = (set(mix.sample(chosen, limit, use)[0].tolist()) for use in ("score", "watch"))
        assert len(scored) == len(watched) == min(limit, 120) and len(scored & watched) == shared
    labels = Counter(row["label"] for _, row in mix.held_out_rows(chosen, 40, "watch"))
    assert set(labels.values()) == {10}


def test_a_mix_shares_what_is_measured_as_far_as_each_has_rows(rated: str, tmp_path: Path) -> None:
    add(tmp_path, "few", [{"text": f"few {n}", "label": "x"} for n in range(20)])
    chosen = mix.choose(section(mix=[{"dataset": rated}, {"dataset": "few"}], held_out_share=0.5))
    assert Counter(source for source, _ in mix.held_out_rows(chosen, 41)) == {"rated": 31, "few": 10}


def test_a_row_limit_takes_rows_from_the_whole_file(workspace: Path, tmp_path: Path) -> None:
    rows = [{"text": f"row {n}", "label": f"l{n // 100}"} for n in range(1000)]
    data = section(dataset=add(tmp_path, "sorted-train", rows), max_rows=64)
    labels = {row["label"] for _, row in mix.train_rows(data, mix.choose(data))}
    assert len(labels) == 10


def partly_grouped() -> list[dict[str, Any]]:
    """Every fourth row has no group and the label "fine"; the others are "bad", in groups of 30."""
    return [
        {"text": f"row {n}", "label": "bad" if n % 4 else "fine", "group": f"g{n // 40}" if n % 4 else " "}
        for n in range(400)
    ]


def test_a_blank_is_no_group(workspace: Path, tmp_path: Path) -> None:
    name = add(tmp_path, "blanks", partly_grouped())
    for seed in range(4):
        data = section(dataset=name, split="grouped", split_seed=seed, held_out_share=0.2)
        chosen = mix.choose(data)
        held_out = [row for _, row in mix.held_out_rows(chosen)]
        assert Counter(row["label"] for row in held_out).keys() == {"bad", "fine"}
        groups = {row["group"] for row in held_out} - {" "}
        assert not groups & {row["group"] for _, row in mix.train_rows(data, chosen)}
        assert sum(row["group"] == " " for row in held_out) < 100


def test_what_is_held_out_is_told_before_start(workspace: Path, tmp_path: Path) -> None:
    data = section(dataset=add(tmp_path, "blanks", partly_grouped()), split="grouped", held_out_share=0.2)
    told = [text for _, text in split_labels.lines(mix.choose(data), data)]
    assert any(text.startswith("held out: 2 of 2 labels (") for text in told)
    assert any("of 10 groups (g" in text and "rows without one, each for itself" in text for text in told)


def test_a_label_that_is_missing_from_a_side_is_warned_about(workspace: Path, tmp_path: Path) -> None:
    rows = [
        {"text": f"row {n}", "label": f"l{n // 50}", "group": f"g{n // 50}", "rare": "r" if n < 2 else "c"}
        for n in range(200)
    ]
    data = section(dataset=add(tmp_path, "whole", rows), split="grouped", held_out_share=0.25)
    warnings = [text for level, text in split_labels.lines(mix.choose(data), data) if level == "warning"]
    assert len(warnings) == 2
    assert warnings[0].startswith("no held-out row has 3 of the 4 labels (“l")
    assert warnings[1].startswith("no training row has 1 of the 4 labels (“l")
    even = section(dataset="whole", held_out_share=0.25)
    assert not [text for level, text in split_labels.lines(mix.choose(even), even) if level == "warning"]


def test_before_start_it_is_said_what_the_score_will_be_of(workspace: Path, tmp_path: Path) -> None:
    name = add_sorted(tmp_path, labels=20, rows_each=30)
    config = recipe(data={"dataset": name, "max_rows": None}, evaluation={"max_rows": 100})
    found = overview.outlook(config)
    assert ("Measured on", "100 of 600 held-out rows, 20 of 20 labels") in found.figures
    texts = [check.text for check in found.checks]
    assert any(text.startswith("held out: 20 of 20 labels (") for text in texts)
