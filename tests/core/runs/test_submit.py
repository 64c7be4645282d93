"""The commands of a run's machines, and runs as jobs of Slurm and SkyPilot."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser

from plumbline.cli import main as cli
from plumbline.config import schema
from plumbline.config.schema import RunConfig
from plumbline.distributed.launch_commands import commands
from plumbline.errors import StudioError
from plumbline.runs import bundle, submit
from plumbline.store import datasets as store
from plumbline.store import runs
from plumbline_studio.tabs.train import before_start
from tests.forecasts import installed
from tests.runs import add, recipe
from tests.uploads import lines, stored, talk

MACHINES = {"num_machines": 2, "gpus": 8, "main_process_ip": "10.0.0.1", "port": 29501}
HOSTILE = "\"'; touch pwned; $(touch pwned) `touch pwned`\n&& touch pwned #"
Main = Callable[..., str]


@pytest.fixture
def main(samples: Path, capsys: pytest.CaptureFixture) -> Main:
    """A function that runs a verb and returns what it printed."""

    def run(*arguments: str, code: int = 0) -> str:
        assert cli.main(list(arguments), lambda *_: None) == code
        captured = capsys.readouterr()
        return captured.out + captured.err

    return run


def parsed(command: str) -> Any:
    """A command as accelerate's launcher reads it."""
    words = shlex.split(command)
    assert words[:2] == ["accelerate", "launch"]
    return launch_command_parser().parse_args(words[2:])


# ---- the command of each machine


def test_each_machine_has_the_same_command_but_for_its_rank() -> None:
    first, second = (parsed(one) for one in commands(recipe(machines=MACHINES), ["train", "my recipe.yaml"]))
    assert (first.machine_rank, second.machine_rank) == (0, 1)
    for one in (first, second):
        assert (one.num_machines, one.num_processes) == (2, 16)
        assert (one.main_process_ip, one.main_process_port) == ("10.0.0.1", 29501)
        assert one.multi_gpu and one.no_python and not one.cpu
        assert (one.mixed_precision, one.dynamo_backend, one.gpu_ids) == ("no", "no", "all")
        assert [one.training_script, *one.training_script_args] == ["plumbline", "train", "my recipe.yaml"]


def test_what_old_answers_to_accelerate_could_fill_in_is_said() -> None:
    (command, _) = commands(recipe(machines=MACHINES), ["resume", "12"])
    said = parsed(command).nondefault
    asked = {"gpu_ids", "num_machines", "num_processes", "machine_rank", "main_process_ip"}
    assert said >= asked | {"main_process_port", "mixed_precision", "dynamo_backend", "multi_gpu"}


@pytest.mark.parametrize("gpus", [None, 1, 8])
def test_on_one_machine_nothing_is_launched(gpus: int | None) -> None:
    assert commands(recipe(machines={"gpus": gpus}), ["resume", "12"]) == ["plumbline resume 12"]


def test_words_reach_the_program_as_they_are() -> None:
    for command in commands(recipe(machines=MACHINES), ["train", HOSTILE, "--name=$(x)"]):
        assert parsed(command).training_script_args == ["train", HOSTILE, "--name=$(x)"]


def test_a_recipe_that_names_no_machines_has_no_commands() -> None:
    raw = recipe().model_dump() | {"machines": {"num_machines": 2}}
    with pytest.raises(
        StudioError, match=r"machines.main_process_ip must be given .*; machines.gpus must be given"
    ):
        commands(RunConfig.model_validate(raw), ["train", "recipe.yaml"])


def test_the_forecast_ends_with_the_commands(
    main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch)
    file = tmp_path / "two.yaml"
    file.write_text(schema.dumps(recipe(machines=MACHINES)))
    *_, first, second = main("forecast", str(file), "--lora.r", "8").splitlines()
    config = schema.changed(recipe(machines=MACHINES), {"lora.r": 8})
    assert [first, second] == commands(config, ["train", str(file), "--lora.r=8"])
    assert "accelerate" not in main("forecast", "starter")


def test_the_train_tab_shows_the_commands_of_the_other_machines() -> None:
    shown = before_start.machines(recipe(machines=MACHINES | {"num_machines": 3}))
    plain = unescape(re.sub(r"<[^>]+>", "", shown))
    _, *others = commands(recipe(machines=MACHINES | {"num_machines": 3}), ["train", "recipe.yaml"])
    assert len(others) == 2 and all(command in plain for command in others)
    assert "press Start" in shown
    assert before_start.machines(recipe()) == ""


# ---- job files


def job_of(config: RunConfig, kind: str = "slurm", **options: Any) -> submit.Job:
    made = {"accelerator": "H100"} if kind == "skypilot" else {}
    return getattr(submit, kind)(add(config), **made | options)


def syntax(script: str) -> None:
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("hosts", [1, 2])
def test_a_slurm_job_asks_for_what_the_recipe_says(samples: Path, hosts: int) -> None:
    config = recipe(machines=MACHINES | {"num_machines": hosts})
    job = job_of(config, time="1-12:00:00", partition="gpu-long")
    name, script = job.script
    syntax(script)
    options = dict(line[10:].split("=") for line in script.splitlines() if line.startswith("#SBATCH --"))
    assert (options["nodes"], options["gpus-per-node"], options["ntasks-per-node"]) == (str(hosts), "8", "1")
    assert (options["time"], options["partition"]) == ("1-12:00:00", "gpu-long")
    assert [name, job.command] == ["job.sh", ["sbatch", "job.sh"]]
    assert str(samples.parent) not in script and str(Path.home()) not in script
    assert "10.0.0.1" not in script + schema.dumps(job.recipe)


def test_a_skypilot_task_loads_back(samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    job = job_of(recipe(machines=MACHINES), "skypilot", accelerator="H100:8", package="plumbline @ file.whl")
    task = yaml.safe_load(job.script[1])
    assert list(task) == ["name", "num_nodes", "resources", "workdir", "setup", "run"]
    assert (task["num_nodes"], task["resources"]) == (2, {"accelerators": "H100:8"})
    assert task["setup"] == "pip install 'plumbline @ file.whl'"
    syntax(task["setup"])
    syntax(task["run"])
    assert str(samples.parent) not in job.script[1]
    assert job.command == ["sky", "launch", "-c", task["name"], "job.yaml"]


def test_a_token_is_named_and_never_written(samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    config = recipe(model={"base": "org/gated"})
    job = job_of(config, "skypilot")
    assert yaml.safe_load(job.script[1])["secrets"] == {"HF_TOKEN": None}
    assert job.command[4:6] == ["--secret", "HF_TOKEN"] and "hf_secret" not in job.script[1]
    assert "hf_secret" not in job_of(config, changes={"machines.gpus": 1}).script[1]
    assert "secrets" not in yaml.safe_load(job_of(recipe(), "skypilot").script[1])


def test_the_recipe_of_a_job_learns_what_the_run_learns(samples: Path) -> None:
    parts = [{"dataset": "cited-answers", "weight": 2}, {"dataset": "plain-style", "prefix": "Hi, "}]
    config = recipe(data={"mix": parts}, training={"best_metric": "plain-style"})
    job = job_of(config, changes={"machines.gpus": 4, "machines.num_machines": 2})
    names = [parcel.name for parcel in job.parcels]
    assert names == [part.dataset for part in job.recipe.data.parts]
    assert not {*names} & {*store.names()}  # a new workspace has these of its own
    assert job.recipe.training.best_metric == names[1]
    assert job.recipe.name == config.display_name
    sent, ours = job.recipe.model_dump(), config.model_dump()
    for section, key in (("data", "mix"), ("data", "dataset"), ("training", "best_metric")):
        assert sent[section].pop(key) and ours[section].pop(key)
    assert [part.weight for part in job.recipe.data.mix] == [2, 1]
    assert sent.pop("machines") != ours.pop("machines")
    assert sent["data"].pop("day") and not ours["data"].pop("day")  # the run has the one of its start
    assert sent | {"name": ""} == ours | {"name": ""}
    assert schema.loads(schema.dumps(job.recipe)) == job.recipe


def test_names_reach_no_shell(samples: Path, tmp_path: Path) -> None:
    dataset = stored(tmp_path, f"{HOSTILE}.jsonl", lines(*[talk(f"Hi {n}", "Hello.") for n in range(9)]))
    job = job_of(
        recipe(data={"dataset": dataset["name"]}).model_copy(update={"name": HOSTILE}),
        changes={"machines.gpus": 1},
    )
    sky = job_of(recipe().model_copy(update={"name": HOSTILE}), "skypilot", package=HOSTILE)
    task = yaml.safe_load(sky.script[1])
    assert "pwned" not in task["run"] + task["name"]
    assert shlex.split(task["setup"]) == ["pip", "install", HOSTILE]
    (imports,) = (line for line in job.script[1].splitlines() if "data add" in line)
    assert shlex.split(imports) == ["plumbline", *job.parcels[0].words]
    assert schema.loads(schema.dumps(job.recipe)).name == HOSTILE


def test_the_folder_holds_all_that_a_job_needs(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = add(recipe(machines=MACHINES))
    monkeypatch.setenv("PATH", "")
    said = main("submit", str(run_id), "--slurm", code=2)
    job = submit.slurm(run_id)
    assert (
        f"sbatch: is not on this machine, so the job is only written. Run sbatch job.sh in {job.folder}"
        in said
    )
    held = sorted(str(path.relative_to(job.folder)) for path in job.folder.rglob("*") if path.is_file())
    assert held == sorted(job.files)
    assert schema.read_recipe(job.folder / "recipe.yaml") == job.recipe
    assert (job.folder / "job.sh").read_text() == job.script[1]


def program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(script)
    (folder / name).chmod(0o755)


def test_the_scheduler_is_called_in_the_jobs_folder(
    main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "bin", "sky", '#!/bin/bash\necho "$*" > called; exit 3')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    run_id = add(recipe())
    said = main("submit", str(run_id), "--skypilot", "--accelerator", "L4:1", code=3)
    folder = submit.skypilot(run_id, accelerator="L4:1").folder
    assert str(folder) in said
    assert (folder / "called").read_text() == f"launch -c plumbline-{run_id} job.yaml\n"


def test_a_dry_run_prints_the_job_file_and_writes_nothing(main: Main, samples: Path) -> None:
    run_id = add(recipe())
    job = submit.slurm(run_id, {"machines.gpus": 2})
    before = sorted(samples.rglob("*"))
    said = main("submit", str(run_id), "--slurm", "--dry-run", "--machines.gpus", "2")
    assert said.startswith(job.script[1]) and all(name in said for name in job.files)
    syntax(said)
    assert f"runs/{run_id}/submit" in said and sorted(samples.rglob("*")) == before


def test_a_folder_is_written_whole_or_not_at_all(samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(recipe(machines=MACHINES))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(bundle, "write", full)
        submit.write(job)
    assert not job.folder.exists() and not list((samples / "staging").iterdir())
    (submit.write(job) / "stale").touch()
    assert not (submit.write(job) / "stale").exists()
    (job.folder / "workspace").mkdir()
    with pytest.raises(
        StudioError, match="holds the workspace of a job that was begun. Move the folder away"
    ):
        submit.write(job)
    assert (job.folder / "job.sh").exists()


REFUSED = {
    "a number of GPUs is needed": (["--slurm"], "machines.gpus: must say how many GPUs a machine has"),
    "a kind of GPU is needed": (["--skypilot"], "--accelerator: must name a kind of GPU"),
    "a kind that is none": (["--skypilot", "--accelerator", "a b"], "'a b' is no kind of GPU"),
    "numbers that differ": (
        ["--skypilot", "--accelerator", "H100:4", "--machines.gpus", "8"],
        "--accelerator H100:4: has 4 GPUs a machine, and machines.gpus is 8. Give the same number.",
    ),
    "a time that is none": (["--slurm", "--time", "soon\n#SBATCH"], "is no time of Slurm's"),
    "a partition that is none": (["--slurm", "--partition", "-x"], None),
    "a partition of two lines": (["--slurm", "--partition", "a\nb"], "is no name of one"),
    "the other kind's option": (["--slurm", "--accelerator", "H100"], "is an option of SkyPilot's"),
    "its other kind's option": (["--skypilot", "--time", "5"], "is an option of Slurm's"),
    "a setting out of range": (["--slurm", "--machines.gpus", "0"], "machines.gpus must be at least 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_scheduler_takes_is_refused(main: Main, case: str) -> None:
    options, said = REFUSED[case]
    run_id = add(recipe())
    if said is None:
        with pytest.raises(SystemExit):
            main("submit", str(run_id), *options)
    else:
        assert said in main("submit", str(run_id), *options, "--dry-run", code=2)
    assert not submit.slurm(run_id, {"machines.gpus": 1}).folder.exists()


def test_a_run_that_needs_this_workspace_is_refused(main: Main, tmp_path: Path) -> None:
    parent = add(recipe())
    child = runs.add(recipe(), store.by_name("cited-answers")["id"], parent, 2, "branch")
    said = main("submit", str(child), "--slurm", code=2)
    assert f"run {child}: begins with the adapter of run {parent}, which only this workspace has" in said
    local = add(recipe(model={"base": str(tmp_path)}))
    said = main("submit", str(local), "--skypilot", "--accelerator", "L4", code=2)
    assert "model.base: is a folder, which a machine of a cloud does not have. Name a Hub model." in said
    chosen = submit.slurm(local, {"machines.gpus": 1}).recipe.model.base
    assert chosen == str(tmp_path)  # on a cluster every machine may see it
    assert "run 99: does not exist" in main("submit", "99", "--slurm", code=2)


# ---- what the job files do

STALE = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "FSDP",
    "debug": False,
    "gpu_ids": "3",
    "machine_rank": 4,
    "main_process_ip": "10.9.9.9",
    "main_process_port": 1,
    "mixed_precision": "bf16",
    "num_machines": 5,
    "num_processes": 40,
    "use_cpu": False,
}
TOLD = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES", "ACCELERATE_MIXED_PRECISION")
PLUMBLINE = f"""#!{sys.executable}
import json, os, sys
if sys.argv[1] == "data":
    print(os.getcwd(), *sys.argv[1:], file=open("imported", "a"))
else:
    told = {{name: os.environ.get(name) for name in {TOLD!r}}} | {{"words": sys.argv[1:]}}
    json.dump(told, open("told-" + told["RANK"], "w"))
"""
# Both machines are this one.
SRUN = '#!/bin/bash\nshift; for n in 0 1; do SLURM_NODEID=$n "$@" & done; wait %1 && wait %2'


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """An environment with a scheduler's programs, and answers that somebody once gave to accelerate."""
    for name, script in {
        "plumbline": PLUMBLINE,
        "srun": SRUN,
        "scontrol": "#!/bin/bash\necho 127.0.0.1; echo 127.0.0.2",
    }.items():
        program(tmp_path / "bin", name, script)
    answers = tmp_path / "hf" / "accelerate" / "default_config.yaml"
    answers.parent.mkdir(parents=True)
    answers.write_text(yaml.safe_dump(STALE))
    # The program's own launcher, unless a test puts another before it.
    path = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {name: value for name, value in os.environ.items() if name not in TOLD}
    environment |= {"PATH": path, "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"}
    return environment | {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_CPUS_PER_TASK": "4"}


def two_machines() -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return MACHINES | {"gpus": 1, "port": free.getsockname()[1]}


def check_told(folder: Path, words: list[str]) -> None:
    told = [json.loads((folder / f"told-{rank}").read_text()) for rank in range(2)]
    assert told == [
        dict(zip(TOLD, (str(rank), "2", "0", None, "no"), strict=True)) | {"words": words}
        for rank in range(2)
    ]


def test_a_slurm_job_starts_every_machine_with_its_rank(samples: Path, cluster: dict[str, str]) -> None:
    job = job_of(recipe(machines=two_machines()))
    folder = submit.write(job)
    subprocess.run(["bash", "job.sh"], cwd=folder, env=cluster, check=True, timeout=300)
    told = [json.loads((folder / f"told-{rank}").read_text()) for rank in range(2)]
    for rank, one in enumerate(told):
        assert one.pop("words") == ["train", "recipe.yaml"]
        assert one == dict(zip(TOLD, (str(rank), "2", "0", None, "no"), strict=True))
    # Once, on the first machine, before anything is launched.
    assert (folder / "imported").read_text() == f"{folder} {shlex.join(job.parcels[0].words)}\n"


def launched(folder: Path, rank: int) -> Any:
    """What the launcher was called with on a machine."""
    return parsed((folder / f"launched-{rank}").read_text())


@pytest.fixture
def unlaunched(cluster: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The same, where the launcher only writes down what it is called with."""
    script = (
        f"#!{sys.executable}\nimport re, shlex, sys\ncommand = shlex.join(['accelerate', *sys.argv[1:]])\n"
        "rank = re.search(r'--machine_rank (\\d)', command)[1]\n"
        "open('launched-' + rank, 'w').write(command)\n"
    )
    program(tmp_path / "bin", "accelerate", script)
    return cluster


def test_a_slurm_job_goes_on_without_importing_again(samples: Path, unlaunched: dict[str, str]) -> None:
    folder = submit.write(job_of(recipe(machines=MACHINES)))
    subprocess.run(["bash", "job.sh", "resume", "1"], cwd=folder, env=unlaunched, check=True, timeout=60)
    for one in (launched(folder, rank) for rank in range(2)):
        assert one.training_script_args == ["resume", "1"] and one.main_process_ip == "127.0.0.1"
    assert not (folder / "imported").exists()


def test_a_skypilot_task_starts_every_machine_with_its_rank(
    samples: Path, unlaunched: dict[str, str]
) -> None:
    folder = submit.write(job_of(recipe(machines=MACHINES), "skypilot", accelerator="L4:8"))
    run = yaml.safe_load((folder / "job.yaml").read_text())["run"]
    for rank in range(2):
        told = {"SKYPILOT_NODE_RANK": str(rank), "SKYPILOT_NODE_IPS": "10.0.0.4\n10.0.0.5"}
        subprocess.run(["bash", "-c", run], cwd=folder, env=unlaunched | told, check=True, timeout=60)
        one = launched(folder, rank)
        assert (one.num_machines, one.num_processes, one.main_process_ip) == (2, 16, "10.0.0.4")
        assert one.training_script_args == ["train", "recipe.yaml"]
    assert (folder / "imported").read_text().count("\n") == 1
