"""Runs in forked processes that are killed, or whose writes fail, at a chosen moment.

A fork server imports torch once. A small library under libc's file functions counts the calls that
change files below a path and acts at the Nth; where no C compiler is, `calls` of it skip.
"""

import ctypes
import functools
import multiprocessing
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from plumbline.config import schema
from plumbline.home import assets
from plumbline.jobs import queue
from plumbline.store import runs
from plumbline.store.database import database

SECONDS = 300.0
KILL = -1
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Fault:
    """What goes wrong in a process.

    :param below: part of the paths whose calls are counted; empty for a fault in a step
    :param number: of the call, from 1, or of the step; 0 only counts
    :param error: KILL, or the error number that the call fails with
    :param stays: the calls after it fail too
    :param place: of a step: ``before`` it or ``after`` it
    """

    below: str = ""
    number: int = 0
    error: int = KILL
    stays: bool = False
    place: str = "before"


@functools.cache
def shim() -> str:
    """The library's path; empty where none can be made."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not Path("/proc/self/fd").exists():
        return ""
    made = Path(tempfile.mkdtemp(prefix="shim-")) / "shim.so"
    source = Path(__file__).with_name("shim.c")
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", made, source, "-ldl"], check=True)
    return str(made)


@functools.cache
def _serve() -> None:
    """Start the fork server with the library in it, on one thread: a fork copies no other."""
    from multiprocessing import forkserver

    changed = {name: "1" for name in THREADS} | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    if shim():
        changed["LD_PRELOAD"] = shim()
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        multiprocessing.get_context("forkserver").set_forkserver_preload(["tests.faults.preloaded"])
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def run(target: Callable[..., Any], home: Path, fault: Fault | None = None, *given: Any) -> tuple[int, int]:
    """Call a function in a forked process on a workspace.

    :returns: its exit code (-9 when killed), and how many steps it made or calls it counted
    """
    if fault is not None and fault.below and not shim():
        pytest.skip("needs a C compiler and /proc")
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("needs forks")
    _serve()
    context: Any = multiprocessing.get_context("forkserver")
    counted = context.Value("l", 0)
    process = context.Process(target=_child, args=(target, str(home), fault, counted, given))
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        raise AssertionError("the forked process did not end")
    return process.exitcode, counted.value


def _child(target: Callable[..., Any], home: str, fault: Fault | None, counted: Any, given: Any) -> None:
    os.environ["PLUMBLINE_HOME"] = home
    if fault is not None and fault.below:
        library = ctypes.CDLL(shim_path())
        library.fault_arm(fault.below.encode(), ctypes.c_long(fault.number), fault.error, int(fault.stays))
    _count_steps(fault, counted)
    target(*given)
    if fault is not None and fault.below:
        library.fault_count.restype = ctypes.c_long
        counted.value = library.fault_count()
        library.fault_arm(b"", ctypes.c_long(0), 0, 0)


def shim_path() -> str:
    return os.environ["LD_PRELOAD"]


def _count_steps(fault: Fault | None, counted: Any) -> None:
    from plumbline.training.loop.trainer import Trainer

    honest = Trainer.training_step

    def step(trainer: Any, *given: Any, **named: Any) -> Any:
        here = fault is not None and not fault.below and trainer.state.global_step + 1 == fault.number
        if here and fault.place == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        loss = honest(trainer, *given, **named)
        if here:
            os.kill(os.getpid(), signal.SIGKILL)
        counted.value = trainer.state.global_step + 1
        return loss

    Trainer.training_step = step  # type: ignore[method-assign]


def work(job_id: int) -> None:
    """Do a job, as the worker does."""
    from plumbline.jobs.job import Job
    from plumbline.worker.worker import work_on

    work_on(Job(queue.get(job_id)))


def tiny_base(folder: Path) -> str:
    """A Llama of two layers with random weights and the starter's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True)
    for path in (assets() / "starter").iterdir():
        if path.is_file() and path.suffix != ".safetensors" and path.name != "config.json":
            shutil.copy(path, folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    settings = LlamaConfig(
        vocab_size=4096,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        **sizes,
    )
    LlamaForCausalLM(settings).to(torch.bfloat16).save_pretrained(folder)
    return str(folder)


def tiny_recipe(base: str, lora: dict[str, Any], **training: Any) -> schema.RunConfig:
    """Seconds of training, over more than one epoch, with evaluations and saves in between."""
    raw = schema.preset("starter").model_dump()
    short = {"max_steps": 12, "eval_steps": 4, "save_steps": 3, "effective_batch": 2, "max_length": 256}
    raw["model"]["base"] = base
    raw["lora"] |= {"r": 4} | lora
    raw["data"]["max_rows"] = 16
    raw["training"] |= short | training
    raw["evaluation"] |= {"max_rows": 4}
    return schema.validated(raw)


def curve(run_id: int) -> list[tuple[Any, ...]]:
    """All that a run measured, by step."""
    return [(p["step"], p["loss"], p["eval_loss"], p["grad_norm"]) for p in runs.metrics(run_id)]


def healthy() -> bool:
    """SQLite's own look at the whole file."""
    return database().execute("pragma integrity_check").fetchone()[0] == "ok"
