"""The served studio: what it answers, what it refuses, and what it never needs to import."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests import ROOT
from tests.server import Studio


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    running = Studio(tmp_path_factory.mktemp("served") / "home")
    yield running
    running.close()


def test_the_page_is_served_and_nothing_but_the_page(studio: Studio) -> None:
    assert httpx.get(studio.url).status_code == 200
    assert "Plumbline" in httpx.get(studio.url).text
    for path in ("docs", "openapi.json", "monitoring/summary", "gradio_api/mcp/schema"):
        assert httpx.get(studio.url + path).status_code in (403, 404), path


@pytest.mark.parametrize("path", ["download/1", "download/999", "download/../runs/1", "download/x"])
def test_a_download_goes_by_the_id_of_a_finished_export(studio: Studio, path: str) -> None:
    assert httpx.get(studio.url + path).status_code in (404, 422)


def test_files_of_the_workspace_and_the_machine_are_not_served(studio: Studio, tmp_path: Path) -> None:
    canary = tmp_path / "canary.txt"
    canary.write_text("CANARY")
    for target in (str(canary), "/etc/passwd", str(ROOT / "pyproject.toml"), "plumbline.db"):
        for form in ("gradio_api/file=", "file=", "gradio_api/file/"):
            answer = httpx.get(studio.url + form + target)
            assert answer.status_code in (400, 403, 404), (form, target)
            assert "CANARY" not in answer.text and "root:" not in answer.text


def test_a_foreign_page_can_neither_post_nor_read(studio: Studio) -> None:
    foreign = {"Origin": "http://evil.example"}
    assert httpx.post(studio.url + "gradio_api/queue/join", json={}, headers=foreign).status_code == 403
    upload = {"files": ("a.txt", b"x")}
    assert httpx.post(studio.url + "gradio_api/upload", files=upload, headers=foreign).status_code == 403
    assert "access-control-allow-origin" not in httpx.get(studio.url, headers=foreign).headers
    assert httpx.get(studio.url, headers={"Host": "evil.example"}).status_code == 403


def test_listening_to_others_needs_a_password(workspace: Path) -> None:
    refused = subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), "--listen", "--port", "0"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    assert refused.returncode == 2
    assert "PLUMBLINE_AUTH" in refused.stderr and "Traceback" not in refused.stderr


def test_with_a_password_everything_asks_for_it(tmp_path: Path) -> None:
    studio = Studio(tmp_path / "home", "--listen", PLUMBLINE_AUTH="me:secret")
    try:
        for path in ("", "config", "download/1", "gradio_api/queue/status"):
            assert httpx.get(studio.url + path).status_code == 401, path
        assert httpx.get(studio.url, auth=("me", "secret")).status_code == 200
    finally:
        studio.close()


def test_serving_the_page_does_not_import_the_training_stack(workspace: Path) -> None:
    code = (
        "import sys; from plumbline_studio.serve import application; application('127.0.0.1');"
        "print([name for name in ('torch', 'transformers', 'plotly', 'datasets') if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert printed.stdout.strip() == "[]", printed.stderr


def test_the_port_in_use_is_said(studio: Studio, workspace: Path) -> None:
    port = studio.url.rsplit(":", 1)[1].strip("/")
    refused = subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), "--port", port], capture_output=True, text=True, cwd=ROOT
    )
    assert refused.returncode == 2 and "--port" in refused.stderr


def test_f07_a_second_studio_of_a_workspace_names_the_first_and_leaves_it_alone(studio: Studio) -> None:
    second = [sys.executable, str(ROOT / "launch.py"), "--port", "0"]
    home = {**os.environ, "PLUMBLINE_HOME": str(studio.home)}
    refused = subprocess.run(second, capture_output=True, text=True, timeout=120, cwd=ROOT, env=home)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    first = f"process {studio.process.pid} at {studio.url}, since 20"
    assert "is served by a studio already" in refused.stderr and first in refused.stderr
    assert httpx.get(studio.url).status_code == 200


def test_f07_a_studio_that_was_killed_leaves_its_workspace_free(tmp_path: Path) -> None:
    from plumbline.jobs import workspace_lock

    killed = Studio(tmp_path / "home")
    killed.kill()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLUMBLINE_HOME", str(tmp_path / "home"))
        with workspace_lock.studio() as note:
            note("http://127.0.0.1:1/")
        assert not (tmp_path / "home" / "studio.json").exists()
