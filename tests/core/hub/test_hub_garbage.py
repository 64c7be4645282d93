"""Whatever answers under the Hub's address: each answer that is none becomes a sentence."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plumbline.errors import StudioError
from plumbline.hub import dataset_repository, model_files
from tests import hub_server
from tests.hub_server import HubServer

HTML = (b"<html><body>Please log in</body></html>", {"Content-Type": "text/html"})
ANSWERS = {
    "a page": HTML,
    "nothing": (b"", {}),
    "cut": (b'{"id": "a/b", "sha": "' + b"0" * 40 + b'", "sib', {"Content-Type": "application/json"}),
    "a list": (b"[1, 2]", {"Content-Type": "application/json"}),
    "null": (b"null", {"Content-Type": "application/json"}),
    "no text": (b"\xff\xfe\x00\x01", {"Content-Type": "application/json"}),
    "deep": (b"[" * 200_000, {"Content-Type": "application/json"}),
    "round and round": (b"", {"Location": "/api/datasets/a/b"}),
}
TOLD: dict[str, dict[str, Any]] = {
    "siblings as text": {"siblings": "many"},
    "siblings as numbers": {"siblings": [1, 2]},
    "a name that is none": {"siblings": [{"rfilename": 5, "size": 1}]},
    "no name": {"siblings": [{"size": 1}]},
    "a size in words": {"siblings": [{"rfilename": "train.jsonl", "size": "large"}]},
    "a size below zero": {"siblings": [{"rfilename": "train.jsonl", "size": -1}]},
    "an absurd size": {"siblings": [{"rfilename": "train.jsonl", "size": 10**30}]},
    "a commit that is a path": {"sha": "../../../etc"},
    "no commit": {"sha": None},
    "a card of numbers": {"cardData": [1]},
    "a card of configs that are none": {"cardData": {"configs": {"a": 1}}},
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    model_files._asked.cache_clear()
    with hub_server.running() as running:
        hub_server.point_at(running.url, monkeypatch, tmp_path / "cache")
        running.add("a/b", {"train.jsonl": '{"text": "x"}\n', "config.json": "{}"})
        yield running
    model_files._asked.cache_clear()


def said(call: Any) -> str:
    with pytest.raises(StudioError) as caught:
        call()
    assert "Traceback" not in caught.value.text and len(caught.value.text) < 300
    return caught.value.text


@pytest.mark.parametrize("case", ANSWERS)
def test_an_answer_that_is_none_is_a_sentence(server: HubServer, case: str) -> None:
    server.repositories["a/b"].answer = ANSWERS[case]
    for call in (lambda: dataset_repository.look("a/b"), lambda: model_files.look("a/b", None)):
        assert "Hub" in said(call)


@pytest.mark.parametrize("case", TOLD)
def test_a_description_with_wrong_parts_is_a_sentence(server: HubServer, case: str) -> None:
    server.repositories["a/b"].told = TOLD[case]
    said(lambda: dataset_repository.look("a/b"))
    if "card" not in case:
        said(lambda: model_files.look("a/b", None))


@pytest.mark.parametrize(
    "headers",
    [{"Content-Length": "many"}, {"ETag": ""}, {"X-Repo-Commit": ""}, {"Content-Length": "99999999999999"}],
    ids=str,
)
def test_a_file_with_headers_that_are_none_is_a_sentence(
    server: HubServer, tmp_path: Path, headers: dict[str, str]
) -> None:
    found = model_files.look("a/b", None)
    server.repositories["a/b"].file_headers = headers
    for call in (
        lambda: dataset_repository.fetch("a/b", tmp_path / "data"),
        lambda: model_files.small_files(found),
    ):
        try:
            call()
        except StudioError as error:
            assert len(error.text) < 300
