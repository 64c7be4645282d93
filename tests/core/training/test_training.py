"""Real NF4 QLoRA on the starter: what is trained, what is left alone, what is written."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from plumbline.batches.packing import Pack
from plumbline.batches.prepare import prepare
from plumbline.checkpoints import base_digest
from plumbline.config import schema
from plumbline.config.steps import total_steps
from plumbline.data import rows
from plumbline.data.selection import mix
from plumbline.data.tokens.encode import IGNORED, encode
from plumbline.engine.decoder import DecoderEngine
from plumbline.errors import StudioError
from plumbline.home import run_folder
from plumbline.jobs import queue
from plumbline.jobs.job import Job
from plumbline.models import adapters, artifact, load
from plumbline.store import datasets as dataset_store
from plumbline.store import runs
from plumbline.training.loop import record
from tests.finished import Finished
from tests.runs import add, do, recipe


def test_a_run_learns_and_measures_every_step(finished: Finished) -> None:
    points = runs.metrics(finished.run_id)
    assert [p["step"] for p in points] == list(range(21))
    assert points[-1]["eval_loss"] < points[0]["eval_loss"] / 2
    for point in points[1:]:
        assert point["loss"] > 0 and point["learning_rate"] is not None and point["grad_norm"] > 0
        assert point["memory_gb"] > 0
    assert all(point["tokens_per_second"] > 0 for point in points[2:])
    run = runs.get(finished.run_id)
    assert run["base_eval_loss"] == points[0]["eval_loss"]
    assert run["eval_loss"] == points[-1]["eval_loss"]
    assert run["best_eval_loss"] == min(p["eval_loss"] for p in points[1:] if p["eval_loss"])


def test_the_history_file_holds_the_same_points_as_the_store(finished: Finished) -> None:
    entries = [
        json.loads(line) for line in (finished.folder / "metrics_history.jsonl").read_text().splitlines()
    ]
    losses = {entry["step"]: entry["loss"] for entry in entries if "loss" in entry}
    assert losses == {p["step"]: p["loss"] for p in runs.metrics(finished.run_id) if p["loss"] is not None}


def test_the_artifact_is_whole_and_says_where_it_comes_from(finished: Finished) -> None:
    folder = finished.folder / "artifact"
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "metadata.json",
        "training_config.yaml",
        "training_metrics.json",
        "checksums.json",
        "README.md",
    }
    assert artifact.broken_files(folder) == []
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["base"]["id"] == "starter"
    assert metadata["base"]["sha256_before"] == metadata["base"]["sha256_after"]
    (read,) = metadata["datasets"]
    assert read["name"] == "cited-answers" and read["share_of_loss"] == 1
    assert read["sha256"] == dataset_store.by_name("cited-answers")["sha256"]
    assert schema.loads((folder / "training_config.yaml").read_text()) == runs.recipe(finished.run_id)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "starter"
    assert str(finished.home) not in "".join(
        path.read_text() for path in folder.iterdir() if path.suffix != ".safetensors"
    )
    front_matter = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert front_matter["base_model"] == "starter"
    for name in ("training_summary.json", "training_results.json", "baseline_checksums.json", "recipe.yaml"):
        assert (finished.folder / name).exists()


def test_a_changed_artifact_is_noticed(finished: Finished, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(finished.folder / "artifact", tmp_path / "copy")
    data = bytearray((copy / "adapter_model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "adapter_model.safetensors").write_bytes(data)
    assert artifact.broken_files(copy) == ["adapter_model.safetensors"]


def test_the_adapter_holds_lora_weights_only_and_no_embeddings(finished: Finished) -> None:
    from safetensors import safe_open

    with safe_open(finished.folder / "artifact" / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
    # 8 layers, 7 projections, A and B
    assert len(names) == 8 * 7 * 2 and all(".lora_A." in name or ".lora_B." in name for name in names)


def test_the_base_digest_sees_one_changed_bit_and_ignores_the_adapter() -> None:
    config = recipe()
    base = load.base_model(config)
    plain = base_digest.base_digest(base)
    model = adapters.attach(base, config)
    assert base_digest.base_digest(model) == plain
    weight = model.base_model.model.model.layers[3].mlp.up_proj.base_layer.weight
    weight.data[5] ^= 1
    assert base_digest.base_digest(model)["sha256"] != plain["sha256"]
    assert base_digest.base_digest(model)["tensors"] == plain["tensors"]


def test_only_the_adapter_is_trainable() -> None:
    config = recipe()
    model = adapters.attach(load.base_model(config), config)
    adapters.refuse_other_trainables(model)
    trainable, total = adapters.trainable_share(model)
    # A (r x in) and B (out x r) of seven projections in eight layers, worked out by hand
    dims = [(320, 320), (320, 64), (320, 64), (320, 320), (320, 896), (320, 896), (896, 320)]
    assert trainable == 8 * sum(16 * (fan_in + fan_out) for fan_in, fan_out in dims)
    assert total == 10_163_520 + trainable
    model.get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(StudioError, match="would be trained"):
        adapters.refuse_other_trainables(model)


def test_an_evaluation_does_not_cut_later_steps_off_from_the_base() -> None:
    """bitsandbytes repacks CPU weights at the first inference; see plumbline.models.load."""
    import torch

    config = recipe()

    def gradients(look_first: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = adapters.attach(load.base_model(config), config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        ids = torch.arange(5, 45).reshape(2, 20)
        if look_first:
            model.eval()
            with torch.no_grad():
                model(ids)
        model.train()
        model(ids, labels=ids).loss.backward()
        return [p.grad for p in model.parameters() if p.requires_grad]

    for first, second in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(first, second)


def test_the_trainer_sees_the_same_labels_as_the_x_ray(samples: Path) -> None:
    import torch
    from torch.utils.data import DataLoader

    from plumbline.training import assembly

    config = recipe()
    run_id = add(config)
    job = Job(queue.get(queue.enqueue("train", run_id)))
    prepared = prepare(config)
    model = adapters.attach(load.base_model(config), config)
    planned = assembly.planned(config, prepared, assembly.arranged(config, prepared)).plan
    trainer, _ = assembly.trainer(
        config, job, model, prepared, samples, planned, record.Record(job, samples / "history")
    )
    batches = DataLoader(trainer.train_dataset, batch_size=4, collate_fn=trainer.data_collator)
    seen = []
    for batch in batches:
        for pack in batch["step"].packs:
            labels = torch.full((pack.tokens + 1,), IGNORED)
            labels[pack.learned + 1] = pack.targets
            bounds = pack.boundaries.tolist()
            for start, end in zip(bounds[:-1], bounds[1:], strict=True):
                assert pack.positions[start:end].tolist() == list(range(end - start))
                seen.append((pack.ids[start:end].tolist(), labels[start:end].tolist()))
    # A row's first token is predicted by nothing, whatever its label.
    wanted = [(row.input_ids, [IGNORED, *row.labels[1:]]) for row in prepared.train]
    assert sorted(seen) == sorted(wanted)
    assert all(
        p.dtype.is_floating_point and p.element_size() == 4 for p in model.parameters() if p.requires_grad
    )


def test_a_stopped_run_keeps_its_work_and_resumes_to_the_uninterrupted_curve(
    samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Dropout, so that the state of the random generator counts as well.
    config = recipe(training={"max_steps": 10, "save_steps": 100}, lora={"dropout": 0.1})
    whole = add(config)
    assert do("train", whole)["error"] is None

    stopped = add(config)
    asked = Job.stop_requested
    monkeypatch.setattr(record, "WRITE_SECONDS", 0.0)
    monkeypatch.setattr(
        Job, "stop_requested", lambda job: asked(job) or (runs.get(job.run_id)["step"] or 0) >= 4
    )
    job = do("train", stopped)
    monkeypatch.undo()
    monkeypatch.setenv("PLUMBLINE_HOME", str(samples))
    assert job["state"] == runs.get(stopped)["state"] == "stopped"
    assert runs.get(stopped)["step"] == 4
    folder = samples / "runs" / str(stopped)
    assert [path.name for path in (folder / "checkpoints").glob("checkpoint-*")] == ["checkpoint-4"]
    assert (folder / "artifact" / "adapter_model.safetensors").exists()
    assert do("train", stopped, resume=True)["state"] == "completed"
    assert [(p["step"], p["loss"]) for p in runs.metrics(stopped)] == [
        (p["step"], p["loss"]) for p in runs.metrics(whole)
    ]
    assert runs.metrics(stopped)[-1]["eval_loss"] == runs.metrics(whole)[-1]["eval_loss"]


def test_a_loss_that_is_not_a_number_fails_the_run_at_that_step(
    samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plumbline.training.loop.trainer import Trainer

    honest = Trainer.training_step

    def broken(self: Trainer, *arguments: Any) -> Any:
        loss = honest(self, *arguments)
        return loss * math.nan if self.state.global_step == 2 else loss

    monkeypatch.setattr(Trainer, "training_step", broken)
    run_id = add(recipe())
    job = do("train", run_id)
    assert job["state"] == "failed" and "loss became NaN at step 3" in job["error"]
    assert math.isnan(runs.metrics(run_id)[-1]["loss"])
    assert not (samples / "runs" / str(run_id) / "artifact").exists()


def test_a_length_that_cuts_every_answer_is_refused_before_training(samples: Path) -> None:
    run_id = add(recipe(training={"max_length": 16}))
    job = do("train", run_id)
    assert job["state"] == "failed"
    assert "all 32 rows have no answer tokens within 16 tokens" in job["error"]
    assert "Traceback" not in job["error"]


def test_an_unknown_target_module_is_refused_with_the_real_names(samples: Path) -> None:
    job = do("train", add(recipe(lora={"target_modules": ["q_proj", "query"]})))
    assert "query matches no linear layer of starter" in job["error"] and "up_proj" in job["error"]


@pytest.mark.parametrize("base", ["nobody", "../../etc", "/etc", "http://x/y", "a/b/c"])
def test_a_base_that_is_nothing_known_is_refused(samples: Path, base: str) -> None:
    job = do("train", add(recipe(model={"base": base})))
    assert job["state"] == "failed" and job["error"].startswith("model.base: ")


def test_a_hub_model_without_a_network_is_explained(samples: Path) -> None:
    job = do("train", add(recipe(model={"base": "org/nothing"})))
    assert "the Hub cannot be reached, and org/nothing was not downloaded before" in job["error"]


def test_steps_are_counted_as_transformers_counts_them() -> None:
    config = recipe(training={"max_steps": None, "epochs": 3, "effective_batch": 8})
    assert total_steps(config, 400) == 150
    assert total_steps(config, 401) == 153
    assert total_steps(config, 1) == 3


def test_an_8_bit_optimizer_and_checkpointing_train_on_a_cpu(samples: Path) -> None:
    run_id = add(
        recipe(
            training={"optimizer": "paged_adamw_8bit", "gradient_checkpointing": "full", "max_steps": 2},
            quantisation={"double_quant": False, "method": "fp4"},
        )
    )
    assert do("train", run_id)["error"] is None
    decisions = json.loads(runs.get(run_id)["decisions"])
    assert decisions["optimizer"]["value"] == "adamw_8bit" or decisions["device"]["value"] == "cuda"


def test_plain_text_is_trained_on_and_evaluated_by_its_loss(workspace: Path, tmp_path: Path) -> None:
    from plumbline.data.importing import importer
    from plumbline.data.readers.source_files import Source
    from plumbline.store import evaluations

    path = tmp_path / "tales.jsonl"
    path.write_text(
        "".join(json.dumps({"text": f"Once there was a cat named {n}."}) + "\n" for n in range(40))
    )
    importer.add([Source(path, path.name)])
    run_id = add(recipe(data={"dataset": "tales"}, method={"name": "pretraining"}))
    assert do("train", run_id)["error"] is None
    assert do("evaluate", run_id)["error"] is None
    result = evaluations.latest(run_id)["result"]
    assert result["rows"] == 4 and "exact_match" not in result
    assert result["adapter"]["loss"] < result["base"]["loss"]
    assert do("merge", run_id)["error"] is None


def test_the_trainers_labels_equal_the_xrays_token_for_token(samples: Path) -> None:
    config = recipe(data={"max_rows": 6})
    prepared = prepare(config)
    (one,) = mix.choose(config.data)
    shown = rows.at(one.dataset["id"], "train", one.train)
    chosen = load.tokenizer("starter")
    assert [(row.input_ids, row.labels) for row in prepared.train] == [
        (one.input_ids, one.labels)
        for one in (encode(row, chosen, config.training.max_length) for row in shown)
    ]


def test_a_mix_in_curriculum_order_is_trained_in_that_order_and_measured_by_source(samples: Path) -> None:
    parts = [{"dataset": "cited-answers"}, {"dataset": "plain-style", "weight": 0.1}]
    config = recipe(
        data={"mix": parts, "order": "short to long", "max_rows": 32},
        training={"max_steps": 2, "eval_steps": 1},
    )
    prepared = prepare(config)
    assert len(prepared.train) == 32 and set(prepared.sources) == {"cited-answers", "plain-style"}
    run_id = add(config)
    seen: list[list[int]] = []
    original = DecoderEngine.step

    def step(self: Any, pack: Pack, weight: float) -> Any:
        seen.extend(ids.tolist() for ids in pack.ids.split(pack.lengths))
        return original(self, pack, weight)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DecoderEngine, "step", step)
        assert do("train", run_id)["state"] == "completed"
    assert seen == [row.input_ids for row in prepared.train[: len(seen)]] and len(seen) >= 16
    sources = runs.metrics(run_id)[-1]["sources"]
    assert set(sources) == {"cited-answers", "plain-style"} and all(loss > 0 for loss in sources.values())
    record = json.loads((run_folder(run_id) / "data.json").read_text())
    assert [part["dataset"] for part in record] == ["cited-answers", "plain-style"]


def test_float16_gradients_are_scaled_and_the_loss_is_told_unscaled(
    samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from plumbline.training import assembly

    config = recipe(quantisation={"compute_dtype": "float16"}, training={"max_steps": 2, "eval_steps": 9})
    run_id = add(config)
    job = Job(queue.get(queue.enqueue("train", run_id)))
    queue.claim(job.id)
    prepared = prepare(config)
    losses = []
    for scaled in (False, True):
        model = adapters.attach(load.base_model(config), config)
        planned = assembly.planned(config, prepared, assembly.arranged(config, prepared)).plan
        trainer, _ = assembly.trainer(
            config,
            job,
            model,
            prepared,
            samples / str(scaled),
            planned,
            record.Record(job, samples / "history"),
        )
        if scaled:
            # What accelerate makes of float16 on a GPU.
            trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
            trainer.accelerator.native_amp = True
            monkeypatch.setitem(trainer.accelerator.state._shared_state, "_mixed_precision", "fp16")
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and len(losses[0]) == 2
