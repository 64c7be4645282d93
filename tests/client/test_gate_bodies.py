"""What the gate does with bodies: their size, their time, and what cut ones leave."""

import itertools
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from plumbline_studio.gate import bodies, connection
from tests.client.gating import (
    BODY_LIMIT,
    KIB,
    UPLOAD_LIMIT,
    raw,
)

# The size of requests.


@pytest.mark.parametrize(("path", "limit"), [("/collect", BODY_LIMIT), ("/gradio_api/upload", UPLOAD_LIMIT)])
def test_a22_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(studio, path, limit):
    for length in (limit + 1, 20 * KIB**3, int("9" * 19)):
        head = f"POST {path} HTTP/1.1\nHost: localhost\nContent-Length: {length}"
        status, answer = raw(studio.port, head)
        assert status == 413
        assert str(limit) in answer


def test_a22_a_body_of_exactly_the_limit_passes(studio):
    answer = studio.http.post("/collect", content=b'"' + b"x" * (BODY_LIMIT - 2) + b'"')
    assert (answer.status_code, answer.json()) == (200, BODY_LIMIT)


def test_a22_a_streamed_body_over_the_limit_is_cut_off(studio):
    for size, status in ((BODY_LIMIT, 200), (BODY_LIMIT + 1, 413), (40 * BODY_LIMIT, 413)):
        chunks = (b" " * min(KIB, size - start - 1) for start in range(0, size, KIB))
        assert studio.http.post("/collect", content=itertools.chain(chunks, [b"7"])).status_code == status
        assert studio.seen.bytes <= BODY_LIMIT


def test_a22_a_stream_that_never_ends_is_answered_at_the_limit(studio):
    head = b"POST /collect HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", studio.port), timeout=5) as connection:
        chunk = b"%x\r\n" % (BODY_LIMIT // 2) + b"x" * (BODY_LIMIT // 2) + b"\r\n"
        connection.sendall(head + 3 * chunk)
        assert b" 413 " in connection.recv(100)


@pytest.mark.parametrize(("size", "status"), [(2 * BODY_LIMIT, 200), (2 * UPLOAD_LIMIT, 413)])
@pytest.mark.parametrize("streamed", [False, True])
def test_a22_an_upload_has_its_own_larger_limit(studio, size, status, streamed):
    request = httpx.Request("POST", studio.url, files={"files": ("a.bin", b"x" * size)})
    body = request.read()
    answer = studio.http.post(
        "/gradio_api/upload",
        content=iter([body[:1000], body[1000:-9], body[-9:]]) if streamed else body,
        headers={"Content-Type": request.headers["Content-Type"]},
    )
    assert answer.status_code == status


@pytest.mark.parametrize("streamed", [False, True])
def test_a23_an_event_with_a_huge_body_is_refused(studio, streamed):
    body = json.dumps({"data": ["x" * BODY_LIMIT]}).encode()
    answer = studio.http.post(
        "/gradio_api/call/shout",
        content=iter([body]) if streamed else body,
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == 413
    assert answer.json()["detail"].startswith("The request is larger than 65536 bytes.")


# What does not end.


def closed(connection: socket.socket) -> bytes:
    """All that still comes until the other side closes."""
    answer = b""
    while more := connection.recv(65536):
        answer += more
    return answer


def test_a_head_that_never_ends_is_given_up(studio, monkeypatch):
    monkeypatch.setattr(connection, "REQUEST_SECONDS", 0.2)
    whole = b"GET /config HTTP/1.1\r\nHost: localhost\r\n"
    for begun in (b"", whole, whole + b"\r\n" + whole):
        with socket.create_connection(("127.0.0.1", studio.port), timeout=20) as slow:
            slow.sendall(begun)
            assert closed(slow).count(b"HTTP/1.1 200") == begun.count(b"\r\n\r\n")


def test_a_body_that_does_not_go_on_is_given_up(studio, monkeypatch):
    monkeypatch.setattr(bodies, "STALL_SECONDS", 0.2)
    for path in ("/collect", "/gradio_api/upload", "/gradio_api/call/shout"):
        kind = "multipart/form-data; boundary=x" if "upload" in path else "text/plain"
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: 99\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", studio.port), timeout=20) as slow:
            slow.sendall(head.encode() + b"--x")
            answer = closed(slow)
        assert answer.startswith(b"HTTP/1.1 408") and b"nothing came for a while" in answer, path


def test_a_request_that_takes_its_time_is_not_cut(studio, monkeypatch):
    monkeypatch.setattr(connection, "REQUEST_SECONDS", 0.2)
    monkeypatch.setattr(bodies, "STALL_SECONDS", 0.2)
    event = studio.http.post("/gradio_api/call/count", json={"data": []}).json()["event_id"]
    with studio.http.stream("GET", f"/gradio_api/call/count/{event}") as answer:
        assert list(answer.iter_lines()).count("event: generating") == 3


@pytest.mark.parametrize("way", ["left", "stalled", "too large", "whole"])
def test_an_upload_that_was_cut_leaves_nothing_on_the_disk(studio, monkeypatch, way):
    monkeypatch.setattr(bodies, "STALL_SECONDS", 0.2 if way == "stalled" else 20)
    part = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="cut.bin"\r\n\r\n' + b"x" * KIB * 100
    )
    part += b"x" * UPLOAD_LIMIT if way == "too large" else b"\r\n--x--\r\n" if way == "whole" else b""
    head = (
        "POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", studio.port), timeout=20) as upload:
        upload.sendall(head.encode() + b"%x\r\n" % len(part) + part + b"\r\n")
        wait_until(lambda: way in ("too large", "whole") or parts(studio))
        if way == "whole":
            upload.sendall(b"0\r\n\r\n")
        if way != "left":
            closed(upload)
    wait_until(lambda: not parts(studio))
    assert len(list(studio.uploads.rglob("cut.bin"))) == (way == "whole")


def parts(studio) -> list[Path]:
    return [path for path in studio.uploads.iterdir() if path.is_file()]


def wait_until(what: Callable[[], object]) -> None:
    for _ in range(1000):
        if what():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come to pass within 20 s")
