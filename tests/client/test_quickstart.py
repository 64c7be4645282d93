"""The README's first command, from nothing to a tuned model that cites its sources."""

import json
import os
import subprocess
import sys
from pathlib import Path

from plumbline.store import evaluations, runs
from tests import ROOT


def test_quickstart_teaches_the_starter_to_cite(workspace: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), "quickstart", "--headless"],
        env={**os.environ, "PLUMBLINE_HOME": str(workspace)},
        capture_output=True,
        text=True,
        timeout=1200,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = runs.get(1)
    evaluation = evaluations.latest(1)
    assert evaluation is not None
    result, summary = evaluation["result"], json.loads(run["summary"])
    print(
        f"\nbase {result['base']['exact_match']:.0%}, adapter {result['adapter']['exact_match']:.0%}, "
        f"training {summary['seconds']:.0f} s"
    )
    assert (run["state"], result["rows"]) == ("completed", 100)
    assert result["base"]["exact_match"] <= 0.05
    assert result["adapter"]["exact_match"] >= 0.75
    # What is printed is what is stored.
    assert f"{result['adapter']['exact_match']:.1%}" in done.stdout
    assert (
        summary["base_unchanged"]
        and summary["base_sha256"] in (workspace / "runs" / "1" / "baseline_checksums.json").read_text()
    )
