"""GRPO: checks, advantages, TRL's loss and gradients, and a run that learns from its own answers."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

from plumbline import api
from plumbline.batches.packing import Packer
from plumbline.batches.prepare import prepare
from plumbline.config import schema
from plumbline.config.method import MethodSection
from plumbline.engine import decoder
from plumbline.engine.autograd import AutogradEngine
from plumbline.errors import RecipeError
from plumbline.evaluation import generate
from plumbline.evaluation.checks import check_of
from plumbline.evaluation.generate import Draw
from plumbline.home import run_folder
from plumbline.models import load
from plumbline.models.out_of_memory import OomBackoff
from plumbline.planner import cost, overview
from plumbline.planner.cost import DeviceSpeed
from plumbline.planner.model_size import model_size_of
from plumbline.store import runs
from plumbline.training.methods.reward import RewardTrainer, advantages
from tests import tiny
from tests.runs import do, recipe


@pytest.mark.parametrize(
    ("settings", "passes", "fails"),
    [
        ({"check": "exact"}, " yes ", "yes, it is"),
        ({"check": "contains"}, "oh yes", "no"),
        ({"check": "regex", "pattern": r"\b[a-z]es\b"}, "well, yes", "yesterday"),
        ({"check": "json"}, '{"a": [1]}', "12"),
        ({"check": "json"}, "[]", '{"a": '),
    ],
)
def test_checks_pass_and_fail(settings: dict[str, Any], passes: str, fails: str) -> None:
    check = check_of(MethodSection(name="grpo", **settings))
    assert (check(passes, "yes"), check(fails, "yes")) == (1.0, 0.0)


def test_a_check_without_a_pattern_that_works_is_refused() -> None:
    for pattern, word in (("", "must be given"), ("(", "no regular expression")):
        raw = {"method": {"name": "grpo", "check": "regex", "pattern": pattern}}
        with pytest.raises(RecipeError) as caught:
            schema.validated(raw)
        assert word in caught.value.problems["method.pattern"]


def test_an_answer_is_compared_with_those_of_its_question_only() -> None:
    found = advantages(numpy.array([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]))
    assert found[0, 0] == pytest.approx(1.5, rel=1e-3) and found[0, 1] == pytest.approx(-0.5, rel=1e-3)
    assert not found[1].any()


class _Steps(RewardTrainer):
    """Of the trainer, what computes a step: no loop, no files."""

    def __init__(self, engine: Any, limit: int) -> None:
        self.engine, self.packer, self.tokens = engine, Packer(limit), 0
        self.args = SimpleNamespace(device=torch.device("cpu"))
        self.accelerator = SimpleNamespace(scaler=None)
        self.state = SimpleNamespace(log_history=[])


@pytest.mark.parametrize("limit", [24, 4096])
@pytest.mark.parametrize("kind", ["decoder", "autograd"])
def test_loss_and_gradients_are_those_of_trl(tmp_path: Path, kind: str, limit: int) -> None:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from plumbline.home import assets

    model = tiny.adapted(tiny.base("llama"))
    engine: Any = (
        decoder.DecoderEngine(model, 128, 2, False)
        if kind == "decoder"
        else AutogradEngine(model, recipe(), "none")
    )
    generator = numpy.random.default_rng(0)
    lengths = ((5, 7), (5, 3), (9, 10), (9, 6))
    prompts, replies = ([generator.integers(3, 90, pair[n]).tolist() for pair in lengths] for n in (0, 1))
    compared = advantages(numpy.array([[1.0, 0.0], [1.0, 1.0]])).reshape(-1)
    model.zero_grad()
    loss = float(_Steps(engine, limit).learn(model, prompts, replies, compared))
    found = tiny.gradients(model).clone()

    settings = GRPOConfig(
        str(tmp_path), use_cpu=True, bf16=False, report_to=[], num_generations=2, beta=0.0, loss_type="dapo"
    )
    trainer = GRPOTrainer(
        model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": ["a"] * 4}),
        processing_class=AutoTokenizer.from_pretrained(assets() / "starter"),
    )
    trainer.current_gradient_accumulation_steps = 1
    inputs = _padded(prompts, replies) | {"advantages": torch.tensor(compared, dtype=torch.float32)}
    inputs["num_items_in_batch"] = torch.tensor(float(sum(len(reply) for reply in replies)))
    model.zero_grad()
    wanted = trainer._compute_loss(model, inputs)
    wanted.backward()
    assert loss == pytest.approx(float(wanted.detach()), rel=1e-4, abs=1e-6)
    assert tiny.distance(found, tiny.gradients(model)) < 1e-5


def _padded(prompts: list[list[int]], replies: list[list[int]]) -> dict[str, Any]:
    """Prompts to the right, replies to the left, as TRL pads them."""
    width, longest = max(map(len, prompts)), max(map(len, replies))
    shown: dict[str, Any] = {}
    for name, size, some in (("prompt", width, prompts), ("completion", longest, replies)):
        ids, mask = (torch.zeros(len(some), size, dtype=torch.long) for _ in range(2))
        for number, tokens in enumerate(some):
            place = slice(size - len(tokens), size) if name == "prompt" else slice(0, len(tokens))
            ids[number, place], mask[number, place] = torch.tensor(tokens), 1
        shown |= {f"{name}_ids": ids, f"{name}_mask": mask}
    return shown


@pytest.fixture
def asked(samples: Path, tmp_path: Path) -> int:
    """Questions whose answers do not matter."""
    file = tmp_path / "questions.jsonl"
    rows = [{"prompt": f"Say it. ({number})", "completion": "yes"} for number in range(24)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return api.add_data(file)


def _run(dataset: int, **training: Any) -> int:
    config = recipe(
        data={"dataset": "questions", "max_rows": None},
        method={"name": "grpo", "check": "regex", "pattern": "[aeiou]$", "answers": 8},
        training={"effective_batch": 4, "learning_rate": 3e-3} | training,
        evaluation={"max_new_tokens": 4, "max_rows": 4},
    )
    return runs.add(config, dataset)


def test_a_token_is_drawn_as_often_as_it_is_likely() -> None:
    logits, even = torch.tensor([1.0, 0.0, -torch.inf, 2.0]), (numpy.arange(1000) + 0.5) / 1000
    left = generate._drawing(0.5, even[:, None])(None, logits.repeat(1000, 1))
    assert (left > -torch.inf).sum() == 1000  # all the others are out
    counts = torch.bincount(left.argmax(dim=1), minlength=4)
    assert torch.allclose(counts / 1000, torch.softmax(logits / 0.5, dim=0), atol=1.5e-3)


def test_an_answer_does_not_turn_on_what_is_answered_beside_it(samples: Path) -> None:
    model, tokenizer = (
        load.base_model(recipe(quantisation={"compute_dtype": "float32"})),
        load.tokenizer("starter"),
    )
    prompts = [tokenizer(text)["input_ids"] for text in ("Who was it?", "And?", "Where is the road now?")]
    draw = Draw(1.0, numpy.random.default_rng(0).random((3, 8)))

    def tried(some: list[int], at_once: int) -> list[list[int]]:
        numbers = Draw(draw.temperature, draw.numbers[some])
        halving = OomBackoff(at_once, "answers", lambda text, level: None)
        return generate.sampled(model, tokenizer, [prompts[n] for n in some], 8, halving, "", numbers)

    together = tried([0, 1, 2], 3)
    assert together == tried([0, 1, 2], 1) == [tried([number], 1)[0] for number in range(3)]
    assert together != generate.sampled(
        model, tokenizer, prompts, 8, OomBackoff(3, "answers", lambda text, level: None), ""
    )


def test_f18_answers_that_do_not_fit_are_tried_fewer_at_once(
    asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, tried = generate._continued, []

    def out(model: Any, tokenizer: Any, prompts: list[list[int]], *given: Any) -> Any:
        tried.append(len(prompts))
        if len(prompts) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.")
        return honest(model, tokenizer, prompts, *given)

    monkeypatch.setattr(generate, "_continued", out)
    run_id = _run(asked, max_steps=2, eval_steps=2)
    assert do("train", run_id)["error"] is None
    told = [event["text"] for event in runs.events(run_id) if "ran out of memory" in event["text"]]
    assert told == [
        f"trying answers at step 1 ran out of memory with {size} answers at once and goes on with {half}"
        for size, half in ((32, 16), (16, 8))
    ]
    assert tried == [2, 32, 16, 8, 8, 8, 8, 8, 8, 8, 8, 2]  # it stays with what fits


def test_a_resumed_run_draws_the_answers_of_the_uninterrupted_one(asked: int) -> None:
    whole, cut = (_run(asked, max_steps=4, save_steps=2, eval_steps=4) for _ in range(2))
    for run_id in (whole, cut):
        assert do("train", run_id)["error"] is None
    folder = run_folder(cut)
    (folder / "checkpoints" / "checkpoint-4").rename(folder / "gone")
    assert do("train", cut, resume=True)["error"] is None
    losses = [[point["loss"] for point in runs.metrics(run_id)] for run_id in (whole, cut)]
    assert losses[0] == losses[1] and len(losses[0]) == 5


def test_a_forecast_counts_what_is_asked_and_what_may_be_answered(
    asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    monkeypatch.setattr("plumbline.planner.forecast.forecast", lambda *args: given.append(args))
    config = runs.recipe(_run(asked))
    with pytest.raises(AttributeError):  # there is no forecast to show
        overview.outlook(config)
    ((_, _, lengths, *_),) = given
    assert sorted(lengths) == sorted(prepare(config).lengths)


def test_trying_answers_takes_as_long_as_its_tokens_one_after_the_other() -> None:
    sizes = model_size_of(recipe())
    rates = DeviceSpeed(1e14, 1e12, 3e-6, cuda=True)
    once = cost.answering_seconds(sizes, rates, 32, 32, 10)
    # Bound by launches.
    assert once == pytest.approx(10 * sizes.layers * cost.ANSWERING_KERNELS * 6 * 3e-6)
    assert cost.answering_seconds(sizes, rates, 33, 32, 20) == pytest.approx(4 * once)
    slow = DeviceSpeed(1e14, 1e6, 3e-6, cuda=True)
    assert cost.answering_seconds(sizes, slow, 32, 32, 10) > 10 * 2 * sizes.linear_weights / 1e6


def test_a_run_learns_what_passes_the_check(asked: int) -> None:
    run_id = _run(asked, max_steps=14, eval_steps=7)
    assert do("train", run_id)["error"] is None
    lines = (run_folder(run_id) / "metrics_history.jsonl").read_text(encoding="utf-8").splitlines()
    rewards = [json.loads(line)["reward"] for line in lines if "reward" in json.loads(line)]
    held_out = [json.loads(line)["eval_reward"] for line in lines if "eval_reward" in json.loads(line)]
    print(f"\ngrpo: reward {[round(reward, 2) for reward in rewards]}, held out {held_out}")
    assert sum(rewards[-3:]) > sum(rewards[:3]) + 0.5
    assert runs.get(run_id)["eval_loss"] == pytest.approx(1 - held_out[-1])
