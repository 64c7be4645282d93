"""Evaluation: token-weighted loss, honest intervals, base and adapter on the same rows."""

import json
import math
import random
import re
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from plumbline.batches.prepare import prepare
from plumbline.config.schema import RunConfig
from plumbline.data.importing import importer
from plumbline.data.importing.importer import Options
from plumbline.data.readers.source_files import Source
from plumbline.data.selection import mix
from plumbline.data.tokens.encode import IGNORED, prompt_ids
from plumbline.errors import StudioError
from plumbline.evaluation import compare, report
from plumbline.evaluation.generate import Reply, Task, _Ties, answers, task_of
from plumbline.evaluation.loss import held_out_loss
from plumbline.evaluation.score import RULE, exact_match, paired_difference, token_f1
from plumbline.models import load
from plumbline.store import evaluations, runs
from plumbline_studio.tabs import evaluate
from tests.finished import Finished
from tests.runs import add, do, recipe


def test_held_out_loss_weighs_every_supervised_token_alike(finished: Finished) -> None:
    import torch

    config = recipe()
    model = load.base_model(config).eval()
    rows = prepare(config).held_out
    total, count = 0.0, 0
    for row in rows:
        with torch.no_grad():
            logits = model(torch.tensor([row.input_ids])).logits[0, :-1].float()
        targets = torch.tensor(row.labels[1:])
        keep = targets != IGNORED
        total += torch.nn.functional.cross_entropy(logits[keep], targets[keep], reduction="sum").item()
        count += int(keep.sum())
    pad = load.tokenizer("starter").pad_token_id
    for batch in (1, 3, 8):
        measured = held_out_loss(model, rows, pad, batch)
        assert measured.tokens == count
        # bfloat16 products differ a little with the batch's shape
        assert measured.loss == pytest.approx(total / count, rel=2e-3)
    assert measured.perplexity == pytest.approx(math.exp(measured.loss))


def test_an_evaluation_may_be_stopped_between_batches(finished: Finished) -> None:
    class Stop(Exception):
        pass

    def stop(done: int) -> None:
        raise Stop

    model = load.base_model(recipe())
    with pytest.raises(Stop):
        held_out_loss(model, prepare(recipe()).held_out, 0, 4, stop)
    assert model.training is False


def test_base_and_adapter_are_compared_on_the_same_rows(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Those that were measured while training, to hold its losses against.
    monkeypatch.setattr(mix, "sample", partial(mix.sample, use="watch"))
    job = do("evaluate", finished.run_id)
    assert job["error"] is None
    found = evaluations.latest(finished.run_id)
    result, run = found["result"], runs.get(finished.run_id)
    assert found["rows"] == result["rows"] == 8
    # Training measures in its packs, this the model as it is used: they are apart by bfloat16's rounding.
    assert result["base"]["loss"] == pytest.approx(run["base_eval_loss"], rel=2e-2)
    assert result["adapter"]["loss"] == pytest.approx(run["eval_loss"], rel=2e-2)
    answers = evaluations.answers(found["id"])
    assert len(answers) == 8
    assert result["adapter"]["exact_match"] == sum(row["adapter_score"] for row in answers) / 8
    assert any(row["base_answer"] != row["adapter_answer"] for row in answers)
    assert result["sample"] == {"pool": 100, "watched": 8, "chose": False}
    assert report.rows_of(result) == "8 of 100 held-out rows"
    assert "All of these rows were measured while training too." in report.notes(result)


def test_as_many_rows_are_evaluated_as_are_asked_for_and_training_did_not_watch_them(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def unanswered(model: object, tokenizer: object, prompts: list[object], *rest: object) -> list[Reply]:
        asked.append(len(prompts))
        return [Reply("", True) for _ in prompts]

    monkeypatch.setattr(compare, "answers", unanswered)
    for rows, count, watched in ((12, 12, 0), ("all", 100, 8)):
        assert do("evaluate", finished.run_id, rows=rows)["error"] is None
        result = evaluations.latest(finished.run_id)["result"]
        assert (result["rows"], result["sample"]["watched"]) == (count, watched)
    assert asked == [12, 12, 100, 100]


def test_the_number_of_rows_is_read_as_it_is_written() -> None:
    assert [compare.rows_wanted(text) for text in ("", " all ", "1,500")] == [None, "all", 1500]
    for wrong in ("0", "-1", "many", "1.5"):
        with pytest.raises(StudioError, match="is not a number from 1"):
            compare.rows_wanted(wrong)


def test_a_run_of_an_earlier_version_goes_on_with_the_rows_that_it_began_with(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = finished.folder / "data.json"
    stored = path.read_text()
    earlier = [{key: value for key, value in one.items() if key != "watched"} for one in json.loads(stored)]
    path.write_text(json.dumps(earlier))
    try:
        before = mix.recorded(finished.run_id)
        chosen = mix.choose(recipe().data, before)
        assert chosen[0].train.tolist() == list(range(32))
        assert mix.watched(chosen, 8, before)[0].tolist() == list(range(8))
        assert "watched" not in json.loads(mix.record(chosen, None))[0]
    finally:
        path.write_text(stored)


def test_an_evaluation_of_an_earlier_version_says_that_it_is_of_the_first_rows() -> None:
    side = {"loss": 1.0, "perplexity": 2.7, "tokens": 9, "exact_match": 0.5, "token_f1": 0.5}
    result = {"rows": 100, "base": side, "adapter": side}
    assert report.rows_of(result) == "the first 100 held-out rows"
    assert "on the first rows of the held-out part" in report.notes(result)[0]


def test_a_run_without_an_adapter_is_not_evaluated(samples: object) -> None:
    from tests.runs import add

    job = do("evaluate", add(recipe()))
    assert job["state"] == "failed" and "has no adapter yet" in job["error"]


def test_scores() -> None:
    assert exact_match(" Ruby lives in Seoul [2].\n", "Ruby lives in Seoul [2].") == 1
    assert exact_match("Ruby lives in Seoul [1].", "Ruby lives in Seoul [2].") == 0
    assert token_f1("Ruby lives in Seoul [1].", "ruby lives in Seoul [2]") == pytest.approx(0.8)
    assert token_f1("", "x") == 0 and token_f1("", "") == 1


def test_the_interval_covers_the_truth_about_95_times_in_100() -> None:
    rng = random.Random(0)
    hits = 0
    for seed in range(200):
        base = [float(rng.random() < 0.3) for _ in range(100)]
        adapter = [float(rng.random() < 0.5) for _ in range(100)]
        interval = paired_difference(base, adapter, seed)
        hits += interval.low <= 0.2 <= interval.high
    assert 0.90 <= hits / 200 <= 0.985


def test_the_sentence_says_when_nothing_can_be_told() -> None:
    side = {"perplexity": 2.0, "loss": 0.7, "tokens": 10}
    result = {"base": side, "adapter": side, "difference": {"mean": 0.02, "low": -0.05, "high": 0.09}}
    assert "cannot be told apart" in compare.sentence(result)
    result["difference"] = {"mean": -0.41, "low": -0.46, "high": -0.36}
    assert "The adapter answers 41 points fewer rows exactly (36 to 46)." in compare.sentence(result)


def test_an_answer_that_calls_a_tool_is_not_compared_as_text_and_that_is_told() -> None:
    function = {"name": "rain", "arguments": {"city": "Rome"}}
    question = {"role": "user", "content": "Rain in Rome?"}
    call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
    said = {"role": "assistant", "content": "Yes."}
    rows = [
        {"messages": [question, call]},
        {"messages": [question, {**call, "content": "I look."}]},
        {"messages": [question, call, {"role": "tool", "content": "wet"}, said]},
        {"text": "no task"},
    ]
    tasks, calling = compare.compared(rows)
    assert [(task.answer, row) for task, row in tasks] == [("Yes.", rows[2])] and calling == 2
    side = {"loss": 1.0, "perplexity": 2.0}
    result = {"rows": 3, "answers": 1, "base": side, "adapter": side, "calling": calling}
    assert any("2 answers call a tool" in note and "leave them out" in note for note in report.notes(result))
    alone = report.notes(result | {"answers": 0, "calling": 3})
    assert any("3 answers call a tool" in note and "no answers are compared" in note for note in alone)


@pytest.mark.parametrize(("low", "apart"), [(-0.46, True), (-0.01, False)])
def test_brackets_are_explained_where_there_are_some(
    low: float, apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = {"loss": 1.0, "perplexity": 2.0, "exact_match": 0.5}
    interval = {"mean": low, "low": low, "high": -0.36 if apart else 0.02}
    result = {"rows": 9, "answers": 9, "base": side, "adapter": side, "difference": interval}
    monkeypatch.setattr(evaluations, "latest", lambda run_id: {"id": 1, "result": result})
    monkeypatch.setattr(evaluations, "answers", lambda evaluation_id: [])
    html, _ = evaluate._result(1)
    assert ("rows exactly (" in html) == ("In brackets above" in html) == apart


def test_an_answer_that_the_limit_ended_is_marked(finished: Finished) -> None:
    tokenizer = load.tokenizer("starter")
    model = load.base_model(recipe())
    prompts = [prompt_ids([{"role": "user", "content": "Hello!"}], tokenizer)]
    (whole,) = answers(model, tokenizer, prompts, 200, 1)
    (short,) = answers(model, tokenizer, prompts, 2, 1)
    assert not whole.cut and short.cut and whole.text.startswith(short.text)


def test_a_bases_own_generation_settings_do_not_change_what_is_measured(finished: Finished) -> None:
    """Published bases bring a penalty on repetition: the greedy answer is the likeliest one all the same."""
    tokenizer = load.tokenizer("starter")
    model = load.base_model(recipe())
    prompts = [prompt_ids([{"role": "user", "content": "Count: one one one one"}], tokenizer)]
    plain = answers(model, tokenizer, prompts, 40, 1)
    model.generation_config.repetition_penalty = 2.5
    assert answers(model, tokenizer, prompts, 40, 1) == plain
    assert model.generation_config.repetition_penalty == 2.5


def test_the_tools_of_a_row_are_part_of_its_prompt() -> None:
    tools = [{"type": "function", "function": {"name": "weather", "description": "d", "parameters": {}}}]
    turns = [
        {"role": "user", "content": "Is it warm?"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "weather"}}]},
        {"role": "tool", "content": "20"},
        {"role": "assistant", "content": "Yes."},
    ]
    task = task_of({"messages": turns, "tools": tools})
    assert task == Task(turns[:3], "Yes.", tools)
    assert task_of({"messages": turns[:2], "tools": tools}) == Task(turns[:1], "", tools, calls=True)
    assert task_of({"text": "No answer."}) is None


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("👍", "👎"),
        ("-5", "5"),
        ("3.5", "5.3"),
        ("2024-01-02", "2024-02-01"),
        ("x > 3", "x < 3"),
        ("x != 3", "x = 3"),
        ("x - 5", "x 5"),
        ("2 * 3", "2 3"),
        ("C++", "C#"),
        ("$5", "€5"),
        ("10%", "10"),
        ("दिल्ली", "दिल्ला"),
        ("नमस्ते दुनिया", "नमसता दनय"),
        ("?", "!"),
    ],
)
def test_signs_symbols_and_marks_tell_answers_apart(answer: str, reference: str) -> None:
    assert token_f1(answer, reference) < 1 and token_f1(answer, answer) == 1
    assert exact_match(answer, reference) == 0


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("北京是中国首都", "北京是中国的首都"),
        ("東京タワーです", "東京タワーだ"),
        ("สวัสดีครับ", "สวัสดีค่ะ"),
    ],
)
def test_scripts_without_spaces_are_compared_by_character(answer: str, reference: str) -> None:
    assert 0.5 < token_f1(answer, reference) < 1


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("Hello, World!", "hello world"),
        ("**Paris**", "paris"),
        ("twenty-one", "twenty one"),
        ("It's", "its"),
        ("北京，中国。", "北京中国"),
        ("５％", "5 %"),
        ("\u22125", "-5"),
        ("❤\ufe0f", "❤"),
    ],
)
def test_case_and_punctuation_do_not_tell_answers_apart(answer: str, reference: str) -> None:
    assert token_f1(answer, reference) == 1


def test_one_character_in_two_spellings_is_an_exact_match() -> None:
    assert exact_match("cafe\u0301 ", "caf\u00e9") == 1


def labelled_result(right: list[tuple[str, int, int]]) -> dict[str, Any]:
    rows = [{"base_score": base, "adapter_score": adapter} for _, base, adapter in right]
    found = {"labels": compare._labels([label for label, _, _ in right], rows)}
    for number, side in enumerate(("base", "adapter"), 1):
        share = sum(one[number] for one in right) / len(right)
        found[side] = {"loss": 1.0, "perplexity": 2.7, "tokens": 9, "exact_match": share, "token_f1": 0.89}
    return {"rows": len(right), "rule": RULE, **found}


def test_labels_are_told_by_accuracy_beside_what_one_label_alone_would_get() -> None:
    result = labelled_result([("fine", 1, 1), ("fine", 0, 1), ("hateful", 0, 0), ("fine", 1, 0)])
    names = [row[0] for row in report.figures(result)]
    assert names == ["accuracy", "always “fine”", "loss (nats per token)", "perplexity"]
    assert report.figures(result)[1] == ["always “fine”", "75.0%", "75.0%"]
    assert report.recall(result) == [["fine", "3", "67%", "67%"], ["hateful", "1", "0%", "0%"]]


def test_a_result_says_which_rule_compared_its_answers() -> None:
    result = labelled_result([("a", 1, 1)])
    assert not any("earlier rule" in note for note in report.notes(result))
    del result["rule"]
    assert any("by an earlier rule" in note for note in report.notes(result))


def test_an_answer_is_close_where_its_precision_cannot_tell_two_tokens_apart() -> None:
    import torch

    def closest(dtype: torch.dtype, *logits: list[float]) -> bool:
        ties = _Ties(dtype)
        for step in logits:
            ties(None, torch.tensor([step]))
        return ties.among(0, 2)

    clear, near, later = [20.0, 10.0, 0.0], [20.0, 19.75, 0.0], [1.0, 1.0, 0.0]
    assert closest(torch.bfloat16, clear, near)
    assert not closest(torch.float32, clear, near)
    assert not closest(torch.bfloat16, clear, clear, later)  # behind the end of the answer


def test_close_answers_are_told_with_what_they_may_move() -> None:
    result = labelled_result([("a", 1, 1)] * 50) | {"precision": "bfloat16", "answers": 50}
    assert not any("bfloat16" in note for note in report.notes(result))
    result["base"]["close"], result["adapter"]["close"] = 3, 1
    (note,) = [note for note in report.notes(result) if "bfloat16" in note]
    assert "3 answers of the base and 1 of the adapter" in note and "at most 6.0 points" in note


@pytest.fixture
def texts(workspace: Path, tmp_path: Path) -> RunConfig:
    """A recipe for ten long texts of which every part has words of its own."""
    path = tmp_path / "tales.jsonl"
    tales = (" ".join(f"tale{n}word{word:03}" for word in range(150)) for n in range(10))
    path.write_text("".join(json.dumps({"text": tale}) + "\n" for tale in tales))
    importer.add([Source(path, path.name)], options=Options(name="tales"))
    return recipe(
        data={"dataset": "tales", "max_rows": None, "held_out_share": 0.5},
        method={"name": "pretraining"},
        training={"max_length": 64},
        evaluation={"max_rows": 20},
    )


def test_a_long_text_is_measured_in_windows_from_all_of_it(texts: RunConfig) -> None:
    held_out = prepare(texts).held_out
    assert len(held_out) == 20
    tokenizer = load.tokenizer("starter")
    read = " ".join(tokenizer.decode(row.input_ids) for row in held_out)
    # Of each of the five texts, windows of its first and of its last half.
    halves = {(tale, int(word) // 75) for tale, word in re.findall(r"tale(\d)word(\d{3})\b", read)}
    assert len(halves) == 10


def test_evaluation_measures_the_windows_of_a_long_text(
    texts: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    run_id, seen = add(texts), []

    def measured(
        job: object, model: object, tokenizer: object, config: object, encoded: list[Any], *rest: object
    ) -> Any:
        seen.append(encoded)
        return {"loss": 1.0, "perplexity": 2.7, "tokens": 9, "answers": []}

    for place, name, value in (
        (compare, "refuse_without_adapter", lambda run_id: None),
        (compare, "refuse_other_tokenizer", lambda *given: None),
        (compare.adapter_check, "refuse_other_base", lambda *given: None),
        (compare.load, "base_model", lambda config: None),
        (compare.adapters, "opened", lambda *given: SimpleNamespace(dtype=torch.float32)),
        (compare, "only", lambda *given: nullcontext()),
        (compare, "_measure", measured),
    ):
        monkeypatch.setattr(place, name, value)
    assert do("evaluate", run_id)["error"] is None
    result = evaluations.latest(run_id)["result"]
    assert [len(encoded) for encoded in seen] == [20, 20] and result["rows"] == 20
    assert result["sample"]["windows"] > 50 and result["sample"]["texts"] == 5
    assert report.rows_of(result) == f"20 of {result['sample']['windows']} windows, of 5 of 5 held-out texts"


def test_a_row_whose_answer_was_cut_says_so_beside_its_score() -> None:
    row = {"row": 3, "base_score": 0.0, "adapter_score": 1.0}
    assert evaluate._right(row, "base", {3}) == "no (cut)"
    assert evaluate._right(row, "adapter", {2}) == "yes"
