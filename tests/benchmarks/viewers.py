"""What viewers cost: python -m tests.benchmarks.viewers [CHECKOUT ...]. Prints a table, asserts nothing.

For each checkout (this one when none is named) a studio is started and asked as pages ask it, every two
seconds each: first by one page, then by 50, of a run that has ended; then by 50 of a run that trains the
starter. A tick that changes nothing is measured in the studio's own processor time; a tick of a live run
in seconds from the question to the answer, drawn parts included. The pages are plain HTTP clients of this
process, so they take processor time too: what is printed is a little worse than the truth.
"""

import asyncio
import os
import random
import re
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests import ROOT

VIEWERS = 50
TICK_SECONDS = 2.0
IDLE_SECONDS, LIVE_SECONDS = 20.0, 40.0


class Served:
    """A studio of some checkout on a workspace of its own, with one short run that has ended."""

    def __init__(self, checkout: Path, place: Path) -> None:
        self.checkout, self.place = checkout, place
        self.environment = {**os.environ, "PLUMBLINE_HOME": str(place), "PYTHONUNBUFFERED": "1"}
        self._train("short", max_steps=8, eval_steps=4)
        command = [sys.executable, "launch.py", "--port", "0"]
        self.process = subprocess.Popen(
            command, cwd=checkout, env=self.environment, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        found = next(filter(None, (re.search(r"(http://\S+?/)", line) for line in self.process.stdout)))
        self.url = found.group(1)

    def _train(self, name: str, **training: int) -> None:
        recipe = self._recipe(name, **training)
        subprocess.run(
            [sys.executable, "launch.py", "train", str(recipe)],
            cwd=self.checkout,
            env=self.environment,
            check=True,
            capture_output=True,
        )

    def _recipe(self, name: str, **training: int) -> Path:
        preset = yaml.safe_load((self.checkout / "assets" / "presets" / "starter.yaml").read_text())
        preset["name"] = name
        preset["training"] = {**preset.get("training", {}), **training}
        preset["evaluation"] = {**preset.get("evaluation", {}), "max_rows": 8, "max_new_tokens": 8}
        path = self.place / f"{name}.yaml"
        path.write_text(yaml.safe_dump(preset))
        return path

    def queue_long(self) -> None:
        """A run that trains for longer than the measurement, by the studio's own worker."""
        code = (
            "import sys; sys.path.insert(0, 'core'); from pathlib import Path;"
            "from plumbline.config import schema; from plumbline.jobs import queue;"
            "from plumbline.store import datasets, runs;"
            "chosen = schema.read_recipe(Path(sys.argv[1]), 'recipe');"
            "queue.enqueue('train', runs.add(chosen, datasets.by_name(chosen.data.dataset)['id']))"
        )
        recipe = self._recipe("long", max_steps=5000, eval_steps=25)
        subprocess.run(
            [sys.executable, "-c", code, str(recipe)], cwd=self.checkout, env=self.environment, check=True
        )

    def step(self, run: int) -> int:
        with closing(sqlite3.connect(self.place / "plumbline.db", timeout=30)) as store:
            found = store.execute("select step from runs where id = ?", [run]).fetchone()
        return (found and found[0]) or 0

    def cpu_seconds(self) -> float:
        return time.clock_gettime((~self.process.pid << 3) | 2)  # Linux: the clock of a process, all threads

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


class Viewer:
    """What one page asks: a tick of the timer, with what the last answer said."""

    def __init__(self, client: httpx.AsyncClient, config: dict[str, Any], run: int, number: int) -> None:
        self.client, self.run, self.session = client, run, f"viewer{number}"
        self.seen, self.shown = "", ""
        listeners = config["dependencies"]
        self.timer = next(one for one in listeners if any(target[1] == "tick" for target in one["targets"]))
        kinds = {one["id"]: one["type"] for one in config["components"]}
        self.inputs: list[Any] = [
            None if kinds[number] == "state" else False for number in self.timer["inputs"]
        ]
        # A listener without a function of the server's: the page's script asks the small route.
        self.small = not self.timer["backend_fn"]
        # Where the page goes when it is opened: the only listener on load that sets the run and the tab.
        self.arrival = next(
            one["id"]
            for one in listeners
            if one["backend_fn"] and len(one["outputs"]) == 2 and any(t[1] == "load" for t in one["targets"])
        )

    async def arrive(self) -> None:
        if not self.small:
            await self._event(self.arrival, [], run=str(self.run))

    async def tick(self) -> int:
        """:returns: the answer's length in bytes"""
        if self.small:
            asked = {"run": self.run, "seen": self.seen, "paused": "false", "now": "false"}
            answer = await self.client.get("live", params=asked | ({"shown": self.run} if self.shown else {}))
            answer.raise_for_status()
            self.seen, self.shown = answer.json()["seen"], "yes"
            return len(answer.content)
        return await self._event(self.timer["id"], self.inputs)

    async def _event(self, listener: int, inputs: list[Any], **query: str) -> int:
        body = {"data": inputs, "fn_index": listener, "session_hash": self.session}
        answer = await self.client.post("gradio_api/run/predict", json=body, params=query)
        answer.raise_for_status()
        return len(answer.content)


async def watch(viewers: list[Viewer], seconds: float) -> list[float]:
    """Every viewer ticks every two seconds from a moment of its own. :returns: seconds of each tick"""
    taken: list[float] = []
    end = time.monotonic() + seconds

    async def one(viewer: Viewer) -> None:
        await asyncio.sleep(random.random() * TICK_SECONDS)
        while time.monotonic() < end:
            began = time.monotonic()
            await viewer.tick()
            taken.append(time.monotonic() - began)
            # As a browser's timer does, which leaves ticks out while one is on its way.
            await asyncio.sleep(TICK_SECONDS - taken[-1] % TICK_SECONDS)

    await asyncio.gather(*(one(viewer) for viewer in viewers))
    return taken


async def measured(served: Served) -> dict[str, float]:
    limits = httpx.Limits(max_connections=VIEWERS, max_keepalive_connections=VIEWERS)
    async with httpx.AsyncClient(base_url=served.url, timeout=120, limits=limits) as client:
        config = (await client.get("config")).json()
        figures: dict[str, float] = {}

        async def viewers(count: int, run: int) -> list[Viewer]:
            """Pages that have been drawn for the first time."""
            made = [Viewer(client, config, run, number) for number in range(count)]
            await asyncio.gather(*(viewer.arrive() for viewer in made))
            await watch(made, 2 * TICK_SECONDS)
            return made

        for count in (1, VIEWERS):
            pages = await viewers(count, 1)
            quiet, at = served.cpu_seconds(), time.monotonic()
            await asyncio.sleep(10)
            quiet = (served.cpu_seconds() - quiet) / (time.monotonic() - at)
            began, at = served.cpu_seconds(), time.monotonic()
            ticks = await watch(pages, IDLE_SECONDS)
            spent = served.cpu_seconds() - began - quiet * (time.monotonic() - at)
            figures[f"CPU ms an idle tick, {count} page(s)"] = spent / len(ticks) * 1000
            figures[f"p95 ms an idle tick, {count} page(s)"] = statistics.quantiles(ticks, n=20)[-1] * 1000
        served.queue_long()
        while served.step(2) < 10:
            await asyncio.sleep(1)
        pages = await viewers(VIEWERS, 2)
        step, at = served.step(2), time.monotonic()
        ticks = await watch(pages, LIVE_SECONDS)
        figures["training steps a second meanwhile"] = (served.step(2) - step) / (time.monotonic() - at)
        figures[f"ticks answered of {int(VIEWERS * LIVE_SECONDS / TICK_SECONDS)}, live run"] = len(ticks)
        figures["p50 ms a tick, live run"] = statistics.median(ticks) * 1000
        figures["p95 ms a tick, live run"] = statistics.quantiles(ticks, n=20)[-1] * 1000
        return figures


def main() -> None:
    checkouts = [Path(name).resolve() for name in sys.argv[1:]] or [ROOT]
    columns = []
    for checkout in checkouts:
        with tempfile.TemporaryDirectory() as place:
            served = Served(checkout, Path(place))
            try:
                columns.append(asyncio.run(measured(served)))
            finally:
                served.close()
    print(f"{'':<42}" + "".join(f"{checkout.name:>12}" for checkout in checkouts))
    for name in columns[0]:
        print(f"{name:<42}" + "".join(f"{column[name]:>12.1f}" for column in columns))


if __name__ == "__main__":
    main()
