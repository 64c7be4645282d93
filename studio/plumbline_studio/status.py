"""The status strip that stands on every tab."""

from functools import lru_cache
from html import escape
from typing import Any

from plumbline.config.schema import loads
from plumbline.jobs import queue
from plumbline.jobs.job_names import dataset_name, recipe_name
from plumbline.models.hardware import memory_total_gb
from plumbline.planner.figures import duration, perplexity
from plumbline.store import datasets, runs
from plumbline_studio.messages import bar


def strip() -> str:
    """What is being worked on, or what to do next."""
    job = queue.active()
    waiting = queue.waiting()
    if job is None:
        return _wrap("", f"<b>{escape(_next_step(waiting))}</b>" + _fact("queue", str(waiting)))
    facts = f"<b>{escape(_title(job))}</b>"
    facts += f"<span class='pl-muted'>{escape(job['phase'] or job['state'])}</span>"
    facts += bar(job["progress"] or 0.0)
    if job["kind"] == "train":
        run = runs.get(job["run_id"])
        facts += _fact("step", f"{run['step'] or 0:,} / {run['total_steps'] or '?'}")
        facts += _fact("loss", "-" if run["loss"] is None else f"{run['loss']:.3f}")
        facts += _fact(*_held_out(run))
        facts += _fact("left", duration(run["seconds_left"]))
        memory = run["memory_gb"]
        name = "GPU" if run["device"] == "cuda" else "memory"
        total = memory_total_gb(run["device"])
        of = "" if total is None else f" / {total:.0f}"
        facts += _fact(name, "-" if memory is None else f"{memory:.1f}{of} GiB")
    facts += _fact("queue", str(waiting))
    return _wrap("wait" if job["state"] == "stopping" else "live", facts)


def _held_out(run: dict[str, Any]) -> tuple[str, str]:
    """Of a loss that is no mean negative log-likelihood the exponential says nothing."""
    loss, likelihood = run["eval_loss"], _is_likelihood(run["recipe"])
    value = "-" if loss is None else f"{perplexity(loss):.2f}" if likelihood else f"{loss:.3f}"
    return "held-out ppl" if likelihood else "held-out loss", value


@lru_cache(maxsize=8)
def _is_likelihood(recipe: str) -> bool:
    return loads(recipe).method.is_likelihood


def _title(job: dict[str, Any]) -> str:
    if job["kind"] == "check":
        return f"checking {dataset_name(job)} for near-duplicates"
    if job["kind"] == "probe":
        return f"measuring {recipe_name(job)}"
    run = runs.get(job["run_id"])
    name = f"{run['name']} (run {run['id']})"
    return name if job["kind"] == "train" else f"{job['kind']} of {name}"


def _wrap(dot: str, inside: str) -> str:
    return f'<div class="pl-strip" title="Show the work"><span class="pl-dot {dot}"></span>{inside}</div>'


def _fact(name: str, value: str) -> str:
    return f"<span><i>{escape(name)}</i><b>{escape(value)}</b></span>"


def _next_step(waiting: int) -> str:
    if waiting:
        return "Waiting for the worker."
    newest = runs.listed(1)
    if not newest:
        return "No run. Next: " + ("press Start on the Train tab." if datasets.names() else "add a dataset.")
    run = newest[0]
    name = f"{run['name']} (run {run['id']})"
    if run["state"] == "completed":
        return f"{name} is ready to evaluate, chat with and export."
    if run["state"] in ("interrupted", "stopped") and run["step"]:
        return f"{name} was {run['state']}: it can be resumed on the Runs tab."
    return "Nothing running." if run["state"] != "failed" else f"{name} failed: the Runs tab says why."
