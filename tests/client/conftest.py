"""The gate's own app, with and without a password."""

import pytest

from plumbline_studio.gate.settings import LOOPBACK, GateSettings
from tests.client.gating import BODY_LIMIT, PASSWORD, UPLOAD_LIMIT, USER, serve


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    settings = GateSettings(
        hosts=(*LOOPBACK, "studio.lan"), max_body_bytes=BODY_LIMIT, max_upload_bytes=UPLOAD_LIMIT
    )
    with serve(settings, tmp_path_factory.mktemp("uploads")) as running:
        yield running


@pytest.fixture(scope="module")
def locked_studio(tmp_path_factory):
    with serve(GateSettings(credentials=(USER, PASSWORD)), tmp_path_factory.mktemp("uploads")) as running:
        yield running
