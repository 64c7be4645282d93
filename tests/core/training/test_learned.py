"""What an adapter began as is known, so that a run which changed nothing can say so."""

from pathlib import Path

import pytest

from plumbline.models import adapters, load
from plumbline.training import learned
from tests import tiny
from tests.runs import recipe

INITS = ("default", "gaussian", "orthogonal", "pissa", "olora", "loftq", "eva")


@pytest.mark.parametrize("init", INITS)
def test_what_an_adapter_began_as_is_known_for_every_initialisation(init: str, tmp_path: Path) -> None:
    base = tiny.saved(tmp_path / "base", num_key_value_heads=4)
    config = recipe(model={"base": base}, lora={"r": 4, "alpha": 8, "init_lora_weights": init})
    model = adapters.attach(load.base_model(config), config)
    learned.note(model, tmp_path)
    assert learned.nothing(model, tmp_path) is True
    name, weight = next((n, p) for n, p in model.named_parameters() if "lora_B" in n)
    partner = model.get_parameter(name.replace("lora_B", "lora_A"))
    if not weight.any():  # what is multiplied with nothing has no effect
        partner.data.mul_(0.5)
        assert learned.nothing(model, tmp_path) is True
    weight.data[0, 0] += 1e-3
    assert learned.nothing(model, tmp_path) is False
    assert learned.nothing(model, tmp_path / "elsewhere") is None
