"""What a newcomer sees while the environment is prepared."""

import subprocess
import sys
from pathlib import Path

import pytest

import launch


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(launch, "VENV", tmp_path)
    return tmp_path / "install.log"


def test_what_an_installer_prints_is_kept_in_a_log_behind_one_line(
    log: Path, capsys: pytest.CaptureFixture
) -> None:
    launch.quietly("Installing it", [sys.executable, "-c", "print('Collecting torch')"])
    assert capsys.readouterr() == ("Installing it.\n", "")
    assert log.read_text() == "Collecting torch\n"


def test_the_last_lines_of_one_that_failed_are_shown_with_the_log(
    log: Path, capsys: pytest.CaptureFixture
) -> None:
    code = "for n in range(50): print(f'line {n}')\nraise SystemExit(3)"
    with pytest.raises(subprocess.CalledProcessError):
        launch.quietly("Installing it", [sys.executable, "-c", code])
    shown = capsys.readouterr().err
    assert "line 49\n" in shown and "line 30\n" in shown and "line 29\n" not in shown
    assert f"All of it is in {log}." in shown and "line 0\n" in log.read_text()


def test_packages_of_the_system_come_without_those_they_recommend(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(launch, "quietly", lambda title, command, *_: called.append(command))
    launch.apt("chromium")
    assert "--no-install-recommends" in called[-1] and called[-1][-1] == "chromium"
