"""Time the import of a large JSONL file beside `datasets.load_dataset`, with peak memory. Not a test.

python -m tests.benchmarks.importing [ROWS] [ROUNDS]
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import psutil

ROWS = 1_000_000
TEXT = "the a of to and in that it is was for on with as be at by this had not are but from or have an they"
IMPORT = """
import sys, time
from pathlib import Path
from plumbline.data.readers.source_files import Source
from plumbline.data.importing.importer import add
from plumbline.data.importing.preview import of_file
source = Source(Path(sys.argv[1]), "rows.jsonl")
began = time.perf_counter(); of_file(source); print(time.perf_counter() - began)
began = time.perf_counter(); add([source]); print(time.perf_counter() - began)
"""
LOAD = """
import sys, time, datasets
datasets.disable_progress_bars()
began = time.perf_counter()
datasets.load_dataset("json", data_files=sys.argv[1], split="train", cache_dir=sys.argv[2])
print(0.0); print(time.perf_counter() - began)
"""


def make(path: Path, rows: int) -> None:
    """About 500 bytes a row, no two alike."""
    draw, words = random.Random(0), TEXT.split()
    with open(path, "w", encoding="utf-8") as file:
        for number in range(rows):
            question, answer = (" ".join(draw.choices(words, k=count)) for count in (55, 60))
            turns = [
                {"role": "user", "content": f"{number} {question}?"},
                {"role": "assistant", "content": f"{answer}."},
            ]
            file.write(json.dumps({"messages": turns}) + "\n")


def measure(program: str, *arguments: str, home: Path) -> tuple[float, float, float]:
    """Seconds to a preview, seconds in all, and the peak memory in MB of the process and its children."""
    environment = os.environ | {"PLUMBLINE_HOME": str(home)}
    child = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True, env=environment
    )
    peak, ended = [0], threading.Event()

    def watch() -> None:
        root = psutil.Process(child.pid)
        while not ended.wait(0.02):
            try:
                held = sum(one.memory_info().rss for one in [root, *root.children(recursive=True)])
            except psutil.Error:
                continue
            peak[0] = max(peak[0], held)

    watcher = threading.Thread(target=watch)
    watcher.start()
    first, whole = (float(line) for line in child.communicate()[0].split())
    ended.set()
    watcher.join()
    return first, whole, peak[0] / 1e6


def main() -> None:
    given = [int(value) for value in sys.argv[1:3]]
    rows, rounds = [*given, *(ROWS, 3)[len(given) :]]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        make(path, rows)
        print(f"{rows:,} rows, {path.stat().st_size / 1e6:.0f} MB, {os.cpu_count()} cores")
        print(f"{'':24}{'preview s':>10}{'import s':>10}{'peak MB':>10}{'ratio':>8}")
        for _ in range(rounds):
            home = Path(folder) / "home"
            beside = measure(LOAD, str(path), str(Path(folder) / "cache"), home=home)
            own = measure(IMPORT, str(path), home=home)
            print(f"{'load_dataset':24}{'':>10}{beside[1]:>10.2f}{beside[2]:>10.0f}")
            ratio = own[1] / beside[1]
            print(f"{'import, checked':24}{own[0]:>10.2f}{own[1]:>10.2f}{own[2]:>10.0f}{ratio:>8.2f}")
            shutil.rmtree(home)
            shutil.rmtree(Path(folder) / "cache")


if __name__ == "__main__":
    main()
