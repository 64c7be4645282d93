"""Models of the Hub, against a small server that speaks its API."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from plumbline.errors import StopRequested, StudioError
from plumbline.home import assets
from plumbline.hub import model_files
from plumbline.models import load
from tests.hub_server import HubServer, point_at, running
from tests.runs import recipe

WEIGHTS = "model.safetensors"
NEVER = {
    "pytorch_model.bin": b"\x80",
    "original/consolidated.00.pth": b"\x80",
    "original/params.json": b"{}",
    "model-q4.gguf": b"GGUF",
    "training_args.bin": b"\x80",
    "modeling_mine.py": b"raise SystemExit",
}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with running() as started:
        point_at(started.url, monkeypatch, tmp_path / "cache")
        model_files._asked.cache_clear()
        yield started


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """The starter's, and what must never be fetched."""
    folder = assets() / "starter"
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} | NEVER


def of(base: str, revision: str | None = None) -> Any:
    return recipe(model={"base": base, "revision": revision})


def refusal(call: Any, *arguments: Any) -> str:
    with pytest.raises(StudioError) as refused:
        call(*arguments)
    assert "hf_secret" not in refused.value.text and len(refused.value.text) <= 400
    return refused.value.text


def ranges(server: HubServer) -> list[int]:
    """From which byte the weights were asked for, request by request."""
    asked = [headers for verb, path, headers in server.seen if verb == "GET" and path.endswith(WEIGHTS)]
    found = [{name.lower(): value for name, value in headers.items()}.get("range") for headers in asked]
    return [int(one.removeprefix("bytes=").removesuffix("-")) if one else 0 for one in found]


def test_a_model_comes_with_progress_and_without_what_it_does_not_need(
    server: HubServer, files: dict[str, bytes]
) -> None:
    server.add("org/plain", files)
    told: list[tuple[str, float | None]] = []
    model = load.base_model(of("org/plain"), lambda text, share: told.append((text, share)))
    assert sum(p.numel() for p in model.parameters()) > 1e6
    total = len(files[WEIGHTS]) / 1e6
    assert told[-1] == (f"{WEIGHTS}: {total:,.1f} of {total:,.1f} MB", 1.0)
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    asked = " ".join(server.paths() + server.paths("HEAD"))
    assert not [name for name in NEVER if name in asked]
    load.base_model(of("org/plain"))
    assert len(ranges(server)) == 1


def test_the_panel_needs_no_weights(server: HubServer, files: dict[str, bytes]) -> None:
    server.add("org/panel", files)
    assert load.tokenizer("org/panel").eos_token == "<|im_end|>"
    load.skeleton("org/panel", None)
    assert ranges(server) == []


def test_a_branch_is_pinned_to_its_commit(server: HubServer, files: dict[str, bytes]) -> None:
    repository = server.add("org/moves", files)
    first = load.resolved_revision("org/moves")
    assert first == repository.refs["main"] and len(first) == 40
    server.add("org/moves", files | {"README.md": b"new"}, "v2")
    assert load.resolved_revision("org/moves") == load.resolved_revision("org/moves", "v2") != first
    assert load.resolved_revision("org/moves", first) == first
    assert load.inspected("org/moves", first).folder.name == first
    assert load.resolved_revision("starter") is None
    fixed = load.pinned(of("org/moves", "v2"))
    assert fixed.model.revision == load.resolved_revision("org/moves", "v2")
    asked = len(server.seen)
    assert load.pinned(fixed) == fixed and len(server.seen) == asked  # a run that goes on asks nobody
    assert load.pinned(of("starter")) == of("starter")


@pytest.mark.parametrize("reset", [False, True])
def test_a_cut_download_goes_on_where_it_broke_off(
    server: HubServer, files: dict[str, bytes], reset: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = server.add("org/cut", files)
    size = len(files[WEIGHTS])
    repository.cuts[WEIGHTS] = [size // 2]
    repository.reset = reset
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 2**20)  # what is lost at most
    load.base_model(of("org/cut"))
    starts = ranges(server)
    assert len(starts) == 2 and starts[0] == 0 and 2**20 <= starts[1] <= size // 2
    assert (load.inspected("org/cut").folder / WEIGHTS).read_bytes() == files[WEIGHTS]


def test_what_arrived_before_a_stop_is_kept(server: HubServer, files: dict[str, bytes]) -> None:
    server.add("org/stopped", files)
    calls = []

    def stop() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise StopRequested()

    found = model_files.look("org/stopped", None)
    model_files.small_files(found)
    with pytest.raises(StopRequested):
        model_files.weights(found, (WEIGHTS,), check_stop=stop)
    part = next((model_files._repository("org/stopped") / "blobs").glob("*.part"))
    assert not (model_files._folder(found) / WEIGHTS).exists()
    part.write_bytes(files[WEIGHTS][:10_000_000])
    model_files.weights(found, (WEIGHTS,))
    assert ranges(server)[-1] == 10_000_000
    assert (model_files._folder(found) / WEIGHTS).read_bytes() == files[WEIGHTS]
    assert not part.exists()


def test_weights_that_are_not_what_the_hub_lists_are_thrown_away(
    server: HubServer, files: dict[str, bytes]
) -> None:
    repository = server.add("org/changed", files)
    repository.claimed[WEIGHTS] = "ab" * 32
    text = refusal(load.base_model, of("org/changed"))
    assert f"{WEIGHTS} is not what the Hub lists" in text and "abababababab" in text
    left = list((model_files._repository("org/changed") / "blobs").glob("ab*"))
    assert [path for path in left if path.suffix != ".lock"] == []


def test_a_disk_without_room_is_refused_before_the_first_byte(
    server: HubServer, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("org/large", files)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**9, 10**9, 10**8))
    text = refusal(load.base_model, of("org/large"))
    assert "disk: 0.1 GB are free, org/large needs 0.0 GB. Free some" in text
    assert ranges(server) == []


ANSWERS = {
    "gated": ((403, "GatedRepo"), "is gated. Accept its terms at https://huggingface.co/org/gated, then set"),
    "private": ((401, "RepoNotFound"), "is not on the Hub, or is private. Check the id; private models need"),
    "absent": ((404, "RepoNotFound"), "is not on the Hub, or is private. Check the id"),
    "busy": ((429, ""), "the Hub asks to slow down (429). Try again in a few minutes"),
    "broken": ((503, ""), "the Hub answers with error 503. Try again later"),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("part", ["refused", "refused_files"])
def test_every_answer_of_the_hub_gives_one_clear_message(
    server: HubServer, files: dict[str, bytes], name: str, part: str
) -> None:
    answer, said = ANSWERS[name]
    setattr(server.add(f"org/{name}", files), part, answer)
    text = refusal(load.base_model, of(f"org/{name}"))
    assert text.startswith(f"org/{name}: {said}")


def test_a_revision_that_is_not_there_is_named(server: HubServer, files: dict[str, bytes]) -> None:
    server.add("org/plain2", files)
    assert "has no revision 'v9'" in refusal(load.inspected, "org/plain2", "v9")


def test_without_a_network_what_was_downloaded_is_used(
    server: HubServer, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("org/kept", files)
    load.base_model(of("org/kept"))
    commit = load.resolved_revision("org/kept")
    point_at("http://127.0.0.1:9", monkeypatch, tmp_path / "cache")  # where nobody listens
    model_files._asked.cache_clear()
    load.tokenizer.cache_clear()
    assert load.resolved_revision("org/kept") == commit
    load.base_model(of("org/kept"))
    text = refusal(load.base_model, of("org/other"))
    assert text.startswith("model.base: the Hub cannot be reached, and org/other was not downloaded before.")


def test_d52_a_repository_of_pickles_is_refused_before_anything_is_fetched(
    server: HubServer, files: dict[str, bytes]
) -> None:
    server.add("org/pickles", {name: data for name, data in files.items() if name != WEIGHTS})
    assert "has only pickle weights (original/consolidated.00.pth)" in refusal(load.inspected, "org/pickles")
    assert not [path for path in server.paths() if "/resolve/" in path]
