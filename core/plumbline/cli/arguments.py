"""Options may stand before the verb or after it. argparse reads them after it."""

import argparse
from collections.abc import Iterator


def verb_first(argv: list[str], parser: argparse.ArgumentParser) -> list[str]:
    """The same words with the verb, and the verb below it, in front; without a verb they stay as they are.

    What stood before the verb comes last, so that an option with several values takes no argument of it.
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
