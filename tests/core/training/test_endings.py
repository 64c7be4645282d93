"""How a run ends: with the best adapter, or early; its notes say which step was taken."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from plumbline.home import run_folder
from plumbline.jobs import queue
from plumbline.jobs.job import Job
from plumbline.models import load, precision
from plumbline.planner import overview
from plumbline.store import runs
from plumbline.training import outputs
from plumbline.training.loop import record, stopping
from plumbline.training.loop.trainer import Trainer
from tests.runs import add, do, recipe

# Held-out losses by step: the best is that of step 2, then it only gets worse.
LOSSES = {0: 5.0, 1: 3.0, 2: 2.0, 3: 2.5, 4: 3.0, 5: 3.5, 6: 4.0}
SHORT = {"max_steps": 6, "eval_steps": 1, "max_length": 96, "effective_batch": 4}


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> dict[int, dict[str, torch.Tensor]]:
    """The adapter at every evaluation, whose losses are those above."""
    seen: dict[int, dict[str, torch.Tensor]] = {}

    def metrics(trainer: Any, prefix: str) -> dict[str, float]:
        step = trainer.state.global_step
        seen[step] = {
            name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad
        }
        # Of two sources, the second is best at step 4.
        of = {"": LOSSES[step], "/cited-answers": LOSSES[step], "/plain-style": abs(step - 4) + 1.0}
        return {f"{prefix}_loss{source}": loss for source, loss in of.items()}

    monkeypatch.setattr(Trainer, "_held_out_metrics", metrics)
    return seen


def written(run_id: int) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run_folder(run_id) / "artifact" / "adapter_model.safetensors")


def same(stored: dict[str, torch.Tensor], held: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(stored[name.replace(".default.", ".")], value) for name, value in held.items())


def texts(run_id: int) -> str:
    return "\n".join(event["text"] for event in runs.events(run_id))


def test_the_best_adapter_is_written_and_the_summary_says_of_which_step(
    samples: Path, weights: dict[int, dict[str, torch.Tensor]]
) -> None:
    run_id = add(recipe(training=SHORT | {"load_best_model_at_end": True, "save_steps": 4}))
    assert do("train", run_id)["error"] is None
    assert same(written(run_id), weights[2]) and not same(written(run_id), weights[6])
    summary = json.loads((run_folder(run_id) / "training_summary.json").read_text())
    assert (summary["best_step"], summary["eval_loss"], summary["steps"]) == (2, 2.0, 6)
    artifact = run_folder(run_id) / "artifact"
    assert json.loads((artifact / "metadata.json").read_text())["step"] == 2
    assert "The adapter is that of step 2" in " ".join((artifact / "README.md").read_text().split())
    assert "the adapter is that of step 2, the best by eval_loss (2)" in texts(run_id)
    # Checkpoints came with every evaluation, not every four steps, and the run says so.
    names = sorted(path.name for path in (run_folder(run_id) / "checkpoints").glob("checkpoint-*"))
    assert names == ["checkpoint-5", "checkpoint-6"]
    decided = runs.decisions(run_id)["checkpoints"]
    assert decided["value"] == "every 1 steps" and "in place of 4" in decided["why"]
    assert overview.outlook(runs.recipe(run_id)).decisions["checkpoints"].value == decided["value"]


def test_without_it_the_last_adapter_is_written(
    samples: Path, weights: dict[int, dict[str, torch.Tensor]]
) -> None:
    run_id = add(recipe(training=SHORT))
    assert do("train", run_id)["error"] is None
    assert same(written(run_id), weights[6])
    assert json.loads((run_folder(run_id) / "artifact" / "metadata.json").read_text())["step"] == 6


def test_a_run_that_was_stopped_after_its_best_step_still_ends_with_it(
    samples: Path, weights: dict[int, dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = add(recipe(training=SHORT | {"load_best_model_at_end": True}))
    asked = Job.stop_requested
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "WRITE_SECONDS", 0.0)
        patch.setattr(
            Job, "stop_requested", lambda job: asked(job) or (runs.get(job.run_id)["step"] or 0) >= 3
        )
        assert do("train", run_id)["state"] == "stopped"
    assert same(written(run_id), weights[3]), "what was stopped is left as it was"
    best = weights[2]
    assert do("train", run_id, resume=True)["error"] is None
    assert same(written(run_id), best) and runs.get(run_id)["best_step"] == 2


def broken_off_in(monkeypatch: pytest.MonkeyPatch, run_id: int, step: int) -> None:
    """Train a run until the user presses Stop in the evaluation of a step."""
    honest = Trainer._held_out_metrics

    def metrics(trainer: Any, prefix: str) -> dict[str, float]:
        if trainer.state.global_step == step:
            queue.stop(trainer.job.id)
            trainer.job.check_stop()
        return honest(trainer, prefix)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_held_out_metrics", metrics)
        assert do("train", run_id)["state"] == "stopped"


def test_a_run_that_was_stopped_in_its_last_evaluation_still_ends_with_the_best(
    samples: Path, weights: dict[int, dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = add(recipe(training=SHORT | {"load_best_model_at_end": True}))
    broken_off_in(monkeypatch, run_id, 6)
    assert do("train", run_id, resume=True)["error"] is None
    assert same(written(run_id), weights[2]) and not same(written(run_id), weights[6])
    artifact = run_folder(run_id) / "artifact"
    assert json.loads((artifact / "metadata.json").read_text())["step"] == 2


def test_an_evaluation_that_is_made_up_for_ends_a_run_no_step_too_late(
    samples: Path, weights: dict[int, dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = add(recipe(training=SHORT | {"early_stopping_patience": 2, "load_best_model_at_end": True}))
    broken_off_in(monkeypatch, run_id, 4)
    assert do("train", run_id, resume=True)["error"] is None
    run = runs.get(run_id)
    # The next evaluation decides: no step is trained beyond what the run says it has.
    assert (run["step"], run["total_steps"], run["best_step"]) == (5, 5, 2)
    assert same(written(run_id), weights[2])


def test_a_run_that_stopped_early_is_not_trained_on_when_it_is_resumed(
    samples: Path, weights: dict[int, dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = add(recipe(training=SHORT | {"early_stopping_patience": 2, "load_best_model_at_end": True}))

    def full(*given: Any, **named: Any) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outputs, "write", full)
        assert do("train", run_id)["state"] == "failed"
    assert do("train", run_id, resume=True)["error"] is None
    run = runs.get(run_id)
    assert (run["step"], run["total_steps"]) == (4, 4) and same(written(run_id), weights[2])


def test_the_best_by_one_dataset_of_a_mix(samples: Path, weights: dict[int, dict[str, torch.Tensor]]) -> None:
    mix = [{"dataset": "cited-answers"}, {"dataset": "plain-style"}]
    config = recipe(
        data={"mix": mix}, training=SHORT | {"load_best_model_at_end": True, "best_metric": "plain-style"}
    )
    run_id = add(config)
    assert do("train", run_id)["error"] is None
    assert same(written(run_id), weights[4])
    run = runs.get(run_id)
    assert (run["best_step"], run["best_eval_loss"]) == (4, LOSSES[4])


def test_a_run_that_no_longer_improves_ends_early_and_is_complete(
    samples: Path, weights: dict[int, dict[str, torch.Tensor]]
) -> None:
    run_id = add(recipe(training=SHORT | {"early_stopping_patience": 2, "load_best_model_at_end": True}))
    job = do("train", run_id)
    assert job["error"] is None and job["state"] == runs.get(run_id)["state"] == "completed"
    run = runs.get(run_id)
    assert (run["step"], run["total_steps"], run["best_step"]) == (4, 4, 2)
    assert "stopped early after step 4 of 6: 2 evaluations without improvement" in texts(run_id)
    assert same(written(run_id), weights[2])
    assert sorted(weights) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("losses", "least", "waited"),
    [
        ([3.0, 2.0, 1.0], 0.0, 0),
        ([3.0, 3.0, 3.0], 0.0, 2),
        ([3.0, 2.999, 2.998], 0.01, 2),
        ([3.0, 2.98, 2.95], 0.01, 0),  # slowly, but one percent below the best that counted
        ([3.0, 2.0, 2.5, 1.9], 0.0, 0),
        ([2.0], 0.5, 0),
    ],
)
def test_what_counts_as_an_improvement(losses: list[float], least: float, waited: int) -> None:
    assert stopping.without_improvement(list(enumerate(losses, start=1)), least) == waited


def test_deterministic_mode_ends_with_the_run_and_gives_the_same_bits(samples: Path) -> None:
    config = recipe(training={"deterministic": True, "max_steps": 3}, lora={"dropout": 0.1})
    curves = []
    for _ in range(2):
        run_id = add(config)
        assert do("train", run_id)["error"] is None
        curves.append([point["loss"] for point in runs.metrics(run_id)])
        assert not torch.are_deterministic_algorithms_enabled()
    assert curves[0] == curves[1]


def test_a_schedule_with_a_floor_ends_there(samples: Path) -> None:
    for schedule in ("cosine", "linear"):
        training = {
            "lr_scheduler_type": schedule,
            "min_lr_ratio": 0.25,
            "learning_rate": 1e-3,
            "warmup_steps": 2,
        }
        run_id = add(recipe(training=SHORT | training | {"eval_steps": 6}))
        assert do("train", run_id)["error"] is None
        rates = [point["learning_rate"] for point in runs.metrics(run_id) if point["learning_rate"]]
        assert max(rates) == pytest.approx(1e-3) and rates[0] < 1e-3
        assert 2.4e-4 < min(rates[2:]) < 5e-4


def test_the_base_is_loaded_the_same_whatever_its_bits_are_packed_in() -> None:

    layers = []
    for storage in ("auto", "bfloat16", "float32"):
        base = load.base_model(recipe(quantisation={"storage_dtype": storage}))
        layers.append(precision.dense(base.model.layers[0].mlp.up_proj, torch.float32))
    assert torch.equal(layers[0], layers[1]) and torch.equal(layers[0], layers[2])
