"""What is said before Start of memory, time, disk and cost, and after a run of how that came out."""

import json
import re
from pathlib import Path
from typing import Any

import numpy
import pytest

from plumbline.config import schema
from plumbline.config.schema import RunConfig
from plumbline.data.selection import mix, stats
from plumbline.errors import StudioError
from plumbline.planner import figures, measurements, overview
from plumbline.store import probes, runs
from plumbline_studio import forms
from plumbline_studio.tabs.runs import tab as runs_tab
from plumbline_studio.tabs.train import before_start, tab
from tests.forecasts import Fake, Forecast, installed
from tests.runs import add, recipe


@pytest.fixture
def fake(samples: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    return installed(monkeypatch)


def text(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def form(**changed: Any) -> tuple[Any, ...]:
    """What the Train tab shows when fields of the starter preset are changed: panel, buttons, recipe."""
    keys = [setting.key for setting in schema.settings()]
    values = dict(zip(keys, forms.values(schema.preset("starter"), keys), strict=True))
    values |= {name.replace("__", "."): value for name, value in changed.items()}
    return tab._check(keys, list(values.values()))


def test_a_forecast_in_figures() -> None:
    assert figures.of_forecast(Forecast()) == [
        ("Memory", "3.2 of 15.1 GiB"),
        ("Time", "about 12 min (1.3 s a step)"),
        ("Disk", "0.04 GiB"),
    ]
    measured = Forecast(probed=True, cost=1234.5, seconds_per_step=0.234, total_seconds=7200, peak_gib=0.42)
    assert figures.of_forecast(measured) == [
        ("Memory", "0.42 of 15.1 GiB"),
        ("Time", "2.0 h (0.23 s a step)"),
        ("Disk", "0.04 GiB"),
        ("Cost", "1,234.50"),
    ]


@pytest.mark.parametrize(
    ("value", "said"), [(0.0, "0.0"), (0.001, "0.0"), (0.06, "0.06"), (0.97, "1.0"), (141.23, "141.2")]
)
def test_memory_has_two_digits_where_it_is_small(value: float, said: str) -> None:
    assert figures.gib(value) == said


@pytest.mark.parametrize(
    ("value", "said"), [(0.004, "0.004 s"), (0.5, "0.5 s"), (1.0, "1.0 s"), (89, "89 s"), (300, "5 min")]
)
def test_a_step_has_two_digits(value: float, said: str) -> None:
    assert figures.seconds(value) == said


def test_forecast_and_outcome_side_by_side_with_the_error() -> None:
    outcome = {"peak_gib": 3.0, "seconds_per_step": 1.3, "total_seconds": 800, "disk_gib": None}
    assert figures.compared(json.loads(Forecast().to_json()), outcome) == [
        ["Peak memory", "3.2 GiB", "3.0 GiB", "+7 %"],
        ["Time a step", "1.3 s", "1.3 s", "0 %"],
        ["Time of the steps", "12 min", "13 min", "-10 %"],
        ["Disk", "0.04 GiB", "-", "-"],
    ]
    assert figures.compared({}, {"peak_gib": 0.0})[0] == ["Peak memory", "-", "0.0 GiB", "-"]
    assert figures.compared({"disk_gib": 1.0}, {"disk_gib": 0.0})[3][3] == "-"


PARTS = {"loading": 10.0, "base": 4.0, "steps": 200.0, "evaluations": 20.0, "saving": 6.0}


def test_the_time_is_compared_by_part() -> None:
    expected = json.loads(Forecast(parts=PARTS, steps=100).to_json())
    outcome = {"parts": PARTS | {"steps": 250.0, "saving": 0.0}, "steps": 100, "total_seconds": 284.0}
    rows = {row[0]: row[1:] for row in figures.compared(expected, outcome)}
    assert rows["Total time"] == ["4 min", "5 min", "-15 %"]
    assert rows["· steps"] == ["3 min", "4 min", "-20 %"]
    assert rows["· loading the base"] == ["10 s", "10 s", "0 %"] and rows["· saving"][2] == "-"


def test_a_stopped_run_is_judged_for_what_it_did() -> None:
    expected = json.loads(Forecast(parts=PARTS, steps=100).to_json())
    done = {"loading": 10.0, "base": 4.0, "steps": 50.0, "evaluations": 5.0, "saving": 1.5}
    outcome = {"parts": done, "steps": 25, "total_seconds": sum(done.values())}
    rows = {row[0]: row[1:] for row in figures.compared(expected, outcome)}
    assert rows["Total time, 25 of 100 steps"][2] == "0 %" and rows["· steps"] == ["50 s", "50 s", "0 %"]


def test_a_run_whose_earlier_time_nobody_knows_is_not_judged_for_its_time() -> None:
    expected = json.loads(Forecast(parts=PARTS, steps=100).to_json())
    outcome = {"parts": {}, "steps": 100, "total_seconds": None, "seconds_per_step": 1.3}
    rows = {row[0]: row[1:] for row in figures.compared(expected, outcome)}
    assert rows["Time of the steps"] == ["3 min", "-", "-"] and rows["Time a step"][2] == "0 %"


def test_the_forecast_that_was_shown_is_the_one_that_is_kept(fake: Fake) -> None:
    fake.say(peak_gib=2.5, parts=PARTS, steps=100, total_seconds=240.0)
    *_, shown = form()
    keys = [setting.key for setting in schema.settings()]
    values = forms.values(schema.preset("starter"), keys)
    fake.say(peak_gib=9.9)  # memory was freed meanwhile, say
    run_id = tab.start_run(forms.raw(keys, values), "a click", shown)
    kept = json.loads(runs.get(run_id)["forecast"])
    assert kept["peak_gib"] == 2.5 and kept["total_seconds"] == 240.0
    # The panel of another recipe says nothing of this one.
    changed = dict(zip(keys, values, strict=True)) | {"lora.r": 4}
    run_id = tab.start_run(forms.raw(keys, list(changed.values())), "another", shown)
    assert runs.get(run_id)["forecast"] is None


def test_the_panel_says_what_it_takes_and_why(fake: Fake) -> None:
    panel, start, measure, written, _ = form(training__price_per_hour=2.5)
    said = text(panel)
    assert "What it takes forecast Memory 3.2 of 15.1 GiB Time about 12 min (1.3 s a step)" in said
    assert "Disk 0.04 GiB Cost about 0.50" in said
    assert "Micro-batch 4,096 tokens: they fit with &lt;all&gt; activations" in said
    assert "Device " in said and "Compute type " in said
    assert start.interactive and measure.interactive and "price_per_hour: 2.5" in written
    assert "Cost" not in form()[0]


def test_what_cannot_fit_is_neither_started_nor_measured(fake: Fake) -> None:
    fake.say(problem="needs 41 GiB; with micro-batch tokens 2,048 it would need 12 GiB", peak_gib=41.0)
    panel, start, measure, *_ = form()
    assert "✗ needs 41 GiB; with micro-batch tokens 2,048 it would need 12 GiB" in text(panel)
    assert (start.value, start.interactive, measure.interactive) == ("It would not fit", False, False)


def test_a_disk_that_is_too_small_blocks_start(fake: Fake) -> None:
    fake.say(disk_gib=1e7)
    found = overview.outlook(recipe())
    assert found.blocked and found.checks[-1].text.startswith("the run would write 10000000.0 GiB; ")


def test_a_forecast_that_cannot_be_had_is_said_beside_the_other_figures(fake: Fake) -> None:
    fake.says = StudioError("model.base", "has no sizes", "Download it first.")
    panel, start, measure, *_ = form()
    assert "model.base: has no sizes. Download it first." in text(panel) and "Rows 400 train" in text(panel)
    assert not start.interactive and not measure.interactive


def test_where_nothing_is_learned_nothing_is_forecast(fake: Fake) -> None:
    panel, start, measure, *_ = form(training__max_length=16)
    assert fake.asked == [] and start.value == "Nothing to learn" and not measure.interactive
    with pytest.raises(StudioError, match="no answer tokens within 16"):
        overview.expected(recipe(training={"max_length": 16}))


def test_of_a_large_set_the_sample_is_forecast_with_its_own_tokens_in_the_loss(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats, "SAMPLE", 100)
    stats._of_dataset.cache_clear()
    overview.outlook(recipe(data={"max_rows": None}))
    stats._of_dataset.cache_clear()
    _, rows, lengths, supervised = fake.asked[0]
    assert (rows, len(lengths)) == (400, 100)
    assert 0.1 < supervised / lengths.sum() < 0.3


@pytest.mark.parametrize(
    ("field", "typed", "said"),
    [
        ("micro_batch_tokens", "4k", 'Micro-batch tokens must be a whole number, got "4k"'),
        ("micro_batch_tokens", "1.5", "Micro-batch tokens must be a whole number"),
        ("price_per_hour", "2,50 EUR", 'Price per hour must be a number, got "2,50 EUR"'),
        ("micro_batch_tokens", 8, "Micro-batch tokens must be at least 16, got 8"),
        ("micro_batch_tokens", -4096, "Micro-batch tokens must be at least 16"),
        ("price_per_hour", -2, "Price per hour must be at least 0, got -2"),
        ("effective_batch", None, "Effective batch must be a whole number, got null"),
        ("gradient_checkpointing", "yes", "Gradient checkpointing must be one of 'auto', 'none'"),
    ],
)
def test_a_value_that_cannot_be_is_told_by_its_label(
    fake: Fake, field: str, typed: object, said: str
) -> None:
    panel, start, measure, *_ = form(**{f"training__{field}": typed})
    assert said in text(panel.replace("&#x27;", "'").replace("&quot;", '"'))
    assert start.value == "Mend 1 setting to start" and not measure.interactive and fake.asked == []


def test_an_empty_price_and_an_empty_micro_batch_mean_unset(fake: Fake) -> None:
    assert form(training__price_per_hour="", training__micro_batch_tokens="")[1].interactive
    assert form(training__micro_batch_tokens=" 4096 ")[1].interactive
    assert fake.asked[-1][0].training.micro_batch_tokens == 4096
    assert (
        form(training__price_per_hour="0")[1].interactive and fake.asked[-1][0].training.price_per_hour == 0
    )


def test_a_base_that_a_browser_may_not_name_is_neither_forecast_nor_measured(fake: Fake) -> None:
    panel, start, measure, *_ = form(model__base="/etc")
    assert "must be 'starter' or a Hub id" in panel.replace("&#x27;", "'")
    assert not start.interactive and not measure.interactive
    with pytest.raises(StudioError):
        tab.valid({"model": {"base": "/etc"}})


def test_the_forecast_is_asked_with_the_rows_that_are_trained_on(fake: Fake) -> None:
    config = recipe(data={"max_rows": None}, training={"max_length": 56})
    overview.outlook(config)
    (share,) = overview.shares(config)
    _, rows, lengths, supervised = fake.asked[0]
    assert rows == len(lengths) == 400 - share.empty and 0 < share.empty < 400
    assert lengths.max() == 56 and supervised == share.supervised


def test_each_row_of_a_mix_counts_as_often_as_it_is_shown(fake: Fake) -> None:
    parts = [{"dataset": "cited-answers", "weight": 0.5}, {"dataset": "plain-style", "weight": 2}]
    overview.outlook(recipe(data={"mix": parts, "max_rows": None}))
    _, rows, lengths, _ = fake.asked[0]
    first, second = mix.choose(recipe(data={"mix": parts, "max_rows": None}).data)
    assert rows == len(lengths) == len(first.train) + len(second.train)
    whole = stats.of_part(second.part, second.dataset, "starter", None).lengths
    assert sorted(lengths[len(first.train) :]) == sorted([*whole[second.train]])


def test_a_row_limit_leaves_the_lengths_of_the_rows_that_stay(fake: Fake) -> None:
    overview.outlook(recipe(data={"max_rows": 7}))
    assert fake.asked[0][1] == len(fake.asked[0][2]) == 7


def test_of_a_large_set_the_sample_stands_for_all_and_the_longest_row_stays() -> None:
    large, small = numpy.arange(1, 1001), numpy.arange(5000, 5100)
    assert len(stats.together([(large, 1000), (small, 100)])) == 1100
    thinned = stats.together([(large, 100_000), (small, 100)])
    assert len(thinned) == 1001 and thinned[-1] == 5099 and thinned[:1000].max() == 1000
    assert stats.together([(small, 100), (numpy.zeros(0, int), 50)]).tolist() == small.tolist()
    assert len(stats.together([])) == 0


def test_a_sampled_sets_rows_are_found_by_their_numbers() -> None:
    found = stats.Measured(
        lengths=numpy.array([10, 20, 30]),
        ends=numpy.array([9, 19, 29]),
        row=numpy.array([0, 1, 2]),
        start=numpy.array([5, 5, 28]),
        stop=numpy.array([10, 20, 30]),
        numbers=numpy.array([2, 50, 70]),
        total=100,
    )
    assert found.trained(numpy.array([0, 2, 50, 50, 70, 99]), 25).tolist() == [10, 20, 20]


def test_a_recipe_that_was_measured_shows_that(fake: Fake) -> None:
    config = recipe()
    measured = Forecast(probed=True, peak_gib=3.5, free_gib=99.0, total_seconds=900.0)
    probes.add(probes.key(config), measurements.device_name(), measured.to_json())
    inside = text(before_start.inside(overview.outlook(config)))
    assert "What it takes measured here Memory 3.5 of 15.1 GiB Time 15 min (1.3 s a step)" in inside
    priced = recipe(training={"price_per_hour": 4, "learning_rate": 0.05, "seed": 9}, lora={"alpha": 1})
    assert overview.expected(priced).cost == 1.0
    for changed in (
        recipe(lora={"r": 8}),
        recipe(training={"micro_batch_tokens": 64}),
        recipe(data={"max_rows": 33}),
        recipe(data={"dataset": "plain-style"}),
    ):
        assert not overview.expected(changed).probed
    fake.say(free_gib=3.4)
    assert not overview.expected(config).probed, "less memory is free than when it was measured"
    probes.add(probes.key(config), "another GPU", Forecast(peak_gib=9.9).to_json())
    fake.say()
    assert overview.expected(config).peak_gib == 3.5


def test_a_dataset_with_other_rows_is_not_the_one_that_was_measured(fake: Fake, samples: Path) -> None:
    from plumbline.store.database import database

    before = probes.key(recipe())
    database().table("datasets").update(1, {"sha256": "0" * 64})
    assert probes.key(recipe()) != before
    with pytest.raises(StudioError, match="'nowhere': does not exist"):
        probes.key(RunConfig.model_validate({"data": {"dataset": "nowhere"}}))


def test_a_run_shows_its_forecast_beside_its_outcome_once_both_are_known(fake: Fake) -> None:
    run_id = add(recipe())
    assert runs_tab._forecast(None).visible is runs_tab._forecast(run_id).visible is False
    runs.update(run_id, forecast=Forecast(probed=True).to_json())
    assert runs_tab._forecast(run_id).visible is False and runs.forecast_and_outcome(run_id) is None
    outcome = {"peak_gib": 3.0, "seconds_per_step": 1.3, "total_seconds": 800.0, "disk_gib": 0.04}
    runs.update(run_id, outcome=json.dumps(outcome))
    said = text(runs_tab._forecast(run_id).value)
    assert "Forecast and outcome measured before Start" in said
    assert "Peak memory 3.2 GiB 3.0 GiB +7 %" in said and "Time of the steps 12 min 13 min -10 %" in said


def test_the_fake_has_the_fields_of_the_real_forecast() -> None:
    from plumbline.planner.forecast import Forecast as Real

    assert {field.name for field in Forecast.__dataclass_fields__.values()} == set(Real.__dataclass_fields__)
