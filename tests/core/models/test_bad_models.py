"""Models, tokenizers and templates that are wrong, row by row of the reliability table (D51 to D61)."""

import copy
import json
import pickle
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from plumbline.chat import session
from plumbline.checkpoints import artifact
from plumbline.data.tokens import template_check
from plumbline.data.tokens.encode import IGNORED, encode, end_tokens
from plumbline.errors import StudioError
from plumbline.home import assets, run_folder
from plumbline.models import inspect, load
from plumbline.models.artifact import refuse_other_tokenizer
from plumbline.planner import overview
from tests import tiny
from tests.finished import Finished
from tests.runs import do, recipe
from tests.uploads import lines, stored, talk

TALK = talk("Say a.", "a")
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
BROKEN = {
    "a syntax error": ("{% for m in messages %}\n{{ m['content' }}{% endfor %}", "fails in line 2"),
    "something undefined": ("{{ nothing.at.all }}", "fails in line 1"),
    "an answer that is dropped": (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}",
        "drops what the assistant says",
    ),
    "an answer that comes twice": (
        CHATML.replace("m['content']", "m['content'] * 2"),
        "repeats what the assistant",
    ),
    "a loop without end": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "takes more than 2 seconds for one conversation",
    ),
    "a bomb": ("{% set x = 'a' * 3000000000 %}{{ x }}", "needs more than"),
}


def base(folder: Path, settings: dict[str, Any] | None = None, **files: Any) -> str:
    """The starter with other tokenizer settings (None takes one away) and other JSON files."""
    shutil.copytree(assets() / "starter", folder)
    given = {"tokenizer_config.json": settings or {}, **{f"{name}.json": v for name, v in files.items()}}
    for name, changes in given.items():
        path = folder / name
        whole = json.loads(path.read_text(encoding="utf-8")) | changes
        path.write_text(json.dumps({key: v for key, v in whole.items() if v is not None}), encoding="utf-8")
    return str(folder)


def learned(tokenizer: Any) -> list[int]:
    return [label for label in encode(TALK, tokenizer, 1000).labels if label != IGNORED]


class Canary:
    """Unpickled, it leaves a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return open, (str(self.marker), "w")


class Watch:
    """Sees every import."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        self.seen.append((name, path))


@pytest.fixture
def tiny_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small model to spoil; its weights, code and pickles stay closed, and nobody is asked anything."""
    folder = Path(tiny.saved(tmp_path / "tiny"))
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    for name in ("modeling_mine.py", "configuration_mine.py", "tokenization_mine.py", "config.py"):
        (folder / name).write_text(code)
    watch = Watch()

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were opened, or somebody was asked")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", never)
    monkeypatch.setattr(torch, "load", never)
    monkeypatch.setattr("builtins.input", never)
    monkeypatch.setattr(sys, "meta_path", [watch, *sys.meta_path])
    yield folder
    assert not (tmp_path / "ran").exists()
    for name, path in watch.seen:
        assert "transformers_modules" not in name and "_mine" not in name
        assert not any(str(tmp_path) in str(part) for part in path or [])


def change(folder: Path, name: str = "config.json", **values: Any) -> None:
    """Set keys of a JSON file; None takes one away."""
    path = folder / name
    whole = (json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}) | values
    path.write_text(json.dumps({key: v for key, v in whole.items() if v is not None}), encoding="utf-8")


def refused(folder: Path) -> str:
    """What the panel says before Start; loading must say the same, and nothing may be left behind."""
    config = recipe(model={"base": str(folder)})
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    try:
        seen = overview.outlook(config)
    except StudioError as error:
        said = error.text
    else:
        (said,) = [check.text for check in seen.checks if check.level == "bad"]
    with pytest.raises(StudioError) as caught:
        load.base_model(config)
    assert caught.value.text == said and caught.value.fix and len(said.replace(str(folder), "base")) <= 400
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    return said.replace(str(folder), "base")


def rewrite(folder: Path, **changed: Any) -> None:
    """Save the weights with some of them replaced; None takes one away."""
    path = folder / "model.safetensors"
    held = load_file(path) | {name.replace("__", "."): value for name, value in changed.items()}
    save_file({name: value for name, value in held.items() if value is not None}, path, {"format": "pt"})


def shard(folder: Path) -> list[str]:
    """The weights in three files with an index."""
    held = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    places = {name: names[number % 3] for number, name in enumerate(held)}
    for file in names:
        part = {name: value for name, value in held.items() if places[name] == file}
        save_file(part, folder / file, {"format": "pt"})
    change(folder, inspect.INDEX, weight_map=places, metadata={})
    return names


CONFIGS: dict[str, tuple[str, str]] = {
    "cut short": ('{"model_type": "lla', "base/config.json is not valid JSON (line 1)"),
    "a list": ("[1, 2]", "base/config.json is not a JSON object"),
    "nested for ever": ("[" * 100_000, "base/config.json is not valid JSON"),
    "not text": ("\x00\x01", "base/config.json is not valid JSON"),
}


def test_d51_no_config_is_refused(samples: Path, tiny_base: Path) -> None:
    (tiny_base / "config.json").unlink()
    assert "base has no config.json. Give the folder of a saved model" in refused(tiny_base)


@pytest.mark.parametrize("case", CONFIGS)
def test_d51_a_damaged_config_is_refused(samples: Path, tiny_base: Path, case: str) -> None:
    content, said = CONFIGS[case]
    (tiny_base / "config.json").write_text(content)
    assert said in refused(tiny_base)


@pytest.mark.parametrize(
    "kind, said",
    [
        ("lama", "model_type 'lama' is not known. Did you mean llama?"),
        ("bert", "model_type 'bert' "),
        ("zzzz9", "model_type 'zzzz9' is not known. Use a causal language model"),
        (None, "model_type 'None' is not known"),
        (7, "model_type '7' is not known"),
        ("whisper_encoder", "model_type 'whisper_encoder' is not known. Did you mean whisper?"),
    ],
)
def test_d51_an_unknown_family_is_refused_with_the_nearest(
    samples: Path, tiny_base: Path, kind: Any, said: str
) -> None:
    change(tiny_base, model_type=kind)
    if kind == "bert":  # bert has a class for it, so it is its weights that do not fit
        assert "the weights lack bert." in refused(tiny_base)
    else:
        assert f"base/config.json: {said}" in refused(tiny_base)


@pytest.mark.parametrize(
    "values, said",
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, which is not from 1 to 2,000"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0,"),
        ({"vocab_size": -1}, "vocab_size is -1, which is not from 1 to 10,000,000"),
        ({"vocab_size": "4096"}, "vocab_size is 4096,"),
        ({"hidden_size": 10**12}, "hidden_size is 1000000000000,"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0,"),
        ({"num_experts": 10**9}, "num_experts is 1000000000,"),
        ({"text_config": {"num_hidden_layers": 10**9}}, "num_hidden_layers is 1000000000,"),
        ({"num_attention_heads": 5}, "describes no model that can be built"),
        ({"rope_parameters": "fast"}, "describes no model that can be built"),
        ({"num_hidden_layers": 3}, "the weights lack model.layers.2."),
        ({"num_hidden_layers": 1}, "leaves out layers that the weights have, such as model.layers.1."),
        ({"intermediate_size": 256}, "has the shape 64 × 128 where config.json describes 64 × 256"),
    ],
)  # fmt: skip
def test_d51_sizes_that_are_absurd_or_not_those_of_the_weights_are_refused(
    samples: Path, tiny_base: Path, values: dict[str, Any], said: str
) -> None:
    change(tiny_base, **values)
    assert said in refused(tiny_base)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "model.ckpt"])
def test_d52_pickle_weights_are_refused_unopened(
    samples: Path, tiny_base: Path, tmp_path: Path, name: str
) -> None:
    (tiny_base / "model.safetensors").unlink()
    (tiny_base / name).write_bytes(pickle.dumps(Canary(tmp_path / "ran")))
    said = refused(tiny_base)
    assert f"base has only pickle weights ({name}), which can hold code and are not accepted" in said
    assert "Convert them to safetensors" in said


@pytest.mark.parametrize("zipped", [False, True])
def test_d52_a_pickle_named_safetensors_is_refused_unopened(
    samples: Path, tiny_base: Path, tmp_path: Path, zipped: bool
) -> None:
    path = tiny_base / "model.safetensors"
    torch.save({"x": Canary(tmp_path / "ran")}, path, _use_new_zipfile_serialization=zipped)
    assert "base/model.safetensors is a pickle under another name" in refused(tiny_base)


def test_d52_other_formats_are_named(samples: Path, tiny_base: Path) -> None:
    (tiny_base / "model.safetensors").rename(tiny_base / "model-q4.gguf")
    assert "base has no model.safetensors (it has model-q4.gguf)" in refused(tiny_base)


def test_d53_a_missing_shard_is_named(samples: Path, tiny_base: Path) -> None:
    (tiny_base / shard(tiny_base)[1]).unlink()
    assert "base lacks model-00002-of-00003.safetensors of 3 files with weights" in refused(tiny_base)


@pytest.mark.parametrize(
    "target", ["../../x.safetensors", "/etc/passwd", "a/../../b.safetensors", "x.bin", 7]
)
def test_d53_an_index_that_points_elsewhere_is_refused(samples: Path, tiny_base: Path, target: Any) -> None:
    shard(tiny_base)
    change(tiny_base, inspect.INDEX, weight_map={"model.norm.weight": target})
    said = refused(tiny_base)
    assert f"base/{inspect.INDEX} " in said and ("points to " in said or "lists no weights" in said)


def test_d53_a_weight_that_its_shard_does_not_have_is_named(samples: Path, tiny_base: Path) -> None:
    names = shard(tiny_base)
    places = json.loads((tiny_base / inspect.INDEX).read_text())["weight_map"]
    change(tiny_base, inspect.INDEX, weight_map=places | {"model.extra.weight": names[0]})
    assert f"base/{names[0]} lacks model.extra.weight" in refused(tiny_base)


@pytest.mark.parametrize("keep", [0, 5, 300, -1])
def test_d53_a_shard_that_is_cut_short_is_named(samples: Path, tiny_base: Path, keep: int) -> None:
    name = shard(tiny_base)[2]
    path = tiny_base / name
    path.write_bytes(path.read_bytes()[:keep])
    assert f"base/{name} is " in refused(tiny_base)


def test_d53_a_header_that_lies_is_refused(samples: Path, tiny_base: Path) -> None:
    path = tiny_base / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"BF16"', b'"F128"', 1))
    assert "base/model.safetensors is not a safetensors file" in refused(tiny_base)
    path.write_bytes(b"\xff" * 8 + data[8:])
    assert "base/model.safetensors is not a safetensors file" in refused(tiny_base)


def test_d53_a_weight_of_another_shape_or_type_is_named(samples: Path, tiny_base: Path) -> None:
    first = tiny_base / "model.safetensors"
    whole = first.read_bytes()
    rewrite(tiny_base, model__norm__weight=torch.ones(65, dtype=torch.bfloat16))
    assert "base: model.norm.weight has the shape 65 where config.json describes 64" in refused(tiny_base)
    first.write_bytes(whole)
    rewrite(tiny_base, model__norm__weight=torch.ones(64, dtype=torch.int8))
    assert "base: model.norm.weight has the type I8, not one of BF16" in refused(tiny_base)
    first.write_bytes(whole)
    rewrite(tiny_base, model__norm__weight=None)
    assert "base: the weights lack model.norm.weight, which config.json describes" in refused(tiny_base)


CODE: dict[str, tuple[str, dict[str, Any]]] = {
    "a family of its own": (
        "config.json (auto_map)",
        {
            "model_type": "mine",
            "architectures": ["MineForCausalLM"],
            "auto_map": {"AutoConfig": "configuration_mine.MineConfig"},
        },
    ),
    "a class of its own": (
        "config.json (auto_map)",
        {
            "architectures": ["MineForCausalLM"],
            "auto_map": {"AutoModelForCausalLM": "other/repository--modeling_mine.MineForCausalLM"},
        },
    ),
    "attention": ("attn_implementation 'some/kernel'", {"attn_implementation": "some/kernel"}),
    "private attention": (
        "_attn_implementation_internal 'some/kernel'",
        {"_attn_implementation_internal": "some/kernel"},
    ),
    "attention of a part": (
        "attn_implementation",
        {"text_config": {"attn_implementation": {"": "some/kernel"}}},
    ),
    "experts": ("experts_implementation 'some/kernel'", {"experts_implementation": "some/kernel"}),
}


@pytest.mark.parametrize("case", CODE)
def test_d54_remote_code_is_refused_without_a_question(samples: Path, tiny_base: Path, case: str) -> None:
    said, values = CODE[case]
    change(tiny_base, **values)
    text = refused(tiny_base)
    assert said in text and "needs remote code, which the studio never runs" in text


def test_d54_a_tokenizer_with_code_is_refused(samples: Path, tiny_base: Path) -> None:
    mapped = {"AutoTokenizer": ["tokenization_mine.MineTokenizer", None]}
    change(tiny_base, "tokenizer_config.json", auto_map=mapped, tokenizer_class="MineTokenizer")
    assert "base/tokenizer_config.json (auto_map) needs remote code" in refused(tiny_base)


def test_d54_code_that_is_not_needed_is_left_alone(samples: Path, tiny_base: Path) -> None:
    """As in Phi-3, whose repository brings code for versions of transformers that did not know it."""
    change(tiny_base, auto_map={"AutoModelForCausalLM": "modeling_mine.LlamaForCausalLM"})
    seen = overview.outlook(recipe(model={"base": str(tiny_base)}))
    assert not seen.blocked
    assert any("brings code of its own, which is not run" in check.text for check in seen.checks)


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "bitsandbytes", "compressed-tensors", None])
def test_d60_a_base_that_is_already_quantised_is_refused(
    samples: Path, tiny_base: Path, method: str | None
) -> None:
    change(tiny_base, quantization_config={"quant_method": method, "bits": 4})
    said = refused(tiny_base)
    assert f"its weights are already quantised ({method}), and would be rounded a second time" in said
    assert "Name the 16-bit model that it was made from" in said


def test_d60_weights_in_8_bits_without_a_word_are_refused(samples: Path, tiny_base: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(tiny_base, **{name.replace(".", "__"): torch.ones(128, 64).to(torch.float8_e4m3fn)})
    assert f"base: {name} has the type F8_E4M3" in refused(tiny_base)


def test_an_adapter_is_no_base(samples: Path, tiny_base: Path) -> None:
    change(tiny_base, "adapter_config.json", base_model_name_or_path="some/other")
    assert "base is an adapter, not a base. Name the model that it was trained on" in refused(tiny_base)


def test_a_whole_folder_passes(samples: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tiny_base / "training_args.bin").write_bytes(b"never opened")
    assert not overview.outlook(recipe(model={"base": str(tiny_base)})).blocked
    shard(tiny_base)
    assert not overview.outlook(recipe(model={"base": str(tiny_base)})).blocked
    monkeypatch.undo()
    load.base_model(recipe(model={"base": str(tiny_base)}))


def test_d57_no_template_is_explained() -> None:
    changed = copy.deepcopy(load.tokenizer("starter"))
    changed.chat_template = None
    with pytest.raises(StudioError, match="has no chat template"):
        template_check.check_template(changed)


def test_d57_a_template_without_generation_marks_is_masked_by_difference() -> None:
    changed = copy.deepcopy(load.tokenizer("starter"))
    changed.chat_template = CHATML
    assert template_check.check_template(changed) == CHATML
    assert changed.decode(learned(changed)) == "a<|im_end|>"


@pytest.mark.parametrize("case", BROKEN)
def test_d57_a_template_that_does_not_work_is_refused_in_a_process_of_its_own(case: str) -> None:
    template, why = BROKEN[case]
    changed = copy.deepcopy(load.tokenizer("starter"))
    changed.chat_template = template
    with pytest.raises(StudioError) as caught:
        template_check.check_template(changed)
    assert any(part in caught.value.text for part in why.split("|")), caught.value.text
    assert len(caught.value.text) <= 400


@pytest.mark.parametrize("pad", [None, "<|im_end|>"])
def test_d58_without_a_pad_token_the_end_is_still_learned(tmp_path: Path, pad: str | None) -> None:
    tokenizer = load.tokenizer(base(tmp_path / "base", {"pad_token": pad}))
    assert tokenizer.pad_token_id is not None
    assert learned(tokenizer)[-1] == tokenizer.eos_token_id


def test_d58_no_end_token_is_refused(tmp_path: Path) -> None:
    nothing = {"eos_token": None}
    folder = base(
        tmp_path / "base", nothing, generation_config={"eos_token_id": None}, config={"eos_token_id": None}
    )
    with pytest.raises(StudioError, match="has no end-of-sequence token. It could never learn to stop"):
        load.tokenizer(folder)


@pytest.mark.parametrize("given", [3, [3, 1]])
def test_d58_an_end_that_only_the_generation_settings_name_is_taken(tmp_path: Path, given: Any) -> None:
    folder = base(tmp_path / "base", {"eos_token": None}, generation_config={"eos_token_id": given})
    tokenizer = load.tokenizer(folder)
    assert tokenizer.eos_token == "<|im_end|>"
    assert learned(tokenizer)[-1] in end_tokens(tokenizer)


def test_d58_an_end_token_that_is_not_in_the_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudioError, match="its tokenizer has 4097 tokens, its embeddings 4096"):
        load.tokenizer(base(tmp_path / "base", {"eos_token": "<|nowhere|>"}))


def test_d58_rows_that_never_end_stop_the_start(workspace: Path, tmp_path: Path) -> None:
    folder = base(tmp_path / "base")
    endless = CHATML.replace("<|im_end|>", "")
    (Path(folder) / "chat_template.jinja").write_text(endless, encoding="utf-8")
    dataset = stored(tmp_path, "a.jsonl", lines(*(talk(f"Say {n}.", f"It is {n}.") for n in range(12))))
    seen = overview.outlook(recipe(model={"base": folder}, data={"dataset": dataset["name"]}))
    assert seen.blocked
    assert any("never stop" in check.text for check in seen.checks if check.level == "bad")


def test_d59_another_template_or_tokenizer_is_refused_at_chat_evaluation_and_export(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_folder(finished.run_id) / "artifact"
    recorded = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))["tokenizer"]
    known = load.tokenizer("starter")
    assert recorded == load.fingerprint(known)
    refuse_other_tokenizer(folder, known)

    changed = copy.deepcopy(known)
    changed.chat_template = CHATML
    monkeypatch.setattr(load, "tokenizer", lambda *_: changed)
    then, now = recorded["chat template"][:12], load.fingerprint(changed)["chat template"][:12]
    said = f"chat template: is not the one of training (sha256 {now}, then {then})"
    session.close()
    with pytest.raises(StudioError) as caught:
        session.opened(finished.run_id)
    assert said in caught.value.text
    for kind in ("evaluate", "merge", "adapter"):
        job = do(kind, finished.run_id)
        assert job["state"] == "failed" and said in job["error"], kind

    longer = copy.deepcopy(known)
    longer.add_tokens(["plumb"])
    with pytest.raises(StudioError, match="tokenizer: is not the one of training"):
        refuse_other_tokenizer(folder, longer)


def test_d61_a_tokenizer_larger_than_the_embeddings_is_refused_before_start(
    samples: Path, tmp_path: Path
) -> None:
    folder = base(tmp_path / "base", config={"vocab_size": 4000})
    with pytest.raises(StudioError, match="4096.*4000"):
        overview.outlook(recipe(model={"base": folder}))


def test_d61_a_token_that_nothing_writes_may_lie_beyond_the_embeddings(tmp_path: Path) -> None:
    folder = base(tmp_path / "base", {"additional_special_tokens": ["<picture>"]})
    assert len(load.tokenizer(folder)) == 4097


def test_d61_the_saved_adapter_holds_no_embeddings(finished: Finished, tmp_path: Path) -> None:
    from safetensors import safe_open

    path = run_folder(finished.run_id) / "artifact" / "adapter_model.safetensors"
    with safe_open(path, "pt") as weights:
        assert all("lora_" in name for name in weights.keys())  # noqa: SIM118 (not a dict)

    class Grown:
        """A model whose saving writes far more than was trained."""

        def parameters(self) -> list[Any]:
            return []

        def save_pretrained(self, folder: str, safe_serialization: bool, **_: Any) -> None:
            Path(folder).mkdir()
            (Path(folder) / "adapter_model.safetensors").write_bytes(b"x" * 1024**2)

    with pytest.raises(StudioError, match="adapter: would have 1.0 MB where 0.0 MB were trained"):
        artifact.write(tmp_path / "artifact", Grown(), recipe(), {}, {})
    assert not list(tmp_path.glob("artifact*"))
