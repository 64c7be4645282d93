"""The hand-written decoder computes what peft and autograd do for every row alone."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from plumbline.batches.packing import Pack, pack
from plumbline.data.tokens.encode import IGNORED
from plumbline.engine.decoder import DecoderEngine, Layer
from plumbline.engine.support import odd_adapters, refusal
from plumbline.models.precision import autocast
from tests import tiny
from tests.runs import recipe

LENGTHS = (11, 1, 17, 5)
LAYERS = 3
LONGEST = 128
HELD = [("none", False), ("nf4", False), ("nf4", True), ("fp4", False), ("fp4", True)]
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 32}
# Each model that is trained by hand, and what its kind can vary in.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "mistral": ("mistral", {"sliding_window": None}),
    "wide heads": ("qwen3", {"head_dim": 32, "num_key_value_heads": 1}),
    "a key head for every query head": ("llama", {"num_key_value_heads": 4}),
    "biases everywhere": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "yarn": ("llama", {"rope_parameters": YARN}),
    "llama3 positions": ("llama", {"rope_parameters": LLAMA3}),
    "head tied to the embedding": ("qwen2", {"tie_word_embeddings": True}),
    "another epsilon": ("mistral", {"sliding_window": None, "rms_norm_eps": 1e-3}),
}


def base(name: str, **changes: Any) -> Any:
    family, settings = MODELS[name]
    return tiny.base(family, **({"num_hidden_layers": LAYERS} | settings | changes))


def decoder(model: Any, kept: int = LAYERS, offload: bool = False) -> DecoderEngine:
    assert refusal(model.get_base_model(), LONGEST, str(model.dtype)) is None and odd_adapters(model) is None
    return DecoderEngine(model, LONGEST, kept, offload)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """Those of every trained weight, by name; they are taken away, as after an optimizer step."""
    held = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert held and all(p.grad is not None for p in held.values())
    found = {name: p.grad.clone() for name, p in held.items()}
    model.zero_grad()
    return found


def alone(
    model: Any, rows: list[dict[str, list[int]]], weight: float
) -> tuple[float, dict[str, torch.Tensor], torch.Tensor]:
    """Loss, gradients and the loss of every learned token, through peft and one row at a time."""
    model.train()
    model.zero_grad()
    found = []
    for row in rows:
        if len(row["input_ids"]) < 2:
            continue
        with autocast(model):
            logits = model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0, :-1]
        labels = torch.tensor(row["labels"][1:])
        losses = torch.nn.functional.cross_entropy(
            logits.float(), labels, ignore_index=IGNORED, reduction="none"
        )
        (losses.sum() * weight).backward()
        found.append(losses.detach()[labels != IGNORED])
    each = torch.cat(found)
    return float(each.sum()) * weight, gradients(model), each


def stepped(made: Any, model: Any, packs: list[Pack]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of an optimizer step."""
    weight = 1 / sum(len(one.targets) for one in packs)
    losses = [made.step(one, weight) for one in packs]
    assert all(loss.dtype == torch.float32 and loss.dim() == 0 and not loss.requires_grad for loss in losses)
    return float(sum(losses)), gradients(model)


def same(mine: tuple[float, dict[str, Any]], true: tuple[Any, ...], tolerance: float = 1e-5) -> None:
    assert mine[0] == pytest.approx(true[0], rel=tolerance)
    assert mine[1].keys() == true[1].keys()
    for name, gradient in true[1].items():
        assert gradient.norm() > 0, name
        assert tiny.distance(mine[1][name], gradient) < tolerance, name


def check(model: Any, kept: int = LAYERS, offload: bool = False, lengths: tuple[int, ...] = LENGTHS) -> None:
    rows, packed = tiny.rows(lengths), tiny.packed(lengths)
    truth = alone(model, rows, 1 / len(packed.targets))
    made = decoder(model, kept, offload)
    assert tiny.distance(made.losses(packed), truth[2]) < 1e-5
    same(stepped(made, model, [packed]), truth)


@pytest.mark.parametrize("name", MODELS)
def test_a_pack_trains_as_its_rows_alone(name: str) -> None:
    check(tiny.adapted(base(name)))


@pytest.mark.parametrize(("kind", "double"), HELD)
@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
@pytest.mark.parametrize("offload", [False, True])
def test_a_pack_trains_as_its_rows_alone_however_the_base_is_held(
    name: str, kind: str, double: bool, offload: bool
) -> None:
    model = base(name)
    if kind != "none":
        tiny.quantised(model, kind, double)
    check(tiny.adapted(model), kept=1, offload=offload)


@pytest.mark.parametrize("offload", [False, True])
def test_an_8_bit_base_is_used_dequantised(offload: bool) -> None:
    held, exact = tiny.quantised(base("qwen2"), "int8"), base("qwen2")
    for name, module in held.named_modules():
        if type(module).__name__ == "Linear8bitLt":
            assert module.weight.dtype == torch.int8
            exact.get_submodule(name).weight.data = (
                module.weight.data.float() * module.weight.SCB[:, None] / 127
            )
    packed = tiny.packed(LENGTHS)
    truth = alone(tiny.adapted(exact), tiny.rows(LENGTHS), 1 / len(packed.targets))
    model = tiny.adapted(held)
    same(stepped(decoder(model, 1, offload), model, [packed]), truth)


@pytest.mark.parametrize("kept", range(LAYERS + 1))
@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize("offload", [False, True])
def test_the_layers_that_are_kept_change_nothing_but_what_is_computed_again(
    name: str, kept: int, offload: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    whole = Layer.forward_to_gate

    def counted(self: Layer, *given: Any, **named: Any) -> Any:
        calls.append(self)
        return whole(self, *given, **named)

    monkeypatch.setattr(Layer, "forward_to_gate", counted)
    model = tiny.adapted(base(name))
    check(model, kept, offload)
    # Once for `losses`, once forward; then the first ones, which were not kept, once more, backwards.
    assert (
        calls[2 * LAYERS :] == calls[: LAYERS - kept][::-1] and calls[:LAYERS] == calls[LAYERS : 2 * LAYERS]
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": ["k_proj", "down_proj"]},
        {"target_modules": ["up_proj"], "r": 1},
        {"rank_pattern": {"k_proj": 7, "gate_proj": 2}},
        {"alpha_pattern": {"v_proj": 20, "up_proj": 1}},
        {"use_rslora": True, "r": 8},
        {"target_modules": ["q_proj", "o_proj"], "layers_to_transform": [1]},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["none", "nf4"])
def test_any_choice_of_adapters_trains_as_pefts(changes: dict[str, Any], kind: str) -> None:
    model = base("qwen2")
    if kind != "none":
        tiny.quantised(model, kind)
    check(tiny.adapted(model, **changes), kept=1)


def test_the_loss_is_taken_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = (90, 100, 77)
    model, packed = tiny.adapted(base("llama")), tiny.packed(lengths)
    truth = alone(model, tiny.rows(lengths), 1 / len(packed.targets))
    made = decoder(model)
    made.piece_bytes = 1  # 64 rows, the fewest
    assert len(packed.targets) > 128
    assert tiny.distance(made.losses(packed), truth[2]) < 1e-5
    same(stepped(made, model, [packed]), truth)


@pytest.mark.parametrize("kept", [0, LAYERS])
def test_packs_add_up_to_the_mean_over_a_padded_batch(kept: int) -> None:
    model = tiny.adapted(base("qwen3"))
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
    truth = output.loss.item(), gradients(model)
    made = decoder(model, kept)
    packs = [pack(rows[:1]), pack(rows[1:4], 32), pack(rows[4:])]
    same(stepped(made, model, packs), truth)
    same(stepped(made, model, [pack(rows, 64)]), truth)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mistral"])
def test_neither_loss_nor_gradient_of_a_row_moves_with_its_neighbours(name: str) -> None:
    model = tiny.adapted(base(name))
    made = decoder(model, 1)
    losses, taught = [], []
    for seed in (0, 5):
        rows = tiny.rows(LENGTHS, seed)
        rows[2] = tiny.rows(LENGTHS)[2]
        losses.append(made.losses(pack(rows)))
        for number in (0, 1, 3):
            rows[number]["labels"] = [IGNORED] * LENGTHS[number]
        taught.append(stepped(made, model, [pack(rows)]))
    before = len(tiny.packed(LENGTHS[:2]).targets)
    mine = slice(before, before + len(tiny.packed(LENGTHS[2:3]).targets))
    assert torch.allclose(losses[0][mine], losses[1][mine], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(losses[0][:before], losses[1][:before], rtol=1e-2)
    same(taught[0], taught[1], 1e-6)


@pytest.mark.parametrize("offload", [False, True])
def test_the_starter_trains_as_its_rows_alone(samples: Path, offload: bool) -> None:
    from plumbline.batches.prepare import prepare
    from plumbline.models import adapters, load

    config = recipe(quantisation={"compute_dtype": "float32"}, data={"max_rows": 8})
    rows = [{"input_ids": row.input_ids, "labels": row.labels} for row in prepare(config).train][:4]
    torch.manual_seed(0)
    model = adapters.attach(load.base_model(config), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    packed = pack(rows)
    truth = alone(model, rows, 1 / len(packed.targets))
    made = DecoderEngine(model, config.training.max_length, 3, offload)
    assert tiny.distance(made.losses(packed), truth[2]) < 1e-5
    same(stepped(made, model, [packed]), truth)


@pytest.mark.parametrize("kind", ["none", "nf4"])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_in_16_bits_the_error_is_no_larger_than_pefts(name: str, kind: str) -> None:
    ours = theirs = 0.0
    for seed in range(6):
        half = base(name, dtype=torch.bfloat16, seed=seed)
        exact = copy.deepcopy(half).float()
        if kind != "none":
            half, exact = tiny.quantised(half, kind, True), tiny.quantised(exact, kind, True)
        model, exact = tiny.adapted(half, seed + 1), tiny.adapted(exact, seed + 1)
        rows = tiny.rows(LENGTHS, seed)
        packed = pack(rows)
        truth = alone(exact, rows, 1 / len(packed.targets))[1]
        plain = alone(model, rows, 1 / len(packed.targets))[1]
        loss, mine = stepped(decoder(model, 1), model, [packed])
        assert all(gradient.dtype == torch.float32 for gradient in mine.values())
        for weight, true in truth.items():
            ours += tiny.distance(mine[weight], true)
            theirs += tiny.distance(plain[weight], true)
    assert 0 < ours <= 1.1 * theirs, ours / theirs


def weights(model: Any) -> dict[str, torch.Tensor]:
    from peft import get_peft_model_state_dict

    return {name: value.clone() for name, value in get_peft_model_state_dict(model).items()}


def test_adapters_stay_the_models_own(tmp_path: Path) -> None:
    from peft import PeftModel

    model, packed = tiny.adapted(base("qwen2")), tiny.packed(LENGTHS)
    before = weights(model)
    made = decoder(model)
    after = weights(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    memory = made.adapters.weights
    held = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in held) == memory.numel()
    storage = memory.untyped_storage().data_ptr()
    assert all(parameter.untyped_storage().data_ptr() == storage for parameter in held)
    assert len({parameter.data_ptr() for parameter in held}) == len(held)

    optimizer = torch.optim.AdamW(held, lr=1e-2)
    made.step(packed, 1 / len(packed.targets))
    optimizer.step()
    changed = weights(model)
    assert all(not torch.equal(before[name], changed[name]) for name in before)
    losses = made.losses(packed)
    model.save_pretrained(tmp_path)
    opened = PeftModel.from_pretrained(base("qwen2"), str(tmp_path), is_trainable=True)
    assert all(torch.equal(value, changed[name]) for name, value in weights(opened).items())
    assert tiny.distance(losses, alone(opened, tiny.rows(LENGTHS), 1.0)[2]) < 1e-5


def test_loaded_weights_reach_the_engine() -> None:
    from peft import set_peft_model_state_dict

    other, packed = tiny.adapted(base("llama"), seed=8), tiny.packed(LENGTHS)
    model = tiny.adapted(base("llama"))
    made = decoder(model)
    first = made.losses(packed)
    set_peft_model_state_dict(model, weights(other))
    truth = alone(other, tiny.rows(LENGTHS), 1 / len(packed.targets))
    assert tiny.distance(made.losses(packed), truth[2]) < 1e-5 < tiny.distance(first, truth[2])
    same(stepped(made, model, [packed]), truth)


@pytest.mark.parametrize("to_none", [True, False])
def test_every_step_begins_with_no_gradient(to_none: bool) -> None:
    model, other = tiny.adapted(base("qwen3")), tiny.adapted(base("qwen3"))
    made = decoder(model, 1)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    theirs = [parameter for parameter in other.parameters() if parameter.requires_grad]
    optimizers = torch.optim.AdamW(trained, lr=3e-3), torch.optim.AdamW(theirs, lr=3e-3)
    for seed in range(5):
        rows = tiny.rows(LENGTHS, seed)
        weight = 1 / len(pack(rows).targets)
        loss, truth, _ = alone(other, rows, weight)
        for parameter, gradient in zip(theirs, truth.values(), strict=True):
            parameter.grad = gradient
        made.losses(pack(tiny.rows((6, 9), seed)))  # a look in between leaves no trace
        assert float(made.step(pack(rows), weight)) == pytest.approx(loss, rel=1e-4)
        for optimizer in optimizers:
            optimizer.step()
        optimizers[0].zero_grad(set_to_none=to_none)
    for mine, true in zip(trained, theirs, strict=True):
        assert tiny.distance(mine, true) < 1e-3


@pytest.mark.parametrize("kind", ["none", "nf4"])
def test_in_16_bits_a_step_is_computed_from_the_newest_weights(kind: str) -> None:
    model, packed = base("llama", dtype=torch.bfloat16), tiny.packed(LENGTHS)
    if kind != "none":
        tiny.quantised(model, kind)
    tuned = tiny.adapted(model)
    made = decoder(tuned, 1)
    first = made.losses(packed)
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        made.step(packed, 1 / len(packed.targets))
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.equal(made.losses(packed), first)
    mine = made.losses(packed), *stepped(made, tuned, [packed])
    fresh = DecoderEngine(tuned, LONGEST, 1, False)
    assert torch.equal(mine[0], fresh.losses(packed))
    again = stepped(fresh, tuned, [packed])
    assert mine[1] == again[0] and all(torch.equal(mine[2][name], again[1][name]) for name in mine[2])


def test_a_pack_without_learned_tokens_teaches_nothing() -> None:
    model = tiny.adapted(base("llama"))
    made = decoder(model, 1)
    empty = pack([tiny.rows((6,))[0] | {"labels": [IGNORED] * 6}])
    assert float(made.step(empty, 1.0)) == 0.0 and len(made.losses(empty)) == 0
    assert all(not gradient.any() for gradient in gradients(model).values())


def test_rows_may_be_as_long_as_was_said_and_a_pack_longer() -> None:
    lengths = (128, 100, 128)
    model = tiny.adapted(base("llama"))
    check(model, 0, lengths=lengths)


def test_the_base_is_left_alone() -> None:
    model = tiny.adapted(tiny.quantised(base("qwen2"), "nf4", True))
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    prompt = {"input_ids": torch.tensor([[5, 6, 7]]), "max_new_tokens": 8, "do_sample": False}
    told = model.eval().generate(**prompt)
    made = decoder(model, 1)
    made.step(tiny.packed(LENGTHS), 1.0)
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
    assert all(p.grad is None for name, p in model.named_parameters() if name in frozen)
    assert torch.equal(model.eval().generate(**prompt), told)
