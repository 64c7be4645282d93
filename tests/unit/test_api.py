"""The README's Python example, run as it is written, with a short recipe in place of the preset."""

import re
from pathlib import Path

import pytest

from core import config as schema
from core.errors import StudioError
from tests.runs import recipe

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_readmes_python_example_runs(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    short = recipe()
    monkeypatch.setattr(schema, "preset", lambda name: short)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    exec(compile(code, "README.md", "exec"), {})
    perplexity, folder = capsys.readouterr().out.splitlines()[-2:]
    assert float(perplexity) > 1
    assert (Path(folder) / "model.safetensors").exists()


def test_a_job_that_fails_is_raised_with_its_reason(workspace: Path) -> None:
    from core import api

    with pytest.raises(StudioError, match="train of run 1: .*no answer tokens within 16"):
        api.train(recipe(training={"max_length": 16}))


def test_the_readmes_recipe_is_valid() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", README.read_text(), re.S)
    assert schema.loads(text).model.base.startswith("meta-llama/")
