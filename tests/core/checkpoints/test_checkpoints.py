"""Checkpoints are whole or not used, say what they are of, hold no secret, and rotate by step."""

import json
import os
import zlib
from pathlib import Path
from typing import Any

import pytest

from plumbline.checkpoints import folders, identity
from plumbline.config import schema
from plumbline.store import datasets
from tests.runs import add, do, recipe

OF = {"settings": {"lora.r": 8}, "recipe": "1"}


def make(folder: Path, step: int) -> Path:
    staged = folder / "staging" / f"checkpoint-{step}"
    staged.mkdir(parents=True)
    (staged / "adapter_model.safetensors").write_bytes(bytes(range(256)) * step)
    (staged / "trainer_state.json").write_text("{}")
    (staged / "training_args.bin").write_bytes(b"pickle")
    folders.publish(staged, folder / f"checkpoint-{step}", OF)
    return folder / f"checkpoint-{step}"


def test_a_published_checkpoint_verifies_and_holds_no_pickled_arguments(tmp_path: Path) -> None:
    made = make(tmp_path, 10)
    assert folders.fault(made) is None
    assert folders.identity_of(made) == OF
    assert not (made / "training_args.bin").exists()


HARMS = {
    "flip": "adapter_model.safetensors has another checksum",
    "cut": "adapter_model.safetensors has 5119 of 5120 bytes",
    "empty": "adapter_model.safetensors has 0 of 5120 bytes",
    "missing": "adapter_model.safetensors is missing",
    "stranger": "pytorch_model.bin does not belong to it",
    "no manifest": "MANIFEST.json is missing",
    "broken manifest": "MANIFEST.json cannot be read",
    "changed manifest": "MANIFEST.json was changed",
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_harmed_checkpoint_is_set_aside_and_the_one_before_is_used(tmp_path: Path, harm: str) -> None:
    good, bad = make(tmp_path, 10), make(tmp_path, 20)
    file, manifest = bad / "adapter_model.safetensors", bad / folders.MANIFEST
    data = bytearray(file.read_bytes())
    if harm == "flip":
        data[100] ^= 1
        file.write_bytes(data)
    elif harm == "cut":
        file.write_bytes(data[:-1])
    elif harm == "empty":
        file.write_bytes(b"")
    elif harm == "missing":
        file.unlink()
    elif harm == "stranger":
        (bad / "pytorch_model.bin").write_bytes(b"pickle")
    elif harm == "no manifest":
        manifest.unlink()
    elif harm == "broken manifest":
        manifest.write_text("{")
    else:
        manifest.write_text(manifest.read_text().replace('"lora.r": 8', '"lora.r": 9'))
    assert folders.newest_good(tmp_path) == (good, {"checkpoint-20": HARMS[harm]})
    assert (tmp_path / "quarantine" / "checkpoint-20").exists()
    assert folders.newest_good(tmp_path) == (good, {})


def test_a_checkpoint_of_an_earlier_version_lists_its_files_alone(tmp_path: Path) -> None:
    made = make(tmp_path, 10)
    manifest = made / folders.MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text())["files"]))
    assert folders.fault(made) is None and folders.identity_of(made) == {}
    (made / "trainer_state.json").write_text("[]")
    assert folders.fault(made) == "trainer_state.json has another checksum"


def test_rotation_goes_by_step_even_when_the_clock_went_back(tmp_path: Path) -> None:
    for step in (10, 20, 100):
        make(tmp_path, step)
    os.utime(tmp_path / "checkpoint-100", (0, 0))
    folders.rotate(tmp_path, 2)
    assert [path.name for path in folders.listed(tmp_path)] == ["checkpoint-20", "checkpoint-100"]


def test_without_checkpoints_there_is_nothing_to_resume(tmp_path: Path) -> None:
    assert folders.newest_good(tmp_path) == (None, {})


def test_leftovers_of_a_rotation_and_of_a_swap_are_put_in_order(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        make(tmp_path, step)
    os.replace(tmp_path / "checkpoint-10", tmp_path / "checkpoint-10.gone")
    os.replace(tmp_path / "checkpoint-20", tmp_path / "checkpoint-20.old")  # and then the process ended
    assert folders.recover(tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-20", "checkpoint-30"]


def test_a_save_whose_renaming_alone_was_missing_is_taken_in(tmp_path: Path) -> None:
    make(tmp_path, 10)
    (tmp_path / "staging").mkdir(exist_ok=True)
    os.replace(tmp_path / "checkpoint-10", tmp_path / "staging" / "checkpoint-10")
    assert folders.recover(tmp_path) == []
    assert folders.newest_good(tmp_path) == (tmp_path / "checkpoint-10", {})


def changed(config: schema.RunConfig, section: str, **values: Any) -> schema.RunConfig:
    raw = config.model_dump()
    raw[section] |= values
    return schema.validated(raw)


@pytest.fixture
def was(samples: Path) -> dict[str, Any]:
    return identity.identity(recipe(), "a" * 64)


def test_a_checkpoint_is_of_its_recipe_its_data_its_base_and_its_tokenizer(
    was: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe()
    assert identity.differences(was, identity.identity(config, "a" * 64)) == []
    faster = changed(config, "training", learning_rate=0.02, seed=5)
    assert identity.differences(was, identity.identity(faster, "a" * 64)) == [
        "training.learning_rate was 0.001, is 0.02",
        "training.seed was 0, is 5",
    ]
    assert identity.differences(was, identity.identity(config, "b" * 64)) == [
        "the base's sha256 was aaaaaaaaaaaa, is bbbbbbbbbbbb"
    ]
    other = datasets.by_name("cited-answers") | {"sha256": "c" * 64}
    monkeypatch.setattr(datasets, "by_name", lambda name: other)
    (said,) = identity.differences(was, identity.identity(config, "a" * 64))
    assert said.startswith("dataset cited-answers was ") and said.endswith("is cccccccccccc")


def test_what_changes_no_result_may_change(was: dict[str, Any]) -> None:
    config = changed(
        recipe(),
        "training",
        save_steps=1,
        keep_checkpoints=9,
        price_per_hour=3.0,
        micro_batch_tokens=64,
        gradient_checkpointing="full",
    )
    now = identity.identity(config.model_copy(update={"name": "another"}), "a" * 64)
    assert identity.differences(was, now) == [] and now["recipe"] == was["recipe"]


def test_every_setting_counts_unless_it_is_said_not_to() -> None:
    keys = {setting.key for setting in schema.settings()}
    assert keys >= identity.WITHOUT_EFFECT
    assert set(identity.counted(recipe())) == keys - identity.WITHOUT_EFFECT


def test_a_setting_that_came_later_was_at_its_default(was: dict[str, Any]) -> None:
    earlier = was | {"settings": {k: v for k, v in was["settings"].items() if k != "training.weight_decay"}}
    assert identity.differences(earlier, was) == []
    decayed = identity.identity(changed(recipe(), "training", weight_decay=0.5), "a" * 64)
    assert identity.differences(earlier, decayed) == ["training.weight_decay was 0.0, is 0.5"]


def test_other_versions_are_told_and_no_other_run(was: dict[str, Any]) -> None:
    older = was | {"versions": was["versions"] | {"torch": "1.0"}}
    (told,) = identity.other_versions(older, was)
    assert told.startswith("torch was 1.0, is ") and identity.differences(older, was) == []


def test_no_token_is_in_any_byte_of_a_checkpoint_or_of_the_run(
    samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = "hf_CANARYcanaryCANARYcanaryCANARY99"
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, canary)
    from transformers import TrainingArguments

    honest = TrainingArguments.__init__

    def with_token(self: Any, *given: Any, **named: Any) -> None:
        honest(self, *given, **named | {"hub_token": canary})

    monkeypatch.setattr(TrainingArguments, "__init__", with_token)
    run_id = add(recipe(training={"max_steps": 2, "save_steps": 1}))
    assert do("train", run_id)["error"] is None
    searched = 0
    for path in samples.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert canary.encode() not in data, path.name
            assert canary.encode("utf-16-le") not in data, path.name
            searched += 1
            if "checkpoint" in str(path) and path.suffix in (".pt", ".pth"):
                assert canary.encode() not in inflated(data), path.name
    assert searched > 20
    assert not list(samples.rglob("training_args.bin"))


def inflated(data: bytes) -> bytes:
    """Every deflated stream of a zip, which is what torch.save writes, one after the other."""
    found, place = b"", 0
    while (place := data.find(b"PK\x03\x04", place)) >= 0:
        names, extra = (int.from_bytes(data[place + at : place + at + 2], "little") for at in (26, 28))
        start = place + 30 + names + extra
        if data[place + 8 : place + 10] == b"\x08\x00":
            found += zlib.decompressobj(-15).decompress(data[start:])
        place += 4
    return found
