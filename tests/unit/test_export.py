"""What leaves: a zip that verifies, and a merged model that plain transformers loads."""

import json
import zipfile
from pathlib import Path

import pytest

from core.home import export_folder
from core.models import load
from core.training.artifact import broken_files
from tests.runs import do
from tests.unit.conftest import Finished


def test_the_adapter_zip_is_the_artifact(finished: Finished, tmp_path: Path) -> None:
    job = do("adapter", finished.run_id)
    assert job["error"] is None
    with zipfile.ZipFile(export_folder(job["id"]) / job["result"]["file"]) as bundle:
        assert bundle.testzip() is None
        bundle.extractall(tmp_path)
    (folder,) = tmp_path.iterdir()
    assert broken_files(folder) == []


def test_the_adapter_loads_in_plain_peft_with_the_same_answers(finished: Finished) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from core.models import adapters
    from core.store import runs

    folder = finished.folder / "artifact"
    config = runs.recipe(finished.run_id)
    plain_config = config.model_copy(
        update={"quantisation": config.quantisation.model_copy(update={"method": "none"})}
    )
    ours = adapters.opened(load.base_model(plain_config), folder)
    base = AutoModelForCausalLM.from_pretrained(load.resolve("starter"), dtype=ours.dtype)
    plain = PeftModel.from_pretrained(base, str(folder)).eval()
    ids = torch.arange(5, 25).reshape(1, 20)
    with torch.no_grad():
        # peft rounds the weights to the base's bfloat16 when it loads them; ours keep float32.
        distance = (plain(ids).logits - ours(ids).logits).abs().max().item()
        assert torch.equal(plain(ids).logits.argmax(-1), ours(ids).logits.argmax(-1))
        with plain.disable_adapter():
            other = (plain(ids).logits - ours(ids).logits).abs().max().item()
    assert distance < 0.3 < 3 < other


def test_an_opened_adapter_has_the_files_weights_bit_for_bit(finished: Finished) -> None:
    import torch
    from safetensors.torch import load_file

    from core.models import adapters
    from core.store import runs

    folder = finished.folder / "artifact"
    model = adapters.opened(load.base_model(runs.recipe(finished.run_id)), folder)
    held = {n.replace(".default.", "."): p for n, p in model.named_parameters() if "lora_" in n}
    stored = load_file(folder / "adapter_model.safetensors")
    assert held.keys() == stored.keys()
    assert all(torch.equal(held[name], stored[name]) for name in stored)


def test_a_tampered_adapter_is_not_exported(finished: Finished) -> None:
    file = finished.folder / "artifact" / "metadata.json"
    original = file.read_text()
    try:
        file.write_text(original.replace("starter", "stolen"))
        job = do("adapter", finished.run_id)
    finally:
        file.write_text(original)
    assert job["state"] == "failed" and "metadata.json changed after training" in job["error"]


@pytest.fixture(scope="module")
def merged(_finished: Finished) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLUMBLINE_HOME", str(_finished.home))
        job = do("merge", _finished.run_id)
        assert job["error"] is None
        return job


def test_the_merged_model_loads_in_plain_transformers_and_answers_like_base_plus_adapter(
    finished: Finished, merged: dict
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = merged["result"]
    folder = export_folder(merged["id"]) / result["folder"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert type(model).__name__ == "LlamaForCausalLM" and model.dtype == torch.bfloat16
    assert tokenizer.chat_template == load.tokenizer("starter").chat_template
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert result["parity"]["same_next_token"] >= result["parity"]["prompts"] - 1
    assert result["parity"]["largest_logit_difference"] < 1
    config = json.loads((folder / "config.json").read_text())
    assert "_name_or_path" not in config and "quantization_config" not in config
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors", ".jinja", ".md"}


def test_the_merged_zip_holds_the_merged_folder(finished: Finished, merged: dict) -> None:
    folder = export_folder(merged["id"]) / merged["result"]["folder"]
    with zipfile.ZipFile(export_folder(merged["id"]) / merged["result"]["file"]) as bundle:
        assert {Path(name).name for name in bundle.namelist()} == {path.name for path in folder.iterdir()}


def test_a_full_disk_is_said_before_merging(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    job = do("merge", finished.run_id)
    assert job["state"] == "failed" and "merging needs" in job["error"]
    assert not list(export_folder(job["id"]).iterdir())
