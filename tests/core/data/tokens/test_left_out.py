"""What a template leaves out is said before Start, with rows and what helps; a run's day is its own."""

import datetime
import html
import json
from pathlib import Path
from typing import Any

import pytest

from plumbline import api
from plumbline.batches.prepare import prepare
from plumbline.cli import main
from plumbline.config.schema import RunConfig, dumps, problems, validated
from plumbline.data.tokens.encode import encode, prompt_ids
from plumbline.errors import StudioError
from plumbline.export import merge
from plumbline.models import load
from plumbline.planner import overview
from plumbline.store import datasets, runs
from plumbline_studio.tabs.data import desk
from tests.core.data.tokens import published
from tests.core.data.tokens.published import answer, call, result, said, user
from tests.tiny import saved

THOUGHTS = [
    {"messages": [user(f"q{number}"), answer(f"a{number}")]}
    if number in (1, 3)
    else {"messages": [user(f"q{number}"), answer(f"a{number}", reasoning_content=said(f"t{number}"))]}
    for number in range(6)
]
TWICE = {
    "messages": [
        user("ask"),
        call(("weather", {"city": "Rome"}), ("weather", {"city": "Oslo"})),
        result("rain"),
        result("snow", "weather", 2),
        answer("reply"),
    ],
    "tools": published.TOOLS,
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Tiny models with published templates."""
    made = {}
    for name in ("llama3", "llama3_2", "gptoss", "deepseek_r1_distill"):
        folder = tmp_path_factory.mktemp(name)
        made[name] = saved(folder, vocab_size=4200)
        published.model_of(name).save_pretrained(folder)
    return made


def recipe_of(folder: Path, base: str, rows: list[dict[str, Any]], **data: Any) -> RunConfig:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    api.add_data(path, name="talks")
    given = {"dataset": "talks", "held_out_share": 0.4, **data}
    return validated({"model": {"base": base}, "data": given, "training": {"max_length": 512}})


def warned(config: RunConfig) -> list[str]:
    found = overview.outlook(config)
    return [check.text for check in found.checks if check.level == "warning" and "left out" in check.text]


def test_reasoning_that_a_template_drops_is_named_with_its_rows_and_what_helps(
    workspace: Path, bases: dict[str, str]
) -> None:
    (text,) = warned(recipe_of(workspace.parent, bases["llama3"], THOUGHTS))
    assert "reasoning of 4 answers are left out by the chat template" in text
    assert "(rows 1, 3, 5, 6)" in text and "<think>...</think>" in text


def test_reasoning_inside_of_answers_that_a_template_drops_is_named(
    workspace: Path, bases: dict[str, str]
) -> None:
    rows = [{"messages": [user("q"), answer("", published.thought("t", said("a")))]}] * 3
    (text,) = warned(recipe_of(workspace.parent, bases["deepseek_r1_distill"], rows))
    assert "reasoning of 3 answers" in text and "It keeps no reasoning" in text


def test_a_template_that_keeps_everything_is_not_warned_about(workspace: Path) -> None:
    rows = [{"messages": row["messages"][:1] + [answer("a")]} for row in THOUGHTS]
    assert warned(recipe_of(workspace.parent, "starter", rows)) == []


def test_a_lost_call_is_refused_before_start_with_its_row(workspace: Path, bases: dict[str, str]) -> None:
    config = recipe_of(workspace.parent, bases["gptoss"], [*THOUGHTS, TWICE])
    with pytest.raises(StudioError, match="row 7.*leaves out a tool call.*2 of 2"):
        overview.outlook(config)


def test_a_lost_call_is_named_by_dataset_and_row_in_the_xray(
    workspace: Path, bases: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """All rows may begin alike, so that their beginning names none."""
    name = recipe_of(workspace.parent, bases["gptoss"], [*THOUGHTS, TWICE]).data.dataset
    place = f"dataset '{name}' row 7 (line 7 of its file)"
    arguments = ["data", "xray", name, "--row", "7", "--base", bases["gptoss"]]
    assert main.main(arguments, lambda *_: None) == 2
    told = capsys.readouterr().err
    assert place in told and "leaves out a tool call" in told and "begins" not in told
    dataset_id = datasets.by_name(name)["id"]
    shown = html.unescape(desk._look(dataset_id, "train", 7, 512, bases["gptoss"])[0])
    assert place in shown and "leaves out a tool call" in shown


def test_the_command_line_says_what_is_left_out(
    workspace: Path, bases: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe_of(workspace.parent, bases["llama3"], THOUGHTS)
    assert main.main(["data", "xray", "talks", "--base", bases["llama3"]], lambda *values: None) == 0
    assert "reasoning of 4 answers" in " ".join(capsys.readouterr().out.split())


DAY = "2020-02-03"


def test_the_day_of_a_template_is_the_one_that_is_given() -> None:
    row = {"messages": [user("ask"), answer("reply")]}
    for name, written in (("llama3_2", "03 Feb 2020"), ("gptoss", DAY), ("muse_glimmer", DAY)):
        chosen = published.model_of(name)
        ids = encode(row, chosen, published.LONG, day=DAY).input_ids
        asked = prompt_ids(row["messages"][:1], chosen, day=DAY)
        today = prompt_ids(row["messages"][:1], chosen)
        assert written in chosen.decode(ids) and written in chosen.decode(asked)
        assert written not in chosen.decode(today)
        shown = chosen.apply_chat_template(row["messages"], tokenize=False)
        assert written not in shown  # transformers' own answer is left as it is


def test_a_run_keeps_the_day_on_which_it_was_started(workspace: Path, bases: dict[str, str]) -> None:
    """A run of earlier versions has none in its recipe: it is the day on which it was stored."""
    config = recipe_of(workspace.parent, bases["llama3_2"], THOUGHTS)
    (run_id,) = api.add(config)
    assert runs.recipe(run_id).data.day == datetime.date.today().isoformat()
    started = datetime.datetime(2020, 2, 3, 12).timestamp()
    runs.update(run_id, created_at=started, recipe=dumps(config))
    kept, tokenizer = runs.recipe(run_id), load.tokenizer(bases["llama3_2"])
    prepared = prepare(kept)
    for row in [*prepared.train, *prepared.held_out]:
        assert "Today Date: 03 Feb 2020" in tokenizer.decode(row.input_ids)
    assert all(
        "03 Feb 2020" in tokenizer.decode(prompt) for prompt in merge._prompts(run_id, kept, tokenizer)
    )


def test_a_day_is_a_day() -> None:
    told = 'must be a day like 2026-12-01, or empty, got "tomorrow"'
    assert problems({"data": {"day": "tomorrow"}}) == {"data.day": told}
    assert validated({"data": {"day": datetime.date(2026, 12, 1)}}).data.day == "2026-12-01"
