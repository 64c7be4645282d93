"""A base that is spread over processes is the base that one process loads, bit for bit, and never whole."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from plumbline.checkpoints import base_digest
from plumbline.config import schema
from plumbline.config.schema import RunConfig
from plumbline.distributed.process_group import ProcessGroup
from plumbline.errors import StopRequested, StudioError
from plumbline.models import adapters, load, streamed
from plumbline.planner import model_size
from plumbline.training.ranks.sharded_base import refuse, spread
from tests import tiny
from tests.core.engine.test_families import packed

IDS = torch.tensor([[1, 5, 9, 33, 2]])


def recipe(base: str, method: str = "nf4", double: bool = True, **sections: Any) -> RunConfig:
    quantisation = {"method": method, "double_quant": double} | sections.pop("quantisation", {})
    given = {"model": {"base": base}, "quantisation": quantisation, "training": {"max_length": 256}}
    return schema.validated(given | sections)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One of each family: tied and not, in one file and in several, saved with a head or without."""
    folder = tmp_path_factory.mktemp("bases")
    # A sliding window would have them refused.
    made = {
        "llama": tiny.saved(folder / "llama", "llama", num_hidden_layers=3),
        "qwen2": tiny.saved(folder / "qwen2", "qwen2", tie_word_embeddings=True),
        "qwen3": tiny.saved(folder / "qwen3", "qwen3", tie_word_embeddings=True),
        "mistral": tiny.saved(folder / "mistral", "mistral", sliding_window=None),
        "starter": "starter",
    }
    into_files(Path(made["llama"]))
    # What is tied may be in the file under its other name.
    path = Path(made["qwen3"]) / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, path, {"format": "pt"})
    (Path(made["mistral"]) / "generation_config.json").unlink(missing_ok=True)
    return made


def into_files(folder: Path) -> None:
    """Each file with something of every layer."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-{number % 3}.safetensors" for number, name in enumerate(tensors)}
    for file in set(places.values()):
        of_file = {name: tensor for name, tensor in tensors.items() if places[name] == file}
        save_file(of_file, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def held(model: Any) -> Iterator[tuple[str, Any]]:
    """Every tensor of a base, and all that its quantised weights are held with."""
    for name, tensor in adapters.base_tensors(model):
        yield name, tensor.detach()
        if (state := getattr(tensor, "quant_state", None)) is not None:
            inner = [("", state)] + ([("nested ", state.state2)] if state.nested else [])
            for which, one in inner:
                yield f"{name} {which}scales", one.absmax
                yield f"{name} {which}code", one.code
                yield f"{name} {which}is", torch.tensor([one.blocksize, *(one.shape or ())])
            yield f"{name} computes", state.dtype
            yield f"{name} offset", state.offset


@pytest.mark.parametrize(
    ("base", "method", "double", "more"),
    [
        ("llama", "nf4", True, {}),
        ("qwen2", "fp4", False, {}),
        ("qwen3", "nf4", False, {"compute_dtype": "bfloat16"}),
        ("mistral", "fp4", True, {"storage_dtype": "bfloat16"}),
        ("starter", "nf4", True, {}),
        ("starter", "fp4", False, {}),
    ],
)
def test_a_base_read_layer_by_layer_is_the_loaded_one(
    bases: dict[str, str], base: str, method: str, double: bool, more: Any
) -> None:
    config = recipe(bases[base], method, double, quantisation=more)
    loaded, ours = load.base_model(config), spread(config, ProcessGroup(), "cpu")
    of_loaded, of_ours = dict(held(loaded)), dict(held(ours))
    assert of_loaded.keys() == of_ours.keys() and len(of_loaded) > 40
    for name, wanted in of_loaded.items():
        found = of_ours[name]
        if not isinstance(wanted, torch.Tensor):
            assert found == wanted, name
            continue
        assert (found.dtype, found.device, found.shape) == (wanted.dtype, wanted.device, wanted.shape), name
        # As bytes: 4-bit values that are stored as floats may be read as NaN.
        both = [one.reshape(-1).view(torch.uint8) for one in (found, wanted)]
        assert torch.equal(*both), name
    assert base_digest.base_digest(ours) == base_digest.base_digest(loaded)
    with torch.no_grad():
        assert torch.equal(ours(IDS).logits, loaded(IDS).logits)


def test_all_else_is_as_loading_leaves_it(bases: dict[str, str]) -> None:
    for base in ("starter", "mistral"):
        loaded, ours = (
            load.base_model(recipe(bases[base])),
            spread(recipe(bases[base]), ProcessGroup(), "cpu"),
        )
        assert ours.config.to_dict() == loaded.config.to_dict()
        assert ours.generation_config.to_dict() == loaded.generation_config.to_dict()
        for name in ("is_loaded_in_4bit", "is_quantized", "quantization_method", "dtype", "device"):
            assert getattr(ours, name) == getattr(loaded, name), name
        assert ours.hf_quantizer.quantization_config.to_dict() == (
            loaded.hf_quantizer.quantization_config.to_dict()
        )
        assert not ours.training and not ours.is_gradient_checkpointing
        assert not any(parameter.requires_grad for parameter in ours.parameters())
        named = zip(loaded.named_modules(), ours.named_modules(), strict=True)
        for (name, one), (other_name, other) in named:
            assert (name, type(one)) == (other_name, type(other))
        repacked = [one.support_avx512bf16_for_cpu for one in ours.modules() if hasattr(one, "quant_type")]
        assert not any(repacked)
        assert (ours.lm_head.weight is ours.model.embed_tokens.weight) == (base == "starter")


def test_reading_tells_how_far_it_is_and_hears_stop(bases: dict[str, str]) -> None:
    told: list[tuple[str, float | None]] = []
    spread(recipe("starter"), ProcessGroup(), "cpu", lambda *one: told.append(one))
    assert told and told[0][0].startswith("reading the base: ") and 0 < told[0][1] <= 1  # type: ignore

    def stop() -> None:
        raise StopRequested()

    with pytest.raises(StopRequested):
        spread(recipe("starter"), ProcessGroup(), "cpu", check_stop=stop)


def test_a_layer_is_read_when_it_is_asked_for(bases: dict[str, str]) -> None:
    model, layers = streamed.base_model(recipe(bases["llama"]), "cpu")
    for number, layer in enumerate(layers):
        assert layer is model.model.layers[number]
        here = [not any(p.is_meta for p in one.parameters()) for one in model.model.layers]
        assert here == [True] * (number + 1) + [False] * (2 - number)
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])


LORA = {"target_modules": ["q_proj", "lm_head"]}


@pytest.mark.parametrize(
    ("base", "given", "why"),
    [
        ("llama", {"method": "int8"}, "only nf4 and fp4 can be, and its quantisation is int8"),
        ("llama", {"method": "none"}, "only nf4 and fp4 can be, and its quantisation is none"),
        ("llama", {"lora": LORA}, "something outside its layers is trained"),
        ("qwen2", {"lora": {"bias": "all"}}, "biases are trained beside the adapters"),
        ("llama", {"lora": {"use_dora": True}}, "its adapters are not plain LoRA but DoRA"),
        ("llama", {"quantisation": {"compute_dtype": "float16"}}, "float16 needs its loss scaled"),
        ("olmo2", {}, "olmo2 layers go through autograd"),
        ("mxfp4", {"lora": {"target_modules": ["q_proj"]}}, "gpt_oss layers go through autograd"),
    ],
)
def test_what_cannot_be_spread_is_refused_before_its_weights_are_read(
    bases: dict[str, str], tmp_path: Path, base: str, given: Any, why: str
) -> None:
    made = bases.get(base) or tiny.saved(tmp_path, {"mxfp4": "gpt_oss"}.get(base, base))
    if base == "mxfp4":
        packed(Path(made))
    with pytest.raises(StudioError) as refused:
        refuse(recipe(made, **given))
    assert refused.value.where == "machines.sharding"
    assert why in refused.value.what and "cannot be spread over several GPUs" in refused.value.what


def test_transformers_own_backward_through_a_part_of_the_base_is_refused(bases: dict[str, str]) -> None:
    model = spread(recipe(bases["llama"]), ProcessGroup(0, 2), "cpu")
    with pytest.raises(StudioError, match=r"machines\.sharding"):
        model(IDS)


def allocated(model: Any) -> int:
    """Bytes of all that a process holds of its base, each stretch of memory counted once."""
    found = [tensor for _, tensor in held(model) if isinstance(tensor, torch.Tensor)]
    storages = [one.untyped_storage() for one in found + model.sharded.parts + model.sharded.buffers]
    return sum({one.data_ptr(): one.nbytes() for one in storages}.values())


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize(("base", "method", "double"), [("starter", "nf4", True), ("llama", "fp4", False)])
def test_the_bytes_of_a_part_are_known_before(
    bases: dict[str, str], processes: int, base: str, method: str, double: bool
) -> None:
    config = recipe(bases[base], method, double, quantisation={"compute_dtype": "bfloat16"})
    expected = model_size.sharded_bytes(model_size.model_size_of(config), processes)
    parts = [allocated(spread(config, ProcessGroup(rank, processes), "cpu")) for rank in {0, processes - 1}]
    print(f"\n{base} over {processes}: {expected:,} expected, {parts} held")
    assert all(abs(part / expected - 1) < 0.04 for part in parts)


def test_a_base_opened_to_16_bits_is_counted_so(tmp_path: Path) -> None:
    base = packed(Path(tiny.saved(tmp_path, "gpt_oss")))
    config = recipe(base, lora={"target_modules": ["q_proj"]}, quantisation={"compute_dtype": "bfloat16"})
    known = model_size.model_size_of(config)
    held_bytes = sum(p.numel() * p.element_size() for p in load.base_model(config).parameters())
    assert known.base_bytes == held_bytes and known.quantisation == "mxfp4"
    assert model_size.sharded_bytes(known, 4) == known.base_bytes


def _together(rank: int, folder: str, bases: dict[str, str]) -> None:
    """What one of two processes sees; the other runs the same at the same time."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found: dict[str, Any] = {}
    for name, config in shared_recipes(bases).items():
        model = spread(config, ProcessGroup(rank, 2), "cpu")
        digest = base_digest.base_digest(model)
        with torch.no_grad():
            logits = model(IDS).logits
        torch.manual_seed(0)
        tuned = adapters.attach(model, config)
        trained = {n: p.detach().clone() for n, p in tuned.named_parameters() if p.requires_grad}
        save_file(trained | {"logits": logits}, f"{folder}/{name}-{rank}.safetensors")
        tuned.save_pretrained(f"{folder}/{name}-{rank}", save_embedding_layers=False)
        after = base_digest.base_digest(tuned)
        flipped = []
        # First a bit of the other process's part, then one of a scale that only the other one uses.
        for change in (
            model.sharded.parts[-1],
            model.model.layers[0].mlp.down_proj.weight.quant_state.absmax,
        ):
            kept = change.clone()
            if rank == 1:
                change.view(torch.uint8)[3] ^= 1
            model.sharded.held = [None, None]
            flipped.append(base_digest.base_digest(tuned))
            change.copy_(kept)
        found[name] = {"digests": [digest, after], "flipped": flipped}
    Path(f"{folder}/{rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def shared_recipes(bases: dict[str, str]) -> dict[str, RunConfig]:
    stored = {"storage_dtype": "bfloat16", "compute_dtype": "bfloat16"}
    return {
        "llama": recipe(bases["llama"], lora={"init_lora_weights": "pissa"}),
        "qwen2": recipe(bases["qwen2"], "fp4", False, lora={"init_lora_weights": "loftq"}),
        "mistral": recipe(bases["mistral"], quantisation=stored),
        "starter": recipe("starter", double=False, lora={"init_lora_weights": "olora"}),
    }


def test_two_processes_have_the_base_that_one_has(bases: dict[str, str], tmp_path: Path) -> None:
    """Its digest, what it computes, the adapters that begin with its weights, and what is saved."""
    torch.multiprocessing.spawn(_together, (str(tmp_path), bases), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    for name, config in shared_recipes(bases).items():
        model = load.base_model(config)
        digest = base_digest.base_digest(model)
        assert first[name]["digests"] == [digest, digest], name
        assert second[name]["digests"] == [digest, digest], name
        # A part is gathered by both; a scale that is wrong in one is seen there, and they are compared.
        (part, scale), (of_part, of_scale) = first[name]["flipped"], second[name]["flipped"]
        assert part == of_part and part["sha256"] != digest["sha256"], name
        assert scale == digest and of_scale["sha256"] != digest["sha256"], name
        with torch.no_grad():
            wanted = {"logits": model(IDS).logits}
        torch.manual_seed(0)
        tuned = adapters.attach(model, config)
        wanted |= {n: p.detach() for n, p in tuned.named_parameters() if p.requires_grad}
        for rank in (0, 1):
            seen = load_file(tmp_path / f"{name}-{rank}.safetensors")
            assert seen.keys() == wanted.keys()
            assert all(torch.equal(seen[key], wanted[key]) for key in wanted), name
            saved = load_file(tmp_path / f"{name}-{rank}" / "adapter_model.safetensors")
            assert len(saved) == len(wanted) - 1 and all(".lora_" in key for key in saved)
