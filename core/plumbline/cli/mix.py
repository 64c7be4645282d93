"""``plumbline data mix``: what each dataset of a mix comes to, before anything is trained."""

import argparse
from pathlib import Path
from typing import Any

import yaml

from plumbline.cli.parser import json_option, whole
from plumbline.cli.terminal import entry, say, say_json, table
from plumbline.config import schema
from plumbline.errors import StudioError


def add_verbs(verbs: Any) -> None:
    parser = verbs.add_parser("mix", help="what each dataset of a mix comes to")
    parser.add_argument(
        "recipe", metavar="RECIPE", help="a recipe file, a preset, or datasets with weights: a:2,b:0.5,c"
    )
    parser.add_argument("--base", help="whose tokens are counted; else the recipe's")
    parser.add_argument(
        "--max-length", type=whole(), metavar="N", help="where rows are cut; else the recipe's"
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the mix as a recipe's data section")
    json_option(parser)
    parser.set_defaults(do=mix)


def mix(arguments: argparse.Namespace) -> int:
    from plumbline.data.selection import mix as mixing
    from plumbline.planner import overview

    recipe = _recipe(arguments)
    chosen = mixing.choose(recipe.data)
    shares = overview.shares(recipe, chosen)
    learned = sum(share.supervised for share in shares)
    if arguments.write:
        _write(recipe, arguments.write)
    if arguments.json:
        leaks = [finding.text for finding in mixing.leaks(chosen)]
        return say_json({"datasets": [_as_json(share, learned) for share in shares], "warnings": leaks})
    rows = [_row(share, learned) for share in shares]
    total = sum(share.rows for share in shares), sum(share.tokens for share in shares)
    rows.append(
        [
            "together",
            "",
            f"{total[0]:,}",
            f"{total[1]:,}",
            "",
            "",
            f"{sum(len(one.held_out) for one in chosen):,}",
        ]
    )
    headers = ["dataset", "weight", "rows", "tokens", "repeats", "of the loss", "held out"]
    table(headers, rows, numbers=(1, 2, 3, 4, 5, 6))
    exact = all(share.rows == share.summary.rows for share in shares)
    length = recipe.training.max_length
    say(
        "",
        f"Rows and tokens of an epoch, {recipe.model.base}'s, cut at {length:,}"
        + ("." if exact else "; estimated."),
    )
    for finding in mixing.leaks(chosen):
        entry("warning", finding.text)
    if arguments.write:
        say(f"Wrote {arguments.write}, a recipe that trains on this mix.")
    return 0


def _as_json(share: Any, learned: int) -> dict[str, Any]:
    """What a dataset of the mix comes to in an epoch. :param learned: tokens in the loss of the whole mix"""
    one = share.chosen
    held_out = len(one.held_out) if one.held_out_part == "train" else 0
    return {
        "dataset": one.name,
        "weight": one.part.weight,
        "rows": share.rows,
        "tokens": share.tokens,
        "repeats": share.rows / max(1, one.dataset["rows"] - held_out),
        "share_of_the_loss": share.supervised / max(1, learned),
        "held_out": len(one.held_out),
    }


def _row(share: Any, learned: int) -> list[str]:
    name, weight, rows, tokens, repeats, part, held_out = _as_json(share, learned).values()
    shown = [f"{weight:g}", f"{rows:,}", f"{tokens:,}", f"{repeats:.2f}", f"{part:.0%}", f"{held_out:,}"]
    return [name, *shown]


def _recipe(arguments: argparse.Namespace) -> schema.RunConfig:
    """The recipe that is meant, with what the options change."""
    text = arguments.recipe
    if text in schema.preset_names():
        recipe = schema.preset(text)
    elif Path(text).suffix.lower() in (".yaml", ".yml", ".json") or Path(text).is_file():
        recipe = schema.read_recipe(Path(text))
    else:
        recipe = schema.validated({"data": {"mix": parts(text)}}, "mix")
    raw = recipe.model_dump(mode="json")
    if arguments.base:
        raw["model"] = {"base": arguments.base}
    if arguments.max_length is not None:
        raw["training"]["max_length"] = arguments.max_length
    return schema.validated(raw, "mix")


def parts(text: str) -> list[dict[str, Any]]:
    """``a:2,b`` as the parts of a mix. :raises StudioError: when there is none, or a weight is no number"""
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, sign, weight = part.rpartition(":") if ":" in part else (part, "", "1")
        try:
            found.append({"dataset": name.strip(), "weight": float(weight)})
        except ValueError:
            raise StudioError("mix", f"{weight!r} in {part!r} is no weight", "Write a:2,b:0.5.") from None
    if not found:
        raise StudioError("mix", "names no dataset", "Write a:2,b:0.5.")
    return found


def _write(recipe: schema.RunConfig, path: Path) -> None:
    if path.exists():
        raise StudioError(str(path), "exists already", "Choose another name.")
    section = [part.model_dump(mode="json", exclude_defaults=True) for part in recipe.data.parts]
    text = yaml.safe_dump({"data": {"mix": section}}, sort_keys=False, allow_unicode=True)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        what = f"cannot be written ({error.strerror})"
        raise StudioError(str(path), what, "Choose another place.") from None
