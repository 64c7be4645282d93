"""The studio behind a proxy: under a path of it, and with the README's examples for nginx and Caddy."""

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from plumbline.home import export_folder
from plumbline.jobs import queue
from tests import ROOT
from tests.server import Studio


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """A studio with a finished export."""
    home = tmp_path_factory.mktemp("proxied") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLUMBLINE_HOME", str(home))
        job_id = queue.enqueue("probe", None)
        queue.set_state(job_id, "completed", result={"file": "adapter.zip"})
        (export_folder(job_id) / "adapter.zip").write_bytes(b"zipped")
    running = Studio(home, PLUMBLINE_HOSTS="studio.example")
    wait_for(running.url)
    yield running
    running.close()


def wait_for(url: str) -> None:
    for _ in range(300):
        try:
            httpx.get(url, timeout=60)
            return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(f"nobody answers at {url}")


def used_under(url: str, path: str, headers: dict[str, str]) -> None:
    """Everything that the page needs, under this address and path."""
    root = f"{url}{path}"
    with httpx.Client(timeout=60, headers=headers) as client:
        moved = client.get(f"{root}?run=1")
        assert moved.is_redirect and httpx.URL(url).join(moved.headers["location"]).path == f"{path}/"
        page = client.get(f"{root}/")
        assert page.status_code == 200
        config = client.get(f"{root}/config").json()
        shown = httpx.URL(config["root"])
        assert shown.path == path and str(shown) in page.text
        assert shown.netloc.decode() == headers.get("Host", httpx.URL(url).netloc.decode())
        script = re.search(r'(?:src|href)="\.?(/assets/[^"]+)"', page.text)
        assert script and client.get(root + script[1]).status_code == 200
        assert client.get(f"{root}/download/1").content == b"zipped"
        origin = {"Origin": str(shown).removesuffix(path)}
        (file,) = client.post(
            f"{root}/gradio_api/upload", files={"files": ("a.txt", b"x")}, headers=origin
        ).json()
        assert client.get(f"{root}/gradio_api/file={file}").content == b"x"
        body = {"data": [], "fn_index": 0, "session_hash": "s"}
        assert client.post(f"{root}/gradio_api/queue/join", json=body, headers=origin).status_code == 200
        outside = {"data": [{"path": "/etc/passwd"}], "fn_index": 0, "session_hash": "s"}
        refused = client.post(f"{root}/gradio_api/queue/join", json=outside, headers=origin)
        assert refused.status_code == 403 and "not uploaded here" in refused.json()["detail"]
        with client.stream("GET", f"{root}/gradio_api/heartbeat/s") as stream:
            assert next(stream.iter_lines()) == "data: ALIVE"  # it comes while the stream is open


@pytest.mark.parametrize("path", ["/studio", "/a/b-c"])
def test_a_path_that_the_proxy_leaves_on_holds_for_everything(studio: Studio, path: str) -> None:
    headers = {"Host": "studio.example", "X-Forwarded-Prefix": path, "X-Forwarded-Proto": "https"}
    used_under(studio.url.rstrip("/"), path, headers)


def test_a_path_that_the_proxy_took_off_holds_for_links(studio: Studio) -> None:
    config = httpx.get(studio.url + "config", headers={"X-Forwarded-Prefix": "/studio/"}).json()
    assert config["root"] == studio.url + "studio"


@pytest.mark.parametrize(
    "path", ["//evil.example", "/a/../b", "/a?b", "/a b", "https://evil.example", "/<b>"]
)
def test_a_header_that_is_no_path_is_not_believed(studio: Studio, path: str) -> None:
    config = httpx.get(studio.url + "config", headers={"X-Forwarded-Prefix": path}).json()
    assert config["root"] == studio.url.rstrip("/")


def example(language: str) -> str:
    """The README's example for a proxy."""
    found = re.search(
        rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert found
    return found[1]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.mark.parametrize("name", ["nginx", "caddy"])
def test_the_readme_has_an_example_that_works(studio: Studio, tmp_path: Path, name: str) -> None:
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"{name} is not installed (launch.py test installs it where it can)")
    port, behind = free_port(), httpx.URL(studio.url).netloc.decode()
    text = example(name)
    assert "127.0.0.1:7860" in text
    text = text.replace("127.0.0.1:7860", behind)
    if name == "nginx":
        text = (
            f"daemon off; pid {tmp_path}/pid; error_log stderr;\nevents {{}}\nhttp {{ access_log off;\n"
            f"server {{ listen 127.0.0.1:{port};\n{text}\n}} }}\n"
        )
        command = [program, "-p", str(tmp_path), "-c", str(tmp_path / "proxy.conf")]
    else:
        assert text.startswith("studio.example {")
        text = "{\nadmin off\n}\n" + text.replace("studio.example {", f"http://127.0.0.1:{port} {{")
        command = [program, "run", "--adapter", "caddyfile", "--config", str(tmp_path / "proxy.conf")]
    (tmp_path / "proxy.conf").write_text(text)
    with (tmp_path / "log").open("w") as log:
        proxy = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{port}/studio/")
        used_under(f"http://127.0.0.1:{port}", "/studio", {})
    finally:
        proxy.terminate()
        proxy.wait(20)
