"""A small server that speaks the part of the Hub's API that datasets and models are fetched through.

Another process reaches it through HF_ENDPOINT; this one, where the library has read that already,
through `point_at`. It can refuse, cut a file short, and tells what it was asked.
"""

import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml


@dataclass
class Repository:
    """Commits by their sha, names that point at them, and what is to go wrong.

    :param refused: status and error code of every answer about the repository
    :param refused_files: the same for its files alone
    :param cuts: for a file, after how many bytes each of its next transfers ends
    :param reset: whether a cut resets the connection, as a dying network does
    :param answer: body and headers in place of what describes the repository
    :param told: parts of that description in place of the true ones
    :param file_headers: of every file, in place of its own
    :param claimed: for a file, the SHA-256 that is listed in place of its own
    """

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    refused: tuple[int, str] | None = None
    refused_files: tuple[int, str] | None = None
    cuts: dict[str, list[int]] = field(default_factory=dict)
    reset: bool = False
    claimed: dict[str, str] = field(default_factory=dict)
    answer: tuple[bytes, dict[str, str]] | None = None
    told: dict[str, Any] = field(default_factory=dict)
    file_headers: dict[str, str] = field(default_factory=dict)


class HubServer:
    """The server: its address, its repositories, and the requests it saw."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def add(self, repo_id: str, files: dict[str, str | bytes], *refs: str) -> Repository:
        """A new commit, which ``main`` and the given refs then point at."""
        repository = self.repositories.setdefault(repo_id, Repository())
        content = {name: text.encode() if isinstance(text, str) else text for name, text in files.items()}
        sha = hashlib.sha1(repr((repo_id, sorted(content.items()))).encode()).hexdigest()
        repository.commits[sha] = content
        repository.refs |= {ref: sha for ref in ("main", *refs)}
        return repository

    def paths(self, method: str = "GET") -> list[str]:
        return [path for verb, path, _ in self.seen if verb == method]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        return

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        self.hub.seen.append((self.command, unquote(path), dict(self.headers)))
        if found := re.fullmatch(r"/api/(?:datasets|models)/(.+?)(?:/revision/([^/]+))?", path):
            self._describe(found[1], unquote(found[2] or "main"))
        elif found := re.fullmatch(r"(?:/datasets)?/(.+?)/resolve/([^/]+)/(.+)", path):
            self._file(found[1], unquote(found[2]), unquote(found[3]))
        else:
            self._refuse(404, "EntryNotFound")

    def _commit(self, repo_id: str, ref: str) -> tuple[Repository, str] | None:
        repository = self.hub.repositories.get(repo_id)
        if repository is None:
            self._refuse(401, "RepoNotFound")
            return None
        if repository.refused:
            self._refuse(*repository.refused)
            return None
        sha = repository.refs.get(ref, ref)
        if sha not in repository.commits:
            self._refuse(404, "RevisionNotFound")
            return None
        return repository, sha

    def _describe(self, repo_id: str, ref: str) -> None:
        if (found := self._commit(repo_id, ref)) is None:
            return
        if found[0].answer:
            return self._send(302 if "Location" in found[0].answer[1] else 200, *found[0].answer)
        files = found[0].commits[found[1]]
        readme = files.get("README.md", b"").decode()
        card = yaml.safe_load(readme.split("---")[1]) if readme.startswith("---") else None
        siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
        answer = {"id": repo_id, "sha": found[1], "siblings": siblings, "cardData": card, "tags": []}
        answer |= found[0].told
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _file(self, repo_id: str, ref: str, name: str) -> None:
        if (found := self._commit(repo_id, ref)) is None:
            return
        repository, sha = found
        if repository.refused_files:
            return self._refuse(*repository.refused_files)
        data = repository.commits[sha].get(name)
        if data is None:
            return self._refuse(404, "EntryNotFound")
        headers = {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
        if name.endswith(".safetensors"):  # kept apart by the Hub, and named by its SHA-256
            digest = repository.claimed.get(name) or hashlib.sha256(data).hexdigest()
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))}
        headers |= repository.file_headers
        status, start = 200, 0
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            status, start = 206, int(wanted[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        cuts = repository.cuts.get(name, []) if self.command == "GET" else []
        self._send(status, data[start:], headers, cuts.pop(0) if cuts else None, repository.reset)

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code} if code else {})

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None, reset: bool = False
    ) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.wfile.flush()
            if reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True


@contextmanager
def running() -> Iterator[HubServer]:
    server = HubServer()
    try:
        yield server
    finally:
        server.close()


def point_at(url: str, patch: pytest.MonkeyPatch, cache: Path) -> None:
    """Send this process to another Hub: its library read HF_ENDPOINT when it was imported.

    It also waits for nothing between its retries.
    """
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import _http

    patch.setattr(constants, "ENDPOINT", url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setenv("HF_TOKEN", "hf_secretsecret")
    hurried = SimpleNamespace(sleep=lambda seconds: None)
    patch.setattr(file_download, "time", hurried)
    patch.setattr(_http, "time", hurried)
