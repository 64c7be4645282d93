"""Two components of the page's own: a value that the browser keeps, and a list that a view fills."""

from typing import Any

from plumbline_studio.gradio_import import gradio as gr
from plumbline_studio.gradio_import import without_stubs

with without_stubs():

    class Held(gr.JSON):
        """A small value that the browser keeps for the page, where `gr.State` would keep it on the server.

        Of sessions the server keeps only so many, and none over its own restart. A browser can send anything
        in its place, as it can for every other input.
        """

        is_template = True

        def __init__(self, value: Any = None, **given: Any) -> None:
            # Hidden, not absent: a component that is not on the page cannot say that it changed. Gradio makes
            # it again, with its own arguments, wherever a handler leaves it as it is.
            super().__init__(value, **{"visible": "hidden", **given})

        def get_config(self, cls: type | None = None) -> dict[str, Any]:
            return super().get_config(cls or gr.JSON)  # Gradio sends the arguments that this class names

        def preprocess(self, payload: Any) -> Any:
            return payload

        def postprocess(self, value: Any) -> Any:
            return value

    class Choice(gr.Dropdown):
        """A list whose choices a view draws. Gradio's session does not know them: handlers check it."""

        is_template = True

        def preprocess(self, payload: Any) -> Any:
            return payload
