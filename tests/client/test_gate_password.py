"""The gate's password."""

import re

import anyio
import httpx
import pytest

from plumbline_studio.gate import answers
from tests.client.gating import (
    PASSWORD,
    USER,
    basic,
    gated,
    knock,
)


@pytest.fixture(autouse=True)
def waits(monkeypatch) -> list[float]:
    """The seconds that answers wait, which pass at once here."""
    waited = []

    async def sleep(seconds):
        waited.append(seconds)

    monkeypatch.setattr(anyio, "sleep", sleep)
    return waited


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
    assert (wrong[0], wrong[2]) == (401, answers.NO_PASSWORD.text)
    assert wrong[1]["www-authenticate"].startswith("Basic ")


def test_a14_the_right_password_among_two_is_refused():
    sent = [("Authorization", basic(USER, PASSWORD)), ("Authorization", basic(USER, "wrong"))]
    app = gated(credentials=(USER, PASSWORD))
    assert knock(app, headers=[("Host", "localhost"), *sent])[0] == 401


def try_password(app, password, client="192.0.2.7"):
    headers = [("Host", "localhost"), ("Authorization", basic(USER, password))]
    return knock(app, headers=headers, client=client)


def test_a14_a_right_password_passes_at_once_while_others_guess_from_the_same_address(waits):
    app = gated(credentials=(USER, PASSWORD))
    for _ in range(3):
        assert [try_password(app, "wrong")[0] for _ in range(10)] == [401] * 10
        assert waits == [1.0] * 10  # each guess is answered late
        waits.clear()
        assert try_password(app, PASSWORD)[0] == 200
        knock(app, headers=[("Host", "localhost")])  # a browser asks without one at first
        assert waits == []


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
        text = "" if method == "HEAD" else answers.NO_PASSWORD.text
        assert (answer.status_code, answer.text) == (401, text), path


def test_a15_the_right_password_opens_the_studio(locked_studio):
    auth = httpx.BasicAuth(USER.encode(), PASSWORD.encode())
    call = {"url": "/gradio_api/call/shout", "json": {"data": ["hi"]}}
    assert locked_studio.http.get("/", auth=auth).status_code == 200
    assert locked_studio.http.post(**call, auth=auth).status_code == 200
