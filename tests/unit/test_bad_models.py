"""Tokenizers and templates that are wrong, row by row of the reliability table (D57 to D61)."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from core.chat import session
from core.data import overview, probe
from core.data.xray import IGNORED, encode, end_tokens
from core.errors import StudioError
from core.home import assets, run_folder
from core.models import load
from core.training import artifact
from tests.runs import do, recipe
from tests.unit.conftest import Finished
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
        "did not finish three short conversations in 2 seconds",
    ),
    "a bomb": ("{% set x = 'a' * 3000000000 %}{{ x }}", "needs more than|short conversation"),
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


def test_d57_no_template_is_explained() -> None:
    changed = copy.deepcopy(load.tokenizer("starter"))
    changed.chat_template = None
    with pytest.raises(StudioError, match="has no chat template"):
        probe.check_template(changed)


def test_d57_a_template_without_generation_marks_is_masked_by_difference() -> None:
    changed = copy.deepcopy(load.tokenizer("starter"))
    changed.chat_template = CHATML
    assert probe.check_template(changed) == CHATML
    assert changed.decode(learned(changed)) == "a<|im_end|>"


@pytest.mark.parametrize("case", BROKEN)
def test_d57_a_template_that_does_not_work_is_refused_in_a_process_of_its_own(case: str) -> None:
    template, why = BROKEN[case]
    changed = copy.deepcopy(load.tokenizer("starter"))
    changed.chat_template = template
    with pytest.raises(StudioError) as caught:
        probe.check_template(changed)
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
    artifact.refuse_other_tokenizer(folder, known)

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
        artifact.refuse_other_tokenizer(folder, longer)


def test_d61_a_tokenizer_larger_than_the_embeddings_is_refused_before_start(
    samples: Path, tmp_path: Path
) -> None:
    folder = base(tmp_path / "base", config={"vocab_size": 4000})
    with pytest.raises(StudioError, match="its tokenizer has 4096 tokens, its embeddings 4000"):
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
