"""What leaves: a zip that verifies, and a merged model that plain transformers loads."""

import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from plumbline.evaluation.generate import Task
from plumbline.export import bases
from plumbline.home import assets, export_folder
from plumbline.models import adapter_readers, load
from plumbline.models.artifact import broken_files
from tests.finished import Finished
from tests.runs import add, do, recipe

OTHER_END = 1  # <|endoftext|>


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

    from plumbline.models import adapters
    from plumbline.store import runs

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
    assert distance < 0.3 < 2 < other


def test_an_opened_adapter_has_the_files_weights_bit_for_bit(finished: Finished) -> None:
    import torch
    from safetensors.torch import load_file

    from plumbline.models import adapters
    from plumbline.store import runs

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


def test_what_leaves_is_readable_by_others(finished: Finished, merged: dict) -> None:
    folder = export_folder(merged["id"]) / merged["result"]["folder"]
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}
    assert (export_folder(merged["id"]) / merged["result"]["file"]).stat().st_mode & 0o777 == 0o644
    adapter = do("adapter", finished.run_id)
    for job in (merged, adapter):
        with zipfile.ZipFile(export_folder(job["id"]) / job["result"]["file"]) as bundle:
            assert {entry.external_attr >> 16 & 0o777 for entry in bundle.infolist()} == {0o644}


def test_a_merge_measures_what_the_change_of_base_does_to_answers(merged: dict) -> None:
    found = merged["result"]["parity"]["bases"]
    assert (found["quantisation"], found["rows"]) == ("nf4", 8)
    assert 0 <= found["same"] <= 8 and len(found["exact"]) == 2
    assert f"{found['same']} answers are the same on both" in bases.sentence(found)


def test_answers_on_two_bases_are_compared_row_by_row() -> None:
    asked = [Task([{"role": "user", "content": "?"}], answer) for answer in "abcd"]
    found = bases.compared(recipe(), asked, ["a", "b", "c", "x"], ["a", "b", "y", "y"])
    assert found == {"quantisation": "nf4", "rows": 4, "same": 2, "exact": [3, 2]}
    text = bases.sentence(found)
    assert "75.0% are exact on the nf4 base, 50.0% on the 16-bit one" in text


def test_whole_answers_are_compared_after_a_merge(merged: dict) -> None:
    parity = merged["result"]["parity"]
    assert parity["same_answers"] >= parity["prompts"] - 1


@pytest.fixture(scope="module")
def talks_on(_finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    """A run on a base whose own files name another end than the one that its template writes after a turn."""
    from plumbline.data.selection import datasets

    base = tmp_path_factory.mktemp("talks-on")
    for path in (assets() / "starter").iterdir():
        if path.is_file():
            shutil.copy(path, base)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<|endoftext|>"}))
    other = {"eos_token_id": OTHER_END, "repetition_penalty": 1.3, "do_sample": False, "temperature": 0.6}
    (base / "generation_config.json").write_text(json.dumps(other))
    home = tmp_path_factory.mktemp("talks-on-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLUMBLINE_HOME", str(home))
        datasets.ensure_samples()
        run_id = add(recipe(model={"base": str(base)}, training={"max_steps": 20}))
        assert do("train", run_id)["error"] is None
        yield Finished(home, run_id)


def test_every_export_names_the_ends_that_plumbline_stops_at(talks_on: Finished, tmp_path: Path) -> None:
    """Else the merged model goes on after its answer: its base's files know the end of a text alone."""
    from transformers import AutoTokenizer

    from plumbline.data.tokens.encode import end_tokens
    from plumbline.store import runs

    ends = end_tokens(load.tokenizer(runs.recipe(talks_on.run_id).model.base))
    assert len(ends) == 2
    folders = []
    for kind in ("adapter", "merge"):
        job = do(kind, talks_on.run_id)
        assert job["error"] is None
        with zipfile.ZipFile(export_folder(job["id"]) / job["result"]["file"]) as bundle:
            bundle.extractall(tmp_path)
        folders.append(tmp_path / Path(job["result"]["file"]).stem)
    for folder in folders:
        settings = json.loads((folder / "generation_config.json").read_text())
        assert settings["eos_token_id"] == sorted(ends) and settings["repetition_penalty"] == 1.3
        assert AutoTokenizer.from_pretrained(folder).eos_token == "<|im_end|>"
    assert broken_files(folders[0]) == []


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"r": 16}, []),
        ({"r": 17}, ["--max-lora-rank 32: its rank is 17"]),
        ({"r": 300}, ["--max-lora-rank 320"]),
        ({"r": 1024}, ["512 is the most"]),
        ({"r": 8, "use_dora": True}, ["vLLM and llama.cpp refuse it: they read no DoRA"]),
        ({"r": 64, "use_dora": True, "modules_to_save": ["lm_head"]}, ["no DoRA and modules saved whole"]),
        ({"r": 8, "bias": "all"}, ["trained biases"]),
        ({"r": 8, "use_rslora": True}, ["llama.cpp scales it wrongly"]),
        ({"r": 8, "rank_pattern": {"q_proj": 24}}, ["--max-lora-rank 32", "layers differ in rank"]),
    ],
)
def test_what_other_programs_refuse_is_said(given: dict, told: list[str]) -> None:
    said = adapter_readers.refusals(given)
    assert len(said) == len(told)
    for sentence, part in zip(said, told, strict=True):
        assert part in sentence and sentence in adapter_readers.section(given)


def test_refusals_stand_on_the_card_with_the_export_and_on_its_tab(
    samples: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import gradio as gr

    from plumbline.cli import runs as cli_runs
    from plumbline_studio.live import Page
    from plumbline_studio.tabs import export

    run_id = add(recipe(lora={"use_dora": True}, training={"max_steps": 1}))
    assert do("train", run_id)["error"] is None
    assert "read no DoRA" in (samples / "runs" / str(run_id) / "artifact" / "README.md").read_text()
    job = do("adapter", run_id)
    assert "read no DoRA" in job["result"]["refusals"][0]
    cli_runs.say_refusals(job["result"])
    assert "read no DoRA" in capsys.readouterr().out
    with gr.Blocks() as blocks:
        page = Page(blocks, gr.State(run_id), gr.Tabs())
        export.build(page)
    drawn = dict(json.loads(page.answer(run_id, []))["drawn"])
    assert "read no DoRA" in str(drawn[1]) and "DoRA" not in str(drawn[4])
