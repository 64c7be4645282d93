"""The gate in front of a real Gradio app on a real server, attacked from outside."""

import asyncio
import base64
import contextlib
import json
import re
import socket
import threading
import time
from types import SimpleNamespace

import gradio as gr
import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request

from core.errors import StudioError
from studio import gate
from studio.gate import LOOPBACK, GateSettings, guard, settings_from_environment

KIB = 1024
BODY_LIMIT, UPLOAD_LIMIT = 64 * KIB, 256 * KIB
USER, PASSWORD = "ann", "pä:ss wörd"
FOREIGN = ["https://evil.example", "null", "http://localhost.evil.com", "http://127.0.0.1:1"]
EVIL_MARK = re.compile("evil", re.IGNORECASE)


def blocks() -> gr.Blocks:
    def shout(text: str) -> str:
        return text.upper()

    def count():
        for number in range(3):
            yield number
            time.sleep(0.25)

    with gr.Blocks(analytics_enabled=False) as demo:
        text = gr.Textbox(label="text")
        gr.Button("Shout").click(shout, text, text, api_name="shout")
        gr.Button("Count").click(count, None, gr.Number(), api_name="count")
        upload = gr.File(label="file")
        upload.upload(lambda path: None, upload, None, api_name="take")
    return demo


@contextlib.contextmanager
def serve(settings: GateSettings):
    """The app behind the gate; yields its address, port and what its /collect route received."""
    app, seen = FastAPI(), SimpleNamespace(bytes=0)

    @app.post("/collect")
    async def collect(request: Request) -> int:
        seen.bytes = 0
        async for chunk in request.stream():
            seen.bytes += len(chunk)
        return seen.bytes

    gr.mount_gradio_app(app, blocks(), path="/", show_error=False, run_history=False, footer_links=[])
    guard(app, settings)
    # Named as TCP, so that asyncio sends small answers at once (40 ms each otherwise).
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=url) as http:
        yield SimpleNamespace(url=url, port=port, http=http, app=app, seen=seen)
    server.should_exit = True
    thread.join(5)


@pytest.fixture(scope="module")
def studio():
    settings = GateSettings(
        hosts=(*LOOPBACK, "studio.lan"), max_body_bytes=BODY_LIMIT, max_upload_bytes=UPLOAD_LIMIT
    )
    with serve(settings) as running:
        yield running


@pytest.fixture(scope="module")
def locked_studio():
    with serve(GateSettings(credentials=(USER, PASSWORD))) as running:
        yield running


def raw(port: int, head: str) -> tuple[int, str]:
    """Send exactly this head and return the status and all that came back."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        lines = [*head.split("\n"), "Connection: close", "", ""]
        connection.sendall("\r\n".join(lines).encode())
        answer = b""
        while more := connection.recv(65536):
            answer += more
    return int(answer.split(b" ")[1]), answer.decode("utf-8", "replace")


def knock(app, path="/", method="GET", headers=(), client="127.0.0.1", kind="http"):
    """Call an ASGI app with exactly these headers: (status, headers, text) of its answer."""
    sent = [(name.lower().encode(), value.encode()) for name, value in headers]
    scope = {"type": kind, "method": method, "path": path, "headers": sent, "client": (client, 9)}
    answer = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        answer.append(message)

    asyncio.run(app(scope, receive, send))
    if kind == "websocket":
        return answer
    heads = {name.decode(): value.decode() for name, value in answer[0]["headers"]}
    return answer[0]["status"], heads, b"".join(m.get("body", b"") for m in answer[1:]).decode()


async def inner(scope, receive, send):
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"inside"})


def gated(**settings) -> gate.Gate:
    return gate.Gate(inner, GateSettings(**settings))


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


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
    assert (answer.status_code, answer.text) == (403, gate.BAD_ORIGIN.text)


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
    assert (answer.status_code, answer.text) == (403, gate.REMOTE_FILE.text)


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
    assert answer.endswith(gate.BAD_HOST.text)


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


# The password.


@pytest.mark.parametrize(
    "sent",
    [
        basic(USER, "wrong"),
        basic("bob", PASSWORD),
        basic(USER, ""),
        basic("", ""),
        basic(f" {USER}", PASSWORD),
        basic(USER, PASSWORD.encode().decode("latin-1")),
        basic(USER, PASSWORD + "\0"),
        basic(USER, PASSWORD).replace("Basic", "Bearer"),
        "Basic",
        "Basic !!!",
        "Basic é",
        "",
    ],
)
def test_a14_a_wrong_password_gets_the_same_answer_as_none(sent):
    app = gated(credentials=(USER, PASSWORD))
    nothing = knock(app, headers=[("Host", "localhost")])
    wrong = knock(app, headers=[("Host", "localhost"), ("Authorization", sent)])
    assert wrong == nothing
    assert (wrong[0], wrong[2]) == (401, gate.NO_PASSWORD.text)
    assert wrong[1]["www-authenticate"].startswith("Basic ")


def test_a14_the_right_password_among_two_is_refused():
    sent = [("Authorization", basic(USER, PASSWORD)), ("Authorization", basic(USER, "wrong"))]
    app = gated(credentials=(USER, PASSWORD))
    assert knock(app, headers=[("Host", "localhost"), *sent])[0] == 401


def try_password(app, password, client="192.0.2.7"):
    headers = [("Host", "localhost"), ("Authorization", basic(USER, password))]
    return knock(app, headers=headers, client=client)


def test_a14_after_five_wrong_passwords_the_right_one_waits_a_minute(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(gate, "time", SimpleNamespace(monotonic=lambda: now[0]))
    app = gated(credentials=(USER, PASSWORD))
    assert [try_password(app, "wrong")[0] for _ in range(5)] == [401] * 5
    for password in ("wrong", PASSWORD):
        status, headers, _ = try_password(app, password)
        assert (status, headers["retry-after"]) == (429, "60")
    assert try_password(app, PASSWORD, client="192.0.2.8")[0] == 200
    now[0] += 59.5
    assert try_password(app, PASSWORD)[1]["retry-after"] == "1"
    now[0] += 0.5
    assert try_password(app, PASSWORD)[0] == 200


def test_a14_four_wrong_passwords_and_requests_without_one_lock_nobody_out():
    app = gated(credentials=(USER, PASSWORD))
    for _ in range(20):
        knock(app, headers=[("Host", "localhost")], client="192.0.2.7")
    assert [try_password(app, "wrong")[0] for _ in range(4)] == [401] * 4
    assert try_password(app, PASSWORD)[0] == 200


def test_a14_addresses_of_one_ipv6_network_count_as_one_client():
    app = gated(credentials=(USER, PASSWORD))
    for number in range(5):
        try_password(app, "wrong", client=f"2001:db8::{number}")
    assert try_password(app, PASSWORD, client="2001:db8::99")[0] == 429
    assert try_password(app, PASSWORD, client="2001:db8:0:1::1")[0] == 200


def test_a14_the_memory_for_wrong_passwords_is_bounded():
    failures = gate.Failures()
    for number in range(gate.ADDRESSES + 50):
        for _ in range(gate.ATTEMPTS + 2):
            failures.note(str(number), 0.0)
    assert len(failures._times) == gate.ADDRESSES
    assert failures.seconds_to_wait("0", 1.0) == 0
    assert failures.seconds_to_wait(str(gate.ADDRESSES + 49), 1.0) == 59


def routes(app) -> set[tuple[str, str]]:
    """Method and path of all that can be asked for, routers and mounted apps included."""
    found = set()
    for route in app.routes:
        child = getattr(route, "original_router", None) or getattr(route, "app", None)
        if hasattr(child, "routes"):
            found |= routes(child)
        elif path := getattr(route, "path", None):
            methods = getattr(route, "methods", None) or {"GET"}
            found |= {(method, re.sub(r"{[^}]*}", "x", path)) for method in methods}
    return found


def test_a15_every_route_needs_the_password(locked_studio):
    found = routes(locked_studio.app) | {("GET", "/nowhere"), ("OPTIONS", "/")}
    expected = {
        "/",
        "/config",
        "/gradio_api/upload",
        "/gradio_api/cancel",
        "/gradio_api/startup-events",
    }
    assert expected <= {path for _, path in found}
    for method, path in found:
        answer = locked_studio.http.request(method, path)
        text = "" if method == "HEAD" else gate.NO_PASSWORD.text
        assert (answer.status_code, answer.text) == (401, text), path


def test_a15_the_right_password_opens_the_studio(locked_studio):
    auth = httpx.BasicAuth(USER.encode(), PASSWORD.encode())
    call = {"url": "/gradio_api/call/shout", "json": {"data": ["hi"]}}
    assert locked_studio.http.get("/", auth=auth).status_code == 200
    assert locked_studio.http.post(**call, auth=auth).status_code == 200


# The size of requests.


@pytest.mark.parametrize(("path", "limit"), [("/collect", BODY_LIMIT), ("/gradio_api/upload", UPLOAD_LIMIT)])
def test_a22_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(studio, path, limit):
    for length in (limit + 1, 20 * KIB**3, int("9" * 19)):
        head = f"POST {path} HTTP/1.1\nHost: localhost\nContent-Length: {length}"
        status, answer = raw(studio.port, head)
        assert status == 413
        assert str(limit) in answer


def test_a22_a_body_of_exactly_the_limit_passes(studio):
    answer = studio.http.post("/collect", content=b"x" * BODY_LIMIT)
    assert (answer.status_code, answer.json()) == (200, BODY_LIMIT)


def test_a22_a_streamed_body_over_the_limit_is_cut_off(studio):
    for size, status in ((BODY_LIMIT, 200), (BODY_LIMIT + 1, 413), (40 * BODY_LIMIT, 413)):
        chunks = (b"x" * min(KIB, size - start) for start in range(0, size, KIB))
        assert studio.http.post("/collect", content=chunks).status_code == status
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
    assert answer.text.startswith("The request is larger than 65536 bytes.")


# What must keep working, and what answers must not say.


def test_an_event_runs_and_its_result_is_streamed(studio):
    call = "/gradio_api/call/count"
    event = studio.http.post(call, json={"data": []}).json()["event_id"]
    arrived = []
    with studio.http.stream("GET", f"{call}/{event}") as answer:
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


# Settings.

VARIABLES = ("PLUMBLINE_AUTH", "PLUMBLINE_HOSTS", "SPACE_ID", "SPACE_HOST")


@pytest.fixture
def environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::", "[::]", "192.168.1.5", "studio.lan"])
def test_listening_beyond_this_computer_without_a_password_is_refused(environment, host):
    environment.setenv("PLUMBLINE_HOSTS", "studio.lan")
    environment.setenv("SPACE_HOST", "a.hf.space")  # alone it does not make a Space
    with pytest.raises(StudioError, match="PLUMBLINE_AUTH.*127.0.0.1"):
        settings_from_environment(host)
    environment.setenv("PLUMBLINE_AUTH", f"{USER}:{PASSWORD}")
    settings = settings_from_environment(host)
    assert settings.credentials == (USER, PASSWORD)
    assert settings.any_ip
    assert "studio.lan" in settings.hosts
    assert "a.hf.space" not in settings.hosts


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.0.0.2"])
def test_on_this_computer_no_password_is_needed(environment, host):
    settings = settings_from_environment(host)
    assert settings.credentials is None
    assert not settings.any_ip
    assert set(settings.hosts) >= {*LOOPBACK, host.strip("[]")}


def test_a_space_needs_a_password_and_accepts_its_own_names(environment):
    environment.setenv("SPACE_ID", "ann/studio")
    with pytest.raises(StudioError, match="as a secret of the Space"):
        settings_from_environment("0.0.0.0")
    environment.setenv("PLUMBLINE_AUTH", f"{USER}:{PASSWORD}")
    environment.setenv("SPACE_HOST", "studio.example,ann-studio.hf.space")
    settings = settings_from_environment("0.0.0.0")
    assert {"studio.example", "ann-studio.hf.space"} <= set(settings.hosts)
    assert settings.frame_ancestors == "'self' https://huggingface.co"
    app = gate.Gate(inner, settings)
    for origin, status in (("https://ann-studio.hf.space", 200), ("https://b.hf.space", 403)):
        login = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        headers = [("Host", "10.0.0.7:7860"), ("Origin", origin), ("Authorization", login)]
        assert knock(app, method="POST", headers=headers)[0] == status


@pytest.mark.parametrize("text", ["ann", "ann:", ":secret", ":"])
def test_a_malformed_password_setting_is_refused_without_repeating_it(environment, text):
    environment.setenv("PLUMBLINE_AUTH", text)
    with pytest.raises(StudioError, match="PLUMBLINE_AUTH.*colon") as refusal:
        settings_from_environment("127.0.0.1")
    assert "secret" not in str(refusal.value)


def test_names_are_read_without_their_ports(environment):
    environment.setenv("PLUMBLINE_HOSTS", " Studio.Example:8443, b ,")
    assert {"studio.example", "b"} <= set(settings_from_environment("127.0.0.1").hosts)


@pytest.mark.parametrize("text", ["https://studio.example", "a/b", "*", "a b", "studio.example."])
def test_a_malformed_host_setting_is_refused(environment, text):
    environment.setenv("PLUMBLINE_HOSTS", text)
    with pytest.raises(StudioError, match="PLUMBLINE_HOSTS"):
        settings_from_environment("127.0.0.1")


def test_settings_in_a_log_do_not_show_the_password(environment):
    environment.setenv("PLUMBLINE_AUTH", f"{USER}:{PASSWORD}")
    assert PASSWORD not in repr(settings_from_environment("127.0.0.1"))
