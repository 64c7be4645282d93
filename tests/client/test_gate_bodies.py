"""What the gate does with bodies: their size, their time, and what cut ones leave."""

import itertools
import json
import socket

import httpx
import pytest

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
