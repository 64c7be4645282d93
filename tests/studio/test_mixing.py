"""The lines of the mixing desk, as datasets come and go."""

from typing import Any

import gradio as gr

from plumbline_studio.tabs.data.mix import SLOTS, _place

SAME = gr.skip()


def placed(chosen: list[str], names: list[str], weights: list[float], prefixes: list[str]) -> list[Any]:
    """What the weights and prefixes of all lines are sent: a value, or ``SAME``."""
    filled = [*weights, *[1] * (SLOTS - len(weights)), *prefixes, *[""] * (SLOTS - len(prefixes))]
    sent = _place(chosen, names, *filled)[1 + SLOTS :]
    return [each if each == SAME else each.value for each in sent]


def test_a_line_that_keeps_its_dataset_is_sent_nothing_so_what_is_typed_meanwhile_stays() -> None:
    sent = placed(["a", "b"], ["a"], [3], ["[x]"])
    assert (sent[0], sent[SLOTS]) == (SAME, SAME)
    assert (sent[1], sent[SLOTS + 1]) == (1, "")
    assert sent[2:SLOTS] == [SAME] * (SLOTS - 2)


def test_what_was_set_moves_with_its_dataset_when_another_goes() -> None:
    sent = placed(["b"], ["a", "b"], [3, 0.5], ["", "[b]"])
    assert (sent[0], sent[SLOTS]) == (0.5, "[b]")
    assert (sent[1], sent[SLOTS + 1]) == (1, "")
