"""The data's shape sets the method, and every refusal names the one that does help."""

from pathlib import Path

import pytest

from plumbline.batches.prepare import prepare
from plumbline.data.selection import datasets
from plumbline.errors import StudioError
from plumbline.planner import overview
from plumbline_studio.tabs.data import tab as data_tab
from plumbline_studio.tabs.train import tab
from tests.runs import recipe
from tests.uploads import lines, stored

PAIR = {"prompt": "Q", "chosen": "A", "rejected": "B"}
FILES = {
    "texts.txt": "".join(f"Text {n} goes on. " * 200 + "\n\n" for n in range(4)).encode(),
    "pairs.jsonl": lines(*(PAIR | {"prompt": f"Q{n}"} for n in range(6))),
    "verdicts.jsonl": lines(*({"prompt": f"Q{n}", "completion": "A", "label": n % 2 == 0} for n in range(6))),
    "talk.jsonl": lines(*({"prompt": f"Q{n}", "completion": "A"} for n in range(6))),
}
METHOD = {"texts": "pretraining", "pairs": "dpo", "verdicts": "kto", "talk": "sft"}


@pytest.fixture
def named(samples: Path, tmp_path: Path) -> dict[str, dict]:
    return {Path(name).stem: stored(tmp_path, name, content) for name, content in FILES.items()}


def test_the_method_follows_the_dataset_that_is_chosen(named: dict[str, dict]) -> None:
    for name, method in METHOD.items():
        assert tab.method_for(name, "sft") == method
        assert data_tab._added(named[name]["id"], "", "sft")[4] == method
    # A method that was chosen and fits stays.
    assert tab.method_for("pairs", "orpo") == "orpo" and tab.method_for("talk", "grpo") == "grpo"
    assert tab.method_for("talk", "dpo") == "sft" and tab.method_for("texts", "kto") == "pretraining"
    assert tab.method_for(None, "dpo") == tab.method_for("gone", "dpo") == "dpo"
    said = data_tab._added(named["texts"]["id"], "", "sft")[0]
    assert "the method there is pretraining now" in said
    assert "the method there" not in data_tab._added(named["talk"]["id"], "", "sft")[0]


@pytest.mark.parametrize("name", METHOD)
def test_a_method_that_does_not_fit_is_refused_with_the_one_that_does(
    named: dict[str, dict], name: str
) -> None:
    fits = datasets.preference_rows.methods_for(next(datasets.rows.at(named[name]["id"], "train", [0])))
    for method in ("sft", "pretraining", "dpo", "orpo", "kto", "grpo"):
        config = recipe(data={"dataset": name}, method={"name": method})
        bad = [check.text for check in overview.outlook(config).checks if check.level == "bad"]
        if method in fits:
            assert not any("learns from" in text for text in bad)
            continue
        assert len(bad) == 1 and f"{method} learns from " in bad[0]
        assert f"Set the method to {fits[0]}" in bad[0]
        if method == "sft":
            continue  # runs of earlier versions learned texts so, and resume
        with pytest.raises(StudioError, match=f"Set the method to {fits[0]}"):
            prepare(config)
