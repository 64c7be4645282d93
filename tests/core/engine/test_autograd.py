"""The engine for any model: packs give the loss and the gradients of rows trained alone."""

from typing import Any

import pytest
import torch

from plumbline.batches.packing import Pack, pack
from plumbline.config.schema import RunConfig
from plumbline.data.tokens.encode import IGNORED, Encoded
from plumbline.engine import autograd, varlen_attention
from plumbline.engine.autograd import AutogradEngine
from plumbline.evaluation.loss import held_out_loss
from plumbline.models.precision import autocast
from tests import tiny

LENGTHS = (11, 1, 17, 5)
RECIPE = RunConfig()
ALONE = ("bloom", "falcon", "lfm2")
OTHER_ATTENTION = dict.fromkeys(ALONE, varlen_attention.ROWS) | {"llama4_text": "eager", "stablelm": "eager"}
# MoE experts are one parameter of peft's, not linear layers.
ATTENTION_ONLY = {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}


def adapted(family: str, **changes: Any) -> Any:
    options = ATTENTION_ONLY if family == "qwen3_moe" else {}
    return tiny.adapted(tiny.base(family, **changes), **options)


def alone(model: Any, rows: list[dict[str, list[int]]], weight: float) -> tuple[float, torch.Tensor]:
    """Loss and gradients through peft, transformers' attention and one row at a time."""
    model.train()
    model.zero_grad()
    total = 0.0
    for row in rows:
        if len(row["input_ids"]) < 2:
            continue
        with autocast(model):
            logits = model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0, :-1]
        labels = torch.tensor(row["labels"][1:])
        loss = torch.nn.functional.cross_entropy(
            logits.float(), labels, ignore_index=IGNORED, reduction="sum"
        )
        (loss * weight).backward()
        total += float(loss.detach()) * weight
    return total, gradients(model)


def gradients(model: Any) -> torch.Tensor:
    found = tiny.gradients(model).clone()
    model.zero_grad()
    return found


def stepped(engine: AutogradEngine, packs: list[Pack]) -> tuple[float, torch.Tensor]:
    """Loss and gradients of an optimizer step."""
    weight = 1 / sum(len(one.targets) for one in packs)
    losses = [engine.step(one, weight) for one in packs]
    assert all(loss.dtype == torch.float32 and loss.dim() == 0 and not loss.requires_grad for loss in losses)
    return float(sum(losses)), gradients(engine.model)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_pack_trains_as_its_rows_alone(family: str) -> None:
    model, packed = adapted(family), tiny.packed(LENGTHS)
    loss, truth = alone(model, tiny.rows(LENGTHS), 1 / len(packed.targets))
    engine = AutogradEngine(model, RECIPE, "none")
    assert engine.model.training and engine.attention == OTHER_ATTENTION.get(family, varlen_attention.NAME)
    mine, found = stepped(engine, [packed])
    assert mine == pytest.approx(loss, rel=1e-5)
    assert tiny.distance(found, truth) < 1e-5
    assert engine.plain_head == (family not in ("gemma2", "phi", "granite", "llama4_text"))


# gpt-oss makes its masks without the positions (transformers 5.23): there they would not.
@pytest.mark.parametrize("family", [f for f in tiny.FAMILIES if f not in (*ALONE, "gpt_oss")])
def test_transformers_masks_from_positions_keep_rows_apart_too(family: str) -> None:
    model, packed = adapted(family), tiny.packed(LENGTHS)
    loss, truth = alone(model, tiny.rows(LENGTHS), 1 / len(packed.targets))
    engine = AutogradEngine(model, RECIPE, "none")
    engine.attention = "eager"
    mine, found = stepped(engine, [packed])
    assert mine == pytest.approx(loss, rel=1e-5)
    assert tiny.distance(found, truth) < 1e-5


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_what_a_row_teaches_does_not_move_with_its_neighbours(family: str) -> None:
    engine = AutogradEngine(adapted(family), RECIPE, "none")
    taught = []
    for seed in (0, 5):
        rows = tiny.rows(LENGTHS, seed)
        rows[2] = tiny.rows(LENGTHS)[2]
        for number in (0, 1, 3):
            rows[number]["labels"] = [IGNORED] * LENGTHS[number]
        taught.append(stepped(engine, [pack(rows)]))
    assert taught[0][0] == pytest.approx(taught[1][0], rel=1e-6)
    assert tiny.distance(taught[0][1], taught[1][1]) < 1e-6
    assert taught[0][1].norm() > 1e-3


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_three_packs_add_up_to_the_mean_over_a_padded_batch(family: str) -> None:
    model = adapted(family)
    rows = tiny.rows((9, 14, 4, 20, 7, 12))
    width = 20
    ids, labels, mask = torch.zeros(3, len(rows), width, dtype=torch.long)
    labels[:] = IGNORED
    for number, row in enumerate(rows):
        length = len(row["input_ids"])
        ids[number, :length], mask[number, :length] = torch.tensor(row["input_ids"]), 1
        labels[number, :length] = torch.tensor(row["labels"])
    output = model.train()(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False)
    output.loss.backward()
    truth = gradients(model)
    engine = AutogradEngine(model, RECIPE, "none")
    mine, found = stepped(engine, [pack(rows[:1]), pack(rows[1:4]), pack(rows[4:])])
    assert mine == pytest.approx(output.loss.item(), rel=1e-5)
    assert tiny.distance(found, truth) < 1e-5


@pytest.mark.parametrize("checkpointing", ["full", "offload"])
@pytest.mark.parametrize("family", ["llama", "gemma4_text", "gpt_oss", "bloom"])
def test_checkpointing_changes_nothing(family: str, checkpointing: str) -> None:
    model, packs = adapted(family), [tiny.packed(LENGTHS), tiny.packed((8, 3), 2)]
    loss, truth = stepped(AutogradEngine(model, RECIPE, "none"), packs)
    engine = AutogradEngine(model, RECIPE, checkpointing)
    assert engine.decisions["checkpointing"].value == checkpointing
    runs = []
    layer = engine.base.get_decoder().layers[0] if family != "bloom" else engine.base.transformer.h[0]
    norm = next(module for module in layer.modules() if "Norm" in type(module).__name__)
    norm.register_forward_hook(lambda *_: runs.append(1))
    mine, found = stepped(engine, packs)
    assert mine == pytest.approx(loss, rel=1e-6) and tiny.distance(found, truth) < 1e-6
    assert len(runs) >= 4  # forward, and again in the backward pass, of two packs or more
    if checkpointing == "offload":
        assert engine.hosted is not None and engine.hosted.count == 2


@pytest.mark.parametrize("family", ["qwen2", "gpt_neox"])
def test_dropout_is_drawn_alike_when_a_layer_is_computed_again(family: str) -> None:
    found = []
    for checkpointing in ("none", "full"):
        model = tiny.adapted(tiny.base(family), lora_dropout=0.3)
        engine = AutogradEngine(model, RECIPE, checkpointing)
        torch.manual_seed(11)
        found.append(stepped(engine, [tiny.packed(LENGTHS)])[1])
    assert tiny.distance(found[1], found[0]) < 1e-6
    again = stepped(engine, [tiny.packed(LENGTHS)])[1]
    assert tiny.distance(again, found[0]) > 0.05


@pytest.mark.parametrize("family", ["llama", "phi", "gpt_neox", "gemma2"])
def test_a_4_bit_base_trains_in_16_bits_as_its_rows_alone(family: str) -> None:
    exact = tiny.adapted(tiny.quantised(tiny.base(family), "nf4", True))
    packed = tiny.packed(LENGTHS)
    truth = alone(exact, tiny.rows(LENGTHS), 1 / len(packed.targets))
    model = tiny.adapted(tiny.quantised(tiny.base(family, dtype=torch.bfloat16), "nf4", True))
    theirs = alone(model, tiny.rows(LENGTHS), 1 / len(packed.targets))
    engine = AutogradEngine(model, RECIPE, "full")
    assert engine.attention == varlen_attention.NAME and engine.decisions["LoRA layers"].value.startswith(
        str(len(tiny.linear_layers(model)))
    )
    mine = stepped(engine, [packed])
    assert mine[0] == pytest.approx(truth[0], rel=0.02)
    assert tiny.distance(mine[1], truth[1]) < 1.2 * tiny.distance(theirs[1], truth[1])


# transformers makes gpt-oss's masks without the positions, so there is no second way.
@pytest.mark.parametrize(("family", "instead"), [("llama", "eager"), ("gpt_oss", varlen_attention.ROWS)])
def test_a_leak_between_rows_is_found_before_the_first_step(
    family: str, instead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = varlen_attention.varlen

    def leaking(query: Any, key: Any, value: Any, boundaries: Any, lengths: Any, *rest: Any) -> torch.Tensor:
        return whole(query, key, value, boundaries, (sum(lengths),), *rest)

    monkeypatch.setattr(varlen_attention, "varlen", leaking)
    model, packed = adapted(family), tiny.packed(LENGTHS)
    loss, truth = alone(model, tiny.rows(LENGTHS), 1 / len(packed.targets))
    engine = AutogradEngine(model, RECIPE, "none")
    choice = engine.decisions["attention"]
    assert engine.attention == choice.value == instead
    assert f"not {varlen_attention.NAME}: packed rows disturb each other" in choice.why
    mine, found = stepped(engine, [packed])
    assert mine == pytest.approx(loss, rel=1e-5) and tiny.distance(found, truth) < 1e-5


def test_evaluation_and_generation_are_untouched_by_training() -> None:
    model = adapted("gemma3_text", attention="sdpa")
    rows = [Encoded(row["input_ids"], row["labels"], [], 0) for row in tiny.rows((9, 14, 4))]
    prompt = {"input_ids": torch.tensor([[5, 6, 7]]), "max_new_tokens": 12, "do_sample": False}
    before = held_out_loss(model, rows, 0, 3), model.eval().generate(**prompt)
    engine = AutogradEngine(model, RECIPE, "full")
    assert not any(module.training for module in model.modules())
    stepped(engine, [tiny.packed(LENGTHS)])
    after = held_out_loss(model, rows, 0, 3), model.eval().generate(**prompt)
    assert after[0] == before[0] and torch.equal(after[1], before[1])


def test_a_pack_without_learned_tokens_costs_nothing() -> None:
    engine = AutogradEngine(adapted("llama"), RECIPE, "none")
    row = tiny.rows((6,))[0] | {"labels": [IGNORED] * 6}
    assert float(engine.step(pack([row]), 1.0)) == 0.0
    assert all(parameter.grad is None for parameter in engine.model.parameters())


def test_single_rows_are_the_packs_of_rows_alone() -> None:
    rows = tiny.rows(LENGTHS)
    for mine, row in zip(autograd.single_rows(pack(rows)), rows, strict=True):
        true = pack([row])
        assert mine.lengths == true.lengths
        for name in ("ids", "positions", "boundaries", "learned", "targets"):
            assert torch.equal(getattr(mine, name), getattr(true, name))


def test_the_engine_is_exact_without_fused_layers_too() -> None:
    model, packed = adapted("llama"), tiny.packed(LENGTHS)
    engine = AutogradEngine(model, RECIPE, "none")
    ours = stepped(engine, [packed])
    tiny.unfuse(model)
    assert tiny.distance(stepped(engine, [packed])[1], ours[1]) < 1e-6
