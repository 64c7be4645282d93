"""Files of this machine: only those inside of the folders that PLUMBLINE_DATA names."""

import os
import socket
from pathlib import Path

import pytest

from plumbline.data.readers import data_folder
from plumbline.errors import StudioError


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An allowed folder with a few files, and a secret beside it."""
    root = tmp_path / "data"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "a.jsonl").write_text("{}")
    (root / "deep" / "er" / "b.CSV.gz").write_text("x")
    (root / "picture.png").write_text("x")
    (root / ".hidden.jsonl").write_text("x")
    (tmp_path / "secret.jsonl").write_text("secret")
    monkeypatch.setenv("PLUMBLINE_DATA", str(root))
    return root


def refusal(name: str) -> str:
    with pytest.raises(StudioError) as refused:
        data_folder.inside(name)
    return refused.value.text


def test_without_the_variable_nothing_is_allowed(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", " ", os.pathsep, str(data / "missing")):
        monkeypatch.setenv("PLUMBLINE_DATA", value)
        assert data_folder.listed() == []
        assert "PLUMBLINE_DATA" in refusal("a.jsonl")
    monkeypatch.delenv("PLUMBLINE_DATA")
    assert data_folder.listed() == [] and "no folder may be imported from" in refusal("/etc/passwd")


def test_data_files_are_listed_by_name_and_found_again(data: Path) -> None:
    assert data_folder.listed() == ["a.jsonl", "deep/er/b.CSV.gz"]
    assert [data_folder.inside(name).name for name in data_folder.listed()] == ["a.jsonl", "b.CSV.gz"]
    assert data_folder.inside("a.jsonl") == (data / "a.jsonl").resolve()


def test_several_folders_are_searched_in_order(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = tmp_path / "second"
    second.mkdir()
    (second / "a.jsonl").write_text("second")
    (second / "c.txt").write_text("x")
    monkeypatch.setenv("PLUMBLINE_DATA", os.pathsep.join([str(data), str(second), str(data)]))
    assert data_folder.listed() == ["a.jsonl", "c.txt", "deep/er/b.CSV.gz"]
    assert data_folder.inside("a.jsonl").read_text() == "{}"
    assert data_folder.inside("c.txt").parent == second


@pytest.mark.parametrize(
    "name",
    [
        "../secret.jsonl",
        "deep/../../secret.jsonl",
        "deep/../a.jsonl",
        "..",
        "./../secret.jsonl",
        "..%2fsecret.jsonl",
        "%2e%2e/secret.jsonl",
        "..%252fsecret.jsonl",
        "..\\secret.jsonl",
        "deep\\..\\..\\secret.jsonl",
        "..%c0%afsecret.jsonl",
        "．．/secret.jsonl",
        "‥/secret.jsonl",
        "....//secret.jsonl",
        "..;/secret.jsonl",
        "/etc/passwd",
        "//etc/passwd",
        "file:///etc/passwd",
        "~/secret.jsonl",
        "~root/.bashrc",
        "C:\\secret.jsonl",
        "\\\\server\\share\\secret.jsonl",
        "a.jsonl\0.png",
        "\0",
        "",
        ".",
        "deep",
        "missing.jsonl",
        "a.jsonl/",
        "a.jsonl/../../secret.jsonl",
        "x" * 5000,
        "\ud800.jsonl",
    ],
)
def test_no_name_leads_out(data: Path, name: str) -> None:
    # A trailing slash is dropped before the file is looked for: it is the file itself.
    if name == "a.jsonl/":
        assert data_folder.inside(name) == data / "a.jsonl"
        return
    assert refusal(name).startswith("data folder: ")


def test_encoded_names_are_just_names(data: Path) -> None:
    (data / "a..%2fsecret.jsonl").write_text("mine")
    assert data_folder.inside("a..%2fsecret.jsonl").read_text() == "mine"


def test_links_must_stay_inside(data: Path, tmp_path: Path) -> None:
    (data / "out.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (data / "passwd.txt").symlink_to("/etc/passwd")
    (data / "up").symlink_to(tmp_path, target_is_directory=True)
    (data / "chain.jsonl").symlink_to(data / "out.jsonl")
    (data / "circle.jsonl").symlink_to(data / "circle.jsonl")
    (data / "broken.jsonl").symlink_to(data / "nothing.jsonl")
    (data / "again.jsonl").symlink_to(data / "a.jsonl")
    for name in ("out.jsonl", "passwd.txt", "up/secret.jsonl", "chain.jsonl"):
        assert "leads out of the data folder" in refusal(name)
    for name in ("circle.jsonl", "broken.jsonl"):
        assert "is not there" in refusal(name)
    assert data_folder.inside("again.jsonl") == data / "a.jsonl"
    assert data_folder.listed() == ["a.jsonl", "again.jsonl", "deep/er/b.CSV.gz"]


def test_a_folder_that_only_begins_the_same_is_outside(data: Path, tmp_path: Path) -> None:
    (tmp_path / "data-private").mkdir()
    (tmp_path / "data-private" / "x.jsonl").write_text("x")
    (data / "link.jsonl").symlink_to(tmp_path / "data-private" / "x.jsonl")
    assert "leads out" in refusal("link.jsonl")


def test_the_allowed_folder_may_be_a_link_itself(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "alias").symlink_to(data, target_is_directory=True)
    monkeypatch.setenv("PLUMBLINE_DATA", str(tmp_path / "alias"))
    assert "a.jsonl" in data_folder.listed() and data_folder.inside("a.jsonl") == data / "a.jsonl"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
def test_only_plain_files_are_opened(data: Path) -> None:
    os.mkfifo(data / "pipe.jsonl")
    with socket.socket(socket.AF_UNIX) as listening:
        here = os.getcwd()
        os.chdir(data)  # the address of a socket must be short
        try:
            listening.bind("socket.jsonl")
        finally:
            os.chdir(here)
        (data / "null.jsonl").symlink_to("/dev/null")
        for name in ("pipe.jsonl", "socket.jsonl"):
            assert "is not a plain file" in refusal(name)
        assert "leads out" in refusal("null.jsonl")
        assert data_folder.listed() == ["a.jsonl", "deep/er/b.CSV.gz"]


def test_devices_are_no_files(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUMBLINE_DATA", "/")
    link = data / "null.txt"
    link.symlink_to("/dev/null")
    assert "is not a plain file" in refusal(str(link).lstrip("/"))


def test_only_data_files_are_given(data: Path) -> None:
    (data / "id_rsa").write_text("x")
    (data / ".git").mkdir()
    (data / ".git" / "config.txt").write_text("x")
    for name in ("picture.png", "id_rsa", ".hidden.jsonl", ".git/config.txt"):
        assert "is not a data file" in refusal(name)


def test_a_long_listing_ends(data: Path) -> None:
    for number in range(600):
        (data / f"{number:04}.txt").write_text("x")
    assert len(data_folder.listed()) == data_folder.MOST_LISTED
