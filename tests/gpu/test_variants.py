"""Variants of the adapter and of its training learn on the GPU, and plain peft reads what they wrote."""

from pathlib import Path
from typing import Any

import pytest

from plumbline.store import runs
from tests.gpu import learned
from tests.runs import add, do, recipe

pytestmark = pytest.mark.gpu
SHORT = {"max_steps": 8, "eval_steps": 8, "save_steps": 8, "max_length": 96, "effective_batch": 8}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"lora": {"use_rslora": True}},
    "dora": {"lora": {"use_dora": True}},
    "pissa": {"lora": {"init_lora_weights": "pissa"}},
    "pissa quickly": {"lora": {"init_lora_weights": "pissa_niter_4", "r": 8}},
    "olora": {"lora": {"init_lora_weights": "olora"}},
    "loftq": {"lora": {"init_lora_weights": "loftq"}},
    "eva": {"lora": {"init_lora_weights": "eva", "r": 8}},
    "plus": {"lora": {"loraplus_lr_ratio": 8.0}, "training": {"weight_decay": 0.01}},
    "neftune": {"training": {"neftune_alpha": 5.0}},
    "dropout": {"lora": {"dropout": 0.1}},
    "label smoothing": {"training": {"label_smoothing": 0.1}},
    "head": {"lora": {"target_modules": ["q_proj", "lm_head"]}, "training": {"learning_rate": 5e-3}},
    "head whole": {"lora": {"modules_to_save": ["lm_head", "norm"]}},
    "int8": {"quantisation": {"method": "int8"}},
    "int8, dropout": {"quantisation": {"method": "int8"}, "lora": {"dropout": 0.1}},
    "unquantised": {"quantisation": {"method": "none"}},
    "fp4 in bfloat16": {"quantisation": {"method": "fp4", "storage_dtype": "bfloat16"}},
    "paged 8-bit adam": {"training": {"optimizer": "paged_adamw_8bit"}},
    "paged 8-bit adam, plus": {
        "lora": {"loraplus_lr_ratio": 4.0},
        "training": {"optimizer": "paged_adamw_8bit", "weight_decay": 0.1},
    },
    "offload": {"training": {"gradient_checkpointing": "offload"}, "lora": {"dropout": 0.1}},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_learns_and_plain_peft_gives_the_same_logits(
    samples: Path, trained: list[Any], name: str
) -> None:
    sections = VARIANTS[name]
    run_id = add(recipe(**(sections | {"training": SHORT | sections.get("training", {})})))
    assert do("train", run_id)["error"] is None
    losses, run = learned.losses(run_id), runs.get(run_id)
    near = learned.refuse_other_logits(run_id, trained)
    print(f"\n{name} ({learned.path(run_id)}): {losses[0]:.3f} -> {losses[-1]:.3f}; {near}")
    assert losses[-1] < losses[0]
    assert run["eval_loss"] < run["base_eval_loss"]
