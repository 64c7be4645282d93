"""A pane that shows a conversation as plain text, character for character."""

from functools import cache
from typing import Any, Literal

import gradio as gr

from plumbline.chat.conversation import Talk
from plumbline.home import assets


@cache
def _script() -> str:
    return (assets() / "talk.js").read_text(encoding="utf-8")


def pane(elem_id: str, empty: str) -> gr.HTML:
    """:param empty: what stands in it before anything was said"""
    # gr.Chatbot takes what looks like a tag out of a text, and fetches pictures that a text names.
    return gr.HTML(
        value=shown(None, "", None, "base"),
        html_template='<div class="pl-talk-title"></div>'
        f'<div class="pl-talk" role="region" tabindex="0" data-empty="{empty}"></div>',
        js_on_load=_script(),
        apply_default_css=False,
        elem_id=elem_id,
    )


def shown(
    run_id: int | None, title: str, held: Talk | None, side: Literal["base", "adapter"]
) -> dict[str, Any]:
    """A pane's value, as assets/chat.js makes it: one side of a conversation, under its own run's name."""
    tools, messages = (None, []) if held is None else (held["tools"], held[side])
    return {"run": run_id, "title": title, "tools": tools, "messages": messages}
