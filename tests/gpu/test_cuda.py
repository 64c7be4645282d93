"""Real CUDA NF4: the starter recipe, and random weights of a 3B model's dimensions.

Run on a machine with a GPU: pytest -m gpu -s tests/gpu. Prints the figures that notes quote.
"""

import json
from pathlib import Path

import pytest

from plumbline.config import schema
from plumbline.store import evaluations, runs
from tests.runs import add, do, recipe

pytestmark = pytest.mark.gpu
# Llama-3.2-3B's dimensions
DIMENSIONS = {
    "vocab_size": 128256,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}


def _figures(run_id: int) -> None:
    points = [p for p in runs.metrics(run_id) if p["tokens_per_second"]]
    speed = sorted(p["tokens_per_second"] for p in points)[len(points) // 2]
    run = runs.get(run_id)
    print(
        f"\n{run['name']}: {run['device']}, {run['step']} steps, held-out {run['base_eval_loss']:.3f} -> "
        f"{run['eval_loss']:.3f}, median {speed:,.0f} tokens/s, peak {run['memory_gb']:.2f} GiB"
    )
    print(json.dumps(json.loads(run["summary"])))


def test_the_starter_recipe_learns_citations_with_cuda_nf4(samples: Path) -> None:
    run_id = add(schema.preset("starter"))
    assert do("train", run_id)["error"] is None
    assert do("evaluate", run_id)["error"] is None
    _figures(run_id)
    result = evaluations.latest(run_id)["result"]
    print(result)
    assert runs.get(run_id)["device"] == "cuda"
    assert result["base"]["exact_match"] <= 0.05
    assert result["adapter"]["exact_match"] >= 0.75
    for kind in ("merge", "adapter"):
        job = do(kind, run_id)
        assert job["state"] == "completed", job["error"]
    parity = do("merge", run_id)["result"]["parity"]
    print(parity)
    assert parity["same_next_token"] >= parity["prompts"] - 1


def test_a_stopped_cuda_run_resumes_close_to_the_uninterrupted_curve(samples: Path) -> None:
    short = recipe(training={"max_steps": 20, "save_steps": 10}, lora={"dropout": 0.05})
    whole = add(short)
    do("train", whole)
    again = add(short)
    do("train", again)
    # The same run once more, to the checkpoint of step 10 only, then resumed from it.
    resumed = add(short)
    do("train", resumed)
    folder = samples / "runs" / str(resumed) / "checkpoints"
    for checkpoint in folder.glob("checkpoint-20"):
        checkpoint.rename(checkpoint.with_name("gone"))
    job = do("train", resumed, resume=True)
    assert job["error"] is None
    losses = {
        run_id: [p["loss"] for p in runs.metrics(run_id) if p["loss"]] for run_id in (whole, again, resumed)
    }
    spread = max(abs(a - b) for a, b in zip(losses[whole], losses[again], strict=True))
    distance = max(abs(a - b) for a, b in zip(losses[whole], losses[resumed], strict=True))
    print(f"\nspread of two uninterrupted runs {spread:.2e}, resumed against uninterrupted {distance:.2e}")
    assert distance <= max(2 * spread, 1e-2)


def test_a_weighted_mix_in_curriculum_order_trains_with_cuda_nf4(samples: Path) -> None:
    parts = [
        {"dataset": "cited-answers", "weight": 0.5},
        {"dataset": "ticket-triage", "weight": 0.5, "prefix": "[ticket] "},
    ]
    run_id = add(
        recipe(data={"mix": parts, "order": "short to long", "max_rows": None}, training={"max_steps": 60})
    )
    assert do("train", run_id)["error"] is None
    points = [point for point in runs.metrics(run_id) if point["sources"]]
    print(f"\nheld-out loss by source: {points[0]['sources']} -> {points[-1]['sources']}")
    for name in ("cited-answers", "ticket-triage"):
        assert points[-1]["sources"][name] < points[0]["sources"][name] / 2


def test_random_weights_of_3b_dimensions_train_for_20_steps(samples: Path, tmp_path: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from plumbline.models.load import tokenizer

    folder = tmp_path / "llama-3b-dimensions"
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(LlamaConfig(max_position_embeddings=4096, **DIMENSIONS))
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    tokenizer("starter").save_pretrained(folder)
    del model
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    config = schema.preset("default").model_copy(
        update={
            "model": schema.ModelSection(base=str(folder)),
            "training": schema.TrainingSection(max_steps=20, effective_batch=16, eval_steps=20),
            "evaluation": schema.EvaluationSection(max_rows=20),
        }
    )
    run_id = add(config)
    job = do("train", run_id)
    assert job["error"] is None
    _figures(run_id)
    losses = [p["loss"] for p in runs.metrics(run_id) if p["loss"]]
    assert losses[-1] < losses[0]
    assert json.loads(runs.get(run_id)["summary"])["base_unchanged"]
