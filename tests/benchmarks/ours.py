"""How quick the studio's own path is: python -m tests.benchmarks.ours --model FOLDER ... [--also ...]

Through everything that a run goes through: plan, trainer, logging, SQLite. Rows, dimensions and the way
of timing are those of tests.benchmarks.peers; it prints one line a run, `RESULT {json}`. Each ``--also``
begins the options of another run, beside the common ones before them; the base is loaded once.
On several GPUs: accelerate launch --num_processes 4 -m tests.benchmarks.ours ...
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from plumbline.models.hardware import release_memory
from tests.benchmarks.peers import DIMS, row_lengths

KEPT = 10**6  # steps between evaluations and checkpoints: none while it is timed


def recipe(arguments: argparse.Namespace) -> Any:
    from plumbline.config import schema

    training = {
        "effective_batch": arguments.examples,
        "max_steps": arguments.warm_up + arguments.steps,
        "max_length": arguments.length,
        "micro_batch_tokens": arguments.tokens,
        "gradient_checkpointing": arguments.checkpointing,
        "optimizer": arguments.optimizer,
        "eval_steps": KEPT,
        "save_steps": KEPT,
    }
    machines = {"gpus": 1, "sharding": "full" if arguments.shard else "none"}
    return schema.validated({"model": {"base": arguments.model}, "training": training, "machines": machines})


def made_rows(arguments: argparse.Namespace) -> list[Any]:
    """Random rows; of each, the last ``--supervised`` share is learned."""
    import numpy

    from plumbline.data.tokens.encode import IGNORED, Encoded

    count = arguments.examples * (arguments.warm_up + arguments.steps + 1)
    generator = numpy.random.default_rng(0)
    vocabulary = min(DIMS[arguments.dims]["vocab_size"], 50000) if arguments.dims else 4000
    rows = []
    for length in row_lengths(arguments.rows, arguments.length)[:count]:
        ids = generator.integers(3, vocabulary, length).tolist()
        masked = length - max(2, round(length * arguments.supervised))
        rows.append(Encoded(ids, [IGNORED] * masked + ids[masked:], [], 0))
    return rows


def train(arguments: argparse.Namespace, base: Any) -> tuple[dict[str, Any], Any]:
    """Plan, forecast, train, and measure the steps after the warm-up; the base is loaded when None."""
    import torch
    from transformers import TrainerCallback

    from plumbline.batches.prepare import Prepared
    from plumbline.distributed import process_group
    from plumbline.home import run_folder
    from plumbline.jobs import queue
    from plumbline.jobs.job import Job
    from plumbline.models import adapters, hardware, load, stack
    from plumbline.planner import cost, forecast, probe
    from plumbline.store import runs
    from plumbline.training import assembly
    from plumbline.training.loop.record import Record
    from plumbline.training.ranks.sharded_base import spread

    stack.ready()
    config, rows = recipe(arguments), made_rows(arguments)
    lengths, supervised = [len(row.input_ids) for row in rows], sum(row.supervised for row in rows)
    run_id = runs.add(config, 0)
    job = Job(queue.get(queue.enqueue("train", run_id)))
    queue.claim(job.id)
    begun = time.perf_counter()
    counted = forecast.forecast(config, len(rows), lengths, supervised, 2)
    forecast_seconds = time.perf_counter() - begun
    hardware.forget_peak()
    if base is None:
        base = spread(config, process_group.current(), "cuda") if arguments.shard else load.base_model(config)
    model = adapters.attach(base, config)
    probed = counted
    if arguments.probe:
        begun = time.perf_counter()
        probed = probe.sharpened(config, model, counted, lengths, supervised, counted.parts["loading"])
        probe_seconds = time.perf_counter() - begun
        torch.cuda.empty_cache()
    prepared = Prepared(rows, rows[:2], ["rows"] * 2)
    planned = assembly.planned(config, prepared, assembly.arranged(config, prepared)).plan
    record = Record(job, run_folder(run_id) / "metrics_history.jsonl")
    trainer, decisions = assembly.trainer(config, job, model, prepared, run_folder(run_id), planned, record)
    cuda = torch.cuda.is_available()
    marks: list[tuple[float, int]] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step in (arguments.warm_up, state.max_steps):
                if cuda:
                    torch.cuda.synchronize()
                marks.append((time.perf_counter(), trainer.tokens))

    spent = _timed(trainer.record) if not arguments.silent else _silenced(trainer.record)
    trainer.add_callback(Clock())
    hardware.forget_peak()
    trainer.train()
    (began, before), (ended, after) = marks
    seconds = (ended - began) / arguments.steps
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else None
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    measured = cost.device_speed("cuda" if cuda else "cpu", hardware.compute_dtype(config).value)
    result = {
        "tokens_per_second": round((after - before) / (ended - began)),
        "seconds_per_step": round(seconds, 4),
        "peak_gib": round(peak, 2) if peak else None,
        "reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2) if cuda else None,
        "tokens_per_step": round((after - before) / arguments.steps),
        "plan": {name: choice.value for name, choice in decisions.items()},
        "launch_microseconds": round(measured.launch_overhead * 1e6, 1),
        "callbacks_share": round(spent[0] / (time.perf_counter() - began), 4),
        "forecast_seconds": round(forecast_seconds, 2),
        "forecast": _against(counted, peak, seconds),
        "first_loss": round(losses[0], 4),
        "last_loss": round(losses[-1], 4),
    }
    if arguments.probe:
        result |= {"probe": _against(probed, peak, seconds), "probe_seconds": round(probe_seconds, 1)}
    return result, model.unload()


def _against(found: Any, peak: float | None, seconds: float) -> dict[str, Any]:
    """A forecast and its error in percent of the outcome."""
    return {
        "peak_gib": round(found.peak_gib, 2),
        "seconds_per_step": round(found.seconds_per_step, 4),
        "memory_error": round(100 * (found.peak_gib / peak - 1), 1) if peak else None,
        "time_error": round(100 * (found.seconds_per_step / seconds - 1), 1),
    }


def _timed(record: Any) -> list[float]:
    """Sums the seconds that a run's own callback takes."""
    spent = [0.0]
    for name in ("on_step_end", "on_log"):
        inner = getattr(record, name)

        def outer(*given: Any, _inner: Any = inner, **named: Any) -> None:
            begun = time.perf_counter()
            _inner(*given, **named)
            spent[0] += time.perf_counter() - begun

        setattr(record, name, outer)
    return spent


def _silenced(record: Any) -> list[float]:
    """Takes the callback out, for the time without it."""
    record.on_step_end = record.on_log = lambda *given, **named: None
    return [0.0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", required=True, metavar="FOLDER", help="the checkpoint, or starter")
    parser.add_argument("--dims", choices=list(DIMS))
    parser.add_argument("--rows", choices=["instruction", "full"], default="instruction")
    parser.add_argument("--length", type=int, default=2048, help="tokens in the longest row")
    parser.add_argument("--supervised", type=float, default=1.0, help="share of a row that is learned")
    parser.add_argument("--examples", type=int, default=64, help="rows in an optimizer step")
    parser.add_argument("--tokens", type=int, help="micro_batch_tokens; the planner's choice if not given")
    parser.add_argument("--checkpointing", default="auto", help="gradient_checkpointing")
    parser.add_argument("--optimizer", default="auto")
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps measured")
    parser.add_argument(
        "--warm-up", type=int, default=8, help="optimizer steps before those; graphs are recorded in them"
    )
    parser.add_argument("--probe", action="store_true", help="probe as well, and compare both forecasts")
    parser.add_argument("--shard", action="store_true", help="spread the base over all processes")
    parser.add_argument("--gib", type=float, help="most memory that a GPU may give, in GiB")
    parser.add_argument("--silent", action="store_true", help="without logging and SQLite")
    from plumbline.distributed import process_group

    joined = process_group.init()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PLUMBLINE_HOME"] = str(Path(folder) / "home")
        base = None
        for options in _runs(sys.argv[1:]):
            arguments = parser.parse_args(options)
            if arguments.gib:
                _limit(arguments.gib)
            names = ("dims", "rows", "length", "tokens", "checkpointing", "supervised", "examples")
            result = {"peer": "ours"} | {name: getattr(arguments, name) for name in names}
            found, base = train(arguments, base)
            if joined.first:
                print("RESULT " + json.dumps(result | found | {"processes": joined.size}), flush=True)
            release_memory()
    process_group.destroy()


def _limit(gib: float) -> None:
    import torch

    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(gib * 2**30 / total)


def _runs(options: list[str]) -> list[list[str]]:
    """The options of every run: what comes before the first ``--also`` is common to all."""
    places = [place for place, option in enumerate(options) if option == "--also"]
    if not places:
        return [options]
    ends = [*places[1:], len(options)]
    common = options[: places[0]]
    return [common + options[start + 1 : end] for start, end in zip(places, ends, strict=True)]


if __name__ == "__main__":
    main()
