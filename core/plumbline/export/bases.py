"""The quantised base that an adapter learned on, beside the 16-bit base that it is merged into.

They are two models: an adapter learns to make up for what rounding did to its own base, so on the other one
some of its answers differ. How many, and what that does to its score, is measured with every merge.
"""

from collections.abc import Callable, Sequence
from typing import Any

from plumbline.config.schema import RunConfig
from plumbline.data.selection import mix
from plumbline.evaluation.generate import Task, answers, task_of
from plumbline.evaluation.score import exact_match

MOST_ROWS = 100


def tasks(run_id: int, config: RunConfig) -> list[Task]:
    """What both are asked: held-out rows that stand for all of them; none for plain texts."""
    rows = mix.held_out_rows(mix.of_run(run_id), min(MOST_ROWS, config.evaluation.max_rows))
    return [task for _, row in rows if (task := task_of(row))]


def answered(
    model: Any, tokenizer: Any, config: RunConfig, asked: Sequence[Task], each_batch: Callable[[int], None]
) -> list[str]:
    prompts = [task.prompt(tokenizer, config.data.day) for task in asked]
    settings = config.evaluation
    replies = answers(model, tokenizer, prompts, settings.max_new_tokens, settings.batch, each_batch)
    return [reply.text for reply in replies]


def compared(
    config: RunConfig, asked: Sequence[Task], there: Sequence[str], here: Sequence[str]
) -> dict[str, Any]:
    """:param there: answers on the base of training, ``here`` those on the 16-bit base
    :returns: ``quantisation``, ``rows``, how many got the ``same`` answer, and how many exact ones each gave
    """
    return {
        "quantisation": config.quantisation.method,
        "rows": len(asked),
        "same": sum(there_answer == other for there_answer, other in zip(there, here, strict=True)),
        "exact": [
            int(sum(exact_match(text, task.answer) for text, task in zip(side_answers, asked, strict=True)))
            for side_answers in (there, here)
        ],
    }


def sentence(comparison: dict[str, Any]) -> str:
    """What the change of base does to the adapter's answers."""
    rows, (there, here) = comparison["rows"], comparison["exact"]
    method, same = comparison["quantisation"], comparison["same"]
    return (
        f"The adapter learned on the {method} base; the 16-bit base is another model. On "
        f"{rows:,} held-out rows {same:,} answers are the same on both, and {there / rows:.1%} are "
        f"exact on the {method} base, {here / rows:.1%} on the 16-bit one"
    )
