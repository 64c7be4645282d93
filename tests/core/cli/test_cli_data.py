"""`plumbline data`: every verb, what it says of mistakes, and that no data speaks to the terminal."""

import argparse
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from plumbline.cli import main, training
from plumbline.cli.terminal import clipped, columns, fold, safe
from plumbline.config import schema
from plumbline.data.selection import datasets as data
from plumbline.jobs import queue
from plumbline.store import datasets as store
from plumbline.store import runs
from plumbline.worker import near_duplicates
from tests import ROOT
from tests.hub_server import point_at, running
from tests.verbs import parsers, verbs

Run = Callable[..., str]
EVIL = "red \x1b[31mtext\x1b[0m \x1b]0;owned\x07 \x9b2J \x1b]8;;http://x\x1b\\link \x00\x08\x7f \u202eback"


@pytest.fixture
def run(workspace: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A function that runs `plumbline data ...` and returns what it printed."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(workspace.parent)

    def run(*arguments: str, code: int = 0) -> str:
        assert main.main(["data", *arguments], lambda *_: None) == code
        captured = capsys.readouterr()
        printed = captured.out if code != 2 else captured.out + captured.err
        assert all(columns(line) <= 100 for line in captured.out.splitlines()), printed
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", printed)
        return printed

    return run


def table(path: str, rows: int = 12, name: str = "question,reply,topic") -> None:
    said = [f"Where is thing {n} of all the things?,It is in room {n}.,t{n % 2}" for n in range(rows)]
    Path(path).write_text("\n".join([name, *said]) + "\n")


def test_without_a_verb_the_datasets_are_listed(run: Run) -> None:
    header, first, *_ = run().splitlines()
    assert header.split() == ["dataset", "shape", "rows", "held", "out", "verdict"]
    assert first.split() == ["cited-answers", "messages", "400", "100", "ready"]


def test_add_says_what_it_understood_and_found(run: Run) -> None:
    table("things.csv")
    with open("things.csv", "a") as file:
        file.write("Who is it?,Write to a@b.org.,t0\n")
    printed = run("add", "things.csv", "--held-out", "things.csv", "--name", "my things")
    assert "Added my-things." in printed
    assert "exchange: prompt = question, answer = reply" in printed
    assert "13 train + 13 held out" in printed and "columns    topic" in printed
    assert "1 of 13 rows hold an e-mail address (see row 13)" in printed
    assert "are training rows too" in printed


def test_add_with_a_mapping_that_is_kept_for_the_next_file(run: Run) -> None:
    table("things.csv", name="a,b,c")
    run("add", "things.csv", "--mapping", "prompt=Tell me, {a},answer=b,label=c", "--save-mapping", "mine")
    assert "Tell me, Where is thing 0" in run("show", "things", "--row", "1")
    assert "label = c" in run("add", "things.csv", "--mapping", "mine", "--name", "again")
    Path("m.json").write_text('{"mapping": {"prompt": "a", "answer": "b"}}')
    assert "prompt = a, answer = b" in run("add", "things.csv", "--mapping", "m.json")


def test_names_of_roles_are_mapped(run: Run) -> None:
    turns = [{"who": "customer", "role": "customer", "content": "Hi"}, {"role": "bot", "content": "Hello."}]
    Path("talk.jsonl").write_text(json.dumps({"chat": turns}) + "\n")
    run("add", "talk.jsonl", "--mapping", "turns=chat,roles.bot=assistant,roles.customer=user")
    assert "assistant  Hello." in run("show", "talk", "--row", "1")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["add"], "needs files or --hub"),
        (["add", "none.csv"], "none.csv: is not there"),
        (["add", "things.csv", "--mapping", "promt=question"], "no part 'promt'. Parts of exchange: prompt"),
        (
            ["add", "things.csv", "--mapping", "prompt={qustion},answer=reply"],
            "does not have. Its columns: question",
        ),
        (["add", "things.csv", "--mapping", "nothing"], "neither a file nor a saved mapping"),
        (["add", "things.csv", "--encoding", "klingon"], "'klingon'"),
        (["show", "none"], "dataset 'none': does not exist. In this workspace: cited-answers"),
        (["show", "cited-answers", "--row", "0"], "row 0: is not there. Rows are numbered from 1 to 400"),
        (["show", "cited-answers", "--rows", "5-x"], "'5-x' is no range"),
        (["xray", "cited-answers", "--max-length", "3"], "training.max_length must be at least 16"),
        (["mix", "cited-answers:much"], "'much' in 'cited-answers:much' is no weight"),
        (["mix", "cited-answers:0"], "weight must be greater than 0"),
        (["mix", "none"], "dataset 'none': does not exist"),
        (["mix", "none.yaml"], "none.yaml: is not there"),
        (["check", "cited-answers", "--near", "--threshold", "0.1"], "must be from 0.7 to 1"),
        (["remove", "cited-answers"], "Add --yes"),
    ],
)
def test_mistakes_are_explained(run: Run, arguments: list[str], said: str) -> None:
    table("things.csv")
    assert said in run(*arguments, code=2)
    assert store.names() == ["cited-answers", "plain-style", "ticket-triage"]


def test_bad_rows_are_named_and_may_be_left_out(run: Run) -> None:
    good = {"prompt": "a", "completion": "b"}
    Path("some.jsonl").write_text("\n".join([json.dumps(good), "{", json.dumps(good)]))
    assert "some.jsonl line 2" in run("add", "some.jsonl", code=2)
    assert "left out   1 bad row" in run("add", "some.jsonl", "--leave-bad-rows-out")


def test_reading_is_told_where_a_file_does_not_say_it(run: Run) -> None:
    Path("plain.csv").write_bytes("q;a\nWo?;Dört.\n".encode("utf-16"))
    options = ["--encoding", "utf-16", "--delimiter", ";", "--header", "--mapping", "prompt=q,answer=a"]
    run("add", "plain.csv", *options)
    assert "Dört." in run("show", "plain", "--row", "1")
    Path("tabs.csv").write_text("Wo?\tDort.\n")
    printed = run("add", "tabs.csv", "--delimiter", "tab", "--no-header", "--preview", code=2)
    assert "Wo?" in printed and "Say which column is what, with --mapping" in printed


def test_a_preview_stores_nothing(run: Run, workspace: Path) -> None:
    table("things.csv")
    printed = run("add", "things.csv", "--preview")
    assert "mapping    exchange: prompt = question, answer = reply" in printed
    assert re.search(r"topic +t0 · t1", printed) and "It is in room 4." in printed and "row 6" not in printed
    table("odd.csv", name="x,y,z")
    printed = run("add", "odd.csv", "--preview", code=2)
    assert "preference: chosen, rejected" in " ".join(printed.split()) and "Where is thing 0" in printed
    assert "does not have" in run("add", "odd.csv", "--preview", "--mapping", "prompt={w},answer=y", code=2)
    assert len(store.names()) == 3 and not list((workspace / "staging").iterdir())


def test_a_hub_dataset_is_previewed_and_added(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table("things.csv")
    text = Path("things.csv").read_bytes()
    with running() as hub:
        point_at(hub.url, monkeypatch, tmp_path / "cache")
        hub.add("org/things", {"train.csv": text, "test.csv": text})
        printed = run("add", "--hub", "org/things", "--preview")
        assert re.search(r"default +train +1 +0.0 MB", printed) and "It is in room 0." in printed
        printed = run("add", "--hub", "org/things", "--split", "train", "--held-out-split", "test")
    assert "12 train + 12 held out" in printed and "hub org/things" in printed


def test_show_prints_figures_and_lengths(run: Run) -> None:
    printed = run("show", "cited-answers")
    assert "turns      2 in 100%" in printed and "user in 100%" in printed and "Latin 100.0%" in printed
    assert re.search(r"p50 \d+, p90 \d+, p99 \d+, longest \d+ by starter", printed)
    counts = [
        int(line.split()[-1].replace(",", ""))
        for line in printed.splitlines()
        if "█" in line or " to " in line
    ]
    assert sum(counts) == 400
    assert "100 held out" in run("show", "cited-answers", "--part", "held_out")


def test_show_prints_rows_as_text(run: Run) -> None:
    printed = run("show", "ticket-triage", "--rows", "2-3")
    assert "row 2, label billing, group phone" in printed and "row 3" in printed and "row 4" not in printed
    assert "2 rows hold it" in run("show", "ticket-triage", "--search", "fan makes")
    assert "0 rows hold it" in run("show", "ticket-triage", "--search", "zebra crossing")
    assert "row 400" in run("show", "cited-answers", "--rows", "399-9999")


def test_a_row_with_tools_is_readable(run: Run) -> None:
    call = {"type": "function", "function": {"name": "look_up", "arguments": {"word": "é" * 300}}}
    turns = [
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "It."},
        {"role": "assistant", "content": "It is it."},
    ]
    Path("calls.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    run("add", "calls.jsonl")
    assert 'calls look_up({"word": "ééé' in " ".join(run("show", "calls", "--row", "1").split())


def test_an_xray_marks_what_is_learned(run: Run) -> None:
    printed = run("xray", "cited-answers", "--row", "2")
    assert re.search(r"\[Tara works as a doctor \[2\]\.\]\{<\|im_end\|>\}", printed)
    assert "0 rows cut" in printed and "learned in 100%" in printed
    printed = run("xray", "cited-answers", "--row", "2", "--max-length", "48")
    assert "~ in Lima." in printed and "0 of 48 tokens are in the loss, 12 more are cut off" in printed


def test_check_lists_findings_and_groups(run: Run) -> None:
    table("things.csv")
    with open("things.csv", "a") as file:
        file.write("Where is THING 3 of all the things?,It is in room 3.,t1\n")
    run("add", "things.csv")
    assert "things: ready" in run("check", "things")
    printed = run("check", "things", "--near")
    assert "things: ready, 1 warning" in printed
    assert "1 of 13 rows nearly repeat another row (1 group) (see row 13)" in printed
    assert "2 rows     4, 13" in printed and "It is in room 3." in printed
    assert "nearly repeat" in run("check", "things")


def test_a_check_that_does_not_complete_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    data.ensure_samples()
    monkeypatch.setattr(near_duplicates, "start", lambda *_: stopped)
    stopped = queue.enqueue("check", None, dataset_id=1)
    queue.stop(stopped)
    run("check", "cited-answers", "--near", code=1)


def test_a_mix_is_a_table_and_a_recipe(run: Run) -> None:
    printed = run("mix", "cited-answers:2,plain-style:0.5", "--write", "mix.yaml", "--max-length", "512")
    assert re.search(r"cited-answers +2 +800 +[\d,]+ +2.00 +\d+% +100", printed)
    assert re.search(r"plain-style +0.5 +150 +[\d,]+ +0.50 +\d+% +60", printed)
    assert re.search(r"together +950 ", printed) and "cut at 512" in printed
    recipe = schema.read_recipe(Path("mix.yaml"))
    assert [(part.dataset, part.weight) for part in recipe.data.parts] == [
        ("cited-answers", 2),
        ("plain-style", 0.5),
    ]
    assert re.search(r"together +950 ", run("mix", "mix.yaml"))
    assert "mix.yaml: exists already" in run("mix", "plain-style", "--write", "mix.yaml", code=2)
    assert re.search(r"ticket-triage +1 +320 ", run("mix", "ticket-triage"))


def test_a_recipe_trains_on_several_files(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    table("things.csv")
    table("more.csv")
    monkeypatch.setattr(training, "watch", lambda job_id: {"state": "completed"})
    assert main.main(["train", "--data", "things.csv", "starter", "--data", "more.csv"], lambda *_: None) == 0
    dataset = store.by_name("things")
    assert runs.get(1)["dataset_id"] == dataset["id"] and dataset["rows"] == 24


def test_leaks_of_a_mix_are_told(run: Run) -> None:
    table("things.csv")
    run("add", "things.csv", "--name", "a", "--held-out", "things.csv")
    assert "12 of 12 held-out rows are training rows too" in run("mix", "a")


def test_remove_asks_and_refuses_what_a_run_uses(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from plumbline import api

    data.ensure_samples()
    api.add(schema.preset("starter"))
    assert "is used by cited-answers-r16 (run 1)" in run("remove", "cited-answers", "--yes", code=2)
    monkeypatch.setattr(sys, "stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert "Kept." in run("remove", "plain-style", code=1)
    monkeypatch.setattr("builtins.input", lambda question: "yes")
    assert "Deleted plain-style." in run("remove", "plain-style")
    assert store.names() == ["cited-answers", "ticket-triage"]


def test_nothing_in_a_file_speaks_to_the_terminal(run: Run) -> None:
    row = {
        f"que\x1b[2Jstion{EVIL}": EVIL,
        "prompt": EVIL,
        "completion": f"fine {EVIL}",
        "label": EVIL,
    }
    name = "a\x1b[31m.jsonl"
    Path(name).write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    run("add", name, "--preview")
    run("add", name, "--name", "evil", "--mapping", "prompt=prompt,answer=completion,label=label")
    for arguments in (
        ["show", "evil"],
        ["show", "evil", "--row", "1"],
        ["xray", "evil"],
        ["check", "evil", "--near"],
    ):
        run(*arguments)  # which looks at every character that is printed
    run("show", "evil\x1b[31m", code=2)


def test_safe_text_keeps_what_is_text() -> None:
    assert safe(EVIL) == "red text   link  back"
    assert safe("a\r\nb\rc\td\u200de\u0301 漢字 👩‍🔬") == "a\nb\nc    d\u200de\u0301 漢字 👩‍🔬"
    assert (
        safe("half \ud800") == "half ?"
        and safe("\x1b") == ""
        and safe("\x1b]0;never ended") == "0;never ended"
        and safe("\x1b[") == ""
    )
    assert len(safe("\x1b]" * 200_000)) == 0 and len(safe("\x9d" * 200_000)) == 0


def test_text_is_folded_between_words_and_by_columns() -> None:
    assert list(fold("one two three", 7)) == ["one two", "three"]
    assert list(fold("    indented text", 12)) == ["    indented", "text"]
    assert list(fold("漢字漢字漢", 4)) == ["漢字", "漢字", "漢"] and list(fold("", 9)) == [""]
    assert "".join(fold("x" * 1_000_000, 80)) == "x" * 1_000_000
    assert clipped("one  two\nthree", 9) == "one two …" and clipped("short", 9) == "short"


def _in_terminal(home: Path, environment: dict[str, str], *arguments: str) -> str:
    """What a verb prints on a terminal of its own."""
    parent, child = pty.openpty()
    command = [sys.executable, str(ROOT / "launch.py"), "data", *arguments]
    settings = {**os.environ, "PLUMBLINE_HOME": str(home), "TERM": "xterm", **environment}
    with subprocess.Popen(
        command, stdout=child, stderr=child, stdin=child, env=settings, cwd=ROOT
    ) as process:
        os.close(child)
        printed = b""
        while True:
            try:
                printed += (block := os.read(parent, 65536))
            except OSError:
                break
            if not block:
                break
        assert process.wait() == 0
    os.close(parent)
    return printed.decode()


def test_colours_are_for_terminals_that_want_them(samples: Path) -> None:
    assert "\x1b[30;42m" in _in_terminal(samples, {"NO_COLOR": ""}, "xray", "cited-answers")
    plain = _in_terminal(samples, {"NO_COLOR": "1"}, "xray", "cited-answers")
    assert "\x1b[30" not in plain and "[learned]" in plain


def test_a_reader_that_has_seen_enough_is_no_error(samples: Path) -> None:
    command = f"{sys.executable} launch.py data show cited-answers --rows 1-400 | head -n 1"
    shell = ["bash", "-o", "pipefail", "-c", command]
    settings = {**os.environ, "PLUMBLINE_HOME": str(samples)}
    done = subprocess.run(shell, capture_output=True, text=True, cwd=ROOT, env=settings)
    assert (done.returncode, done.stdout, done.stderr) == (0, "row 1\n", "")


def test_the_readme_names_the_verbs_and_options_that_there_are() -> None:
    readme = (ROOT / "README.md").read_text()
    named = set(re.findall(r"launch\.py data ([a-z]+)\b", readme))
    assert named == verbs("data")
    known_parsers = parsers(main.build("plumbline"))
    for line in re.findall(r"launch\.py (data .*|train .*)", readme):
        words = line.split("#")[0].split()
        verb = " ".join(words[:2]) if words[0] == "data" and len(words) > 1 else words[0]
        known = set(known_parsers[verb]._option_string_actions)
        assert set(re.findall(r"--[a-z-]+", line.split("#")[0])) <= known, line


def test_every_verb_and_option_has_help() -> None:
    for name, parser in parsers(main.build("plumbline")).items():
        actions = [one for one in parser._actions if not isinstance(one, argparse._SubParsersAction)]
        assert all(action.help for action in actions), name
        parser.format_help()


def test_delimiters_have_names_and_others_are_refused(run: Run) -> None:
    Path("things.csv").write_text("question;reply\nWhere?;Here.\nWho?;Me.\n")
    assert "2 train" in run("add", "things.csv", "--delimiter", "semicolon")
    for wrong in ("##", '"'):
        assert "cannot part the cells" in run("add", "things.csv", "--delimiter", wrong, code=2)


def test_options_that_mean_nothing_are_refused(run: Run) -> None:
    assert "ends before it begins" in run("show", "ticket-triage", "--rows", "5-3", code=2)
    assert "is no range" in run("show", "ticket-triage", "--rows", "", code=2)
    assert "needs words" in run("show", "ticket-triage", "--search", "", code=2)
    assert "names no dataset" in run("mix", "", code=2)
    assert "cannot be written" in run("mix", "ticket-triage", "--write", "/nonexistent/x.yaml", code=2)
