"""Adapters that are wrong, row by row of the reliability table (D54 to D56)."""

import json
import math
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from plumbline.chat import session
from plumbline.errors import StudioError
from plumbline.models import adapter_check, adapters, load
from plumbline.models.adapter_check import CONFIG, WEIGHTS
from plumbline.store import runs
from tests import tiny
from tests.finished import Finished
from tests.runs import do

TARGETS = ["q_proj", "v_proj", "down_proj"]
IDS = torch.tensor([[3, 4, 5, 6]])


def adapter(folder: Path, family: str = "llama", **options: Any) -> Any:
    """Somebody's adapter in a folder. :returns: the model that it was trained in"""
    sizes = options.pop("sizes", {})
    tuned = tiny.adapted(tiny.base(family, **sizes), **({"target_modules": TARGETS} | options))
    tuned.save_pretrained(str(folder))
    return tuned.eval()


def refused(folder: Path, family: str = "llama", **sizes: Any) -> str:
    with pytest.raises(StudioError) as caught:
        adapters.opened(tiny.base(family, **sizes), folder)
    assert caught.value.where.startswith("adapter") and caught.value.fix and len(caught.value.text) <= 400
    return caught.value.text


def change(folder: Path, **values: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def rewrite(folder: Path, change_all: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    save_file(change_all(load_file(folder / WEIGHTS)), folder / WEIGHTS, {"format": "pt"})


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "DoRA": {"use_dora": True},
    "rsLoRA": {"use_rslora": True},
    "with the head": {"modules_to_save": ["lm_head"]},
    "with biases": {"bias": "lora_only"},
    "ranks by layer": {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"q_proj": 2}},
    "some layers": {"layers_to_transform": [0]},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_opens_and_says_what_it_said(tmp_path: Path, variant: str) -> None:
    trained = adapter(tmp_path, "qwen2", **VARIANTS[variant])
    opened = adapters.opened(tiny.base("qwen2"), tmp_path)
    with torch.no_grad():
        assert torch.equal(opened(IDS).logits, trained(IDS).logits)


OTHERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "more layers": ("llama", {"num_hidden_layers": 3}, "does not fit the base: 6 weights differ"),
    "fewer layers": ("llama", {"num_hidden_layers": 1}, "is for a layer that the base does not have"),
    "wider": ("llama", {"hidden_size": 128}, "has the shape 64 × 4, the base needs 128 × 4"),
    "narrower inside": ("llama", {"intermediate_size": 96}, "has the shape 4 × 128, the base needs 4 × 96"),
    "another family": ("gpt_neox", {}, "is for a layer that the base does not have"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_d55_an_adapter_of_another_base_is_refused(tmp_path: Path, case: str) -> None:
    family, sizes, said = OTHERS[case]
    adapter(tmp_path)
    text = refused(tmp_path, family, **sizes)
    assert said in text and "Choose the base that it was trained on" in text


def test_d55_another_id_or_revision_is_refused(tmp_path: Path) -> None:
    adapter(tmp_path)
    change(tmp_path, base_model_name_or_path="org/base", revision="aaa")
    adapter_check.refuse_other_base(tmp_path, "org/base", "aaa")
    for base, revision in (("org/base", "bbb"), ("org/other", "aaa")):
        with pytest.raises(StudioError, match="was trained on org/base \\(aaa\\), not on"):
            adapter_check.refuse_other_base(tmp_path, base, revision)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, "training_config.yaml"])
def test_d56_a_changed_bit_of_a_run_of_ours_is_refused_everywhere(
    finished: Finished, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = finished.folder / "artifact" / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        said = f"adapter {name}: changed after training (sha256). Train it again."
        with pytest.raises(StudioError) as caught:
            adapters.opened(load.base_model(runs.recipe(finished.run_id)), path.parent)
        assert caught.value.text == said
        session.close()
        with pytest.raises(StudioError) as caught:
            session.opened(finished.run_id)
        assert caught.value.text == said
        for kind in ("evaluate", "merge"):
            job = do(kind, finished.run_id)
            assert job["state"] == "failed" and said in job["error"], kind
    finally:
        path.write_bytes(whole)


def test_d56_checksums_that_were_taken_away_are_missed(finished: Finished, tmp_path: Path) -> None:
    folder = shutil.copytree(finished.folder / "artifact", tmp_path / "copy")
    (folder / "checksums.json").unlink()
    with pytest.raises(StudioError, match="adapter checksums.json: changed after training"):
        adapter_check.read(folder)


def zeroed(held: dict[str, Any]) -> dict[str, Any]:
    return {name: torch.zeros_like(value) for name, value in held.items()}


def poisoned(value: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change_one(held: dict[str, Any]) -> dict[str, Any]:
        held[min(held)][0, 0] = value
        return held

    return change_one


def renamed(held: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("q_proj", "k_proj"): value for name, value in held.items()}


def shortened(held: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in held.items() if "layers.1" not in name}


def lengthened(held: dict[str, Any]) -> dict[str, Any]:
    return held | {"base_model.model.lm_head.weight": torch.zeros(tiny.VOCABULARY, 64)}


WRONG: dict[str, tuple[Any, str]] = {
    "zeroed": (zeroed, f"adapter {WEIGHTS}: holds only zeros: it would change nothing"),
    "NaN": (poisoned(math.nan), "down_proj.lora_A.weight is not finite"),
    "infinite": (poisoned(math.inf), "down_proj.lora_A.weight is not finite"),
    "renamed": (renamed, "has the shape 64 × 4, the base needs 32 × 4"),
    "a layer taken away": (shortened, "does not fit the base: 6 weights differ"),
    "a head added": (lengthened, "does not fit the base: 1 weights differ, base_model.model.lm_head.weight"),
}


@pytest.mark.parametrize("case", WRONG)
def test_d56_wrong_weights_are_refused(tmp_path: Path, case: str) -> None:
    how, said = WRONG[case]
    adapter(tmp_path)
    rewrite(tmp_path, how)
    assert said in refused(tmp_path)


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "alpha far too large": ({"lora_alpha": 1e6}, "lora_alpha is 1000000.0, not above 0 and at most 4,096"),
    "alpha NaN": ({"lora_alpha": math.nan}, "lora_alpha is nan"),
    "alpha of a layer": ({"alpha_pattern": {"q_proj": -1}}, "alpha_pattern.q_proj is -1"),
    "alpha a word": ({"lora_alpha": "8"}, "lora_alpha is 8, not above 0"),
    "r not the weights'": ({"r": 8}, "has rank 4 where adapter_config.json says 8"),
    "r of a layer": ({"rank_pattern": {"q_proj": 2}}, "has rank 4 where adapter_config.json says 2"),
    "r not whole": ({"r": 4.0}, "r is 4.0, not a whole number from 1"),
    "r zero": ({"r": 0}, "r is 0, not a whole number from 1"),
    "another method": ({"peft_type": "XLORA"}, "peft_type 'XLORA' is not LORA"),
    "unknown keys": ({"use_mora": True, "zeta": 1}, "has unknown settings: use_mora, zeta"),
    "a module by name": ({"megatron_config": {"a": 1}}, "settings that are not supported: megatron_config"),
    "an endless expression": ({"target_modules": "(a+)+$"}, "target_modules is not a list of names"),
    "an endless pattern": ({"rank_pattern": {"(a+)+$": 4}}, "rank_pattern holds more than names"),
    "a base with changed weights": ({"init_lora_weights": "pissa"}, "belongs to a base with changed weights"),
    "another target": ({"target_modules": ["q_proj"]}, "does not fit the base: 8 weights differ"),
}  # fmt: skip


@pytest.mark.parametrize("case", SETTINGS)
def test_d56_wrong_settings_are_refused_by_name(tmp_path: Path, case: str) -> None:
    values, said = SETTINGS[case]
    adapter(tmp_path)
    change(tmp_path, **values)
    assert said in refused(tmp_path)


@pytest.mark.parametrize("place", ["../../../etc", "/etc/passwd", "http://127.0.0.1:9/x", "org/other"])
def test_d56_paths_are_never_followed(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = adapter(tmp_path)
    mapping = {"base_model_class": "X", "parent_library": "no_such_library"}
    change(tmp_path, base_model_name_or_path=place, revision="../..", auto_mapping=mapping)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("somebody was asked")

    monkeypatch.setattr("socket.socket.connect", never)
    opened = adapters.opened(tiny.base("llama"), tmp_path)
    assert opened.peft_config["default"].base_model_name_or_path != place
    with torch.no_grad():
        assert torch.equal(opened(IDS).logits, trained(IDS).logits)
    assert "no_such_library" not in sys.modules


def test_d52_an_adapter_of_pickles_is_refused_unopened(tmp_path: Path) -> None:
    class Canary:
        def __reduce__(self) -> Any:
            return open, (str(tmp_path / "ran"), "w")

    adapter(tmp_path)
    (tmp_path / WEIGHTS).rename(tmp_path / "kept")
    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps(Canary()))
    assert f"adapter {WEIGHTS}: is not there (pickle weights are not accepted)" in refused(tmp_path)
    torch.save({"x": Canary()}, tmp_path / WEIGHTS)
    assert "is a pickle under another name" in refused(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_d53_an_adapter_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    adapter(tmp_path)
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:-10])
    assert f"adapter {WEIGHTS}: is cut short" in refused(tmp_path)
    (tmp_path / CONFIG).write_text("{")
    assert f"adapter {CONFIG}: is not valid JSON" in refused(tmp_path)
