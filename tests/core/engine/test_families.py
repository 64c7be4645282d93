"""Every family of models as a user meets it: a folder of weights, a run, and its adapter opened again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from plumbline.home import run_folder
from plumbline.models import adapters, hardware, headers, load
from plumbline.planner import overview
from plumbline.store import runs
from tests import tiny
from tests.runs import add, do, recipe

SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LAYERS = {
    "llama": SEVEN,
    "qwen2": SEVEN,
    "qwen3": SEVEN,
    "mistral": SEVEN,
    "gemma2": SEVEN,
    "gemma3_text": SEVEN,
    "phi3": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    "olmo2": SEVEN,
    "gpt_neox": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
    "smollm3": SEVEN,
    "gpt_oss": SEVEN[:4],  # its experts are not linear layers
}

# Mistral too, where its layers look at the whole row; here they have a window.
DECODER = ("llama", "qwen2", "qwen3")


def trained(base: str, targets: tuple[str, ...], **more: Any) -> tuple[int, Any]:
    """A run of two steps. :returns: its id and recipe"""
    config = recipe(
        model={"base": base},
        lora={"r": 4, "alpha": 8, "target_modules": targets},
        data={"max_rows": 16},
        training={"max_steps": 2, "eval_steps": 2, "save_steps": 2, "max_length": 128},
        **more,
    )
    run_id = add(config)
    job = do("train", run_id)
    assert job["state"] == "completed", (job["error"], (run_folder(run_id) / "log.txt").read_text()[-3000:])
    return run_id, config


def agrees_with_peft(run_id: int, config: Any) -> None:
    """The adapter says the same here and in plain peft, and not what the base says."""
    from peft import PeftModel

    folder = run_folder(run_id) / "artifact"
    ids = torch.tensor([load.tokenizer("starter")("Say hello.").input_ids])
    with torch.no_grad():
        ours = adapters.opened(load.base_model(config), folder)
        mine = ours(ids).logits.float()
        with ours.disable_adapter():
            plain = ours(ids).logits.float()
        theirs = PeftModel.from_pretrained(load.base_model(config), str(folder)).eval()(ids).logits.float()
    assert torch.equal(mine, theirs)
    assert not torch.equal(mine, plain)


@pytest.mark.parametrize("family", LAYERS)
def test_a_family_trains_in_4_bits_and_its_adapter_opens_again(
    family: str, samples: Path, tmp_path: Path
) -> None:
    run_id, config = trained(tiny.saved(tmp_path / family, family), LAYERS[family])
    agrees_with_peft(run_id, config)
    path = runs.decisions(run_id)["training path"]["value"]
    assert path == ("hand-written decoder" if family in DECODER else "autograd")


def test_gpt_oss_in_mxfp4_is_opened_to_the_compute_type_and_trains(samples: Path, tmp_path: Path) -> None:
    base = packed(Path(tiny.saved(tmp_path / "base", "gpt_oss")))
    (note,) = load.inspected(base).notes
    assert "MXFP4 weights are opened to the compute type" in note and "quantisation is left out" in note
    seen = overview.outlook(recipe(model={"base": base}, lora={"target_modules": SEVEN[:4]}))
    assert [check.text for check in seen.checks if note in check.text] and not seen.blocked
    run_id, config = trained(base, LAYERS["gpt_oss"])
    assert load.base_model(config).model.layers[0].mlp.experts.down_proj.dtype == getattr(
        torch, hardware.compute_dtype(config).value
    )
    agrees_with_peft(run_id, config)


def packed(folder: Path) -> str:
    """The experts' weights as random 4-bit numbers in blocks of 32 that share a scale, as gpt-oss comes."""
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        size = (experts, outputs, inputs // 32, 16)
        tensors[f"{name}_blocks"] = torch.randint(0, 256, size, generator=generator).to(torch.uint8)
        tensors[f"{name}_scales"] = torch.full(size[:3], 123, dtype=torch.uint8)  # 2 ** (123 - 127)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    names = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": names}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_weights_of_a_family_fit_its_config(family: str, tmp_path: Path) -> None:
    """Also where files and models name weights differently, or hold several in one."""
    load.skeleton(tiny.saved(tmp_path, family), None)


def test_masks_that_old_files_hold_beside_the_weights_are_ignored(tmp_path: Path) -> None:
    base = tiny.saved(tmp_path, "gpt_neox")
    path = tmp_path / "model.safetensors"
    masks = {f"gpt_neox.layers.{n}.attention.bias": torch.ones(1, 1, 8, 8) > 0 for n in (0, 1)}
    save_file(load_file(path) | masks, path, {"format": "pt"})
    load.skeleton(base, None)


def test_a_header_whose_length_begins_like_a_pickle_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for length in range(1, 300):
        save_file({"n" * length: torch.ones(1)}, path)
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes()[0] == 0x80
    assert headers.of_file(path, "x") == {"n" * length: ("F32", (1,))}
