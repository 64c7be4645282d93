"""``plumbline data``: add, show, xray, check, mix, rename and remove datasets."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from plumbline.cli import mix, show
from plumbline.cli.parser import decimal, json_option
from plumbline.cli.terminal import agreed, clipped, entry, progress, say, say_json, table, watch, width
from plumbline.data.errors import Problem
from plumbline.data.readers.source_files import Source
from plumbline.errors import StudioError

PREVIEW_ROWS = 5
PREVIEW_GB = 0.2  # most that a preview of a Hub dataset downloads
SAMPLES = 2  # values of a column that a preview shows


def add_verbs(above: Any) -> None:
    """Put ``data`` and its verbs under the verbs of the command line."""
    data = above.add_parser("data", help="list datasets; data add|show|xray|check|mix|rename|remove")
    json_option(data)
    data.set_defaults(do=_list, samples=True)
    verbs = data.add_subparsers(dest="data_verb", metavar="VERB")
    _add_options(verbs.add_parser("add", help="check files, or a Hub dataset, and store them"))
    show.add_verbs(verbs)
    made = verbs.add_parser("check", help="what a dataset's rows should be looked at for")
    _name_argument(made)
    made.add_argument("--near", action="store_true", help="look for rows that say nearly the same")
    made.add_argument(
        "--threshold", type=decimal, default=0.85, metavar="X", help="how alike, 0.7 to 1 (default 0.85)"
    )
    json_option(made)
    made.set_defaults(do=_check)
    mix.add_verbs(verbs)
    made = verbs.add_parser(
        "rename", help="call a dataset otherwise; recipes with its old name still find it"
    )
    _name_argument(made)
    made.add_argument("new_name", metavar="NEW", help="its new name")
    made.set_defaults(do=_rename)
    made = verbs.add_parser("remove", help="delete a dataset that no run uses")
    _name_argument(made)
    made.add_argument("--yes", action="store_true", help="without asking")
    made.set_defaults(do=_remove)


def _name_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a dataset, as `data` lists it")


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="*", metavar="FILE", help="training rows")
    parser.add_argument(
        "--held-out", nargs="+", action="extend", default=[], metavar="FILE", help="rows held out"
    )
    parser.add_argument("--name", default="", help="of the dataset; else the first file's")
    parser.add_argument("--leave-bad-rows-out", action="store_true", help="store the rows that are good")
    parser.add_argument("--encoding", default="utf-8", help="where a file is not UTF-8")
    parser.add_argument(
        "--delimiter", default="", help="of CSV, where it is not recognised: a character, or comma, tab, ..."
    )
    parser.add_argument(
        "--header", action=argparse.BooleanOptionalAction, help="whether the first CSV line names columns"
    )
    parser.add_argument(
        "--mapping",
        metavar="PARTS",
        help="prompt=question,answer=reply,roles.bot=assistant,fill.name=Ada (for {{name}} in the rows), a "
        "YAML or JSON file, or a saved one's name",
    )
    parser.add_argument(
        "--system", metavar="TEXT", default="", help="a system prompt for every row that has none of its own"
    )
    parser.add_argument(
        "--train-on-all",
        action="store_true",
        help="also on files whose names, and rows whose column, say test or validation",
    )
    parser.add_argument("--save-mapping", metavar="NAME", help="keep the mapping for other files")
    parser.add_argument("--preview", action="store_true", help="show what it would do, and store nothing")
    parser.add_argument("--hub", metavar="ID", help="a dataset on the Hugging Face Hub, in place of files")
    parser.add_argument("--config", help="of the Hub dataset")
    parser.add_argument("--split", help="of the Hub dataset to train on")
    parser.add_argument("--held-out-split", metavar="SPLIT", help="of the Hub dataset to hold out")
    parser.add_argument("--revision", help="of the Hub dataset: a branch, tag or commit")
    parser.set_defaults(do=_add)


def _list(arguments: argparse.Namespace) -> int:
    from plumbline.store import datasets as store

    if arguments.json:
        return say_json([show.as_json(dataset) for dataset in store.listed()])
    rows = [
        [one["name"], one["shape"], f"{one['rows']:,}", f"{one['held_out_rows'] or '-'}", store.verdict(one)]
        for one in store.listed()
    ]
    table(["dataset", "shape", "rows", "held out", "verdict"], rows, numbers=(2, 3))
    return 0


def _add(arguments: argparse.Namespace) -> int:
    from plumbline import api
    from plumbline.config.mapping import Mapping
    from plumbline.data.formats.mapping_parser import refuse_incomplete
    from plumbline.store import datasets as store

    if bool(arguments.files) == bool(arguments.hub):
        raise StudioError("data add", "needs files or --hub ID", "Give one of the two.")
    if arguments.preview:
        return _preview(arguments)
    known_as = store.mapping_name(arguments.save_mapping) if arguments.save_mapping is not None else ""
    options = {**_options(arguments), "name": arguments.name, "leave_out": arguments.leave_bad_rows_out}
    with progress() as tell:
        if arguments.hub:
            where = (arguments.config, arguments.split, arguments.held_out_split, arguments.revision)
            dataset_id = api.add_hub(arguments.hub, *where, lambda text, share: tell(text), **options)
        else:
            held_out = arguments.held_out
            dataset_id = api.add_data(arguments.files, held_out, lambda text, share: tell(text), **options)
    dataset = store.get(dataset_id)
    if known_as:
        refuse_incomplete(Mapping.model_validate_json(dataset["mapping"] or "{}"))
        store.save_mapping(known_as, dataset["mapping"] or "{}")
    say(f"Added {dataset['name']}.")
    show.described(dataset)
    return 0


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """How files are read, for `plumbline.api`."""
    from plumbline.data.readers.csv_table import DELIMITERS

    named = {"\\t": "\t", **{name: delimiter for delimiter, name in DELIMITERS.items()}}
    return {
        "mapping": arguments.mapping,
        "encoding": arguments.encoding,
        "delimiter": named.get(arguments.delimiter, arguments.delimiter),
        "header": arguments.header,
        "system": arguments.system,
        "all_trained": arguments.train_on_all,
    }


def _preview(arguments: argparse.Namespace) -> int:
    """What an import would do. :returns: 2 when it would not know what is what"""
    from plumbline import api

    options = api.import_options(**_options(arguments))
    with _sources(arguments) as sources:
        seen = [api.preview(source, options) for source in sources]
    understood = [_show_preview(one) for one in seen]
    say("Nothing was stored.")
    return 0 if all(understood) else 2


@contextmanager
def _sources(arguments: argparse.Namespace) -> Iterator[list[Source]]:
    """The files to preview; of a Hub dataset the first one, here for as long as the context lasts."""
    from plumbline import api
    from plumbline.home import folder
    from plumbline.hub import dataset_repository

    if not arguments.hub:
        yield api.sources([*arguments.files, *arguments.held_out])
        return
    _show_offer(dataset_repository.look(arguments.hub, arguments.revision))
    with TemporaryDirectory(prefix="hub-", dir=folder("staging")) as target, progress() as tell:
        where = (Path(target), arguments.config, arguments.split, arguments.revision)
        got = dataset_repository.fetch(
            arguments.hub, *where, lambda text, share: tell(text), limit_gb=PREVIEW_GB
        )
        yield [Source(got.files[0], got.files[0].name)]


def _show_offer(found: Any) -> None:
    say(f"{found.id} at {found.revision[:12]}", "")
    rows = [
        [config, split, f"{len(names):,}", f"{sum(found.sizes[name] for name in names) / 1e6:,.1f} MB"]
        for config, splits in found.configs.items()
        for split, names in splits.items()
    ]
    table(["config", "split", "files", "size"], rows, numbers=(2, 3))
    say("")


def _show_preview(seen: Any) -> bool:
    """Print one file's preview. :returns: whether its columns are known"""
    from plumbline.data.formats.mapping_parser import parts_of

    say(seen.file)
    understood = not seen.problem and not seen.mapping.missing()
    if understood:
        entry("shape", seen.shape)
        entry("mapping", f"{seen.mapping.kind}: {seen.mapping.said()}")
        if seen.held_out:
            entry("held out", seen.held_out)
    else:
        entry("problem", seen.problem or f"no column for {' and '.join(seen.mapping.missing())}")
        entry("", f"Say which column is what, with --mapping. {parts_of(None)}")
    say("", "columns")
    for name, values in seen.columns.items():
        shown = " · ".join(clipped(value, 36) for value in values[:SAMPLES])
        entry(name, clipped(shown, width() - 24), gutter=24)
    for number, row in enumerate(seen.rows[:PREVIEW_ROWS], start=1):
        say("")
        if isinstance(row, Problem):
            entry(f"line {row.line}", f"cannot be used: {row.what}")
        else:
            show.row_text(f"row {number}", row, limit=400)
    say("")
    return understood


def _check(arguments: argparse.Namespace) -> int:
    from plumbline.store import datasets as store
    from plumbline.worker import near_duplicates

    dataset = store.by_name(arguments.name)
    job = None
    if arguments.near:
        job = watch(near_duplicates.start(dataset["id"], arguments.threshold))
        if job["state"] != "completed":
            return 1
    dataset = store.get(dataset["id"])
    if arguments.json:
        near = {"near": {**job["result"], "groups": show.groups(dataset)}} if job else {}
        return say_json(show.as_json(dataset) | near)
    say(f"{dataset['name']}: {store.verdict(dataset)}")
    show.findings(dataset)
    if job:
        show.near_groups(dataset, job["result"])
    return 0


def _rename(arguments: argparse.Namespace) -> int:
    from plumbline.store import datasets as store

    dataset = store.by_name(arguments.name)
    new = store.rename(dataset["id"], arguments.new_name)
    say(f"{dataset['name']} is called {new} now.")
    return 0


def _remove(arguments: argparse.Namespace) -> int:
    from plumbline.data.selection import datasets
    from plumbline.store import datasets as store

    dataset = store.by_name(arguments.name)
    if not arguments.yes and not agreed(
        "data remove", f"Delete {dataset['name']} with {dataset['rows']:,} rows? [y/N] "
    ):
        say("Kept.")
        return 1
    datasets.remove(dataset["id"])
    say(f"Deleted {dataset['name']}.")
    return 0
