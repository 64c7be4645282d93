"""A workspace that commit 98131f9 wrote, with a trained and evaluated run, opens. Its weights are left out.

`tests.old_workspace` writes more of that version's cases file by file; this one is that version's own work.
"""

import json
import tarfile
from pathlib import Path

import pytest
import yaml

import plumbline
from plumbline.checkpoints import identity
from plumbline.cli import main
from plumbline.config import schema
from plumbline.store import datasets, evaluations, runs


@pytest.fixture
def old(workspace: Path) -> Path:
    workspace.mkdir()
    with tarfile.open(Path(__file__).with_name("workspace_98131f9.tar.xz")) as archive:
        archive.extractall(workspace, filter="data")
    return workspace


def test_its_recipe_has_the_names_of_now(old: Path) -> None:
    stored = yaml.safe_load(runs.get(1)["recipe"])
    assert stored["training"]["warmup_share"] == 0.25 and stored["method"]["name"] == "supervised"
    config = runs.recipe(1)
    lora, training, machines = config.lora, config.training, config.machines
    assert (lora.init_lora_weights, lora.loraplus_lr_ratio) == ("gaussian", 4)
    assert (training.lr_scheduler_type, training.min_lr_ratio) == ("linear", 0.1)
    assert (training.warmup_ratio, training.effective_batch) == (0.25, 4)
    assert training.load_best_model_at_end and training.early_stopping_patience == 3
    assert not config.quantisation.double_quant and config.method.name == "sft"
    assert (machines.num_machines, machines.main_process_ip) == (1, "10.0.0.1")
    written = schema.loads(schema.dumps(config))
    assert written == config


def test_the_files_of_its_run_and_adapter_hold_the_same_recipe(old: Path) -> None:
    config, folder = runs.recipe(1), old / "runs" / "1"
    for path in (folder / "recipe.yaml", folder / "artifact" / "training_config.yaml"):
        read = schema.read_recipe(path)
        assert read.model_copy(update={"data": config.data}) == config
        assert read.data.dataset == "colours"


def test_its_checkpoint_is_of_the_same_run(old: Path) -> None:
    manifest = json.loads((old / "runs/1/checkpoints/checkpoint-4/MANIFEST.json").read_text())
    was = manifest["identity"]
    now = was | {"settings": identity.counted(runs.recipe(1))}
    assert "training.warmup_share" in was["settings"] and "training.warmup_ratio" in now["settings"]
    assert identity.differences(was, now) == []


def test_it_is_listed_with_what_it_measured(old: Path, capsys: pytest.CaptureFixture) -> None:
    (run,) = plumbline.list_runs()
    assert (run.id, run.name, run.state) == (1, "a run of 98131f9", "completed")
    assert (run.step, run.total_steps, run.base) == (4, 4, "starter")
    points = plumbline.metrics(1)
    assert [point.step for point in points] == [0, 1, 2, 3, 4]
    assert points[4].eval_loss == run.eval_loss and points[1].loss is not None
    assert datasets.get(run.dataset)["name"] == "colours"
    evaluation = evaluations.latest(1)
    assert evaluation is not None and evaluation["result"]["rows"] == 4
    for words in (["runs"], ["show", "1"], ["data", "show", "colours"]):
        assert main.main(words, lambda *_: None) == 0
    assert "a run of 98131f9" in capsys.readouterr().out
