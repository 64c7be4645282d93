"""What the server holds of every open page, in bounded memory.

Gradio holds up to 10,000 sessions, each with a configuration of every component (0.8 MiB for
this page). It uses that only to make links to the state of a page, which the studio does not offer.
"""

from collections import OrderedDict
from typing import Any

import gradio as gr
from gradio.state_holder import SessionState

OPEN = 200  # sessions held whole, about 0.2 MiB each
REMEMBERED = 10_000  # sessions of which only the values of their States are held


class _Unkept(dict[int, Any]):
    """Takes everything and holds nothing."""

    def __setitem__(self, key: int, value: Any) -> None:
        pass

    def __missing__(self, key: int) -> dict[str, Any]:
        return {}


class Sessions(OrderedDict[str, SessionState]):
    """Gradio's sessions by their hash, the one used last at the end.

    One that has to go leaves the values of its States, so that a page that comes back goes on
    where it was. What else a page holds is in its browser (`plumbline_studio.held`).
    """

    def __init__(self) -> None:
        super().__init__()
        self._left: OrderedDict[str, dict[int, Any]] = OrderedDict()

    def __setitem__(self, name: str, session: SessionState) -> None:
        session.config_values = _Unkept()
        session.state_data.update(self._left.pop(name, {}))
        super().__setitem__(name, session)

    def popitem(self, last: bool = True) -> tuple[str, SessionState]:
        """Take out a session: of the ones whose page was closed that used longest ago, if there is one."""
        name = next((name for name, session in self.items() if session.is_closed), next(iter(self)))
        session = self.pop(name)
        self._left[name] = dict(session.state_data)
        if len(self._left) > REMEMBERED:
            self._left.popitem(last=False)
        return name, session


def bound(blocks: gr.Blocks) -> None:
    """Bound what the mounted `blocks` hold of their pages."""
    blocks.state_holder.capacity = OPEN
    blocks.state_holder.session_data = Sessions()
