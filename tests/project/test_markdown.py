"""A model card holds names that people chose: they stand in it as text, whatever they spell."""

from typing import Any

import pytest
import yaml

from plumbline.checkpoints import artifact
from plumbline.config import schema
from plumbline.export import merge

NAMES = (
    "<img src=x onerror=alert(1)>",
    "[click](https://evil.example) ![](http://evil.example/x.png)",
    "a\n---\nlicense: mit\n---\n# b",
    "`code` ``x`` | cell | **bold** __b__ #1 @user",
    "base: {x: [1]} # comment",
    "'quoted' \"twice\" \\",
)


def front_matter(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])


def cards(name: str) -> list[str]:
    config = schema.RunConfig(name=name[:80], model=schema.ModelSection(base=name))
    dataset = {"name": name, "train_rows": 1, "share_of_loss": 1.0, "held_out_rows": 1, "sha256": "0"}
    metadata = {
        "dataset": {"train_rows": 1, "held_out_rows": 1},
        "datasets": [dataset],
        "base": {"sha256_before": "0"},
    }
    metrics = {"steps": 1, "total_steps": 1, "best_step": None, "adapter_step": 1}
    parity = {"prompts": 1, "largest_logit_difference": 0.0, "same_next_token": 1}
    parity |= {"answer_tokens": 1, "same_answers": 1}
    return [artifact.card(config, metadata, metrics), merge._card(config, parity)]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_a_card_is_only_a_name(name: str) -> None:
    usual = cards("usual")
    for card, known in zip(cards(name), usual, strict=True):
        assert front_matter(card).keys() == front_matter(known).keys()
        assert isinstance(front_matter(card)["base_model"], str)
        assert card.count("\n") == known.count("\n")
        (title,) = [line for line in card.splitlines() if line.startswith("# ")]
        assert "<" not in title and "](" not in title.replace("\\](", "") and "://" not in title


def test_a_usual_name_stands_as_it_is() -> None:
    card = cards("org/my-model")[0]
    assert "# org/my-model\n" in card and "`org/my-model`" in card
    assert front_matter(card)["base_model"] == "org/my-model"
