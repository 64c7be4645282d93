"""Mixtures of experts: the loss that is trained and shown is the rows'; that of the routers is asked for."""

from pathlib import Path
from typing import Any

import pytest
import torch

from plumbline.batches.packing import pack
from plumbline.batches.prepare import prepare
from plumbline.config.schema import RunConfig
from plumbline.engine.autograd import AutogradEngine
from plumbline.errors import RecipeError, StudioError
from plumbline.home import run_folder
from plumbline.models import fit, load
from plumbline.planner import overview
from plumbline.store import runs
from tests import tiny
from tests.runs import add, do, recipe

LENGTHS = (11, 5, 17)
ATTENTION = recipe(lora={"target_modules": ["attention"]})
WEIGHT = 0.5


def adapted(family: str, **changes: Any) -> Any:
    """A base whose config asks for the loss of its routers, with a coefficient as large as gpt-oss's."""
    asked = {"output_router_logits": True}
    if family in tiny.BALANCED:
        asked |= {"router_aux_loss_coef": 0.9}  # type: ignore[dict-item]
    base = tiny.base(family, **(asked | changes))
    return tiny.adapted(base, target_modules=fit.targets(base, ATTENTION))


def alone(model: Any, router: float = 0.0) -> tuple[float, float, torch.Tensor]:
    """By plain transformers, one row at a time: the mean loss, that of the routers, and the gradient.

    :param router: weight of the routers' loss in the gradient
    """
    model.train()
    model.zero_grad()
    rows = tiny.rows(LENGTHS)
    tokens = sum(label != -100 for row in rows for label in row["labels"][1:])
    total = balance = 0.0
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        output = model(input_ids=ids, output_router_logits=bool(router), use_cache=False)
        labels = torch.tensor(row["labels"][1:])
        loss = (
            torch.nn.functional.cross_entropy(output.logits[0, :-1].float(), labels, reduction="sum") / tokens
        )
        share = int((labels != -100).sum()) / tokens
        even = output.aux_loss * share if router else torch.zeros(())
        (loss + router * even).backward()
        total, balance = total + float(loss.detach()), balance + float(even.detach())
    found = tiny.gradients(model).clone()
    model.zero_grad()
    return total, balance, found


def stepped(engine: AutogradEngine, packs: list[tuple[int, ...]]) -> tuple[float, torch.Tensor]:
    """Loss and gradient of a step. :param packs: numbers of the rows in each"""
    rows = tiny.rows(LENGTHS)
    made = [pack([rows[number] for number in numbers]) for numbers in packs]
    weight = 1 / sum(len(one.targets) for one in made)
    loss = float(sum(engine.step(one, weight) for one in made))
    found = tiny.gradients(engine.model).clone()
    engine.model.zero_grad()
    return loss, found


@pytest.mark.parametrize("family", [*tiny.BALANCED, *tiny.UNBALANCED])
def test_the_loss_is_the_rows_whatever_the_config_of_the_base_says(family: str) -> None:
    model = adapted(family)
    wanted, _, slope = alone(model)
    engine = AutogradEngine(model, RunConfig(), "none")
    for packs in ([(0, 1, 2)], [(0,), (1, 2)]):
        loss, found = stepped(engine, packs)
        assert loss == pytest.approx(wanted, rel=1e-5)
        assert tiny.distance(found, slope) < 1e-4


@pytest.mark.parametrize("family", tiny.BALANCED)
def test_the_loss_of_the_routers_is_that_of_each_row_and_stands_apart(family: str) -> None:
    model = adapted(family)
    wanted, balance, slope = alone(model, WEIGHT)
    engine = AutogradEngine(model, RunConfig.model_validate({"training": {"router_loss": WEIGHT}}), "none")
    assert balance > 0.5
    for packs in ([(0, 1, 2)], [(0,), (1, 2)]):
        loss, found = stepped(engine, packs)
        assert loss == pytest.approx(wanted, rel=1e-5)
        assert tiny.distance(found, slope) < 1e-4
        assert float(engine.beside["router_loss"]) == pytest.approx(balance, rel=1e-5)
        engine.beside["router_loss"].zero_()


@pytest.fixture
def gpt_oss(samples: Path, tmp_path: Path) -> str:
    """With the coefficient of the published model."""
    return tiny.saved(tmp_path / "base", "gpt_oss", router_aux_loss_coef=0.9)


def first_loss(base: str, **training: Any) -> tuple[float, dict[str, Any]]:
    """What a run of one step shows, and what it logs beside."""
    config = recipe(
        model={"base": base},
        quantisation={"method": "none"},
        lora={"r": 4, "target_modules": ["attention"]},
        data={"max_rows": 8},
        training={"max_steps": 1, "effective_batch": 8, "max_length": 128} | training,
        evaluation={"max_rows": 2},
    )
    run_id = add(config)
    assert do("train", run_id)["error"] is None
    (loss,) = [point["loss"] for point in runs.metrics(run_id) if point["loss"] is not None]
    history = (run_folder(run_id) / "metrics_history.jsonl").read_text(encoding="utf-8")
    return loss, {"history": history, "config": config}


def test_a_run_shows_the_mean_loss_of_its_rows_in_packs_of_any_size(gpt_oss: str) -> None:
    small, beside = first_loss(gpt_oss, micro_batch_tokens=128)
    large, _ = first_loss(gpt_oss, micro_batch_tokens=4096)
    config = beside["config"]
    model = load.base_model(config)
    total, tokens = 0.0, 0
    for row in prepare(config).train:
        ids, labels = torch.tensor([row.input_ids]), torch.tensor(row.labels[1:])
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
        tokens += int((labels != -100).sum())
    assert small == pytest.approx(total / tokens, rel=5e-3)
    assert large == pytest.approx(small, rel=5e-3)
    assert "router" not in beside["history"]


def test_a_router_loss_that_is_asked_for_is_logged_beside_the_rows(gpt_oss: str) -> None:
    plain, _ = first_loss(gpt_oss)
    loss, beside = first_loss(gpt_oss, router_loss=0.9)
    assert loss == pytest.approx(plain, rel=5e-3)
    assert '"router_loss": 2.' in beside["history"]  # 2 experts a token, spread evenly


def test_a_router_loss_is_refused_where_there_is_none(samples: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="router_loss is not for starter"):
        overview.outlook(recipe(training={"router_loss": 0.01}))
    with pytest.raises(RecipeError, match="not for the method dpo"):
        recipe(training={"router_loss": 0.01}, method={"name": "dpo"})
    with pytest.raises(StudioError, match="no loss of its routers"):
        config = RunConfig.model_validate({"training": {"router_loss": 0.1}})
        AutogradEngine(adapted("glm4_moe"), config, "none")
    base = tiny.saved(tmp_path, "mixtral")
    model = {"model": {"base": base}, "lora": {"target_modules": ["attention"]}}
    assert not overview.outlook(recipe(**model, training={"router_loss": 0.01})).blocked
