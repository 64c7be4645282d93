"""How the page follows the store: views that are drawn again only when their signature changes.

One timer serves the whole page. A view never keeps anything between ticks but its signature,
so a reload, a second tab or a restart shows the same truth.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

# Charts that were drawn while their tab was hidden have not measured their box.
RESIZE = "() => { setTimeout(() => window.dispatchEvent(new Event('resize')), 100); }"
Signature = Callable[[int | None], Any]
Render = Callable[[int | None], list[Any]]


@dataclass(frozen=True)
class View:
    """Some components, when to draw them, and how. Both functions get the chosen run's id.

    :param pausable: kept still while "Pause live updates" is ticked
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

        :param seen: what the page shows now; empty draws everything
        """
        signatures, updates = [], []
        for number, view in enumerate(self.views):
            old = seen[number] if number < len(seen) else None
            new = repr(view.signature(run_id)) if not (paused and view.pausable and old) else old
            signatures.append(new)
            updates += [gr.skip() for _ in view.outputs] if new == old else view.render(run_id)
        return signatures, updates
