"""The gate in front of a real Gradio app on a real server, attacked from outside."""

import re
import time

import httpx
import pytest

from plumbline_studio.gate import answers
from tests.client.gating import (
    BODY_LIMIT,
    gated,
    knock,
    raw,
)

FOREIGN = ["https://evil.example", "null", "http://localhost.evil.com", "http://127.0.0.1:1"]
EVIL_MARK = re.compile("evil", re.IGNORECASE)

# Requests that a page of another site makes the visitor's browser send.

BODIES = {
    "json": ("/gradio_api/call/shout", {"json": {"data": ["hi"]}}),
    "text": (
        "/gradio_api/queue/join",
        {"content": '{"data": ["hi"], "fn_index": 0}', "headers": {"Content-Type": "text/plain"}},
    ),
    "multipart": ("/gradio_api/upload", {"files": {"files": ("a.txt", b"hello")}}),
}


def post(studio, kind: str, **headers: str) -> httpx.Response:
    path, arguments = BODIES[kind]
    headers = {**arguments.get("headers", {}), **headers}
    return studio.http.post(path, **{**arguments, "headers": headers})


@pytest.mark.parametrize("origin", FOREIGN)
@pytest.mark.parametrize("kind", BODIES)
def test_a10_a_page_of_another_site_can_post_nothing(studio, kind, origin):
    answer = post(studio, kind, Origin=origin)
    # What the page sends as JSON is answered in the form whose text it shows.
    text = answer.json()["detail"] if kind == "json" else answer.text
    assert (answer.status_code, text) == (403, answers.BAD_ORIGIN.text)


@pytest.mark.parametrize("kind", ["json", "multipart"])
def test_a10_our_own_page_can_post(studio, kind):
    assert post(studio, kind, Origin=studio.url).status_code == 200


@pytest.mark.parametrize("kind", ["json", "multipart"])
def test_a10_a_program_without_an_origin_can_post(studio, kind):
    assert post(studio, kind).status_code == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a10_a_foreign_request_that_hides_its_origin_is_refused(studio, site):
    assert post(studio, "multipart", **{"Sec-Fetch-Site": site}).status_code == 403


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_a10_every_method_but_get_and_head_checks_the_origin(method):
    headers = [("Host", "localhost"), ("Origin", "https://evil.example")]
    assert knock(gated(), method=method, headers=headers)[0] == 403


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("localhost:7860", "http://localhost:7860", 200),
        ("localhost", "http://localhost:80", 200),
        ("localhost", "https://localhost", 200),
        ("LOCALHOST:443", "https://localhost", 200),
        ("[::1]:7860", "http://[0:0::1]:7860", 200),
        ("localhost:7860", "http://localhost:7861", 403),
        ("localhost:7860", "http://localhost", 403),
        ("localhost:7860", "http://127.0.0.1:7860", 403),
        ("localhost:7860", "http://me@localhost:7860", 403),
        ("localhost:7860", "http://localhost:7860/", 403),
        ("localhost:7860", "ftp://localhost:7860", 403),
        ("localhost:7860", "localhost:7860", 403),
        ("localhost:7860", "", 403),
    ],
)
def test_a10_an_origin_is_ours_when_its_name_and_port_are_those_of_host(host, origin, status):
    headers = [("Host", host), ("Origin", origin)]
    assert knock(gated(), method="POST", headers=headers)[0] == status


def test_a10_two_origins_are_refused_although_one_is_ours():
    headers = [("Host", "localhost"), ("Origin", "http://localhost"), ("Origin", "null")]
    assert knock(gated(), method="POST", headers=headers)[0] == 403


@pytest.mark.parametrize(
    ("origin", "message"),
    [("http://localhost", "websocket.accept"), ("https://evil.example", "websocket.close")],
)
def test_a10_a_websocket_is_opened_by_our_own_page_only(origin, message):
    headers = [("Host", "localhost"), ("Origin", origin)]
    assert knock(gated(), headers=headers, kind="websocket")[0]["type"] == message


@pytest.mark.parametrize("address", ["https://evil.example/a.png", "HTTP://127.0.0.1/", "http://"])
@pytest.mark.parametrize("route", ["file=", "file/", "proxy="])
def test_a10_a_link_cannot_make_the_server_fetch_another_site(studio, route, address):
    answer = studio.http.get(f"/gradio_api/{route}{address}")
    assert (answer.status_code, answer.text) == (403, answers.REMOTE_FILE.text)


# Reading answers across sites.


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "studio.lan", "studio.lan:7860"])
@pytest.mark.parametrize("origin", [*FOREIGN, "http://studio.lan"])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_a11_no_answer_allows_another_origin_to_read_it(studio, host, origin, method):
    headers = {"Host": host, "Origin": origin, "Access-Control-Request-Method": "POST"}
    for path in ("/config", "/gradio_api/info"):
        answer = studio.http.request(method, path, headers=headers)
        allowing = [name for name in answer.headers if name.startswith("access-control-allow-o")]
        assert allowing == []
        assert "access-control-allow-credentials" not in answer.headers
        if method == "GET":
            assert answer.status_code == 200


# Names that lead to this server.


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:7860",
        "localhost.evil.com",
        "localhost.",
        "127.0.0.1.:7860",
        "studio.lan.",
        "[::2]",
        "[::1",
        "[127.0.0.1]",
        "[::ffff:192.0.2.1]:7860",
        "192.0.2.1",
        "0.0.0.0",
        "2130706433",
        "0x7f.1",
        "localhost:7860:7860",
        "localhost:port",
        "me@localhost",
        "localhost/evil",
        "localhost, evil.example",
        "",
    ],
)
def test_a12_a_host_that_is_not_ours_is_refused(studio, host):
    status, answer = raw(studio.port, f"GET /config HTTP/1.1\nHost: {host}")
    assert status == 403
    assert answer.endswith(answers.BAD_HOST.text)


@pytest.mark.parametrize(
    "host", ["localhost", "LocalHost:1", "127.0.0.1:7860", "studio.lan:8443", "[::1]:7860"]
)
def test_a12_a_host_of_ours_passes_with_any_port(studio, host):
    assert raw(studio.port, f"GET /config HTTP/1.1\nHost: {host}")[0] == 200


def test_a12_a_request_without_a_host_is_refused(studio):
    assert raw(studio.port, "GET /config HTTP/1.0")[0] == 403


def test_a12_two_hosts_are_refused_although_one_is_ours():
    headers = [("Host", "localhost"), ("Host", "evil.example")]
    assert knock(gated(), headers=headers)[0] == 403


def test_a12_a_forwarded_host_does_not_stand_in_for_host(studio):
    head = "GET /config HTTP/1.1\nHost: evil.example\nX-Forwarded-Host: localhost"
    assert raw(studio.port, head)[0] == 403


@pytest.mark.parametrize("name", ["X-Forwarded-Host", "X-Gradio-Server"])
def test_a12_a_forwarded_host_does_not_reach_gradio(studio, name):
    answer = studio.http.get("/config", headers={name: "http://evil.example"})
    assert answer.json()["root"] == studio.url


@pytest.mark.parametrize(
    ("host", "status"),
    [("192.168.1.5:7860", 200), ("[fe80::1]:7860", 200), ("1.2.3.4.", 403), ("evil.example", 403)],
)
def test_a12_beyond_loopback_an_address_passes_and_a_name_does_not(host, status):
    assert knock(gated(any_ip=True), headers=[("Host", host)])[0] == status


# What answers say about where they may be shown.


@pytest.mark.parametrize(
    ("path", "arguments", "status"),
    [
        ("/", {"method": "GET"}, 200),
        ("/nowhere", {"method": "GET"}, 404),
        ("/", {"method": "GET", "headers": {"Host": "evil.example"}}, 403),
        ("/collect", {"method": "POST", "content": b"x" * (BODY_LIMIT + 1)}, 413),
        ("/collect", {"method": "POST", "content": iter([b"x" * (BODY_LIMIT + 1)])}, 413),
    ],
)
def test_a13_every_answer_carries_the_security_headers(studio, path, arguments, status):
    answer = studio.http.request(url=path, **arguments)
    assert answer.status_code == status
    policy = answer.headers["content-security-policy"]
    assert "frame-ancestors 'self'" in policy
    assert not re.search(r"https?:|\*", policy)
    directives = {part.split()[0] for part in policy.split(";")}
    assert {"default-src", "img-src", "connect-src", "object-src", "base-uri"} <= directives
    assert answer.headers["x-frame-options"] == "SAMEORIGIN"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"


def test_a13_a_space_may_be_framed_by_the_hub_and_by_no_other_site():
    app = gated(frame_ancestors="'self' https://huggingface.co")
    headers = knock(app, headers=[("Host", "localhost")])[1]
    policy = headers["content-security-policy"]
    assert policy.endswith("; frame-ancestors 'self' https://huggingface.co")
    assert "x-frame-options" not in headers


# What must keep working, and what answers must not say.


def test_an_event_runs_and_its_result_is_streamed(studio):
    call = "/gradio_api/call/count"
    event = studio.http.post(call, json={"data": []}).json()["event_id"]
    arrived = []
    with studio.http.stream("GET", f"{call}/{event}") as answer:
        assert answer.headers["x-accel-buffering"] == "no"
        for line in answer.iter_lines():
            if line.startswith("event:"):
                arrived.append((line, time.monotonic()))
    assert [line for line, _ in arrived] == ["event: generating"] * 3 + ["event: complete"]
    assert arrived[-1][1] - arrived[0][1] > 0.4  # the gate did not hold the first ones back


def test_no_refusal_repeats_what_was_sent(studio):
    evil = {"Origin": "https://evil.example", "X-Forwarded-Host": "evil.example"}
    texts = [
        studio.http.post("/evil?evil", headers=evil).text,
        studio.http.get("/evil", headers={"Host": "evil.example"}).text,
        studio.http.get("/gradio_api/file=https://evil.example").text,
        studio.http.post("/evil", content=b"evil" * BODY_LIMIT).text,
    ]
    assert all(texts)
    assert not EVIL_MARK.search("".join(texts))
