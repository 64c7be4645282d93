"""What a run's summary says to people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


def verdicts(summary: dict[str, Any]) -> list[str]:
    """What a run that has ended did not gain, in sentences; of earlier versions' runs less is known."""
    sentences = []
    if summary.get("learned_nothing"):
        why = "; grpo learns where some answers to a question pass and others do not"
        reason = why if summary.get("method") == "grpo" else ""
        sentences.append(f"nothing was learned: the adapter is what it began as{reason}")
    elif summary.get("best_step") == 0 and summary["eval_loss"] > summary["best_eval_loss"]:
        lowest, last = (f"{summary[name]:.4g}" for name in ("best_eval_loss", "eval_loss"))
        comparison = f"the held-out loss was lowest before training ({lowest}, now {last})"
        sentences.append(f"nothing was gained: {comparison}")
    return sentences
