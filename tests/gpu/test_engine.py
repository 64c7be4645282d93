"""The fast path against the general one on CUDA: pytest -m gpu -s tests/gpu/test_engine.py"""

from pathlib import Path
from typing import Any

import pytest

from plumbline.config import schema

pytestmark = pytest.mark.gpu
SIZES = {
    "vocab_size": 4096,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 2048,
}
LENGTHS = (301, 64, 17, 130)


def _model(folder: Path, family: str, dtype: str, **lora: Any) -> tuple[Any, schema.RunConfig]:
    """A small 4-bit model of a family on the GPU, with an adapter that is not zero."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from plumbline.models import adapters, load

    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **SIZES, pad_token_id=0)
        config._attn_implementation = "sdpa"
        # In bfloat16, so that a base loaded in either type is quantised to the same values.
        AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(folder)
        load.tokenizer("starter").save_pretrained(folder)
    recipe = schema.validated(
        {"model": {"base": str(folder)}, "quantisation": {"compute_dtype": dtype}, "lora": lora}
    )
    model = adapters.attach(load.base_model(recipe), recipe)
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            # Both matrices: what the adapter draws at its start depends on what was drawn before.
            parameter.data = torch.randn(parameter.shape, device="cuda").mul_(0.02)
    return model, recipe


def _step(multiple: int = 1, limit: int = 4096) -> Any:
    import numpy

    from plumbline.batches.packing import Packer

    random = numpy.random.default_rng(0)
    rows = [random.integers(3, 4000, length) for length in LENGTHS]
    return Packer(limit, multiple)([{"input_ids": row, "labels": row} for row in rows])["step"].to("cuda")


def _gradients(model: Any, engine: Any, step: Any) -> tuple[float, dict[str, Any]]:
    for parameter in model.parameters():
        parameter.grad = None
    loss = sum(engine.step(pack, 1 / step.supervised) for pack in step.packs)
    return float(loss), {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def _distance(left: dict[str, Any], right: dict[str, Any]) -> float:
    total = sum(float((left[name] - right[name]).square().sum()) for name in left)
    return (total / sum(float(one.square().sum()) for one in right.values())) ** 0.5


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_the_decoder_is_no_further_from_float32_than_autograd(tmp_path: Path, family: str) -> None:
    from plumbline.engine.autograd import AutogradEngine
    from plumbline.engine.decoder import DecoderEngine

    step = _step()
    exact, recipe = _model(tmp_path, family, "float32")
    wanted = _gradients(exact, AutogradEngine(exact, recipe, "none"), step)
    fast = _gradients(exact, DecoderEngine(exact, 4096, 3, False), step)
    model, recipe = _model(tmp_path, family, "bfloat16")
    general = _gradients(model, AutogradEngine(model, recipe, "none"), step)
    distances = {"autograd": _distance(general[1], wanted[1])}
    for name, (kept, offload) in {"kept": (3, False), "some": (1, True), "offload": (0, True)}.items():
        found = _gradients(model, DecoderEngine(model, 4096, kept, offload), step)
        distances[name] = _distance(found[1], wanted[1])
    print(f"\n{family}: float32 {_distance(fast[1], wanted[1]):.1e}; bfloat16 {distances}")
    assert _distance(fast[1], wanted[1]) < 1e-5 and abs(fast[0] - wanted[0]) < 1e-5 * wanted[0]
    assert max(distances[name] for name in ("kept", "some", "offload")) <= 1.05 * distances["autograd"]


def test_graphs_replay_what_was_computed(tmp_path: Path) -> None:
    import torch

    from plumbline.engine.cuda_graphs import GraphedEngine
    from plumbline.engine.decoder import DecoderEngine

    model, _ = _model(tmp_path, "llama", "bfloat16")
    step = _step(multiple=64, limit=512)
    for kept, offload in ((3, False), (0, True)):
        engine = DecoderEngine(model, 4096, kept, offload)
        plain = _gradients(model, engine, step)
        graphed = GraphedEngine(engine, 512)
        for _ in range(3):
            again = _gradients(model, graphed, step)
        assert len(graphed.captured) >= 1
        assert again[0] == plain[0]
        assert all(torch.equal(again[1][name], plain[1][name]) for name in plain[1])


def test_dropout_and_checkpointing_go_through_autograd_on_cuda(tmp_path: Path) -> None:
    from plumbline.engine.plan import Plan
    from plumbline.engine.select import engine

    step = _step()
    model, recipe = _model(tmp_path, "llama", "bfloat16", dropout=0.1)
    losses = []
    for kept, offload in ((3, False), (0, False), (0, True)):
        made, decisions = engine(model, recipe, Plan(4096, kept, 3, offload, "adamw_torch", False))
        losses.append(_gradients(model, made, step)[0])
    print(f"\n{decisions}: {losses}")
    assert decisions["training path"].value == "autograd"
    assert max(losses) - min(losses) < 0.2


@pytest.mark.parametrize("family", ["gemma3_text", "olmo2", "granite"])
def test_liger_layers_are_no_further_from_float32(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plumbline.engine import autograd
    from plumbline.models.hardware import Choice

    step = _step()
    with_liger = autograd.liger
    monkeypatch.setattr(autograd, "liger", lambda base: Choice("none", "for comparison"))
    exact, recipe = _model(tmp_path, family, "float32")
    wanted = _gradients(exact, autograd.AutogradEngine(exact, recipe, "none"), step)
    distances = {}
    for name, patch in (("transformers", autograd.liger), ("liger", with_liger)):
        monkeypatch.setattr(autograd, "liger", patch)
        model, recipe = _model(tmp_path, family, "bfloat16")
        engine = autograd.AutogradEngine(model, recipe, "none")
        distances[name] = _distance(_gradients(model, engine, step)[1], wanted[1])
    print(f"\n{family}: {engine.decisions}; bfloat16 {distances}")
    assert engine.decisions["fused kernels"].value == "liger-kernel"
    assert distances["liger"] <= 1.1 * distances["transformers"]


def test_float16_keeps_small_gradients_with_a_loss_scale(samples: Path) -> None:
    from plumbline.store import runs
    from tests.runs import add, do
    from tests.runs import recipe as short

    run_id = add(short(quantisation={"compute_dtype": "float16"}, training={"max_steps": 30}))
    assert do("train", run_id)["error"] is None
    points = [point for point in runs.metrics(run_id) if point["loss"]]
    print(f"\nfloat16: loss {points[0]['loss']:.3f} -> {points[-1]['loss']:.3f}")
    assert points[-1]["loss"] < 0.7 * points[0]["loss"]


@pytest.mark.parametrize("graphs", [False, True])
def test_any_loss_of_log_probabilities_is_differentiated(tmp_path: Path, graphs: bool) -> None:
    """As preferences are learned: a weight for each token, known only after the forward pass."""
    from plumbline.engine.autograd import AutogradEngine
    from plumbline.engine.cuda_graphs import GraphedEngine
    from plumbline.engine.decoder import DecoderEngine

    class Squares:
        """An engine whose loss is the sum of squared negative log-likelihoods."""

        def __init__(self, engine: Any) -> None:
            self.engine = engine

        def step(self, pack: Any, weight: float) -> Any:
            return self.engine.step(pack, lambda each: (each.square().sum() * weight, 2 * weight * each))

    step = _step(multiple=64, limit=512)
    exact, recipe = _model(tmp_path, "llama", "float32")
    wanted = _gradients(exact, Squares(AutogradEngine(exact, recipe, "none")), step)
    found = _gradients(exact, Squares(DecoderEngine(exact, 4096, 1, False)), step)
    assert _distance(found[1], wanted[1]) < 1e-5 and abs(found[0] - wanted[0]) < 1e-5 * wanted[0]
    model, recipe = _model(tmp_path, "llama", "bfloat16")
    engine: Any = DecoderEngine(model, 4096, 1, False)
    if graphs:
        engine = GraphedEngine(engine, 512)
        for _ in range(2):
            _gradients(model, engine, step)
    near = _gradients(model, Squares(engine), step)
    print(f"\nfloat32 {_distance(found[1], wanted[1]):.1e}, bfloat16 {_distance(near[1], wanted[1]):.1e}")
    assert _distance(near[1], wanted[1]) < 0.03
