"""Every variant of the adapter and of its training learns for real, and plain peft reads what it wrote."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from plumbline.checkpoints import artifact
from plumbline.home import run_folder
from plumbline.models import load
from plumbline.models.precision import autocast
from plumbline.store import runs
from tests.runs import add, do, recipe

SHORT = {"max_steps": 6, "eval_steps": 6, "save_steps": 6, "max_length": 96, "effective_batch": 8}
NONE = {"quantisation": {"method": "none"}}
LORA: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"lora": {"use_rslora": True}},
    "dora": {"lora": {"use_dora": True}},
    "orthogonal": {"lora": {"init_lora_weights": "orthogonal"}},
    "gaussian": {"lora": {"init_lora_weights": "gaussian"}},
    "pissa": {"lora": {"init_lora_weights": "pissa"}},
    "pissa quickly, rslora": {"lora": {"init_lora_weights": "pissa_niter_4", "use_rslora": True, "r": 8}},
    "pissa, dora, dropout": {
        "lora": {"init_lora_weights": "pissa", "use_dora": True, "dropout": 0.1, "r": 4}
    },
    "olora": {"lora": {"init_lora_weights": "olora"}},
    "loftq": {"lora": {"init_lora_weights": "loftq"}},
    "loftq, int8": {"lora": {"init_lora_weights": "loftq"}, "quantisation": {"method": "int8"}},
    "eva": {"lora": {"init_lora_weights": "eva", "r": 8}},
    "plus": {"lora": {"loraplus_lr_ratio": 8.0}, "training": {"weight_decay": 0.01}},
    "layers": {"lora": {"layers": "0-2,7"}},
    "attention": {"lora": {"target_modules": ["attention"]}},
    "mlp": {"lora": {"target_modules": ["mlp"]}},
    "all-linear": {"lora": {"target_modules": ["all-linear"]}},
    "head": {"lora": {"target_modules": ["q_proj", "lm_head"]}},
    "embeddings whole": {"lora": {"modules_to_save": ["embed_tokens"]}},
    "head whole": {"lora": {"modules_to_save": ["lm_head", "norm"]}},
    "dora, unquantised": {"lora": {"use_dora": True}, **NONE},
    "pissa, unquantised": {"lora": {"init_lora_weights": "pissa"}, "training": {"weight_decay": 0.1}, **NONE},
    "neftune": {"training": {"neftune_alpha": 5.0}},
    "label smoothing": {"training": {"label_smoothing": 0.1}},
    "fp4 in bfloat16": {"quantisation": {"method": "fp4", "storage_dtype": "bfloat16"}},
    "8-bit adam, plus, olora": {
        "lora": {"loraplus_lr_ratio": 4.0, "init_lora_weights": "olora"},
        "training": {"optimizer": "adamw_8bit", "weight_decay": 0.1},
    },
    "linear to a tenth": {
        "training": {"lr_scheduler_type": "linear", "min_lr_ratio": 0.1, "warmup_steps": 1}
    },
    "cosine to a tenth, betas": {
        "training": {"min_lr_ratio": 0.1, "adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-6}
    },
    "deterministic": {"training": {"deterministic": True}},
}
QUICK = ("rslora", "dora", "pissa", "embeddings whole", "eva", "label smoothing")
IDS = torch.arange(5, 65).reshape(2, 30)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in LORA]
)
def test_a_variant_learns_and_plain_peft_gives_the_same_logits(
    samples: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    sections = LORA[name]
    config = recipe(**(sections | {"training": SHORT | sections.get("training", {})}))
    trained: list[torch.Tensor] = []
    honest = artifact.write

    def write(folder: Path, model: Any, *rest: Any) -> None:
        trained.append(logits(model))
        honest(folder, model, *rest)

    monkeypatch.setattr(artifact, "write", write)
    run_id = add(config)
    job = do("train", run_id)
    assert job["error"] is None
    losses = [point["loss"] for point in runs.metrics(run_id) if point["loss"] is not None]
    loaded = plain_peft(config, run_folder(run_id) / "artifact")
    difference = (logits(loaded) - trained[0]).abs().max().item()
    print(f"\n| {name} | {losses[0]:.3f} | {losses[-1]:.3f} | {difference:.2g} |")
    assert losses[-1] < losses[0]
    run = runs.get(run_id)
    assert run["eval_loss"] < run["base_eval_loss"]
    assert difference <= 1e-4
    decided = runs.decisions(run_id)["training path"]["value"]
    # What the forecast believed of the path before the base was loaded.
    assert decided == json.loads(run["forecast"])["plan"]["choices"]["training path"][0]


@pytest.mark.parametrize("lora", [{"modules_to_save": ["embed_tokens"]}, {"target_modules": ["lm_head"]}])
def test_a_merged_model_holds_head_and_embeddings_that_were_tied(samples: Path, lora: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM

    from plumbline.home import export_folder
    from plumbline.models import adapters

    config = recipe(lora=lora, training=SHORT | {"learning_rate": 0.01})
    run_id = add(config)
    assert do("train", run_id)["error"] is None
    job = do("merge", run_id)
    assert job["error"] is None and job["result"]["parity"]["largest_logit_difference"] < 0.5
    folder = export_folder(job["id"]) / job["result"]["folder"]
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    whole = config.quantisation.model_copy(update={"method": "none", "compute_dtype": "float32"})
    base = load.base_model(config.model_copy(update={"quantisation": whole}))
    tuned = adapters.opened(base, run_folder(run_id) / "artifact")
    # Its weights were rounded to 16 bits once.
    assert (logits(merged) - logits(tuned)).abs().max() < 0.25
    with adapters.switched_off(tuned):
        assert (logits(merged) - logits(tuned)).abs().max() > 0.5
    assert do("evaluate", run_id)["error"] is None


def plain_peft(config: Any, folder: Path) -> Any:
    """The adapter on a base that was loaded anew, by peft alone."""
    from peft import PeftModel

    return PeftModel.from_pretrained(load.base_model(config), str(folder))


def logits(model: Any) -> torch.Tensor:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), autocast(model):
            return model(input_ids=IDS, use_cache=False).logits.float()
    finally:
        model.train(was_training)
