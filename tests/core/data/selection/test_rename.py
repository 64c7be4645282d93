"""Datasets get another name; what calls them by an earlier one still finds them, and nothing else does."""

from pathlib import Path

import pytest

from plumbline.cli import main
from plumbline.config import schema
from plumbline.data.importing import from_hub
from plumbline.data.importing.importer import Options, add
from plumbline.data.readers.source_files import Source
from plumbline.data.selection import datasets as data
from plumbline.data.selection import mix
from plumbline.errors import RecipeError, StudioError
from plumbline.runs import bundle, start
from plumbline.store import datasets, runs
from plumbline_studio import forms
from plumbline_studio.tabs.data import add as add_tab
from tests.runs import add as add_run
from tests.runs import recipe


@pytest.fixture(autouse=True)
def _samples(workspace: Path) -> None:
    data.ensure_samples()


def data_verb(*arguments: str) -> int:
    return main.main(["data", *arguments], lambda *_: None)


def small(tmp_path: Path, name: str) -> int:
    file = tmp_path / "few.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n' * 12)
    return add([Source(file, file.name)], options=Options(name))


def rows_of(config: schema.RunConfig) -> list[tuple[int, list[int], list[int]]]:
    """The rows that a recipe learns from and holds out, by the datasets' ids."""
    chosen = mix.choose(config.data)
    return [(one.dataset["id"], one.train.tolist(), one.held_out.tolist()) for one in chosen]


def test_a_renamed_dataset_is_listed_and_found_under_both_names(capsys: pytest.CaptureFixture) -> None:
    assert data_verb("rename", "cited-answers", "Sources, März 2026") == 0
    assert "cited-answers is called Sources-März-2026 now." in capsys.readouterr().out
    assert "Sources-März-2026" in datasets.names() and "cited-answers" not in datasets.names()
    for name in ("cited-answers", "Sources-März-2026"):
        assert data_verb("show", name) == 0
        assert "formerly" in capsys.readouterr().out
    assert data_verb("rename", "cited-answers", "third") == 0  # by its former name, as `show` finds it
    assert {datasets.by_name(name)["name"] for name in ("cited-answers", "Sources-März-2026")} == {"third"}


def test_old_recipes_and_runs_open_and_are_made_again_after_a_rename() -> None:
    mixed = recipe(data={"mix": [{"dataset": "cited-answers"}, {"dataset": "plain-style", "weight": 2}]})
    alone = recipe()
    runs_before = [add_run(alone), add_run(mixed)]
    before = [rows_of(config) for config in (alone, mixed)]
    datasets.rename(datasets.by_name("cited-answers")["id"], "sources")
    datasets.rename(datasets.by_name("plain-style")["id"], "style")
    for run_id, config, rows in zip(runs_before, (alone, mixed), before, strict=True):
        assert runs.recipe(run_id).data.parts == config.data.parts
        again = schema.validated(config.model_dump())
        assert rows_of(again) == rows
    # A recipe that is sent to another machine takes the rows along, whatever they are called.
    parcels = bundle.parcels(mixed)
    sent = bundle.renamed(mixed, parcels)
    assert [part.dataset for part in sent.data.mix] == [parcel.name for parcel in parcels]
    # The form shows a recipe's dataset by its name of today.
    assert forms.values(alone, ["data.dataset"]) == ["sources"]
    with pytest.raises(StudioError, match="names one dataset twice"):
        both = recipe(data={"mix": [{"dataset": "sources"}, {"dataset": "cited-answers"}]})
        mix.choose(both.data)


def test_a_dataset_that_a_mix_calls_by_a_former_name_is_not_deleted() -> None:
    add_run(recipe(data={"mix": [{"dataset": "cited-answers"}, {"dataset": "plain-style"}]}))
    dataset_id = datasets.by_name("plain-style")["id"]
    datasets.rename(dataset_id, "style")
    with pytest.raises(StudioError, match="'style': is used by"):
        data.remove(dataset_id)


def test_a_former_name_leads_to_no_other_dataset(tmp_path: Path) -> None:
    """Neither an import nor a rename takes a name that a recipe may mean another dataset by."""
    first = datasets.by_name("cited-answers")["id"]
    datasets.rename(first, "sources")
    added = small(tmp_path, "cited-answers")
    assert datasets.get(added)["name"] == "cited-answers-2"
    for wanted, said in (
        ("cited-answers", "'sources' was called so"),
        ("sources", "another is called so"),
        (" -. ", "has no new name yet"),
    ):
        with pytest.raises(StudioError, match=said):
            datasets.rename(added, wanted)
    assert datasets.rename(first, "cited-answers") == "cited-answers"  # its own may come back
    assert datasets.by_name("sources")["id"] == first
    # With the dataset its names are free.
    data.remove(first)
    assert datasets.rename(added, "sources") == "sources"


def test_a_name_that_is_kept_over_a_reload_is_found_after_a_rename() -> None:
    from plumbline_studio.app import build

    form = build().form
    datasets.rename(datasets.by_name("plain-style")["id"], "style")
    kept, lost = forms.taken_back({"data.dataset": "plain-style", "training.epochs": 17}, form)
    assert (kept, lost) == ({"data.dataset": "style", "training.epochs": 17}, [])


LONG = "x" * 61


def test_a_name_is_refused_with_its_limit_and_never_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of datasets, at an import and later, of mappings and of runs."""
    before = datasets.names()
    assert data_verb("rename", "plain-style", "x" * 300) == 2
    assert "has 300 letters, and at most 60 are shown" in capsys.readouterr().err
    with pytest.raises(StudioError, match="dataset name: has 61 letters"):
        small(tmp_path, LONG)
    with pytest.raises(StudioError, match="dataset name: has 61 letters"):
        from_hub.add("org/never-asked", options=Options(LONG))
    assert data_verb("add", str(tmp_path / "few.jsonl"), "--save-mapping", LONG) == 2
    assert "mapping name: has 61 letters" in capsys.readouterr().err
    _, told = add_tab._save(LONG, "text", *[""] * len(add_tab.PARTS), "", "")
    assert "mapping name: has 61 letters" in told
    assert datasets.names() == before and not datasets.mappings()
    with pytest.raises(RecipeError, match="name"):
        schema.changed(recipe(), {"name": "x" * 81})
    assert datasets.get(small(tmp_path, LONG[:60]))["name"] == LONG[:60]


def test_a_run_that_comes_from_another_is_told_apart_however_long_its_name() -> None:
    long = schema.changed(recipe(lora={"rank_schedule": [4, 8]}), {"name": "x" * 80})
    names = [stage.name for stage in start.stages(long)]
    assert [name[-4:] for name in names] == ["… r4", "… r8"] and max(map(len, names)) == 80
    assert schema.changed(recipe(), {"name": "short"}).name_with("from 30") == "short from 30"
