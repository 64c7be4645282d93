"""`plumbline forecast` and `plumbline show`, and the same from Python."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plumbline import api
from plumbline.cli import main
from plumbline.config import schema
from plumbline.errors import StudioError
from plumbline.jobs import queue
from plumbline.store import runs
from tests.forecasts import Fake, Forecast, installed
from tests.runs import add, recipe

Run = Callable[..., str]


@pytest.fixture
def fake(samples: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    return installed(monkeypatch)


@pytest.fixture
def run(fake: Fake, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A function that runs a verb and returns what it printed, errors included."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: str, code: int = 0) -> str:
        assert main.main(list(arguments), lambda *_: None) == code
        captured = capsys.readouterr()
        assert all(len(line) <= 100 for line in captured.out.splitlines())
        return " ".join((captured.out + captured.err).split())

    return run


def test_a_recipes_forecast_is_printed_as_the_panel_shows_it(run: Run) -> None:
    printed = run("forecast", "starter", "--price", "2.5")
    assert "Rows 400 train + 100 held out Measured on 100 of 100 held-out rows Steps 100 of 8 rows" in printed
    assert "What it takes (forecast) Memory 3.2 of 15.1 GiB Time about 12 min (1.3 s a step)" in printed
    assert "Cost about 0.50" in printed
    assert "Micro-batch 4,096 tokens (they fit with <all> activations)" in printed
    assert "ok no row is cut at 256 tokens" in printed


def test_a_recipe_file_is_read_and_its_own_price_counts(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(schema.dumps(recipe(training={"price_per_hour": 10})))
    assert "Cost about 2.00" in run("forecast", str(file))
    assert "Cost about 0.00" in run("forecast", str(file), "--price", "0")


@pytest.mark.parametrize("price", ["2,50", "$3", "-1", "nan", "lots", ""])
def test_a_price_that_is_none_is_refused(run: Run, price: str) -> None:
    printed = run("forecast", "starter", f"--price={price}", code=2)
    assert printed.startswith("error: --price: training.price_per_hour must be ")


def test_wrong_use_is_explained(run: Run, fake: Fake, tmp_path: Path) -> None:
    assert "nowhere.yaml: is not there" in run("forecast", "nowhere.yaml", code=2)
    file = tmp_path / "bad.yaml"
    file.write_text("training: {micro_batch_tokens: 4k}\ndata: {dataset: none}\n")
    assert 'micro_batch_tokens must be a whole number, got "4k"' in run("forecast", str(file), code=2)
    file.write_text("data: {dataset: none}\n")
    assert "dataset 'none': does not exist" in run("forecast", str(file), code=2)
    assert "run 7: does not exist" in run("show", "7", code=2)


def test_what_cannot_be_started_ends_with_1(run: Run, fake: Fake) -> None:
    fake.say(problem="needs 41 GiB; with full checkpointing it would need 12 GiB")
    assert "STOP needs 41 GiB; with full checkpointing it would need 12 GiB" in run(
        "forecast", "starter", code=1
    )


def test_a_measurement_comes_first_where_it_is_asked_for(run: Run) -> None:
    printed = run("forecast", "starter", "--probe")
    assert "What it takes (measured here) Memory 3.5 of 15.1 GiB Time 15 min" in printed
    assert "What it takes (measured here)" in run("forecast", "starter")


def test_a_measurement_that_fails_ends_with_1_and_its_reason(run: Run, fake: Fake) -> None:
    def measure(config: Any, job: Any) -> Forecast:
        raise StudioError("measurement", "needs 19 GiB and 15 GiB are free")

    fake.measures = measure
    assert "probe failed. measurement: needs 19 GiB" in run("forecast", "starter", "--probe", code=1)


def test_show_prints_a_run_and_its_forecast_beside_its_outcome(run: Run) -> None:
    run_id = add(recipe())
    queue.set_state(queue.enqueue("train", run_id), "failed", error="the loss became nan")
    decisions = {"CPU threads": {"value": "1", "why": "half the cores"}}
    runs.update(run_id, decisions=json.dumps(decisions), eval_loss=0.5, base_eval_loss=4.0, step=4)
    printed = run("show", str(run_id))
    assert "run 1: cited-answers-r16 State failed: the loss became nan Step 4 of ?" in printed
    assert "Held-out loss 0.500, base 4.000 CPU threads 1 (half the cores)" in printed
    assert "Forecast and outcome" not in printed
    outcome = {"peak_gib": 3.0, "seconds_per_step": 1.2, "total_seconds": 650.0, "disk_gib": 0.04}
    runs.update(run_id, forecast=Forecast(probed=True).to_json(), outcome=json.dumps(outcome))
    printed = run("show", str(run_id))
    assert "Forecast and outcome, measured before Start forecast outcome error" in printed
    assert (
        "Peak memory 3.2 GiB 3.0 GiB +7 %" in printed and "Time of the steps 12 min 11 min +11 %" in printed
    )


def test_python_gets_the_forecast_itself(fake: Fake) -> None:
    found = api.forecast(recipe(training={"price_per_hour": 5}))
    assert (found.peak_gib, found.cost, found.probed) == (3.2, 1.0, False)
    assert api.forecast(recipe(), probe=True).probed and api.forecast(recipe()).peak_gib == 3.5


def test_python_is_told_why_there_is_no_forecast(fake: Fake) -> None:
    with pytest.raises(StudioError, match="no answer tokens within 16"):
        api.forecast(recipe(training={"max_length": 16}))

    def measure(config: Any, job: Any) -> Forecast:
        raise StudioError("measurement", "needs 19 GiB")

    fake.measures = measure
    with pytest.raises(StudioError, match="probe of cited-answers-r16: measurement: needs 19 GiB"):
        api.forecast(recipe(), probe=True)
