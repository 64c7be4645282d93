"""Options may stand before the verb, as --help prints them, or after it: it is one command."""

from typing import Any

import pytest

from plumbline.cli import main
from tests.verbs import verbs

COMMANDS = [
    ["studio"],
    ["quickstart", "--headless"],
    ["train", "starter", "--lora.r", "8", "--data", "data", "--data", "runs"],
    ["forecast", "starter", "--probe"],
    ["data"],
    ["data", "add", "things.csv", "--name", "train", "--preview"],
    ["data", "show", "things", "--search", "runs"],
    ["data", "remove", "things", "--yes"],
    ["data", "mix", "a:2,b", "--base", "starter"],
    ["resume", "1"],
    ["branch", "1", "--step", "2"],
    ["reproduce", "1"],
    ["check", "1", "--steps", "4"],
    ["submit", "1", "--slurm", "--time", "1:00"],
    ["evaluate", "1"],
    ["check", "1", "--steps", "5"],
    ["merge", "1"],
    ["export", "1"],
    ["show", "1"],
    ["runs"],
    ["delete", "1", "--yes"],
    ["doctor"],
    ["test"],
]


def understood(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> dict[str, Any]:
    """What the verb is given."""
    given: list[dict[str, Any]] = []

    def note(arguments: Any) -> int:
        given.append({name: value for name, value in vars(arguments).items() if name != "serve"})
        return 0

    monkeypatch.setattr(main, "_done", note)
    assert main.main(words, lambda *_: None) == 0
    return given[0]


def test_every_verb_is_here() -> None:
    assert {command[0] for command in COMMANDS} == verbs()


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_options_before_the_verb_are_those_after_it(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = next((place for place, word in enumerate(command) if word.startswith("-")), len(command))
    verb, options = command[:place], command[place:]
    if command[0] in ("studio", "quickstart"):
        options += ["--port", "7912", "--listen", "0.0.0.0", "--worker", "thread"]
    after, before = (understood(monkeypatch, words) for words in ([*verb, *options], [*options, *verb]))
    assert before == after and before["verb"] == command[0]
    if command[0] in ("studio", "quickstart"):
        assert (before["port"], before["listen"], before["worker"]) == (7912, "0.0.0.0", "thread")


def test_an_option_that_a_verb_does_not_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (["--port", "7912", "runs"], ["runs", "--port", "7912"]):
        with pytest.raises(SystemExit, match="2"):
            main.main(words, lambda *_: None)


def test_without_a_verb_options_are_the_studios(monkeypatch: pytest.MonkeyPatch) -> None:
    assert understood(monkeypatch, ["--port", "7912"])["port"] == 7912


def test_the_launcher_knows_the_tests_by_their_verb_wherever_it_stands() -> None:
    import launch

    assert launch.of_test(["test", "--all"]) == launch.of_test(["--all", "test"]) == ["--all"]
    assert launch.of_test(["train", "test"]) is launch.of_test([]) is launch.of_test(["--port", "1"]) is None
