"""The wheel: everything is in it, and the command `plumbline` works from it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT


@pytest.mark.slow
def test_the_installed_command_knows_its_assets(workspace: Path, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps"]
    subprocess.run([*pip, "--target", str(tmp_path / "site"), str(ROOT)], check=True, cwd=tmp_path)
    command = tmp_path / "site" / "bin" / "plumbline"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, str(command), *arguments],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
        )

    assert "No runs yet" in run("runs").stdout
    assert "workspace" in run("doctor").stdout
    assert run("train", "quick_test").returncode == 0
    assert "completed" in run("runs").stdout
