"""What more GPUs bring to a run, the way a user starts it: python -m tests.benchmarks.together --model FOLDER

Texts of instruction length are imported, and `plumbline.api.train` trains on one GPU and then on several. The
checkpoint is made as for tests.benchmarks.peers (`--make`). One line a run, `RESULT {json}`.

With `--leave GIB` other processes first take the memory of every GPU but so much, so that the planner must
spread the base: what one GPU makes of that is told as well.
"""

import argparse
import json
import os
import statistics
import string
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.peers import row_lengths

BALLAST = """
import sys, torch
free, _ = torch.cuda.mem_get_info()
held = torch.empty(int(free - float(sys.argv[1]) * 2**30), dtype=torch.uint8, device="cuda")
print("ready", flush=True)
sys.stdin.read()
"""


def texts(count: int) -> list[str]:
    import numpy

    generator = numpy.random.default_rng(0)
    letters = numpy.array(list(string.ascii_letters + string.digits))
    return ["".join(generator.choice(letters, length)) for length in row_lengths("instruction", 2048)[:count]]


def recipe(arguments: argparse.Namespace, gpus: int) -> Any:
    from plumbline.config import schema

    training = {
        "effective_batch": arguments.examples,
        "max_steps": arguments.steps,
        "max_length": arguments.length,
        "eval_steps": 10**6,
        "save_steps": 10**6,
        "gradient_checkpointing": arguments.checkpointing,
    }
    return schema.validated(
        {
            "name": f"{gpus} GPUs",
            "model": {"base": arguments.model},
            "method": {"name": "pretraining"},
            "data": {"dataset": "texts"},
            "training": training,
            "evaluation": {"max_rows": 8},
            "machines": {"gpus": gpus, "sharding": arguments.sharding},
        }
    )


def measured(arguments: argparse.Namespace, gpus: int) -> dict[str, Any]:
    from plumbline import api
    from plumbline.errors import StudioError
    from plumbline.store import runs

    try:
        api.train(recipe(arguments, gpus))
    except StudioError as error:
        return {"gpus": gpus, "error": error.text}
    run = runs.listed()[0]
    points = [point for point in runs.metrics(run["id"]) if point["loss"] is not None]
    speeds = [point["tokens_per_second"] for point in points if point["tokens_per_second"]]
    decisions = json.loads(run["decisions"])
    return {
        "gpus": gpus,
        "tokens_per_second": round(statistics.median(speeds[len(speeds) // 2 :])),
        "peak_gib_of_the_first": round(points[-1]["memory_gb"], 2),
        "losses": [round(points[0]["loss"], 4), round(points[-1]["loss"], 4)],
        "decisions": {name: f"{choice['value']}: {choice['why']}" for name, choice in decisions.items()},
        "base_sha256": json.loads(run["summary"])["base_sha256"][:12],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", required=True, metavar="FOLDER")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--examples", type=int, default=256, help="rows in an optimizer step")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--length", type=int, default=2048, help="tokens of the longest row")
    parser.add_argument("--checkpointing", default="auto")
    parser.add_argument("--sharding", default="auto")
    parser.add_argument("--leave", type=float, metavar="GIB", help="free memory that is left on every GPU")
    arguments = parser.parse_args()
    os.environ["PLUMBLINE_WORKER"] = "process"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PLUMBLINE_HOME"] = str(Path(folder) / "home")
        from plumbline import api

        path = Path(folder) / "texts.jsonl"
        rows = texts(min(4000, arguments.examples * arguments.steps))
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
        api.add_data(path)
        ballast = [_ballast(number, arguments.leave) for number in range(max(arguments.gpus))]
        for gpus in arguments.gpus:
            print("RESULT " + json.dumps(measured(arguments, gpus)), flush=True)
        for one in filter(None, ballast):
            one.kill()


def _ballast(number: int, leave: float | None) -> subprocess.Popen[str] | None:
    if leave is None:
        return None
    one = subprocess.Popen(
        [sys.executable, "-c", BALLAST, str(leave)],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": str(number)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert one.stdout is not None and one.stdout.readline().strip() == "ready"
    return one


if __name__ == "__main__":
    main()
