"""A pane that shows a conversation as plain text, character for character."""

from functools import cache
from typing import Any

import gradio as gr

from plumbline.chat import conversation
from plumbline.chat.conversation import Talk
from plumbline.home import assets


@cache
def _script() -> str:
    return (assets() / "talk.js").read_text(encoding="utf-8")


def pane(elem_id: str, empty: str) -> gr.HTML:
    """:param empty: what stands in it before anything was said"""
    # gr.Chatbot takes what looks like a tag out of a text, and fetches pictures that a text names.
    return gr.HTML(
        value=shown(None, "", None, ""),
        html_template='<div class="pl-talk-title"></div>'
        f'<div class="pl-talk" role="region" tabindex="0" data-empty="{empty}"></div>',
        js_on_load=_script(),
        apply_default_css=False,
        elem_id=elem_id,
    )


def shown(run_id: int | None, title: str, held: Talk | None, side: str) -> dict[str, Any]:
    """A pane's value. Its title is part of it, so that what is shown always belongs to it."""
    return {"run": run_id, "title": title, "messages": [] if held is None else conversation.shown(held, side)}
