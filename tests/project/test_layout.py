"""Rules that the code keeps: who imports whom, what is never called, what the README promises."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import launch
from plumbline.cli import main
from tests import ROOT
from tests.verbs import verbs

SOURCES = [path for folder in ("core", "studio") for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_core_knows_no_page_and_the_page_knows_no_torch(path: Path) -> None:
    if path.relative_to(ROOT).parts[0] == "core":
        assert not imports(path) & {"gradio", "plumbline_studio", "plotly", "fastapi", "uvicorn"}
    else:
        assert not imports(path) & {"torch", "transformers", "peft", "trl", "bitsandbytes"}


def test_nothing_runs_a_shell_or_opens_a_pickle() -> None:
    forbidden = re.compile(
        r"shell=True|os\.system\(|pickle\.load|yaml\.load\(|torch\.load\(|trust_remote_code=True|\beval\("
    )
    for path in [*SOURCES, ROOT / "launch.py"]:
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if ".eval(" not in line:
                assert not forbidden.search(line), f"{path.name}:{number}"


def test_files_fit_in_one_sitting() -> None:
    long = {str(p.relative_to(ROOT)): n for p in SOURCES if (n := len(p.read_text().splitlines())) > 400}
    assert long == {}


def test_launch_needs_only_the_standard_library_until_the_environment_exists() -> None:
    tree = ast.parse((ROOT / "launch.py").read_text())
    top = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    assert {name.split(".")[0] for name in top} <= set(sys.stdlib_module_names)


def test_every_pin_meets_its_floor_and_every_floor_has_a_pin() -> None:
    floors = launch.floors()
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    pins = [re.fullmatch(r"([\w.-]+)==([\d.]+)( *;.*)?", line) for line in lines]
    assert all(pins)
    assert {pin[1] for pin in pins if pin} == set(floors)
    for pin in pins:
        assert pin and launch._numbers(pin[2]) >= launch._numbers(floors[pin[1]]), pin[1]


def test_every_verb_has_a_handler_and_help() -> None:
    printed = subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), "--help"], capture_output=True, text=True, cwd=ROOT
    ).stdout
    for verb in verbs():
        assert verb in printed


def test_the_command_line_explains_what_is_wrong(workspace: Path, capsys: pytest.CaptureFixture) -> None:
    recipe = workspace.parent / "bad.yaml"
    recipe.write_text("training: {learning_rate: abc}\nlora: {r: 0}\n")
    assert main.main(["train", str(recipe)], lambda *_: None) == 2
    error = capsys.readouterr().err
    assert (
        'training.learning_rate must be a number, got "abc"' in error and "lora.r must be at least 1" in error
    )
    assert main.main(["train", "nowhere.yaml"], lambda *_: None) == 2
    assert "nowhere.yaml: is not there" in capsys.readouterr().err
    assert main.main(["evaluate", "7"], lambda *_: None) == 2
    assert "run 7: does not exist" in capsys.readouterr().err
    assert main.main(["runs"], lambda *_: None) == 0
    assert "No runs yet" in capsys.readouterr().out


def test_the_readme_names_only_commands_that_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    named = set(re.findall(r"(?:launch\.py|(?<!from )plumbline) ([a-z]+)\b", readme))
    assert {"quickstart", "test", "train", "runs", "doctor"} <= named <= verbs()
    for picture in re.findall(r"\]\((assets/[^)]+)\)", readme):
        assert (ROOT / picture).exists(), picture


def test_ci_runs_the_readmes_test_command() -> None:
    assert "launch.py test" in (ROOT / ".ci" / "run").read_text()
