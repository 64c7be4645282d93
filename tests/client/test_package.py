"""The wheel: everything is in it, and it works beside a foreign ``core``, in a project with names like ours.

It is built from a copy of the working tree, without network: setuptools is among the tests' requirements.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests import ROOT

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
SOURCES = {"core/plumbline": "plumbline", "studio/plumbline_studio": "plumbline_studio"}
LEFT_OUT = {"assets/screenshots"}  # the README's pictures
# Written where a user may have files of these names: whatever imports them, ends.
FOREIGN = "raise SystemExit(f'{__file__} of another project was imported')\n"


def files() -> dict[str, str]:
    """Every file that ships: its path here -> its path in the wheel."""
    roots = {**SOURCES, "assets": "plumbline/assets"}
    return {
        path.relative_to(ROOT).as_posix(): f"{target}/{path.relative_to(ROOT / root).as_posix()}"
        for root, target in roots.items()
        for path in (ROOT / root).rglob("*")
        if path.is_file()
        and "__pycache__" not in path.parts
        and not any(path.is_relative_to(ROOT / name) for name in LEFT_OUT)
    }


@dataclass
class Installed:
    """The wheel's names, and a way to run what is installed from a project of somebody else's."""

    names: set[str]
    site: Path
    project: Path
    home: Path

    def run(self, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Python with these arguments, in the project's folder."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PLUMBLINE")}
        environment |= {"PYTHONPATH": str(self.site), "PLUMBLINE_HOME": str(self.home), **variables}
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=self.project)

    def plumbline(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.run(self.site / "bin" / "plumbline", *arguments, **variables)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("package")
    for name in ("pyproject.toml", "README.md", "LICENSE", *files()):
        target = folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    wheels = [*PIP, "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder)]
    subprocess.run([*wheels, str(folder / "source")], check=True)
    (wheel,) = folder.glob("*.whl")
    site = folder / "site"
    into = ["install", "-q", "--no-deps", "--no-index", "--no-compile", "--target", str(site)]
    subprocess.run([*PIP, *into, str(wheel)], check=True)
    project = folder / "project"
    for place in (site / "core", project / "core"):
        place.mkdir(parents=True)
        (place / "__init__.py").write_text(FOREIGN)
    for name in ("json.py", "files.py"):
        (project / name).write_text(FOREIGN)
    with ZipFile(wheel) as archive:
        return Installed(set(archive.namelist()), site, project, folder / "home")


def test_the_list_of_packages_is_complete() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    listed = ast.literal_eval(re.findall(r"\npackages = (\[.*?\n\])", text, re.S)[0])
    folders = {path.rpartition("/")[0].replace("/", ".") for path in files().values()}
    assert sorted(listed) == sorted(folders)


def test_the_wheel_has_every_file_and_nothing_else(installed: Installed) -> None:
    shipped = {name for name in installed.names if ".dist-info/" not in name}
    assert shipped == set(files().values())


def test_the_command_line_runs_in_a_project_with_names_like_ours(installed: Installed) -> None:
    listed = installed.plumbline("runs")
    assert (listed.returncode, listed.stderr) == (0, "") and "No runs yet" in listed.stdout
    shown = installed.plumbline("data")
    assert shown.returncode == 0 and "cited-answers" in shown.stdout, shown.stderr


def test_importing_it_finds_the_installed_one(installed: Installed) -> None:
    found = installed.run("-c", "import plumbline; print(plumbline.__file__)")
    assert found.stdout.strip() == str(installed.site / "plumbline" / "__init__.py"), found.stderr


def test_children_are_of_the_installed_one(installed: Installed, tmp_path: Path) -> None:
    """A file that is read by children, and a job in a process of its own."""
    rows = "".join(f'{{"prompt": "{n} and {n}?", "completion": "{2 * n}"}}\n' for n in range(99))
    (tmp_path / "sums.jsonl").write_text(rows)
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "from plumbline.cli.main import main\n"
        "from plumbline.data.importing import importer\n"
        "importer.PARALLEL_FROM, importer.cores = 1, lambda: 2\n"
        "raise SystemExit(main(sys.argv[1:], lambda *_: None))\n"
    )
    added = installed.run(program, "data", "add", tmp_path / "sums.jsonl")
    assert added.returncode == 0 and "Added sums." in added.stdout, added.stdout + added.stderr
    checked = installed.plumbline("data", "check", "sums", "--near", PLUMBLINE_WORKER="process")
    assert checked.returncode == 0 and "sums: " in checked.stdout, checked.stdout + checked.stderr


def test_without_the_page_the_studio_says_what_to_install(installed: Installed, tmp_path: Path) -> None:
    """Python is told of no packages but those of the distribution, without the extra."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('gradio', 'plotly', 'uvicorn', 'fastapi'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from plumbline_studio.main import main\n"
        "raise SystemExit(main())\n"
    )
    assert "No runs yet" in installed.run(program, "runs").stdout
    refused = installed.run(program, "studio")
    assert refused.returncode == 2
    assert refused.stderr == (
        "error: studio: needs the packages of the page, and gradio is not installed. "
        'Install them: pip install "plumbline-studio[studio]".\n'
    )


@pytest.mark.slow
def test_the_installed_command_trains(installed: Installed, workspace: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return installed.plumbline(*arguments, PLUMBLINE_HOME=str(workspace))

    assert "workspace" in run("doctor").stdout
    assert run("train", "quick_test").returncode == 0
    assert "completed" in run("runs").stdout
