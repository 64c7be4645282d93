"""Who may come in, as the environment says."""

import base64
from pathlib import Path

import pytest

from plumbline.errors import StudioError
from plumbline_studio.gate.middleware import Gate
from plumbline_studio.gate.settings import LOOPBACK, settings_from_environment
from tests.client.gating import (
    PASSWORD,
    USER,
    inner,
    knock,
)

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
    app = Gate(inner, settings, Path("/nowhere"))
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
