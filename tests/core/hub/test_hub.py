"""Datasets of the Hub, against a small server that speaks its API."""

import errno
import gzip
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from plumbline.data.readers.source_files import KINDS
from plumbline.errors import StopRequested, StudioError
from plumbline.hub import dataset_files, dataset_repository
from tests.hub_server import HubServer, point_at, running

ROWS = '{"text": "one"}\n{"text": "two"}\n'


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with running() as started:
        point_at(started.url, monkeypatch, tmp_path / "cache")
        yield started


def refusal(call: object, *arguments: object, **named: object) -> str:
    with pytest.raises(StudioError) as refused:
        call(*arguments, **named)  # type: ignore[operator]
    assert "hf_secret" not in refused.value.text
    return refused.value.text


def test_plain_files_become_splits_by_their_names(server: HubServer, tmp_path: Path) -> None:
    server.add("org/plain", {"README.md": "# hello", "train.jsonl": ROWS, "test.jsonl": ROWS})
    found = dataset_repository.look("org/plain")
    assert found.configs == {"default": {"train": ["train.jsonl"], "test": ["test.jsonl"]}}
    assert found.default == "default" and len(found.revision) == 40
    fetched = dataset_repository.fetch("org/plain", tmp_path / "here")
    assert fetched.files == [tmp_path / "here" / "train.jsonl"] and fetched.held_out == []
    assert fetched.files[0].read_text() == ROWS
    assert (fetched.config, fetched.split, fetched.offered) == ("default", "train", ["test"])
    assert fetched.revision == found.revision


def test_a_held_out_split_comes_along_when_it_is_named(server: HubServer, tmp_path: Path) -> None:
    server.add("plain", {"train.csv": "text\na\n", "validation.csv": "text\nb\n"})
    fetched = dataset_repository.fetch("plain", tmp_path, held_out_split="validation")
    assert [path.name for path in fetched.held_out] == ["validation.csv"]
    assert fetched.held_out[0].read_text() == "text\nb\n"


def test_the_only_split_needs_no_name(server: HubServer, tmp_path: Path) -> None:
    server.add("org/one", {"everything.jsonl": ROWS, "LICENSE.txt": "do what you want"})
    server.add("org/tested", {"test.jsonl": ROWS})
    assert dataset_repository.look("org/one").configs == {"default": {"train": ["everything.jsonl"]}}
    assert dataset_repository.fetch("org/tested", tmp_path).split == "test"


CARD = """---
configs:
- config_name: small
  default: true
  data_files:
  - split: train
    path: small/part-*.jsonl
  - split: test
    path: [small/test.jsonl]
- config_name: large
  data_dir: large
- config_name: pictures
  data_files: art/*.png
---
# A card
"""


def test_a_card_names_configs_and_splits(server: HubServer, tmp_path: Path) -> None:
    files = {"small/part-1.jsonl": ROWS, "small/part-0.jsonl": ROWS, "small/test.jsonl": ROWS}
    files |= {"large/train/a.parquet": "PAR1", "large/test/b.parquet": "PAR1", "art/x.png": "PNG"}
    server.add("org/carded", {"README.md": CARD, **files})
    found = dataset_repository.look("org/carded")
    assert found.configs == {
        "small": {"train": ["small/part-0.jsonl", "small/part-1.jsonl"], "test": ["small/test.jsonl"]},
        "large": {"train": ["large/train/a.parquet"], "test": ["large/test/b.parquet"]},
    }
    assert dataset_repository.fetch("org/carded", tmp_path).config == "small"
    assert dataset_repository.fetch("org/carded", tmp_path, config="large").files == [
        tmp_path / "large/train/a.parquet"
    ]
    message = refusal(dataset_repository.fetch, "org/carded", tmp_path, config="huge")
    assert "has no config 'huge'" in message and "small, large" in message
    message = refusal(dataset_repository.fetch, "org/carded", tmp_path, split="dev")
    assert "has no split 'dev'" in message and "train, test" in message
    assert "has no split 'dev'" in refusal(
        dataset_repository.fetch, "org/carded", tmp_path, held_out_split="dev"
    )


def test_several_configs_without_a_default_are_listed(server: HubServer, tmp_path: Path) -> None:
    card = CARD.replace("  default: true\n", "")
    server.add("org/two", {"README.md": card, "small/part-0.jsonl": ROWS, "large/train.jsonl": ROWS})
    assert "Choose one: small, large" in refusal(dataset_repository.fetch, "org/two", tmp_path)


def test_shards_are_found_in_order_and_packed_files_stay_packed(server: HubServer, tmp_path: Path) -> None:
    shards = [f"data/train-0000{n}-of-00002.parquet" for n in range(2)]
    server.add("org/shards", {name: b"PAR1" + bytes(9) for name in reversed(shards)})
    assert dataset_repository.look("org/shards").configs == {"default": {"train": shards}}
    packed = gzip.compress(ROWS.encode())
    server.add("org/packed", {"train.jsonl.gz": packed, "valid.jsonl.gz": packed})
    fetched = dataset_repository.fetch("org/packed", tmp_path)
    assert fetched.files[0].read_bytes() == packed and fetched.offered == ["validation"]


def test_names_resolve_as_the_datasets_library_resolves_them(tmp_path: Path) -> None:
    from datasets.data_files import DataFilesDict, get_data_patterns

    layouts = [
        ["train.jsonl", "test.jsonl", "dev.jsonl"],
        ["data/train/a.jsonl", "data/train/b.jsonl", "data/validation/a.jsonl", "data/.hidden/a.jsonl"],
        ["my_train_file.csv", "my-eval-file.csv", "__cache__/train.csv"],
        ["data/train-00000-of-00002-ab12.parquet", "data/train-00001-of-00002-cd.parquet"],
        ["a.json", "b.json", "dataset_infos.json", "README.md"],
        ["en/training_1.tsv", "en/testing.tsv"],
    ]
    for number, names in enumerate(layouts):
        root = tmp_path / str(number)
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text("x")
        resolved = DataFilesDict.from_patterns(get_data_patterns(str(root)), base_path=str(root))
        theirs = {
            str(split): {str(Path(file).relative_to(root)) for file in files}
            for split, files in resolved.items()
        }
        configs, _ = dataset_files.configs([], sorted(names))
        assert {split: set(files) for split, files in configs["default"].items()} == theirs


def test_a_revision_is_a_tag_a_branch_or_a_commit(server: HubServer, tmp_path: Path) -> None:
    server.add("org/tagged", {"train.jsonl": "old"}, "v1.0", "refs/pr/1")
    server.add("org/tagged", {"train.jsonl": "new"})
    old = dataset_repository.fetch("org/tagged", tmp_path / "old", revision="v1.0")
    assert old.files[0].read_text() == "old"
    assert dataset_repository.fetch("org/tagged", tmp_path / "new").files[0].read_text() == "new"
    assert dataset_repository.look("org/tagged", old.revision).revision == old.revision
    assert dataset_repository.look("org/tagged", "refs/pr/1").revision == old.revision
    assert "has no revision 'v9'" in refusal(dataset_repository.look, "org/tagged", "v9")


def test_the_hubs_parquet_copy_keeps_its_configs_apart(server: HubServer) -> None:
    names = ["en/train/0000.parquet", "en/train/0001.parquet", "de/partial-train/0000.parquet"]
    server.add("org/script", {name: "PAR1" for name in names}, dataset_repository.CONVERTED)
    assert dataset_repository.look("org/script", dataset_repository.CONVERTED).configs == {
        "de": {"train": names[2:]},
        "en": {"train": names[:2]},
    }


def test_scripts_are_never_run(server: HubServer, tmp_path: Path) -> None:
    server.add("org/script", {"script.py": "raise SystemExit", "README.md": "# x"})
    message = refusal(dataset_repository.fetch, "org/script", tmp_path)
    assert "scripts are never run" in message and dataset_repository.CONVERTED in message
    assert not server.paths("HEAD")


def test_what_is_no_text_is_said_to_be_none(server: HubServer) -> None:
    server.add("org/art", {"train/a.png": "", "train/b.png": "", "train/metadata.jsonl": ROWS})
    server.add("org/odd", {"a.tar.zst": "", "b.tar.zst": ""})
    server.add("org/empty", {".gitattributes": ""})
    assert "holds pictures, sound or video" in refusal(dataset_repository.look, "org/art")
    assert "no data files of a known format (it holds .zst)" in refusal(dataset_repository.look, "org/odd")
    assert "it holds no files" in refusal(dataset_repository.look, "org/empty")


@pytest.mark.parametrize(
    "repo_id",
    [
        "https://huggingface.co/datasets/a/b",
        "http://127.0.0.1/x",
        "/etc/passwd",
        "..",
        "../a",
        "a/../b",
        "a/b/c",
        "a b",
        "a/b?x=1",
        "a/b#x",
        "a@127.0.0.1/b",
        "a%2fb",
        "a\n/b",
        "hf://a/b",
        "",
        "ａ/b",
        "a" * 97,
    ],
)
def test_what_is_no_plain_name_is_refused_before_any_request(server: HubServer, repo_id: str) -> None:
    assert "is not a name on the Hub" in refusal(dataset_repository.look, repo_id)
    assert server.seen == []


@pytest.mark.parametrize("revision", ["../main", "a?b", "", "http://127.0.0.1", "a b"])
def test_a_revision_that_is_none_is_refused_before_any_request(server: HubServer, revision: str) -> None:
    assert "revision: " in refusal(dataset_repository.look, "org/plain", revision)
    assert server.seen == []


def test_a_card_leads_nowhere_but_into_its_repository(server: HubServer, tmp_path: Path) -> None:
    outside = ["https://127.0.0.1/a.jsonl", "/etc/*.txt", "../../a.jsonl", "zip://*.csv::data.zip"]
    card = "---\nconfigs:\n- config_name: x\n  data_files: " + str(outside) + "\n---\n"
    server.add("org/evil", {"README.md": card, "../up.jsonl": ROWS, "/root.jsonl": ROWS})
    refusal(dataset_repository.fetch, "org/evil", tmp_path / "here")
    server.add("org/sly", {"../up.jsonl": ROWS, "a/../../up.jsonl": ROWS, "fine.jsonl": ROWS})
    assert dataset_repository.look("org/sly").configs == {"default": {"train": ["fine.jsonl"]}}
    assert not list(tmp_path.glob("**/*.jsonl"))


@pytest.mark.parametrize("configs", ["5", "[5]", "[{}]", "[{config_name: a, data_files: 5}]"])
def test_a_malformed_card_is_said_to_be_one(server: HubServer, configs: str) -> None:
    server.add("org/bad", {"README.md": f"---\nconfigs: {configs}\n---\n", "train.jsonl": ROWS})
    assert "malformed configs" in refusal(dataset_repository.look, "org/bad")


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (401, "", "is not on the Hub, or is private"),
        (404, "RepoNotFound", "is not on the Hub, or is private"),
        (403, "GatedRepo", "https://huggingface.co/datasets/org/plain, then set HF_TOKEN"),
        (403, "", "is gated"),
        (429, "", "slow down"),
        (500, "", "answers with error 500"),
        (503, "", "answers with error 503"),
    ],
)
def test_every_refusal_has_its_words(
    server: HubServer, tmp_path: Path, status: int, code: str, words: str
) -> None:
    repository = server.add("org/plain", {"train.jsonl": ROWS})
    repository.refused = (status, code)
    assert words in refusal(dataset_repository.look, "org/plain")
    assert len(server.seen) == 1
    repository.refused, repository.refused_files = None, (status, code)
    assert words in refusal(dataset_repository.fetch, "org/plain", tmp_path)
    assert not list(tmp_path.rglob("*.jsonl"))


def test_an_unknown_dataset_is_not_on_the_hub(server: HubServer) -> None:
    assert "org/nothing: is not on the Hub" in refusal(dataset_repository.look, "org/nothing")


def test_the_token_is_sent_to_the_hub_and_told_to_nobody(server: HubServer) -> None:
    server.add("org/plain", {"train.jsonl": ROWS})
    dataset_repository.look("org/plain")
    assert any("hf_secretsecret" in str(headers) for _, _, headers in server.seen)


def test_without_a_network_the_answer_is_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        point_at(f"http://127.0.0.1:{taken.getsockname()[1]}", monkeypatch, tmp_path)
        assert "the Hub cannot be reached" in refusal(dataset_repository.look, "org/plain")


def test_a_hub_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        point_at(f"http://127.0.0.1:{silent.getsockname()[1]}", monkeypatch, tmp_path)
        monkeypatch.setattr(dataset_repository, "HUB_SECONDS", 0.3)
        assert "the Hub cannot be reached" in refusal(dataset_repository.look, "org/plain")


def test_a_hub_that_is_switched_off_says_so(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "Unset HF_HUB_OFFLINE" in refusal(dataset_repository.look, "org/plain")


def test_a_download_that_breaks_off_goes_on_where_it_was(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 50_000)
    rows = ROWS * 50_000
    server.add("org/cut", {"train.jsonl": rows}).cuts["train.jsonl"] = [300_000, 200_000]
    fetched = dataset_repository.fetch("org/cut", tmp_path)
    assert fetched.files[0].read_text() == rows
    asked = [
        headers.get("Range") for verb, path, headers in server.seen if verb == "GET" and "resolve" in path
    ]
    assert asked == [None, "bytes=300000-", "bytes=500000-"]


def test_a_reset_connection_is_tried_again(server: HubServer, tmp_path: Path) -> None:
    repository = server.add("org/reset", {"train.jsonl": ROWS * 9})
    repository.cuts["train.jsonl"], repository.reset = [10, 20], True
    assert dataset_repository.fetch("org/reset", tmp_path).files[0].read_text() == ROWS * 9


def test_a_download_that_never_ends_well_is_given_up(server: HubServer, tmp_path: Path) -> None:
    repository = server.add("org/cut", {"train-0.jsonl": ROWS, "train-1.jsonl": ROWS})
    repository.cuts["train-1.jsonl"] = [0] * 99
    assert "train-1.jsonl did not arrive whole" in refusal(dataset_repository.fetch, "org/cut", tmp_path)
    assert [path.name for path in tmp_path.rglob("*.jsonl")] == ["train-0.jsonl"]
    assert not list(tmp_path.rglob("*.incomplete"))
    repository.cuts.clear()
    server.seen.clear()
    assert len(dataset_repository.fetch("org/cut", tmp_path).files) == 2
    assert [path for path in server.paths() if "resolve" in path] == [
        f"/datasets/org/cut/resolve/{dataset_repository.look('org/cut').revision}/train-1.jsonl"
    ]


def test_what_is_fetched_can_be_read() -> None:
    assert set(dataset_files.FAMILIES) <= set(KINDS)


def test_what_is_too_large_is_refused_before_it_is_downloaded(server: HubServer, tmp_path: Path) -> None:
    server.add("org/large", {"train.jsonl": ROWS, "test.jsonl": ROWS})
    message = refusal(dataset_repository.fetch, "org/large", tmp_path, held_out_split="test", limit_gb=40e-9)
    assert "the limit is" in message and not server.paths("HEAD")
    assert dataset_repository.fetch("org/large", tmp_path, limit_gb=40e-9).files


def test_a_full_disk_stays_a_full_disk(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("org/plain", {"train.jsonl": ROWS})
    for full in (OSError(errno.ENOSPC, "No space left on device"), RuntimeError("No space left on device")):

        def download(*_: object, raised: Exception = full, **__: object) -> None:
            raise raised

        monkeypatch.setattr("huggingface_hub.HfApi.hf_hub_download", download)
        with pytest.raises(OSError) as passed:
            dataset_repository.fetch("org/plain", tmp_path)
        assert passed.value.errno == errno.ENOSPC


def test_progress_is_told_and_stop_is_heard(server: HubServer, tmp_path: Path) -> None:
    server.add("org/plain", {"train-0.jsonl": ROWS, "train-1.jsonl": ROWS})
    told: list[tuple[str, float | None]] = []
    dataset_repository.fetch(
        "org/plain", tmp_path / "a", report=lambda phase, share: told.append((phase, share))
    )
    shares = [share or 0 for _, share in told]
    assert shares == sorted(shares) and shares[-1] == 1.0 and "MB" in told[-1][0]

    def stop() -> None:
        raise StopRequested

    with pytest.raises(StopRequested):
        dataset_repository.fetch("org/plain", tmp_path / "b", check_stop=stop)
    assert not list((tmp_path / "b").glob("*.jsonl"))
