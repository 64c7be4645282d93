"""Every setting of the schema as a flag of the command line: ``--lora.r 8``, over what the recipe says."""

import argparse
from typing import Any, Literal, get_args, get_origin

from plumbline.config import schema
from plumbline.config.schema import RunConfig, Setting

PREFIX = "setting "  # before a setting's key, among the parsed arguments


def add_flags(parser: argparse.ArgumentParser, only: str = "") -> None:
    """One flag a setting, in the groups of the form.

    :param only: a section; empty means all
    """
    groups: dict[str, Any] = {}
    for setting in schema.settings():
        section = setting.section
        if only and section != only:
            continue
        if section not in groups:
            title = f"settings of {section}" if section else "settings"
            groups[section] = parser.add_argument_group(title, "each in the place of the recipe's")
        groups[section].add_argument(
            f"--{setting.key}",
            dest=PREFIX + setting.key,
            metavar=_metavar(setting),
            help=_help(setting),
        )
        for key in setting.other_keys:
            groups[section].add_argument(f"--{key}", dest=PREFIX + key, help=argparse.SUPPRESS)


def recipe(arguments: argparse.Namespace) -> RunConfig:
    """The recipe that is named, with the settings that were given.

    :raises StudioError: with everything wrong
    """
    return schema.changed(schema.named(str(arguments.recipe)), given(arguments), "command line")


def given(arguments: argparse.Namespace) -> dict[str, str]:
    """The settings that were given, as key -> text."""
    return {
        name.removeprefix(PREFIX): text
        for name, text in vars(arguments).items()
        if name.startswith(PREFIX) and text is not None
    }


def _metavar(setting: Setting) -> str:
    kind = setting.info.annotation
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    if kind is bool:
        return "true|false"
    if get_origin(kind) is tuple and setting.name != "mix":
        return "A,B"
    return "X"


def _help(setting: Setting) -> str:
    text = f"{setting.info.title}. {setting.info.description}"
    return text.replace("%", "%%")  # argparse fills in what follows a percent sign
