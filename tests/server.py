"""Start the studio as a user does, in a process of its own, and stop it."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

from tests import ROOT


class Studio:
    """A running studio: its address, its process, and what it printed."""

    def __init__(self, home: Path, *arguments: str, port: str = "0", **environment: str) -> None:
        self.home = home
        self.printed: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "launch.py"), *arguments, "--port", port],
            env={**os.environ, "PLUMBLINE_HOME": str(home), "PYTHONUNBUFFERED": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )
        self.url = self._wait_for_address()
        threading.Thread(target=self._read, daemon=True).start()

    def _wait_for_address(self) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed.append(line)
            found = re.search(r"Plumbline is at (http://\S+?/)(\?\S*)?\s", line)
            if found:
                return found.group(1)
        raise AssertionError("the studio did not start:\n" + "".join(self.printed))

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.printed.extend(self.process.stdout)

    def kill(self) -> None:
        """kill -9: nothing is tidied up."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
