"""Base against adapter on the same held-out rows: loss, perplexity, task score, samples.

One base is loaded; "base" is that model with the adapter switched off.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy

from plumbline.batches.prepare import evenly, windows
from plumbline.config.schema import RunConfig
from plumbline.data.selection import mix
from plumbline.data.selection.mix import Chosen
from plumbline.data.tokens.encode import Encoded, encode_all
from plumbline.errors import StudioError
from plumbline.evaluation import preference
from plumbline.evaluation.generate import Reply, Task, answers, task_of
from plumbline.evaluation.loss import held_out_loss
from plumbline.evaluation.score import RULE, exact_match, paired_difference, token_f1
from plumbline.home import run_folder
from plumbline.jobs.job import Job
from plumbline.models import adapter_check, adapters, load
from plumbline.models.artifact import refuse_other_tokenizer
from plumbline.store import evaluations, runs


def evaluate(job: Job) -> dict[str, Any]:
    """Evaluate a run's adapter beside its base and store the result with every answer.

    The payload's ``rows`` says how many held-out rows at most, or "all"; without it the recipe does.

    :returns: ``{"evaluation": id}``
    :raises StudioError: when the run has no adapter yet, or its tokenizer has changed
    """
    refuse_without_adapter(job.run_id)
    config = runs.recipe(job.run_id)
    chosen = mix.of_run(job.run_id)
    tokenizer = load.tokenizer(config.model.base, config.model.revision)
    wanted = job.payload.get("rows") or config.evaluation.max_rows
    numbers = mix.sample(chosen, None if wanted == "all" else int(wanted))
    held_out = [row for _, row in mix.held_out_at(chosen, numbers)]
    job.report("loading base and adapter", 0.0)
    artifact = run_folder(job.run_id) / "artifact"
    refuse_other_tokenizer(artifact, tokenizer)
    adapter_check.refuse_other_base(artifact, config.model.base, config.model.revision)
    model = adapters.opened(load.base_model(config), artifact)
    job.running()
    encoded = list(encode_all(held_out, tokenizer, config.training.max_length, config.data.day))
    sample = {"pool": sum(len(one.held_out) for one in chosen)} | mix.classes_of(chosen, numbers)
    sample |= {"watched": _watched(job.run_id, config, chosen, numbers), "chose": config.training.chooses}
    if config.method.name == "pretraining":
        # As in training nothing is cut, and a long text is many windows.
        whole = [part for row in encoded for part in windows(row, config.training.max_length)]
        encoded = whole if wanted == "all" else evenly(whole, int(wanted))
        sample |= {"texts": len(held_out), "windows": len(whole)}
    asked, calling = compared(held_out)
    tasks = [task for task, _ in asked]

    sides = {}
    for turn, side in enumerate(("base", "adapter")):
        with only(model, side):
            sides[side] = _measure(job, model, tokenizer, config, encoded, tasks, side, turn)
    rows = _rows(tasks, sides)
    result = _result(sides, tasks, rows, len(encoded))
    result |= {
        "sample": sample,
        "calling": calling,
        "quantisation": config.quantisation.method,
        "precision": str(model.dtype).removeprefix("torch."),
    }
    if rows and all(str(row.get("label") or "").strip() for _, row in asked):
        result["labels"] = _labels([str(row["label"]) for _, row in asked], rows)
    if config.method.judges:
        result["preference"] = preference.measured(job, model, tokenizer, config, held_out)
    evaluation_id = evaluations.add(job.run_id, chosen[0].dataset["id"], job.id, result, rows)
    return {"evaluation": evaluation_id}


def compared(held_out: list[dict[str, Any]]) -> tuple[list[tuple[Task, dict[str, Any]]], int]:
    """The tasks whose answers are compared as text, each with its row, and how many answers call a tool.

    Those are not compared: each template writes a call in a way of its own, which is no text of the row.
    """
    tasks = [(task, row) for row in held_out if (task := task_of(row))]
    return [(task, row) for task, row in tasks if not task.calls], sum(task.calls for task, _ in tasks)


def _watched(run_id: int, config: RunConfig, chosen: list[Chosen], numbers: list[Any]) -> int:
    """How many of these held-out rows the run measured while it trained."""
    before = mix.recorded(run_id)
    watched = mix.watched(chosen, config.evaluation.max_rows, before)
    return sum(len(numpy.intersect1d(*pair)) for pair in zip(watched, numbers, strict=True))


def _labels(labels: Sequence[str], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What accuracy stands against, and which labels are recognised.

    :param labels: of the rows that were answered
    :returns: ``always``: the label that is most frequent and the share that it alone would get right;
        ``recall``: for each label its rows, and how many of them base and adapter got right
    """
    counts = Counter(labels)
    right = {side: Counter[str]() for side in ("base", "adapter")}
    for label, row in zip(labels, rows, strict=True):
        for side, counter in right.items():
            counter[label] += int(row[f"{side}_score"])
    most, many = counts.most_common(1)[0]
    recall = [[name, counts[name], right["base"][name], right["adapter"][name]] for name in sorted(counts)]
    return {"always": [most, many / len(labels)], "recall": recall}


def _measure(
    job: Job,
    model: Any,
    tokenizer: Any,
    config: RunConfig,
    encoded: list[Encoded],
    tasks: list[Task],
    side: str,
    turn: int,
) -> dict[str, Any]:
    """Loss and answers of one side; ``turn`` 0 fills the first half of the progress bar."""

    def report(what: str, share: float, rows: int) -> Callable[[int], None]:
        def each_batch(done: int) -> None:
            job.check_stop()
            job.report(f"{side}: {what}, row {done} of {rows}", (turn + share * done / max(rows, 1)) / 2)

        return each_batch

    settings = config.evaluation
    loss = held_out_loss(
        model, encoded, tokenizer.pad_token_id, settings.batch, report("measuring loss", 0.2, len(encoded))
    )
    replies = answers(
        model,
        tokenizer,
        [task.prompt(tokenizer, config.data.day) for task in tasks],
        settings.max_new_tokens,
        settings.batch,
        report("answering", 1.0, len(tasks)),
    )
    return {"loss": loss.loss, "perplexity": loss.perplexity, "tokens": loss.tokens, "answers": replies}


def only(model: Any, side: str) -> AbstractContextManager[Any]:
    """:param side: ``base`` switches the adapter off within, ``adapter`` leaves it on"""
    return adapters.switched_off(model) if side == "base" else nullcontext()


def _rows(tasks: list[Task], sides: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for number, task in enumerate(tasks):
        said: dict[str, str] = {side: found["answers"][number].text for side, found in sides.items()}
        row: dict[str, Any] = {"prompt": task.messages[-1].get("content") or "", "reference": task.answer}
        row |= {f"{side}_answer": text for side, text in said.items()}
        rows.append(row | {f"{side}_score": exact_match(text, task.answer) for side, text in said.items()})
    return rows


def _result(
    sides: dict[str, dict[str, Any]], tasks: list[Task], rows: list[dict[str, Any]], measured: int
) -> dict[str, Any]:
    """:param measured: held-out rows whose loss was taken; ``rows`` are those with an answer"""
    result: dict[str, Any] = {"rows": measured, "answers": len(rows), "rule": RULE}
    for side, found in sides.items():
        result[side] = {key: found[key] for key in ("loss", "perplexity", "tokens")}
        if rows:
            replies: list[Reply] = found["answers"]
            result[side]["exact_match"] = sum(row[f"{side}_score"] for row in rows) / len(rows)
            pairs = zip(replies, tasks, strict=True)
            result[side]["token_f1"] = sum(token_f1(r.text, task.answer) for r, task in pairs) / len(rows)
            result[side]["cut"] = [number for number, reply in enumerate(replies) if reply.cut]
            result[side]["close"] = sum(reply.close for reply in replies)
    if rows:
        result["difference"] = paired_difference(
            [row["base_score"] for row in rows], [row["adapter_score"] for row in rows]
        )._asdict()
    return result


def tells_apart(result: dict[str, Any]) -> bool:
    """Whether adapter and base differ in exact answers: their sentence gives an interval in brackets then."""
    if "difference" not in result or "preference" in result:
        return False
    return not result["difference"]["low"] <= 0 <= result["difference"]["high"]


def sentence(result: dict[str, Any]) -> str:
    """The result in words, honest about what cannot be told apart."""
    if "preference" in result:
        return preference.sentence(result["preference"])
    base, adapter = result["base"], result["adapter"]
    perplexity = f"Held-out perplexity went from {base['perplexity']:.2f} to {adapter['perplexity']:.2f}."
    if "difference" not in result:
        return perplexity
    points = {key: round(100 * value) for key, value in result["difference"].items()}
    if not tells_apart(result):
        told = "In exact answers, adapter and base cannot be told apart on these rows"
    else:
        word = "more" if points["mean"] > 0 else "fewer"
        low, high = sorted((abs(points["low"]), abs(points["high"])))
        told = f"The adapter answers {abs(points['mean'])} points {word} rows exactly ({low} to {high})"
    return f"{told}. {perplexity}"


def rows_wanted(text: str) -> int | str | None:
    """How many held-out rows to evaluate, as someone wrote it; None for nothing written.

    :raises StudioError: when it is neither a number from 1 nor "all"
    """
    text = text.strip().replace(",", "")
    if not text:
        return None
    if text.lower() == "all":
        return "all"
    if not (text.isascii() and text.isdigit()) or int(text[:12]) < 1:
        raise StudioError("rows", f"{text[:40]!r} is not a number from 1", "Give a number, or all.")
    return int(text[:12])


def refuse_without_adapter(run_id: int) -> None:
    """:raises StudioError: when there is no such run, or it has no finished adapter to work with"""
    run = runs.get(run_id)
    if (run_folder(run_id, create=False) / "artifact" / "adapter_model.safetensors").exists():
        return
    if run["state"] == "completed":
        fix = f"Put runs/{run_id}/artifact back into the workspace, or reproduce the run."
        raise StudioError(f"run {run_id}", "its adapter is no longer there", fix)
    raise StudioError(
        f"run {run_id}", f"is {run['state']} and has no adapter yet", "Wait for it to end, or stop it."
    )
