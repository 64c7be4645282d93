"""Biases and modules that are trained whole: the base keeps its own, and the adapter's file has the rest."""

from pathlib import Path
from typing import Any

import pytest
import torch

from plumbline.checkpoints import base_digest
from plumbline.config import schema
from plumbline.engine.autograd import AutogradEngine
from plumbline.engine.chunked_loss import loss_and_gradient
from plumbline.engine.decoder import DecoderEngine
from plumbline.engine.neftune import Noise
from plumbline.engine.support import odd_adapters
from plumbline.errors import StudioError
from plumbline.models import adapter_init, adapters
from tests import tiny

IDS = torch.arange(3, 33).reshape(2, 15)


def recipe(training: dict[str, Any] | None = None, **lora: Any) -> schema.RunConfig:
    lora = {"r": 4, "target_modules": ["q_proj", "up_proj"], **lora}
    return schema.validated({"lora": lora, "training": {"max_length": 64} | (training or {})})


def fresh(family: str, kind: str) -> Any:
    base = tiny.base(family, tie_word_embeddings=False)
    return base if kind == "none" else tiny.quantised(base, kind)


def learn(model: Any, config: schema.RunConfig) -> list[float]:
    engine, trained = (
        AutogradEngine(model, config, "none"),
        [p for p in model.parameters() if p.requires_grad],
    )
    optimizer, pack = torch.optim.SGD(trained, lr=0.3), tiny.packed((9, 14))
    losses = []
    for _ in range(4):
        losses.append(float(engine.step(pack, 1 / len(pack.targets))))
        optimizer.step()
        optimizer.zero_grad()
    return losses


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.mark.parametrize("kind", ["none", "nf4", "int8"])
@pytest.mark.parametrize(
    "lora",
    [{"bias": "lora_only"}, {"bias": "all", "use_rslora": True}, {"modules_to_save": ["lm_head", "norm"]}],
)
def test_what_is_trained_whole_is_saved_and_the_base_keeps_its_own(
    tmp_path: Path, kind: str, lora: dict[str, Any]
) -> None:
    from peft import PeftModel

    config = recipe(**lora)
    base = fresh("qwen2", kind)
    before, plain = base_digest.base_digest(base), logits(base)
    model = adapters.attach(base, config)
    adapters.refuse_other_trainables(model)
    assert odd_adapters(model) is not None
    losses = learn(model, config)
    assert losses[-1] < losses[0]
    assert base_digest.base_digest(model) == before
    trained = logits(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(fresh("qwen2", kind), str(tmp_path))), trained)
    tuned = adapters.opened(fresh("qwen2", kind), tmp_path)
    assert torch.equal(logits(tuned), trained) and not torch.equal(trained, plain)
    with adapters.switched_off(tuned):
        assert torch.equal(logits(tuned), plain)
    assert torch.equal(logits(tuned), trained)


def test_a_changed_bias_of_the_base_is_still_noticed() -> None:
    model = adapters.attach(fresh("qwen2", "nf4"), recipe(bias="lora_only"))
    before = base_digest.base_digest(model)
    layer = model.base_model.model.model.layers[0].self_attn
    layer.q_proj.base_layer.bias.data += 1  # trained
    assert base_digest.base_digest(model) == before
    layer.k_proj.bias.data += 1  # not trained
    assert base_digest.base_digest(model) != before
    layer.k_proj.bias.requires_grad_(True)
    with pytest.raises(StudioError, match="would be trained"):
        adapters.refuse_other_trainables(model)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_3", "olora", "orthogonal"])
@pytest.mark.parametrize("rslora", [False, True])
def test_a_beginning_in_the_bases_directions_leaves_its_answers_as_they_are(init: str, rslora: bool) -> None:
    base = fresh("llama", "nf4")
    before, plain = base_digest.base_digest(base), logits(base)
    model = adapters.attach(base, recipe(init_lora_weights=init, use_rslora=rslora))
    assert base_digest.base_digest(model) == before
    assert tiny.distance(logits(model), plain) < 1e-5
    _, layer = next(adapter_init.layers(model))
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert a.abs().sum() > 0 and b.abs().sum() > 0
    if init in ("pissa", "olora"):
        own = layer.scaling["default"] * b[:, :4] @ a[:4]
        weight = adapter_init._dense(layer)
        u, s, vt = torch.linalg.svd(weight)
        truth = u[:, :4] @ torch.diag(s[:4]) @ vt[:4]
        q, r = torch.linalg.qr(weight)
        assert tiny.distance(own, truth if init == "pissa" else q[:, :4] @ r[:4]) < 1e-4


def test_the_frozen_half_stays_to_the_bit_and_does_not_count() -> None:
    from plumbline.training.optimizers import FrozenHalf

    config = recipe(init_lora_weights="pissa")
    model = adapters.attach(fresh("llama", "nf4"), config)
    half = FrozenHalf(model, 4)
    half.on_train_begin(None, None, None)
    before = [(a.detach().clone(), b.detach().clone()) for a, b in half.pairs]
    trained = [p for p in model.parameters() if p.requires_grad]
    engine, pack = DecoderEngine(model, 32, 2, False), tiny.packed((9, 14))
    optimizer = torch.optim.AdamW(trained, lr=0.01, weight_decay=0.5)
    for _ in range(3):
        engine.step(pack, 0.1)
        half.mask()
        for a, b in half.pairs:
            assert not a.grad[4:].any() and not b.grad[:, 4:].any() and a.grad[:4].any()
        optimizer.step()
        half.on_optimizer_step(None, None, None)
        optimizer.zero_grad()
    for (a, b), (first_a, first_b) in zip(half.pairs, before, strict=True):
        assert torch.equal(a[4:], first_a[4:]) and torch.equal(b[:, 4:], first_b[:, 4:])
        assert not torch.equal(a[:4], first_a[:4]) and not torch.equal(b[:, :4], first_b[:, :4])


def test_loftq_is_nearer_to_the_weights_before_quantisation(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {name: module.weight for name, module in fresh("llama", "none").named_modules() if "proj" in name}
    monkeypatch.setattr(adapter_init, "_originals", lambda config: whole.__getitem__)
    model = adapters.attach(fresh("llama", "nf4"), recipe(init_lora_weights="loftq", r=8))
    for name, layer in adapter_init.layers(model):
        held = adapter_init._dense(layer)
        added = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        assert (whole[name] - held - added).norm() < 0.9 * (whole[name] - held).norm()


@pytest.mark.parametrize("smoothing", [0.1, 0.6])
def test_label_smoothing_is_torchs_own(smoothing: float) -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(150, 16), torch.randn(96, 16)
    targets = torch.randint(96, (150,))
    given = hidden.clone().requires_grad_(True)
    truth = 0.5 * torch.nn.functional.cross_entropy(
        given @ head.t(), targets, reduction="sum", label_smoothing=smoothing
    )
    truth.backward()
    # In several pieces.
    loss, gradient = loss_and_gradient(hidden, head, targets, 0.5, 64 * 96 * 4, smoothing)
    assert loss.item() == pytest.approx(truth.item(), rel=1e-5)
    assert tiny.distance(gradient, given.grad) < 1e-5


def test_both_engines_smooth_alike_and_measure_plainly() -> None:
    config = recipe(training={"label_smoothing": 0.2})
    pack, found = tiny.packed((9, 14)), []
    for kind in ("decoder", "autograd", "own head"):
        model = tiny.adapted(tiny.base("llama"))
        engine: Any
        if kind == "decoder":
            engine = DecoderEngine(model, 32, 2, False, 0.2)
        else:
            engine = AutogradEngine(model, config, "none")
            engine.plain_head = kind == "autograd"
        loss = float(engine.step(pack, 1 / len(pack.targets)))
        found.append((loss, tiny.gradients(model), float(engine.losses(pack).mean())))
    for loss, gradient, plain in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5) and tiny.distance(gradient, found[0][1]) < 1e-4
        assert plain == pytest.approx(found[0][2], rel=1e-5)
    assert found[0][2] != pytest.approx(found[0][0], rel=1e-3)


def test_neftune_noise_is_of_the_rows_length_and_only_in_training() -> None:
    embedding = torch.nn.Embedding(10, 400)
    torch.nn.init.zeros_(embedding.weight)
    noise, pack = Noise(embedding, 5.0), tiny.packed((4, 25))
    noise.pack = pack
    out = embedding(torch.zeros(1, 29, dtype=torch.long))[0]
    for part, tokens in ((out[:4], 4), (out[4:], 25)):
        most = 5 / (tokens * 400) ** 0.5
        assert 0.98 * most < part.abs().max() <= most and abs(part.mean()) < 0.1 * most
    embedding.eval()
    assert not embedding(torch.zeros(1, 29, dtype=torch.long)).any()
