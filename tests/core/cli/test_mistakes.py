"""What the command line says of mistakes and of its own errors, and in whose words."""

import subprocess
import sys
from pathlib import Path

import pytest

from plumbline import program
from plumbline.cli import main, runs
from plumbline.errors import StudioError, system_sentence
from plumbline.jobs import queue
from plumbline.store import runs as store
from plumbline_studio.serve import serve
from tests import ROOT


def refused(capsys: pytest.CaptureFixture, *words: str) -> str:
    """What is said of a command that argparse or the verb refuses."""
    try:
        code = main.main(list(words), serve)
    except SystemExit as error:
        code = int(str(error.code))
    printed = capsys.readouterr()
    assert code == 2 and printed.out == "" and printed.err.startswith("error: ")
    return printed.err.strip()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("trian starter", "there is no verb 'trian'. Did you mean train?"),
        ("data shwo", "data: there is no verb 'shwo'. Did you mean show?"),
        ("train --lora.rr 8 starter", "train: there is no option --lora.rr. Did you mean --lora.r?"),
        ("--prot 5", "there is no option --prot. Did you mean --port?"),
        (
            "train startr",
            "startr: is neither a preset nor a file here. Did you mean starter?",
        ),
        ("show abc", "show: RUN takes a run's number from 1, got 'abc'."),
        ("show 99", "run 99: does not exist. `plumbline runs` lists all runs."),
        ("show", "show: needs RUN."),
        ("branch 1 --step", "branch: --step needs a value."),
        ("studio --port 99999", "studio: --port takes a whole number from 0 to 65535, got '99999'."),
        ("runs --state compleetd", "runs: --state cannot be 'compleetd'. Did you mean completed?"),
        ("runs --dataset cited-anwsers", "Did you mean cited-answers? In this workspace: cited-answers"),
        ("data xray --row x cited-answers", "data xray: --row takes a whole number, got 'x'."),
        ("data check a --threshold much", "data check: --threshold takes a number, got 'much'."),
        ("data show a --row 1 --rows 1-2", "data show: --rows does not go with --row."),
        ("submit 3", "submit: needs one of --slurm --skypilot."),
        ("doctor x", "doctor: takes no 'x'. `plumbline doctor --help` explains it."),
    ],
)
def test_a_mistake_is_a_sentence_with_what_was_probably_meant(
    samples: Path, capsys: pytest.CaptureFixture, words: str, said: str
) -> None:
    assert said in refused(capsys, *words.split())


def test_messages_give_commands_as_this_user_types_them(
    samples: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(program.STARTED, "")
    program.started_as(str(ROOT / "launch.py"))
    monkeypatch.chdir(ROOT)
    program.started_as("launch.py")
    assert "`python3 launch.py runs` lists all runs." in refused(capsys, "show", "99")
    assert "`python3 launch.py show --help` explains it." in refused(capsys, "show")
    main.main(["runs"], serve)
    assert "Start one: python3 launch.py quickstart" in capsys.readouterr().out
    monkeypatch.setenv(program.PAGE, "1")
    with pytest.raises(StudioError, match="The Runs tab lists all runs"):
        store.get(99)


def test_a_port_that_is_none_is_refused_wherever_it_comes_from(
    workspace: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StudioError, match="Choose another with --port"):
        serve("127.0.0.1", 99_999, None, "thread")
    monkeypatch.setenv("GRADIO_SERVER_PORT", "lots")
    assert "GRADIO_SERVER_PORT: takes a whole number" in refused(capsys, "studio")


def _broken(*_: object) -> None:
    raise KeyError("a bug")


@pytest.mark.parametrize("writable", [True, False])
def test_an_error_of_its_own_is_a_sentence_that_names_the_file_with_the_traceback(
    workspace: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, writable: bool
) -> None:
    if not writable:
        (workspace / "errors.txt").mkdir(parents=True)  # what stands in the way of a file there
    monkeypatch.setattr(runs, "_matching", _broken)
    assert main.main(["runs"], serve) == 3
    told = capsys.readouterr().err
    assert "Traceback" not in told and "KeyError" in told and told.endswith(" has the details.\n")
    file = Path(told.removesuffix(" has the details.\n").rpartition(" ")[2])
    assert ("KeyError: 'a bug'" in file.read_text()) and (file.parent == workspace) == writable
    if not writable:
        file.unlink()


def test_a_full_disk_is_told_in_the_words_of_what_was_asked() -> None:
    full = OSError(28, "No space left on device")
    assert "then try again" in (system_sentence(full) or "")
    assert "then resume" in (system_sentence(full, "resume") or "")


def test_a_full_disk_names_the_workspace(
    workspace: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs, "_matching", full)
    told = refused(capsys, "runs")
    assert f"The workspace is {workspace.resolve()}." in told and "resume" not in told


def test_the_states_to_filter_by_are_those_of_the_queue() -> None:
    assert set(runs.STATES) == {"queued", *queue.ACTIVE, *queue.ENDED}


def test_warnings_of_libraries_reach_no_terminal_unless_they_are_asked_for() -> None:
    code = (
        "from plumbline import environment; environment.quiet_libraries()\n"
        "import logging, warnings\n"
        "warnings.warn('old', FutureWarning); warnings.warn('odd', UserWarning)\n"
        "logging.getLogger('bitsandbytes.backends').warning('Failed to load')\n"
        "logging.getLogger('plumbline').error('kept')\n"
    )
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT / "core")
    assert (shown.stdout, shown.stderr) == ("", "kept\n")
    asked = [sys.executable, "-W", "default", "-c", code]
    shown = subprocess.run(asked, capture_output=True, text=True, cwd=ROOT / "core")
    assert "FutureWarning: old" in shown.stderr


def test_importing_changes_no_warnings() -> None:
    code = (
        "import logging, warnings; before = warnings.filters[:]; import plumbline.environment\n"
        "assert warnings.filters == before and not logging.getLogger('bitsandbytes').level"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT / "core", check=True)
