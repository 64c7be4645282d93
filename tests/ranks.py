"""One process of several that train the starter together: python -m tests.ranks OUT [--shard] [--methods A,B]

Each keeps a workspace of its own, so that what it logged and wrote can be compared.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    from plumbline.distributed import process_group

    joined = process_group.init()
    out = Path(sys.argv[1])
    home = out / f"home-{joined.rank}"
    os.environ["PLUMBLINE_HOME"] = str(home)

    from plumbline.data.selection import datasets

    datasets.ensure_samples()
    if "--methods" in sys.argv:
        methods = sys.argv[sys.argv.index("--methods") + 1].split(",")
        found = {method: _judged(method, home) for method in methods}
    else:
        found = _trained({"training": {"max_steps": 4, "effective_batch": 6, "micro_batch_tokens": 256}})
    (out / f"rank-{joined.rank}.json").write_text(json.dumps(found), encoding="utf-8")
    process_group.destroy()


def _judged(method: str, home: Path) -> dict[str, Any]:
    """Of a run of three steps of 3 rows, and one of the row that is left."""
    from plumbline import api

    rows = [_row(method, number) for number in range(13)]
    file = home / f"{method}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    api.add_data(file)
    return _trained(
        {
            "data": {"dataset": method, "max_rows": None, "held_out_share": 0.25},
            # So that what is drawn does not turn on how rows were packed.
            "quantisation": {"compute_dtype": "float32"},
            "method": {"name": method, "check": "regex", "pattern": "[aeiou]$"},
            "training": {"effective_batch": 3, "micro_batch_tokens": 128, "learning_rate": 2e-3},
            "evaluation": {"max_new_tokens": 4},
        }
    )


def _row(method: str, number: int) -> dict[str, Any]:
    asked = f"Who was it{', and who else' * (number % 4)}? ({number})"
    kind, curt = f"Kindly: {number}.", f"No idea about {number}, go away now."
    if method == "kto":
        good = number % 3 > 0
        return {"prompt": asked, "completion": kind if good else curt, "label": good}
    if method == "grpo":
        return {"prompt": asked, "completion": kind}
    return {"prompt": asked, "chosen": kind, "rejected": curt}


def _trained(sections: dict[str, Any]) -> dict[str, Any]:
    """What a run has measured: losses, held-out losses and gradient norms, and what it logged beside them."""
    from plumbline.home import run_folder
    from plumbline.store import runs
    from tests.runs import add, do, recipe

    machines = {"sharding": "full"} if "--shard" in sys.argv else {}
    run_id = add(recipe(**sections, machines=machines))
    job = do("train", run_id)
    points = runs.metrics(run_id)
    history = (run_folder(run_id) / "metrics_history.jsonl").read_text(encoding="utf-8").splitlines()
    names = ("reward", "answer_tokens", "rewards/", "eval_reward", "num_tokens")
    logged = [value for line in history for name, value in json.loads(line).items() if name.startswith(names)]
    return {
        "error": job["error"],
        "losses": [point["loss"] for point in points if point["loss"] is not None],
        "held_out": [point["eval_loss"] for point in points if point["eval_loss"] is not None],
        "norms": [point["grad_norm"] for point in points if point["grad_norm"] is not None],
        "logged": logged,
    }


if __name__ == "__main__":
    main()
