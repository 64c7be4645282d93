"""How the command line is read: options on either side of the verb, and mistakes explained in sentences."""

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from plumbline.cli.terminal import safe, say
from plumbline.near_names import question
from plumbline.program import command

EXIT_CODES = (
    "Exit codes: 0 done; 1 a job failed or was stopped, or its answer is no; 2 wrong use, or something is in "
    "the way; 3 an error of Plumbline's own; 130 ended by Ctrl-C."
)
SHELLS = ("bash", "zsh", "tcsh")
# argparse's own words, and ours.
_SENTENCES = (
    (r"(?:the following arguments are required|required): (.*)", r"needs \1"),
    (r"argument (.+?): expected (?:one|at least one) argument", r"\1 needs a value"),
    (r"argument (.+?): expected (\d+) arguments", r"\1 needs \2 values"),
    (r"argument (.+?): not allowed with argument (.+)", r"\1 does not go with \2"),
    (r"argument (.+?): ignored explicit argument (.+)", r"\1 takes no value, got \2"),
    (r"one of the arguments (.+) is required", r"needs one of \1"),
    (r"argument (.+?): (.*)", r"\1 \2"),
)


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are sentences, with the name that was probably meant."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"epilog": EXIT_CODES, "allow_abbrev": False, **options})

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        deepest = _deepest(self, words)
        _refuse_unknown_options(self, deepest, words)
        arguments, left = self.parse_known_args(words, namespace)
        if left:
            deepest.error(f"takes no {left[0]!r}")
        return arguments

    def error(self, message: str) -> NoReturn:
        for pattern, words in _SENTENCES:
            if re.fullmatch(pattern, message, re.DOTALL):
                message = re.sub(pattern, words, message, flags=re.DOTALL)
                break
        verb = self.prog.removeprefix(command()).strip()
        text = f"{verb}: {message}" if verb else message
        sentence = text if text.endswith((".", "?", "!")) else f"{text}."
        self.exit(2, f"error: {safe(sentence)} `{self.prog} --help` explains it.\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        known = [str(choice) for choice in action.choices]
        listed = f"{question(str(value), known)} One of: {', '.join(known)}".strip()
        if isinstance(action, argparse._SubParsersAction):
            raise argparse.ArgumentError(None, f"there is no verb {value!r}. {listed}")
        raise argparse.ArgumentError(action, f"cannot be {value!r}. {listed}")


def whole(
    least: int | None = None, most: int | None = None, what: str = "a whole number"
) -> Callable[[str], int]:
    """For ``type=``: reads a whole number. :param what: what the option takes, for messages"""
    if least is not None and most is not None:
        what += f" from {least} to {most}"
    elif least is not None:
        what += f" from {least}"

    def read(text: str) -> int:
        try:
            found = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"takes {what}, got {text!r}") from None
        if (least is not None and found < least) or (most is not None and found > most):
            raise argparse.ArgumentTypeError(f"takes {what}, got {text!r}")
        return found

    return read


def decimal(text: str) -> float:
    """For ``type=``."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"takes a number, got {text!r}") from None


def run_argument(parser: argparse.ArgumentParser) -> None:
    """The run that a verb is about."""
    parser.add_argument(
        "run",
        metavar="RUN",
        type=whole(1, what="a run's number"),
        help="the run's number, as `runs` lists it",
    )


def json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print it as JSON, and nothing else")


def shorten(parser: argparse.ArgumentParser) -> None:
    """Give a parser and those below it a usage of one line; their options are listed below it anyway."""
    words = ["%(prog)s"]
    for group in parser._mutually_exclusive_groups:
        if group.required:
            words.append(f"({'|'.join(action.option_strings[0] for action in group._group_actions)})")
    for action in parser._actions:
        if action.option_strings:
            continue
        if isinstance(action, argparse._SubParsersAction):
            words.append("VERB ..." if action.required else "[VERB] ...")
        else:
            name = str(action.metavar or action.dest)
            words.append(
                {"*": f"[{name} ...]", "?": f"[{name}]", "+": f"{name} ..."}.get(str(action.nargs), name)
            )
    words.append("[options]")
    parser.usage = " ".join(words)
    below = _verbs_of(parser)
    for child in set(below.choices.values()) if below is not None else ():
        shorten(child)


class Completion(argparse.Action):
    """Prints a shell's script that completes verbs and options, of the command `plumbline`."""

    def __init__(self, build: Callable[[str], argparse.ArgumentParser], **options: Any) -> None:
        self.build = build
        super().__init__(**options)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        import shtab

        made = self.build("plumbline")
        for each in _all(made):
            for action in each._actions:
                if action.type is Path or action.metavar == "FILE":
                    action.complete = shtab.FILE  # type: ignore[attr-defined]
        say(shtab.complete(made, shell=str(values)))
        parser.exit()


def verb_first(argv: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """The same words with the verb, and the verb below it, in front; without a verb they stay as they are.

    argparse reads options after the verb only. What stood before the verb comes last, so that an option
    with several values takes no argument of it.
    """
    verbs, before, rest = [], list[str](), list(argv)
    while (below := _verbs_of(parser)) is not None:
        place = _place(rest, below.choices, set(_with_value(below)))
        if place is None:
            break
        verbs.append(rest[place])
        before += rest[:place]
        parser, rest = below.choices[rest[place]], rest[place + 1 :]
    return [*verbs, *rest, *before]


def _verbs_of(parser: argparse.ArgumentParser) -> "argparse._SubParsersAction | None":
    found = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return next(found, None)


def _all(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    if (below := _verbs_of(parser)) is not None:
        for child in below.choices.values():
            yield from _all(child)


def _deepest(parser: argparse.ArgumentParser, words: list[str]) -> argparse.ArgumentParser:
    """The parser of the verb that stands in front."""
    for word in words:
        below = _verbs_of(parser)
        if below is None or word not in below.choices:
            break
        parser = below.choices[word]
    return parser


def _refuse_unknown_options(
    whole_parser: argparse.ArgumentParser, parser: argparse.ArgumentParser, words: list[str]
) -> None:
    """Before argparse, which would take the value of an option that it does not know for something else."""
    known = set(parser._option_string_actions)
    elsewhere = {option for one in _all(whole_parser) for option in one._option_string_actions}
    for word in words:
        option = word.partition("=")[0]
        if word == "--":
            return
        if not word.startswith("--") or " " in word or option in known:
            continue
        if parser is whole_parser and option in elsewhere:
            continue  # it is the verb that is misspelled, and argparse says so
        parser.error(f"there is no option {option}. {question(option, known, 0.7)}".strip())


def _place(words: list[str], verbs: object, with_value: set[str]) -> int | None:
    """Where the verb stands: behind options only, and not as the value of one."""
    for place, word in enumerate(words):
        if word == "--":
            return None
        if word in verbs and (place == 0 or words[place - 1] not in with_value):  # type: ignore[operator]
            return place
    return None


def _with_value(below: "argparse._SubParsersAction") -> Iterator[str]:
    """The options of all verbs that take exactly one value."""
    for parser in below.choices.values():
        for action in parser._actions:
            if action.nargs is None and action.option_strings:
                yield from action.option_strings
        if (deeper := _verbs_of(parser)) is not None:
            yield from _with_value(deeper)
