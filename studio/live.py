"""How the page follows the store: views that are drawn again only when their signature changes.

One timer serves the whole page. A view never keeps anything between ticks but its signature,
so a reload, a second tab or a restart shows the same truth.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from core.errors import StudioError
from core.store import runs
from studio.messages import box

log = logging.getLogger("plumbline")
# Charts that were drawn while their tab was hidden have not measured their box.
RESIZE = "() => { setTimeout(() => window.dispatchEvent(new Event('resize')), 100); }"
FAILED = "failed: "  # begins the signature of a view that could not be drawn
Signature = Callable[[int | None], Any]
Render = Callable[[int | None], list[Any]]


@dataclass(frozen=True)
class View:
    """Some components, when to draw them, and how. Both functions get the chosen run's id.

    :param pausable: kept still while "Pause live updates" is ticked; its signature begins with the run's id
    """

    outputs: list[Any]
    signature: Signature
    render: Render
    pausable: bool = False


@dataclass
class Page:
    """What tabs share: the chosen run, the tabs, the form, and the views they add.

    ``actions`` are the events of buttons that change the store: the page is drawn again at once
    after them, not at the next tick.
    """

    blocks: gr.Blocks
    run: gr.State
    tabs: gr.Tabs
    views: list[View] = field(default_factory=list)
    form: dict[str, Any] = field(default_factory=dict)
    paused: Any = None
    actions: list[Any] = field(default_factory=list)

    @property
    def outputs(self) -> list[Any]:
        return [component for view in self.views for component in view.outputs]

    def draw(self, run_id: int | None, seen: list[str], paused: bool = False) -> tuple[list[str], list[Any]]:
        """Updates for `outputs`, and the signatures that they show.

        A view that cannot be drawn stays as it is and is tried again at the next tick; the others go on.

        :param seen: what the page shows now; empty draws everything
        :raises StudioError: when the run was deleted meanwhile
        """
        signatures, updates = [], []
        for number, view in enumerate(self.views):
            old = seen[number] if number < len(seen) else ""
            still = paused and view.pausable and old.startswith(f"({run_id},")
            drawn = [gr.skip() for _ in view.outputs]
            try:
                new = old if still else repr(view.signature(run_id))
                if new != old:
                    drawn = view.render(run_id)
            except Exception as error:
                if run_id is not None and not runs.exists(run_id):
                    raise StudioError(f"run {run_id}", "was deleted") from error
                # Not message_of: it gives each try a code of its own, and this is tried at every tick.
                new = FAILED + (error.text if isinstance(error, StudioError) else repr(error))
                if new != old:
                    log.warning("a part of the page could not be drawn", exc_info=error)
            signatures.append(new)
            updates += drawn
        return signatures, updates


def trouble(signatures: list[str]) -> str:
    """What to tell of the views that could not be drawn; empty when there is none."""
    failed = {signature.removeprefix(FAILED) for signature in signatures if signature.startswith(FAILED)}
    if not failed:
        return ""
    return box("warning", f"A part of this page could not be drawn: {'; '.join(sorted(failed))}")
