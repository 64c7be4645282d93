"""The verbs of the command line, as its parsers have them."""

import argparse

from plumbline.cli import main


def parsers(parser: argparse.ArgumentParser, name: str = "") -> dict[str, argparse.ArgumentParser]:
    """A parser and those below it, by their verbs."""
    found = {name: parser}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb, below in action.choices.items():
                found |= parsers(below, f"{name} {verb}".strip())
    return found


def verbs(above: str = "") -> set[str]:
    """The verbs below one, or those of the whole command."""
    names = parsers(main.build("plumbline"))
    return {name.split()[-1] for name in names if name and " ".join(name.split()[:-1]) == above}
