"""A new file on the Data tab: what it seems to hold, the mapping to correct, its first row as learned."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import gradio as gr

from plumbline.config import mapping
from plumbline.config.mapping import Mapping
from plumbline.data.errors import Problem
from plumbline.data.formats import held_out_marks
from plumbline.data.formats.mapping_parser import refuse_incomplete
from plumbline.data.importing import importer, preview
from plumbline.data.importing.importer import Options
from plumbline.data.importing.preview import Preview
from plumbline.data.readers import csv_table, source_files
from plumbline.data.readers.source_files import Reading, Source
from plumbline.errors import StudioError
from plumbline.store import datasets as store
from plumbline_studio.held import Held
from plumbline_studio.messages import box, empty, error_box, table
from plumbline_studio.tabs.data import xray

KINDS = {
    "exchange": "a question and its answer",
    "conversation": "a conversation (a list of turns)",
    "text": "plain text to continue",
    "preference": "a pair: better and worse answer",
    "kto": "an answer and whether it is good",
    "squad": "SQuAD paragraphs",
    "instances": "a task with instances",
    "written": "a conversation with a template written out",
    "tree": "a tree of messages and replies",
}
PARTS = [name for name in Mapping.model_fields if name not in mapping.NOT_PARTS]
_PAIRS = re.compile(r",(?=[^,=]+=)")  # a text may hold commas
HEADERS = {"as recognised": None, "names the columns": True, "is a row": False}
SHOWN_COLUMNS, SAMPLE_WIDTH = 30, 90
FRESH = [
    False,
    None,
    gr.Checkbox(False, visible=False),
    "",
    "utf-8",
    "",
    "as recognised",
    2000,
]  # a new file: no correction, reading as usual


@dataclass(frozen=True)
class Pane:
    """The components of the pane, and the inputs from which `options` makes an import's options.

    :param all_trained: asked where files of one upload are named like rows to hold out
    :param reset: what FRESH holds the first values of; ``corrected`` comes before them
    """

    guess: Any
    all_trained: Any
    example: Any
    fields: list[Any]
    inputs: list[Any]
    corrected: Any
    reset: list[Any]


def build() -> Pane:
    """Everything but the upload itself, which stands on the left of the tab."""
    guess = gr.HTML(empty("Choose a file on the left: what it holds appears here."), elem_id="guess")
    corrected = Held(False)
    all_trained = gr.Checkbox(
        False, label="Train on all of these files", visible=False, elem_id="all-trained"
    )
    system = gr.Textbox(
        label="System prompt for every row (optional)",
        info="For rows that have none of their own; leave it empty to add none",
        max_lines=4,
        elem_id="every-system",
    )
    with gr.Accordion("Columns: which one is what", open=False, elem_id="mapping") as columns:
        with gr.Row():
            kind = gr.Dropdown(
                [(said, name) for name, said in KINDS.items()],
                value="exchange",
                label="One record holds",
                elem_id="mapping-kind",
            )
            saved = gr.Dropdown([], label="Use a saved mapping", elem_id="mapping-saved")
        with gr.Row():
            parts = [
                gr.Dropdown(
                    [""],
                    value="",
                    label=name.capitalize(),
                    info=Mapping.model_fields[name].description,
                    allow_custom_value=True,
                    visible=False,
                    min_width=200,
                    elem_id=f"mapping-{name}",
                )
                for name in PARTS
            ]
        roles = gr.Textbox(
            label="Roles",
            info="Names of roles in the file: bot = assistant, customer = user",
            elem_id="mapping-roles",
        )
        fill = gr.Textbox(
            label="Placeholders",
            info="What stands for {{name}} in the rows: name = Ada, author = Ada Ltd",
            elem_id="mapping-fill",
        )
        gr.HTML(
            '<p class="pl-muted">A field names a column, or is a template: '
            "<code>{question}</code> stands for a column's text. A text in quotes is the same in every "
            "row.</p>"
        )
        with gr.Row(equal_height=True):
            name = gr.Textbox(label="Save this mapping as", elem_id="mapping-name", scale=2)
            save = gr.Button("Save mapping", size="sm", scale=1)
    with gr.Accordion("Reading: encoding, delimiter, header", open=False):
        with gr.Row():
            encoding = gr.Dropdown(
                list(source_files.ENCODINGS), value="utf-8", label="Encoding", elem_id="encoding"
            )
            delimiter = gr.Dropdown(
                [("as recognised", ""), *((said, sign) for sign, said in csv_table.DELIMITERS.items())],
                value="",
                label="CSV delimiter",
            )
            header = gr.Dropdown(list(HEADERS), value="as recognised", label="First CSV line")
            chunk = gr.Number(
                2000, label="Piece length", info="Characters a row, for plain text", precision=0, minimum=100
            )
    example = gr.HTML(elem_id="example")
    fields = [kind, *parts, roles, fill]
    save.click(_save, [name, *fields], [saved, guess], show_progress="hidden", api_visibility="private")
    inputs = [corrected, *fields, all_trained, system, encoding, delimiter, header, chunk]
    pane = Pane(
        guess,
        all_trained,
        example,
        [columns, saved, *fields],
        inputs,
        corrected,
        [saved, all_trained, system, encoding, delimiter, header, chunk],
    )
    saved.input(_use, saved, [*fields, corrected], show_progress="hidden", api_visibility="private")
    return pane


def options(values: Sequence[Any], name: str = "", leave_out: bool = False) -> Options:
    """An import's options from the pane's inputs. :raises StudioError: when the mapping is wrong"""
    corrected, *rest = values
    fields, (all_trained, system, encoding, delimiter, header, chunk) = rest[:-6], rest[-6:]
    return Options(
        name=name,
        mapping=_mapping(fields) if corrected else None,
        system=system or "",
        all_trained=bool(all_trained),
        reading=Reading(encoding, delimiter or "", HEADERS[header], int(chunk or 2000)),
        leave_out=leave_out,
    )


def _mapping(fields: Sequence[Any]) -> Mapping:
    kind, *parts, roles, fill = fields
    wanted = {*mapping.NEEDS[kind], *mapping.MAY[kind]}
    chosen = {name: value or "" for name, value in zip(PARTS, parts, strict=True) if name in wanted}
    pairs: dict[str, str] = {}
    for pair in filter(None, (part.strip() for part in (roles or "").split(","))):
        old, sign, new = pair.partition("=")
        if not sign or new.strip() not in ("system", "user", "assistant", "tool"):
            raise StudioError(
                "roles", f"cannot read {pair!r}", "Write name = user, assistant, system or tool."
            )
        pairs[old.strip()] = new.strip()
    return Mapping(kind=kind, roles=pairs, fill=_placeholders(fill), **chosen)


def _placeholders(text: str | None) -> dict[str, str]:
    """Texts by the name of the placeholder that they stand for. :raises StudioError: when one is not given"""
    found = {}
    for pair in _PAIRS.split(text or ""):
        name, sign, value = (word.strip() for word in pair.partition("="))
        if sign and name and value:
            found[name.strip("{} ")] = value
        elif pair.strip():
            raise StudioError("placeholders", f"cannot read {pair.strip()!r:.80}", "Write name = its text.")
    return found


def sources(paths: Sequence[str] | str | None) -> list[Source]:
    """What an upload holds: Gradio's own copies, with the names that the user gave."""
    listed = [paths] if isinstance(paths, str) else paths or []
    return [Source(Path(path), Path(path).name) for path in listed]


def look(paths: Sequence[str] | None, *values: Any) -> list[Any]:
    """Guess and fields for a file; a corrected mapping is kept. Outputs: guess, all_trained and fields."""
    unchanged = [gr.skip() for _ in range(3 + 1 + len(PARTS) + 2)]
    found = sources(paths)
    if not found:
        return [empty("Choose a file on the left: what it holds appears here."), *unchanged]
    try:
        seen = preview.of_file(found[0], options(values))
    except Exception as error:
        return [error_box(error), *unchanged]
    shown = _guess(seen, len(found)) + _others(found[1:], seen, options(values))
    asks = any(isinstance(row, Problem) and "a mapping can" in row.what for row in seen.rows[:1])
    fields = _fields(seen.mapping, list(seen.columns)) if not values[0] else _visible(seen, values[1])
    named = held_out_marks.named_held_out([source.name for source in found])
    if named:
        shown += box("warning", f"{named[0]} is named like rows to hold out: move it to the held-out files.")
    asked = gr.Checkbox(
        label="Train on all of these files" if named else "Train on all rows, whatever the column says",
        visible=bool(named or seen.held_out),
    )
    return [shown, asked, gr.Accordion(open=bool(seen.problem or values[0] or asks)), _saved(), *fields]


def first_row(paths: Sequence[str] | None, base: str, *values: Any) -> str:
    """The file's first row as the chosen base will learn it; for after `look`, which is quicker."""
    found = sources(paths)
    if not found:
        return ""
    try:
        seen = preview.of_file(found[0], options(values), count=5)
    except Exception:
        return ""  # said beside the guess
    row = next((row for row in seen.rows if isinstance(row, dict)), None)
    if row is None or seen.problem:
        return ""
    try:
        return f"<h4>The first row, as it will be learned</h4>{xray.picture(row, base, 1024)}"
    except Exception as error:
        return error_box(error)


def _others(rest: Sequence[Source], seen: Preview, given: Options) -> str:
    """What keeps further files from going together with the first."""
    told = ""
    for source in rest[:20]:
        try:
            other = preview.of_file(source, given, count=5)
        except Exception as error:
            told += error_box(error)
            continue
        if other.problem:
            told += box("warning", other.problem)
        elif other.mapping != seen.mapping:
            told += box("warning", f"{other.file}: {other.shape}, not {seen.shape}; add it on its own.")
    return told


def _guess(seen: Preview, count: int) -> str:
    bad = [row for row in seen.rows if isinstance(row, Problem)]
    more = f" and {count - 1} more" if count > 1 else ""
    if seen.problem:
        verdict = box("warning", seen.problem)
    elif seen.mapping.missing():
        verdict = box("warning", f"Choose a column for {' and '.join(seen.mapping.missing())}.")
    elif bad:
        verdict = box("warning", f"{seen.shape}; line {bad[0].line} {bad[0].what}.")
    else:
        verdict = box("good", f"{seen.file}{more}: {seen.shape} ({seen.mapping.said()})")
    samples = [
        [name, *(value[:SAMPLE_WIDTH] for value in (values + ["", ""])[:2])]
        for name, values in list(seen.columns.items())[:SHOWN_COLUMNS]
    ]
    if seen.held_out:
        verdict += box("warning", seen.held_out)
    return verdict + f'<div class="pl-wide">{table(["column", "first row", "second row"], samples)}</div>'


def _fields(chosen: Mapping, columns: list[str]) -> list[Any]:
    """Updates of the mapping's fields: their choices, values, and which of them this kind has."""
    wanted = {*mapping.NEEDS[chosen.kind], *mapping.MAY[chosen.kind]}
    parts = [
        gr.Dropdown(choices=["", *columns], value=getattr(chosen, name), visible=name in wanted)
        for name in PARTS
    ]
    return [chosen.kind, *parts, _pairs(chosen.roles), _pairs(chosen.fill)]


def _pairs(given: dict[str, str]) -> str:
    return ", ".join(f"{name} = {text}" for name, text in given.items())


def _visible(seen: Preview, kind: str) -> list[Any]:
    """The same fields after a correction: values stay as the user has them."""
    wanted = {*mapping.NEEDS[kind], *mapping.MAY[kind]}
    parts = [gr.Dropdown(choices=["", *seen.columns], visible=name in wanted) for name in PARTS]
    return [gr.skip(), *parts, gr.skip(), gr.skip()]


def _saved() -> Any:
    return gr.Dropdown(choices=list(store.mappings()))


def _save(name: str, *fields: Any) -> tuple[Any, Any]:
    try:
        known_as = store.mapping_name(name or "")
        refuse_incomplete(_mapping(fields))
        store.save_mapping(known_as, _mapping(fields).model_dump_json(exclude_defaults=True))
    except Exception as error:
        return gr.skip(), error_box(error)
    return _saved(), box("good", f"Saved the mapping {known_as}.")


def _use(name: str | None) -> list[Any]:
    """A saved mapping in the fields."""
    text = store.mappings().get(name or "")
    if text is None:
        return [gr.skip() for _ in range(1 + len(PARTS) + 3)]
    chosen = Mapping.model_validate_json(text)
    wanted = {*mapping.NEEDS[chosen.kind], *mapping.MAY[chosen.kind]}
    parts = [gr.Dropdown(value=getattr(chosen, part), visible=part in wanted) for part in PARTS]
    return [chosen.kind, *parts, _pairs(chosen.roles), _pairs(chosen.fill), True]


def add(
    paths: Sequence[str] | None,
    held_out: Sequence[str] | None,
    name: str,
    skip: bool,
    values: Sequence[Any],
    report: Any,
) -> int:
    """Import the chosen files. :returns: the dataset's id :raises StudioError: with everything wrong"""
    found = sources(paths)
    if not found:
        raise StudioError("import", "has no file", "Choose one first.")
    return importer.add(found, sources(held_out), options(values, name, skip), report)


assert set(get_args(mapping.Kind)) == set(KINDS)
