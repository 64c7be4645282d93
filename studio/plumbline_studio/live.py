"""How pages follow the store: views that are drawn again only when their signature changes.

One timer serves a whole page. It asks `Page.answer`, by way of the script ``assets/page.js``, what changed
since its last answer. Every view is looked at and drawn once for all pages that show the same run, and not
through Gradio's events, which cost a millisecond for each output, changed or not. The server keeps nothing
of a page, so a reload, a second tab or a restart shows the same truth.
"""

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from gradio.blocks import Block, postprocess_update_dict
from pydantic import BaseModel

from plumbline.errors import StudioError
from plumbline.store import runs
from plumbline.store.database import stamp
from plumbline_studio.messages import box

log = logging.getLogger("plumbline")
# Charts that were drawn while their tab was hidden have not measured their box.
RESIZE = "() => { setTimeout(() => window.dispatchEvent(new Event('resize')), 100); }"
FAILED = "failed: "  # begins the signature of a view that could not be drawn
SHARED_SECONDS = 1.0  # how long pages take what was seen for another page, whatever was written meanwhile
# What the store's files do not tell, such as a checkpoint that is there now, is seen after this long.
LONGEST_SECONDS = 10.0
MOST_RUNS = 16  # runs whose views are remembered
Signature = Callable[[int | None], Any]
Render = Callable[[int | None], list[Any]]


@dataclass(frozen=True)
class View:
    """Some components, when to draw them, and how. Both functions get the chosen run's id.

    What is drawn is sent to every page that shows that run: it may depend on nothing else of a page.

    :param pausable: kept still while "Pause live updates" is ticked, for as long as the same run is shown
    """

    outputs: list[Any]
    signature: Signature
    render: Render
    pausable: bool = False


@dataclass
class Drawing:
    """A view as it was drawn: its signature's short name, and a JSON list of (number of output, update)."""

    name: str
    updates: str = ""
    trouble: str = ""


@dataclass
class Look:
    """What a run's views showed at a time."""

    at: float
    stamp: Any
    signatures: list[str] = field(default_factory=list)
    drawings: dict[int, Drawing] = field(default_factory=dict)


@dataclass
class Page:
    """What tabs share: the chosen run, the tabs, the form, and the views they add.

    ``actions`` are the events of buttons that change the store: the page is drawn again at once
    after them, not at the next tick. ``returned`` changes when the connection came back after a gap.
    """

    blocks: gr.Blocks
    run: Any
    tabs: gr.Tabs
    returned: Any = None
    views: list[View] = field(default_factory=list)
    form: dict[str, Any] = field(default_factory=dict)
    paused: Any = None
    actions: list[Any] = field(default_factory=list)
    looks: dict[int | None, Look] = field(default_factory=dict)
    failures: dict[tuple[int, str], str] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.Lock)

    @property
    def outputs(self) -> list[Any]:
        return [component for view in self.views for component in view.outputs]

    def answer(
        self,
        run_id: int | None,
        seen: list[str],
        shown: int | None = None,
        paused: bool = False,
        now: bool = False,
    ) -> str:
        """What changed, as JSON: ``run``, ``seen`` (to send the next time), ``told`` and ``drawn``.

        A view that cannot be drawn stays as it is and is tried again at the next tick; the others go on.

        :param run_id: the run to show; when it was deleted, perhaps at this moment, the newest is shown
        :param seen: the names in the last answer; empty draws everything
        :param shown: the run of the last answer
        :param now: look again, for this page has changed the store
        """
        if run_id is not None and not runs.exists(run_id):
            run_id = newest()
        with self.lock:
            try:
                drawings = self._drawings(run_id, seen, paused and shown == run_id, now)
            except StudioError:
                run_id = newest()
                drawings = self._drawings(run_id, seen, paused and shown == run_id, True)
        told = _told([drawing.trouble for drawing in drawings])
        changed = [
            drawing.updates
            for drawing, old in zip(drawings, [*seen, *[""] * len(drawings)], strict=False)
            if drawing.name != old and drawing.updates
        ]
        names = json.dumps(".".join(drawing.name for drawing in drawings))
        head = f'"run": {json.dumps(run_id)}, "seen": {names}, "told": {json.dumps(told)}'
        return f'{{{head}, "drawn": [{", ".join(changed)}]}}'

    def _drawings(self, run_id: int | None, seen: list[str], still: bool, now: bool) -> list[Drawing]:
        """Every view as it is. :raises StudioError: when the run was deleted meanwhile"""
        look = self._look(run_id, now)
        first, drawings = 0, []
        for number, view in enumerate(self.views):
            old = seen[number] if number < len(seen) else ""
            signature = look.signatures[number]
            if still and view.pausable and old:
                drawings.append(Drawing(old))
            elif signature.startswith(FAILED):
                drawings.append(Drawing(_name(signature), trouble=signature))
            elif _name(signature) == old:
                drawings.append(Drawing(old))
            else:
                drawings.append(self._drawn(look, number, first, run_id))
            first += len(view.outputs)
        return drawings

    def _look(self, run_id: int | None, now: bool) -> Look:
        known, mark = self.looks.get(run_id), stamp()
        if known is not None and not now:
            age = time.monotonic() - known.at
            if age < SHARED_SECONDS or (age < LONGEST_SECONDS and known.stamp == mark):
                return known
        # Its time and the files' stamp are taken before it looks: what is written meanwhile is seen again.
        look = Look(time.monotonic(), mark)
        for number, view in enumerate(self.views):
            try:
                look.signatures.append(repr(view.signature(run_id)))
                self.failures.pop((number, "signature"), None)
            except Exception as error:
                look.signatures.append(self._failure((number, "signature"), run_id, error))
        if known is not None:
            look.drawings = {number: one for number, one in known.drawings.items() if not one.trouble}
        self.looks.pop(run_id, None)
        self.looks[run_id] = look
        if len(self.looks) > MOST_RUNS:
            self.looks.pop(next(iter(self.looks)))
        return look

    def _drawn(self, look: Look, number: int, first: int, run_id: int | None) -> Drawing:
        known, name = look.drawings.get(number), _name(look.signatures[number])
        if known is not None and (known.trouble or known.name == name):
            return known
        view = self.views[number]
        try:
            drawn = Drawing(name, _updates(view.outputs, view.render(run_id), first))
            self.failures.pop((number, "render"), None)
        except Exception as error:
            trouble = self._failure((number, "render"), run_id, error)
            drawn = Drawing(_name(trouble), trouble=trouble)
        look.drawings[number] = drawn
        return drawn

    def _failure(self, where: tuple[int, str], run_id: int | None, error: Exception) -> str:
        """What stands in a signature's place. :raises StudioError: when the run was deleted meanwhile"""
        if run_id is not None and not runs.exists(run_id):
            raise StudioError(f"run {run_id}", "was deleted") from error
        # Not message_of: it gives each try a code of its own, and this is tried again and again.
        text = FAILED + (error.text if isinstance(error, StudioError) else repr(error))
        if self.failures.get(where) != text:
            log.warning("a part of the page could not be drawn", exc_info=error)
        self.failures[where] = text
        return text


def newest() -> int | None:
    return next((row["id"] for row in runs.listed(1)), None)


def _name(signature: str) -> str:
    return hashlib.blake2s(signature.encode(errors="surrogatepass"), digest_size=5).hexdigest()


def _updates(outputs: list[Any], values: list[Any], first: int) -> str:
    """Updates of a view's outputs as JSON, between commas: ``[number of the output, update]``.

    :param first: the number of the view's first output on the page
    """
    sent = []
    for number, (component, value) in enumerate(zip(outputs, values, strict=True), start=first):
        update = _update(component, value)
        if update != gr.skip():
            sent.append(json.dumps([number, update]))
    return ", ".join(sent)


def _update(component: Any, value: Any) -> Any:
    """What Gradio would send for an output, as `gradio.blocks.Blocks.postprocess_data` makes it."""
    if isinstance(value, Block):
        value = {**value.constructor_args, "__type__": "update"}
    if isinstance(value, dict) and value.get("__type__") == "update":
        changes = {name: each for name, each in value.items() if name != "__type__"}
        made = {**component.constructor_args, **changes, "render": False}
        made.pop("value", None)
        return postprocess_update_dict(type(component)(**made), changes)
    sent = component.postprocess(value)
    return sent.model_dump() if isinstance(sent, BaseModel) else sent


def _told(troubles: list[str]) -> str:
    """What to tell of the views that could not be drawn; empty when there is none."""
    failed = {trouble.removeprefix(FAILED) for trouble in troubles if trouble}
    if not failed:
        return ""
    return box("warning", f"A part of this page could not be drawn: {'; '.join(sorted(failed))}")
