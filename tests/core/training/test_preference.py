"""DPO, ORPO and KTO on packs: TRL's losses and gradients, and runs that learn to prefer."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from plumbline import api
from plumbline.batches.packing import Packer
from plumbline.batches.pair_packing import Judged
from plumbline.batches.prepare import Prepared, prepare, windows
from plumbline.config import schema
from plumbline.config.method import MethodSection
from plumbline.data.selection import preference_rows
from plumbline.data.tokens.encode import IGNORED, Encoded
from plumbline.distributed.process_group import ProcessGroup
from plumbline.engine import decoder
from plumbline.engine.autograd import AutogradEngine
from plumbline.errors import StudioError
from plumbline.home import run_folder
from plumbline.jobs import queue
from plumbline.models import fit
from plumbline.models.out_of_memory import OomBackoff
from plumbline.planner import overview
from plumbline.store import datasets, runs
from plumbline.training.methods import preference
from plumbline.training.methods.preference import PreferenceTrainer
from plumbline_studio import plots, status
from tests import tiny
from tests.runs import do, recipe

QUESTIONS = ("What is the plan?", "Where is it?", "Who said so?", "When was that?", "Why not?", "How many?")
SHORT = {"max_steps": 12, "effective_batch": 4, "eval_steps": 6, "save_steps": 6, "learning_rate": 3e-3}


def _file(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "judged.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def judged(samples: Path, tmp_path: Path) -> str:
    """Pairs whose better answer is short and polite."""
    rows = [
        {
            "prompt": f"{question} ({number})",
            "chosen": f"Kindly: {number}.",
            "rejected": f"No idea about {number}, go away now.",
        }
        for number in range(8)
        for question in QUESTIONS
    ]
    return datasets.get(api.add_data(_file(tmp_path, rows)))["name"]


@pytest.fixture
def verdicts(samples: Path, tmp_path: Path) -> str:
    rows = [
        {"prompt": f"{question} ({number})", "completion": answer, "label": good}
        for number in range(4)
        for question in QUESTIONS
        for answer, good in ((f"Kindly: {number}.", True), (f"No idea about {number}, go away.", False))
    ]
    return datasets.get(api.add_data(_file(tmp_path, rows)))["name"]


def _run(dataset: str, method: str, **sections: Any) -> int:
    sections = {"training": SHORT} | sections
    config = recipe(data={"dataset": dataset, "max_rows": None}, method={"name": method}, **sections)
    return runs.add(config, datasets.by_name(dataset)["id"])


def _rewards(run_id: int, name: str) -> list[float]:
    folder = run_folder(run_id)
    lines = (folder / "metrics_history.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)[name] for line in lines if name in json.loads(line)]


@pytest.mark.parametrize("method", ["dpo", "orpo"])
def test_the_better_answers_win(judged: str, method: str) -> None:
    run_id = _run(judged, method)
    job = do("train", run_id)
    assert job["error"] is None
    losses = [point["loss"] for point in runs.metrics(run_id) if point["loss"]]
    held_out = [point["eval_loss"] for point in runs.metrics(run_id) if point["eval_loss"]]
    accuracy = _rewards(run_id, "eval_rewards/accuracy")
    print(f"\n{method}: {losses[0]:.3f} -> {losses[-1]:.3f}, held out {held_out}, accuracy {accuracy}")
    assert losses[-1] < 0.8 * losses[0] and held_out[-1] < held_out[0]
    assert accuracy[-1] == 1.0
    if method == "dpo":
        assert losses[0] == pytest.approx(math.log(2), abs=1e-3)
        assert held_out[0] == pytest.approx(math.log(2), abs=1e-3)


def test_good_answers_are_rewarded_and_bad_ones_not(verdicts: str) -> None:
    run_id = _run(verdicts, "kto")
    assert do("train", run_id)["error"] is None
    losses = [point["loss"] for point in runs.metrics(run_id) if point["loss"]]
    accuracy = _rewards(run_id, "eval_rewards/accuracy")
    print(f"\nkto: {losses[0]:.3f} -> {losses[-1]:.3f}, accuracy {accuracy}")
    assert losses[0] == pytest.approx(0.5, abs=1e-3) and losses[-1] < 0.4
    assert accuracy[-1] == 1.0


def test_a_resumed_run_goes_on_with_the_references_of_its_start(judged: str) -> None:
    whole, cut = _run(judged, "dpo"), _run(judged, "dpo")
    do("train", whole)
    do("train", cut)
    folder = run_folder(cut)
    (folder / "checkpoints" / "checkpoint-12").rename(folder / "gone")
    assert do("train", cut, resume=True)["error"] is None
    assert [p["loss"] for p in runs.metrics(cut)] == [p["loss"] for p in runs.metrics(whole)]
    (folder / preference.REFERENCE).unlink()
    (folder / "checkpoints" / "checkpoint-12").rename(folder / "gone too")
    assert "cannot be measured again" in do("train", cut, resume=True)["error"]


def test_f18_judged_rows_that_do_not_fit_are_measured_in_smaller_packs(
    judged: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = SHORT | {"max_steps": 2, "eval_steps": 2}
    whole, halved = (_run(judged, "dpo", training=short) for _ in range(2))
    assert do("train", whole)["error"] is None
    honest = preference.row_log_probabilities

    def out(losses: torch.Tensor, held: Any) -> torch.Tensor:
        if held.tokens > 300:  # more than a step has
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.")
        return honest(losses, held)

    monkeypatch.setattr(preference, "row_log_probabilities", out)
    assert do("train", halved)["error"] is None
    told = [event["text"] for event in runs.events(halved) if "ran out of memory" in event["text"]]
    assert told[0].startswith("judging answers in the evaluation at step 0 ran out of memory with ")
    found, wanted = (
        [p["eval_loss"] for p in runs.metrics(each) if p["eval_loss"]] for each in (halved, whole)
    )
    assert found == pytest.approx(wanted, rel=1e-2)


@pytest.mark.parametrize("method", ["dpo", "orpo", "kto", "pretraining"])
def test_rows_that_a_method_cannot_learn_from_are_refused(samples: Path, method: str) -> None:
    run_id = _run("cited-answers", method)
    error = do("train", run_id)["error"]
    assert "method.name" in error and method in error and "cited-answers" in error
    assert queue.latest(run_id, "train")["state"] == "failed"  # type: ignore[index]


@pytest.mark.parametrize("length", [1024, 24])
@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_forecast_counts_both_answers_as_a_run_has_them(
    judged: str, verdicts: str, method: str, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("plumbline.planner.forecast.forecast", lambda *given: asked.append(given))
    dataset = judged if method == "dpo" else verdicts
    config = recipe(
        data={"dataset": dataset, "max_rows": None}, method={"name": method}, training={"max_length": length}
    )
    with pytest.raises(AttributeError):  # there is no forecast to show
        overview.outlook(config)
    ((_, count, lengths, supervised, _),) = asked
    prepared = prepare(config)
    if method == "dpo":
        assert count == len(prepared.train) and sorted(lengths) == sorted(prepared.lengths)
        assert supervised == pytest.approx(prepared.supervised, rel=0.01)  # held-out rows count in the sample
    else:  # the other answer is another row's
        assert sum(lengths) == pytest.approx(sum(prepared.lengths), rel=0.1)
        assert supervised == pytest.approx(prepared.supervised, rel=0.1)


def test_long_texts_become_windows_and_no_token_is_lost() -> None:
    ids = list(range(3, 28))
    row = Encoded(ids[:10], ids[:10], ids[10:], 15)
    parts = windows(row, 10)
    assert [len(part.input_ids) for part in parts] == [10, 10, 7]
    predicted = [ids[0]] + [token for part in parts for token in part.labels[1:]]
    assert predicted == ids
    assert windows(Encoded(ids[:10], ids[:10], [], 0), 10)[0].input_ids == ids[:10]
    assert len(windows(Encoded(ids[:10], ids[:10], [], 0), 10)) == 1


def test_pretraining_learns_every_window(samples: Path, tmp_path: Path) -> None:
    text = "The road goes ever on and on, down from the door where it began. " * 12
    dataset = api.add_data(_file(tmp_path, [{"text": f"{number}. {text}"} for number in range(12)]))
    name = datasets.get(dataset)["name"]
    config = recipe(
        data={"dataset": name, "max_rows": None},
        method={"name": "pretraining"},
        training=SHORT | {"max_length": 64},
    )
    prepared = prepare(config)
    assert max(prepared.lengths) == 64 and len(prepared.train) > 30
    run_id = runs.add(config, dataset)
    assert do("train", run_id)["error"] is None
    losses = [point["loss"] for point in runs.metrics(run_id) if point["loss"]]
    print(f"\npretraining: {losses[0]:.3f} -> {losses[-1]:.3f}")
    assert losses[-1] < 0.6 * losses[0]


def test_only_the_judged_answer_is_learned() -> None:
    before = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    asked = [*before, {"role": "user", "content": "c"}]
    row = {"messages": [*asked, {"role": "assistant", "content": "d"}]}
    worse = {**row, "rejected": [{"role": "assistant", "content": "e"}]}
    chosen, rejected = preference_rows.both(worse)
    for made, answer in ((chosen, "d"), (rejected, "e")):
        assert made["messages"][-1] == {"role": "assistant", "content": answer}
        assert made["messages"][1]["learn"] is False and "rejected" not in made
    own, other, good = preference_rows.preference_of(
        {**row, "desirable": False}, {"messages": [*before], "desirable": True}
    )
    assert (own["messages"][-1]["content"], other["messages"][-1]["content"], good) == ("d", "b", False)
    turns = [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]
    long = {"messages": [*asked, *turns, turns[0]], "rejected": [turns[0]], "asked": 3}
    assert (
        len(preference_rows.both(long)[0]["messages"]) == 6
        and len(preference_rows.both(long)[1]["messages"]) == 4
    )


LENGTHS = ((9, 6), (14, 20), (5, 11), (17, 8))


def _prepared() -> Prepared:
    sides = []
    for side in (0, 1):
        made = tiny.rows(tuple(pair[side] for pair in LENGTHS), seed=side)
        sides.append([Encoded(row["input_ids"], row["labels"], [], 0) for row in made])
    good = [True, False, True, True]
    return Prepared(sides[0], sides[0], ["a"] * 4, sides[1], good, sides[1], good)


class _Steps(PreferenceTrainer):
    """Of the trainer, what computes a step: no loop, no files."""

    def __init__(self, method: MethodSection, engine: Any, limit: int) -> None:
        prepared = _prepared()
        paired = method.name != "kto"
        part = Judged(Packer(limit), prepared.train, prepared.others, paired)
        self.method, self.engine, self.packer, self.parts = method, engine, part, {"train": part}
        self.good, self.references = {"train": prepared.good}, {}
        self.args = SimpleNamespace(device=torch.device("cpu"))
        self.job = SimpleNamespace(check_stop=lambda: None, report=lambda text: None, payload={})
        self.accelerator = SimpleNamespace(scaler=None)
        self.state = SimpleNamespace(log_history=[], global_step=0)
        self.at_once = OomBackoff(limit, "tokens", lambda text, level: None)
        self.mask_gradients = lambda: None
        self.tokens, self.doing = 0, ""

    def measure(self) -> None:
        self.references["train"] = self._reference(self.parts["train"])

    def loss(self, model: Any) -> float:
        rows = [{"number": number} for number in range(4)]
        return float(self.training_step(model, self.parts["train"](rows)))


def test_on_resume_all_processes_have_the_references_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, Any] = {"train": "as the first has them"}

    class Second(ProcessGroup):
        def broadcast(self, value: Any) -> Any:
            assert value == {}  # its own folder has none
            return kept

    monkeypatch.setattr(preference, "current", lambda: Second(1, 2))
    steps = _Steps(MethodSection(name="dpo"), None, 64)
    steps.args.output_dir, steps.state.global_step = tmp_path / "checkpoints", 2
    steps.job.payload = {"resume": True}
    steps.measure_references()
    assert steps.references is kept and not list(tmp_path.iterdir())
    steps.references, kept = {}, {}
    with pytest.raises(StudioError, match="cannot be measured again"):
        steps.measure_references()


def _padded(rows: list[Encoded]) -> dict[str, Any]:
    longest = max(len(row.input_ids) for row in rows)
    ids, attended, answer = (torch.zeros(len(rows), longest, dtype=torch.long) for _ in range(3))
    for number, row in enumerate(rows):
        length = len(row.input_ids)
        ids[number, :length] = torch.tensor(row.input_ids)
        attended[number, :length] = 1
        answer[number, :length] = torch.tensor([label != IGNORED for label in row.labels])
    return {"input_ids": ids, "attention_mask": attended, "completion_mask": answer}


def _trl(method: str, model: Any, folder: Path) -> Any:
    """TRL's own loss of the same rows."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

    from plumbline.home import assets

    tokenizer = AutoTokenizer.from_pretrained(assets() / "starter")
    common = {"output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": [], "beta": 0.3}
    prepared = _prepared()
    row = {"prompt": ["a", "b"], "completion": ["c", "d"], "label": [True, False]}
    if method == "dpo":
        pairs_ = {"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}
        trainer: Any = DPOTrainer(
            model,
            args=DPOConfig(**common),
            train_dataset=Dataset.from_dict(pairs_),
            processing_class=tokenizer,
        )
        return trainer, _padded([*prepared.train, *prepared.others])
    settings = KTOConfig(
        **common, desirable_weight=1.5, undesirable_weight=0.7, per_device_train_batch_size=2
    )
    trainer = KTOTrainer(
        model, args=settings, train_dataset=Dataset.from_dict(row), processing_class=tokenizer
    )
    drifted = {f"KL_{name}": value for name, value in _padded(prepared.others).items()}
    return trainer, _padded(prepared.train) | drifted | {"label": torch.tensor(prepared.good)}


@pytest.mark.parametrize("limit", [32, 4096])
@pytest.mark.parametrize("kind", ["decoder", "autograd", "row by row"])
@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_loss_and_gradients_are_those_of_trl(
    tmp_path: Path, method: str, kind: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = MethodSection(name=method, beta=0.3, desirable_weight=1.5, undesirable_weight=0.7)
    model = tiny.adapted(tiny.base("llama"))
    if kind == "decoder":
        engine: Any = decoder.DecoderEngine(model, 128, 2, False)
    else:
        engine = AutogradEngine(model, recipe(), "none")
    if kind == "row by row":
        engine.attention = "rows"
        monkeypatch.setattr("plumbline.engine.varlen_attention.ROWS", "rows")
    steps = _Steps(settings, engine, limit)
    learned = {name: p.detach().clone() for name, p in model.named_parameters() if "lora_B" in name}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(0.0 if name in learned else 1.0)
        steps.measure()
        for name, parameter in model.named_parameters():
            parameter.copy_(learned.get(name, parameter))
    model.zero_grad()
    loss = steps.loss(model)
    found = tiny.gradients(model).clone()

    trainer, inputs = _trl(method, model, tmp_path)
    model.delete_adapter("ref")  # TRL takes the adapter as it is for the reference; ours is the base
    model.zero_grad()
    model.eval()
    wanted = trainer._compute_loss(model, inputs, False)
    wanted.backward()
    wanted = wanted.detach()
    assert loss == pytest.approx(float(wanted), rel=1e-5)
    assert tiny.distance(found, tiny.gradients(model)) < 1e-5


def test_the_odds_ratio_is_trls() -> None:
    from trl.experimental.orpo import ORPOTrainer

    chosen, rejected = torch.tensor([-0.4, -1.2, -3.0]), torch.tensor([-0.9, -0.3, -2.0])
    told = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu"))
    wanted = -ORPOTrainer.odds_ratio_loss(told, chosen, rejected)[0]
    assert torch.allclose(preference.orpo(chosen, rejected, 0.3)[0], wanted, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_the_odds_of_a_certain_answer_have_a_finite_slope(side: str, dtype: torch.dtype) -> None:
    given = [0.0, -1e-9, -1e-7, -1e-3, -0.6, -0.7, -5.0, -200.0]
    answers = torch.tensor(given, dtype=dtype, requires_grad=True)
    other = torch.full_like(answers, -1.0)
    pair = (answers, other) if side == "chosen" else (other, answers)
    loss, _ = preference.orpo(*pair, 0.1)
    loss.sum().backward()
    assert loss.isfinite().all() and answers.grad is not None and answers.grad.isfinite().all()
    if side == "chosen":
        # The slope -beta * o / (o * (1 - p) + p), with o the odds of the other answer, where p is 1.
        odds = math.exp(-1.0) / (1 - math.exp(-1.0))
        assert float(answers.grad[0]) == pytest.approx(-0.1 * odds, rel=1e-3)


def test_the_odds_are_exact_near_certainty_and_far_from_it() -> None:
    given = torch.tensor([-1e-6, -1e-4, -0.1, -math.log(2), -1.0, -20.0, -100.0], requires_grad=True)
    found = preference.log_of_rest(given)
    found.sum().backward()
    for x, value, slope in zip(given.tolist(), found.tolist(), given.grad.tolist(), strict=True):  # type: ignore[union-attr]
        assert value == pytest.approx(math.log(-math.expm1(x)), rel=1e-5, abs=1e-30)
        assert slope == pytest.approx(1 / -math.expm1(-x), rel=1e-5, abs=1e-30)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [2e-3, 1e-3])
def test_a_run_by_orpo_goes_on_when_its_answers_of_one_word_are_certain(
    samples: Path, tmp_path: Path, rate: float
) -> None:
    rows = []
    for number in range(40):
        one, other = 7 + 13 * number % 90, 5 + 29 * number % 88
        chosen, rejected = ("yes", "no") if one > other else ("no", "yes")
        prompt = f"Is {one} more than {other}? Answer yes or no."
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    name = datasets.get(api.add_data(_file(tmp_path, rows)))["name"]
    training = {"max_steps": None, "epochs": 60, "learning_rate": rate, "eval_steps": 100, "save_steps": 1000}
    run_id = _run(name, "orpo", training=training)
    assert do("train", run_id)["error"] is None
    assert [point["loss"] for point in runs.metrics(run_id)][-1] < 0.01


def test_a_tie_counts_half() -> None:
    rewards = PreferenceTrainer._rewards(SimpleNamespace(), torch.tensor([0.0, 0.0, 1.0, -1.0]))  # type: ignore[arg-type]
    assert float(rewards["rewards/accuracy"]) == 0.5


def test_a_rate_that_is_far_above_the_usual_of_a_method_is_told_before_start(judged: str) -> None:
    def said(name: str, rate: float) -> list[str]:
        config = recipe(
            data={"dataset": judged}, method={"name": name}, training=SHORT | {"learning_rate": rate}
        )
        return [text for text in fit.remarks(config, 12) if "learning rate" in text]

    assert "of 0.001 is high for dpo; 5e-6 to 5e-5 is usual" in said("dpo", 1e-3)[0]
    assert not said("dpo", 5e-5) and not said("sft", 1e-3)
    shown = overview.outlook(
        recipe(data={"dataset": judged}, method={"name": "dpo"}, training={"learning_rate": 1e-3})
    )
    assert any("is high for dpo" in check.text for check in shown.checks if check.level == "warning")


def test_what_preference_runs_show_is_no_perplexity(judged: str) -> None:
    run_id = _run(judged, "dpo")
    runs.update(run_id, eval_loss=0.693, state="running")
    name, value = status._held_out(runs.get(run_id))
    assert (name, value) == ("held-out loss", "0.693")
    points = [{"rewards": {"eval_rewards/accuracy": 0.5}, "step": 0}]
    assert plots.rewards(points).layout.yaxis.title.text == "preference accuracy"


def test_a_method_is_refused_before_start(samples: Path) -> None:
    found = overview.outlook(recipe(method={"name": "dpo"}))
    assert found.blocked and any("better and a worse" in check.text for check in found.checks)
    assert not overview.outlook(recipe()).blocked
    with pytest.raises(StudioError):
        schema.validated({"method": {"name": "ppo"}})
