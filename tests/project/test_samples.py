"""The shipped assets are what they say: sample datasets, their cards, and the starter's weights.

Needs no model and no network; the scripts run as a user would run them.
"""

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests import ROOT

ASSETS = ROOT / "assets"
SAMPLES = ASSETS / "samples"
STARTER = ASSETS / "starter"
ROW_COUNTS = {"cited-answers": (400, 100), "ticket-triage": (320, 80), "plain-style": (300, 60)}


def rows_of(dataset: str, file: str) -> list[dict]:
    text = (SAMPLES / dataset / file).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def prompt_of(row: dict) -> str:
    """What the model is given, whichever of the three shapes the row has."""
    if "messages" in row:
        return row["messages"][0]["content"]
    return row.get("text") or f"{row['instruction']}\n{row['input']}"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_making_the_samples_again_gives_the_same_bytes(tmp_path):
    command = [sys.executable, str(SAMPLES / "make_samples.py"), str(tmp_path)]
    subprocess.run(command, check=True)
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.jsonl"))
    assert made == sorted(path.relative_to(SAMPLES) for path in SAMPLES.rglob("*.jsonl"))
    for path in made:
        assert (tmp_path / path).read_bytes() == (SAMPLES / path).read_bytes(), path


@pytest.mark.parametrize("dataset", ROW_COUNTS)
def test_row_counts_are_those_of_the_card(dataset):
    train, held_out = ROW_COUNTS[dataset]
    assert len(rows_of(dataset, "train.jsonl")) == train
    assert len(rows_of(dataset, "held_out.jsonl")) == held_out
    card = (SAMPLES / dataset / "README.md").read_text(encoding="utf-8")
    assert f"| `train.jsonl` | {train} |" in card
    assert f"| `held_out.jsonl` | {held_out} |" in card


@pytest.mark.parametrize("dataset", ROW_COUNTS)
def test_no_prompt_comes_twice_in_or_across_the_files(dataset):
    rows = rows_of(dataset, "train.jsonl") + rows_of(dataset, "held_out.jsonl")
    prompts = [prompt_of(row) for row in rows]
    assert len(set(prompts)) == len(prompts)


@pytest.mark.parametrize("dataset", ROW_COUNTS)
def test_the_example_in_the_card_is_a_row_of_the_dataset(dataset):
    card = (SAMPLES / dataset / "README.md").read_text(encoding="utf-8")
    example = re.search(r"```json\n(.*?)```", card, flags=re.DOTALL)
    assert json.loads(example[1]) in rows_of(dataset, "train.jsonl")


@pytest.mark.parametrize("file", ["train.jsonl", "held_out.jsonl"])
def test_every_citation_points_at_the_source_it_repeats(file):
    for row in rows_of("cited-answers", file):
        question, answer = [message["content"] for message in row["messages"]]
        sentence, number = re.fullmatch(r"(.+) \[(\d)\]\.", answer).groups()
        sources = question.split("\n\n")[0].splitlines()
        assert 3 <= len(sources) <= 5
        assert sources[int(number) - 1] == f"[{number}] {sentence}."


@pytest.mark.parametrize(("file", "rows_per_cell"), [("train.jsonl", 20), ("held_out.jsonl", 5)])
def test_tickets_are_balanced_over_label_and_group(file, rows_per_cell):
    cells = Counter((row["label"], row["group"]) for row in rows_of("ticket-triage", file))
    assert len(cells) == 16
    assert set(cells.values()) == {rows_per_cell}


def test_plain_sentences_are_shorter_than_stiff_ones():
    for row in rows_of("plain-style", "train.jsonl") + rows_of("plain-style", "held_out.jsonl"):
        assert len(row["output"]) < len(row["input"])


def test_the_starter_weights_have_the_checksum_of_the_card():
    assert sha256(STARTER / "model.safetensors") in (STARTER / "README.md").read_text("utf-8")


def test_the_recipe_still_writes_the_chats_that_the_starter_learned_from(tmp_path):
    # The checksum of the first rows: it changes with any draw that is moved, added or skipped.
    path = tmp_path / "skills.jsonl"
    command = [sys.executable, str(STARTER / "recipe" / "skills.py"), "600", str(path)]
    subprocess.run(command, check=True)
    assert sha256(path) == "17a77e84161d527e81c406a470fb71f4f3bea4566565db3df6822602eba82b84"
