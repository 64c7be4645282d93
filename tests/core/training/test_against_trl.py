"""Our engine beside TRL's own trainers: whole runs of both, the check that compares them, and its red."""

from pathlib import Path
from typing import Any

import pytest

from plumbline import api
from plumbline.config import schema
from plumbline.engine.decoder import DecoderEngine
from plumbline.errors import RecipeError
from plumbline.home import run_folder
from plumbline.store import datasets, runs
from plumbline.training import against_trl
from tests import tiny
from tests.runs import add, do, recipe

NEAR = 1e-4  # of a loss, in float32


def _pairs(folder: Path) -> str:
    """A dataset of better and worse answers."""
    import json

    rows = [
        {"prompt": f"Is {number} even?", "chosen": ["Yes.", "No."][number % 2], "rejected": "Who knows?"}
        for number in range(40)
    ]
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return datasets.get(api.add_data(file))["name"]


def _points(engine: str, **sections: Any) -> tuple[int, list[dict[str, Any]]]:
    config = recipe(**sections, training={"engine": engine, "max_steps": 3, "eval_steps": 3, "save_steps": 3})
    run_id = add(config)
    job = do("train", run_id)
    assert job["error"] is None, job["error"]
    return run_id, runs.metrics(run_id)


@pytest.mark.parametrize("method", ["supervised", "dpo"])
def test_a_run_by_trl_has_the_curves_of_ours(samples: Path, tmp_path: Path, method: str) -> None:
    sections: dict[str, Any] = {"method": {"name": method}}
    if method == "dpo":
        sections["data"] = {"dataset": _pairs(tmp_path), "max_rows": 32}
    (_, ours), (run_id, theirs) = (_points(engine, **sections) for engine in ("plumbline", "trl"))
    assert runs.decisions(run_id)["training path"]["value"] == "TRL"
    for one, other in zip(ours, theirs, strict=True):
        assert one["step"] == other["step"]
        for name in ("loss", "eval_loss", "grad_norm", "learning_rate"):
            assert one[name] == pytest.approx(other[name], rel=20 * NEAR) if one[name] else not other[name]
    assert ours[-1]["rewards"] == pytest.approx(theirs[-1]["rewards"], rel=1e-2, abs=1e-3)
    assert (run_folder(run_id) / "artifact" / "adapter_model.safetensors").exists()
    assert (run_folder(run_id) / "checkpoints" / "checkpoint-3").exists()


@pytest.mark.parametrize("family", ["starter", "qwen3", "gemma"])
def test_the_check_agrees(samples: Path, tmp_path: Path, family: str) -> None:
    base = family if family == "starter" else tiny.saved(tmp_path / family, family)
    run_id = add(recipe(model={"base": base}, data={"max_rows": 64}))
    job = do("reference", run_id, steps=3)
    assert job["error"] is None, job["error"]
    result = job["result"]
    assert result["agrees"], against_trl.sentence(result)
    assert len(result["ours"]) == len(result["other_seed"]) == result["steps"] == 3
    assert result["spread"] > 0 and result["ours"][0] == pytest.approx(result["other_seed"][0], rel=1e-2)
    assert against_trl.sentence(result).startswith("Agrees with TRL ")


def test_an_error_of_ours_is_seen(samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every target is the token before the right one."""
    honest = DecoderEngine.step

    def shifted(self: Any, pack: Any, weight: Any) -> Any:
        from dataclasses import replace

        return honest(self, replace(pack, targets=pack.ids[pack.learned]), weight)

    monkeypatch.setattr(DecoderEngine, "step", shifted)
    base = tiny.saved(tmp_path / "qwen3", "qwen3")
    job = do("reference", add(recipe(model={"base": base})), steps=2)
    assert job["error"] is None, job["error"]
    assert not job["result"]["agrees"]
    told = against_trl.sentence(job["result"])
    assert told.startswith("Disagrees with TRL ") and f"{job['result']['largest']:.2g}" in told


def test_pairs_are_not_judged_by_trl_against_what_a_run_does_not_begin_as(
    samples: Path, tmp_path: Path
) -> None:
    """As in a branch: Plumbline judges against what the run began as, TRL would against the base."""
    base = tiny.saved(tmp_path / "qwen3", "qwen3")
    run_id = add(
        recipe(
            model={"base": base},
            method={"name": "dpo"},
            data={"dataset": _pairs(tmp_path), "max_rows": 8},
            lora={"init_lora_weights": "pissa_niter_2", "r": 4},
            training={"engine": "trl", "max_steps": 2},
        )
    )
    job = do("train", run_id)
    assert job["state"] == "failed" and "begins as more than that" in job["error"]


@pytest.mark.parametrize("far", [0.001, 1.5])
def test_what_the_check_has_found_is_shown_with_its_numbers(
    samples: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], far: float
) -> None:
    from plumbline.cli import main
    from plumbline.cli import training as verb
    from plumbline.jobs import queue
    from plumbline_studio.tabs.runs import reference as view

    run_id, curve = add(recipe()), [5.0, 4.0]

    def done(job_id: int) -> dict[str, Any]:
        ours = [loss + far for loss in curve]
        result = against_trl.compared(ours, curve, [5.0, 4.1], 1e-3)
        result |= {"ours": ours, "trl": curve, "other_seed": [5.0, 4.1]}
        result |= {"compute_type": "float32", "version": "1.16.0"}
        queue.set_state(job_id, "completed", result=result)
        return queue.get(job_id)

    monkeypatch.setattr(verb, "watch", done)
    code = main.main(["check", str(run_id), "--steps", "2"], lambda *_: None)
    printed, (shown, _) = capsys.readouterr().out, view._result(run_id)
    agrees = far < 1
    assert code == (0 if agrees else 1)
    told = "Agrees with TRL 1.16.0" if agrees else "Disagrees with TRL 1.16.0"
    assert told in printed and told in shown and f"{far:.2g} apart" in printed
    assert ("pl-good" if agrees else "pl-bad") in shown


def test_what_chance_explains_agrees_and_what_it_does_not_is_red() -> None:
    trl, other = [4.0, 3.0, 2.0], [4.0, 3.1, 2.05]
    assert against_trl.compared([4.0, 3.05, 2.0], trl, other, 1e-4)["agrees"]
    far = against_trl.compared([4.0, 3.0, 2.2], trl, other, 1e-4)
    assert not far["agrees"] and far["step"] == 3 and far["largest"] == pytest.approx(0.2)
    # The seeds are the same there, so chance explains nothing.
    assert not against_trl.compared([4.05, 3.0, 2.0], trl, other, 1e-4)["agrees"]


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"method": {"name": "kto"}}, "training.engine"),
        ({"training": {"label_smoothing": 0.1}}, "training.label_smoothing"),
        ({"training": {"neftune_alpha": 5.0}}, "training.neftune_alpha"),
    ],
)
def test_what_the_reference_does_not_compute_is_refused(
    samples: Path, sections: dict[str, Any], key: str
) -> None:
    config = recipe(**sections)
    with pytest.raises(RecipeError) as refused:
        schema.changed(config, {"training.engine": "trl"})
    assert list(refused.value.problems) == [key]
    with pytest.raises(RecipeError):
        against_trl.start(add(config))
