"""`--json`: plain JSON on stdout and nothing else; the filters of `runs`; completion and version."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plumbline.cli import main, runs
from plumbline.cli.terminal import say_json
from plumbline.jobs import queue
from plumbline.store import evaluations
from plumbline.store import runs as store
from tests.forecasts import installed
from tests.runs import add, recipe

Read = Callable[..., Any]


@pytest.fixture
def read(samples: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Read:
    """A function that runs a verb with ``--json`` and returns what it printed, read."""
    installed(monkeypatch)

    def read(*words: str, code: int = 0) -> Any:
        assert main.main([*words, "--json"], lambda *_: None) == code
        return json.loads(capsys.readouterr().out)

    return read


def test_runs_and_their_filters(read: Read) -> None:
    assert read("runs") == []
    first, second = (
        add(recipe()),
        add(recipe(data={"dataset": "plain-style"}, method={"name": "pretraining"})),
    )
    store.update(first, eval_loss=float("nan"))
    queue.set_state(queue.enqueue("train", first), "failed", error="no room")
    listed = read("runs")
    assert [run["id"] for run in listed] == [second, first]
    assert listed[1]["eval_loss"] is None and listed[1]["error"] == "no room"
    assert (listed[0]["method"], listed[0]["datasets"]) == ("pretraining", ["plain-style"])
    for words in (
        ["--state", "failed"],
        ["--dataset", "cited-answers"],
        ["--method", "supervised"],
        ["CITED"],
    ):
        assert [run["id"] for run in read("runs", *words)] == [first], words
    assert [run["id"] for run in read("runs", "--newest", "1")] == [second]
    assert read("runs", "nothing like it") == []


def test_a_run_and_its_evaluation(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = add(recipe())
    found = read("show", str(run_id))
    assert found["recipe"]["data"]["dataset"] == "cited-answers" and found["evaluation"] is None
    answer = {"prompt": "a", "reference": "b", "base_answer": "c", "adapter_answer": "b"}
    result = {"rows": 1, "base": {"loss": 2.0}, "adapter": {"loss": 1.0}}
    job = queue.enqueue("evaluate", run_id)
    evaluations.add(run_id, 1, job, result, [answer | {"base_score": 0.0, "adapter_score": 1.0}])
    monkeypatch.setattr(runs, "do", lambda *_, **__: "completed")
    found = read("evaluate", str(run_id))
    assert found["result"] == result and found["answers"][0]["adapter_answer"] == "b"
    assert read("show", str(run_id))["evaluation"] == result


def test_a_forecast(read: Read) -> None:
    found = read("forecast", "starter", "--price", "2.5")
    assert found["may_start"] is True and found["forecast"]["peak_gib"] == 3.2
    assert (
        set(found["decisions"]["micro-batch"]) == {"value", "why"} and found["checks"][0]["level"] == "good"
    )


def test_datasets_rows_and_tokens(read: Read) -> None:
    assert [one["name"] for one in read("data")] == ["cited-answers", "plain-style", "ticket-triage"]
    assert read("data", "show", "cited-answers")["tokens"]["rows"] == 400
    rows = read("data", "show", "ticket-triage", "--rows", "2-3")["listed"]
    assert [row["number"] for row in rows] == [2, 3] and rows[0]["row"]["label"] == "billing"
    found = read("data", "xray", "cited-answers", "--row", "2")
    assert sum(token["kind"] in ("learned", "end") for token in found["tokens"]) == found["in_the_loss"]
    assert read("data", "check", "plain-style")["verdict"].startswith("ready")
    mix = read("data", "mix", "cited-answers:2,plain-style")
    assert [part["weight"] for part in mix["datasets"]] == [2, 1]


def test_what_there_is_to_compute_with(read: Read) -> None:
    found = read("doctor")
    assert found["database"] == "sound" and found["error"] == "" and "torch" in found


def test_an_error_leaves_stdout_empty(samples: Path, capsys: pytest.CaptureFixture) -> None:
    assert main.main(["show", "7", "--json"], lambda *_: None) == 2
    assert capsys.readouterr().out == ""


def test_numbers_that_json_has_not_are_null(capsys: pytest.CaptureFixture) -> None:
    say_json({"a": [float("nan"), float("inf"), 1.5, None]})
    assert json.loads(capsys.readouterr().out) == {"a": [None, None, 1.5, None]}


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_a_shell_completes_verbs_and_options(shell: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="0"):
        main.main(["--print-completion", shell], lambda *_: None)
    script = capsys.readouterr().out
    assert "quickstart" in script and "headless" in script and "plumbline" in script
    if shell == "bash" and shutil.which("bash"):
        asked = "COMP_WORDS=(plumbline qui) COMP_CWORD=1; _shtab_plumbline; echo ${COMPREPLY[@]}"
        done = subprocess.run(["bash", "-c", f"{script}\n{asked}"], capture_output=True, text=True)
        assert done.stdout.split() == ["quickstart"], done.stderr


def test_version_and_exit_codes_are_told(capsys: pytest.CaptureFixture) -> None:
    from plumbline import __version__

    for words, said in ((["--version"], f"Plumbline {__version__}\n"), (["runs", "--help"], "Exit codes: 0")):
        with pytest.raises(SystemExit, match="0"):
            main.main(words, lambda *_: None)
        assert said in capsys.readouterr().out


def test_usage_is_one_short_line(capsys: pytest.CaptureFixture) -> None:
    for words, said in (
        ("train", "usage: plumbline train RECIPE [options]"),
        ("submit", "usage: plumbline submit (--slurm|--skypilot) RUN [options]"),
        ("data", "usage: plumbline data [VERB] ... [options]"),
    ):
        with pytest.raises(SystemExit):
            main.main([words, "--help"], lambda *_: None)
        assert capsys.readouterr().out.splitlines()[0] == said
