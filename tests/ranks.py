"""One process of several that train the starter together: python -m tests.ranks OUT [--shard]

Each keeps a workspace of its own, so that what it logged and wrote can be compared.
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace


def main() -> None:
    from core.training import world

    joined = world.join()
    out = Path(sys.argv[1])
    home = out / f"home-{joined.rank}"
    os.environ["PLUMBLINE_HOME"] = str(home)

    from core.data import datasets
    from core.models import load
    from core.store import runs
    from core.training import run
    from tests.runs import add, do, recipe

    if "--shard" in sys.argv:
        from core.training import shards
        from core.training.shards import spread

        plain = load.base_model
        shards.load = SimpleNamespace(base_model=plain)  # type: ignore[attr-defined]
        # Until the planner asks for it by itself.
        load.base_model = lambda config, *_: spread(config, joined, "cpu")  # type: ignore[assignment]
        run.proof.base_digest = lambda model: {"sha256": "", "tensors": 0, "bytes": 0}  # type: ignore
    datasets.ensure_samples()
    run_id = add(recipe(training={"max_steps": 4, "effective_batch": 6, "micro_batch_tokens": 256}))
    job = do("train", run_id)
    points = runs.metrics(run_id)
    found = {
        "error": job["error"],
        "losses": [point["loss"] for point in points if point["loss"]],
        "held_out": [point["eval_loss"] for point in points if point["eval_loss"]],
        "norms": [point["grad_norm"] for point in points if point["grad_norm"]],
    }
    (out / f"rank-{joined.rank}.json").write_text(json.dumps(found), encoding="utf-8")
    world.leave()


if __name__ == "__main__":
    main()
