"""Runs from the run that is shown: branch from a step, train it again, start again with the smaller plan."""

from typing import Any

import gradio as gr

from plumbline.checkpoints import inherit
from plumbline.config.recipe_yaml import parsed
from plumbline.errors import StudioError
from plumbline.jobs import queue
from plumbline.runs import retry, start
from plumbline.store import datasets, runs
from plumbline_studio import forms
from plumbline_studio.held import Choice, Held
from plumbline_studio.live import Page, View
from plumbline_studio.messages import box, error_box, guarded

LAST = ""  # the step's and the dataset's choice that leaves it as it is
OTHERS = "training.weight_decay: 0.1, lora.dropout: 0.05"


def build(page: Page) -> None:
    """Branch, and train again. An opened run closes it, for then the new run is what to look at."""
    token = Held()
    with gr.Accordion("Branch, or train it again", open=False, elem_id="lineage") as fold:
        gr.Markdown(
            "A branch is a new run that begins with the adapter of one of this run's steps, and makes the "
            "steps that were left then; from the last one, as many as the recipe says. What is left empty "
            "stays as it is."
        )
        with gr.Row():
            step = Choice(
                [("none kept yet", LAST)], value=LAST, label="From step", min_width=150, elem_id="branch-step"
            )
            rate = gr.Textbox(label=forms.label("training.learning_rate"), min_width=150, max_lines=1)
            epochs = gr.Textbox(label=forms.label("training.epochs"), min_width=150, max_lines=1)
            dataset = Choice(
                [("as it is", LAST)], value=LAST, label=forms.label("data.dataset"), min_width=200
            )
        others = gr.Textbox(
            label="Other settings", info=f"as in {OTHERS}", max_lines=1, elem_id="branch-others"
        )
        trouble = gr.HTML(elem_id="branch-trouble")
        with gr.Row():
            go = gr.Button("Branch and train", variant="primary", interactive=False, elem_id="branch")
            same = gr.Button("Train it again", interactive=False, elem_id="reproduce")
    fields = [step, rate, epochs, dataset, others]
    quiet = {"show_progress": "hidden", "api_visibility": "private"}

    def branch(run_id: int | None, click: str, *values: Any) -> list[Any]:
        return _opened(lambda: start.branch(_shown(run_id), values[0] or None, changes(*values[1:]), click))

    def reproduce(run_id: int | None, click: str) -> list[Any]:
        return _opened(lambda: start.reproduce(_shown(run_id), f"{click} again"))

    outputs = [page.run, fold, trouble]
    page.actions += [
        go.click(branch, [page.run, token, *fields], outputs, **quiet),
        same.click(reproduce, [page.run, token], outputs, **quiet),
    ]
    # What was typed for one run is not meant for the next. A click has the token of the run that its page
    # showed: a second one, which comes before the new run is there, makes no second run.
    fresh = "() => ['', '', '', '', '', '', plumbline.token()]"
    page.run.change(None, None, [*fields, trouble, token], js=fresh, **quiet)
    page.views += [
        View([step, rate, epochs, dataset, go, same], _signature, _fields),
    ]


def smaller(page: Page) -> None:
    """For a run that ran out of memory: what it would start again with, and the button that does it."""
    with gr.Row(visible=False, equal_height=True) as row:
        text = gr.HTML(elem_id="smaller-plan")
        button = gr.Button(
            "Start again with the smaller plan",
            variant="primary",
            size="md",
            elem_id="smaller",
            scale=0,
            min_width=280,
        )
    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    page.actions.append(
        button.click(guarded(lambda run_id: retry.start(_shown(run_id))), page.run, page.run, **quiet)
    )
    page.views.append(View([row, text], _offered, _smaller))


def changes(rate: str, epochs: str, dataset: str, others: str) -> dict[str, Any]:
    """What the fields of a branch change, by key.

    :param others: a line of YAML, as in ``lora.dropout: 0.05, training.seed: 7``
    :raises StudioError: when that is none, or gives a setting a second time
    """
    found: dict[str, Any] = {}
    if rate.strip():
        found["training.learning_rate"] = rate.strip()
    if epochs.strip():
        # A number of steps would win over the epochs.
        found |= {"training.epochs": epochs.strip(), "training.max_steps": ""}
    if dataset:
        # A mix would win over the dataset, and the mapping is of the one before.
        found |= {"data.dataset": dataset, "data.mix": "", "data.mapping": ""}
    return found | _others(others, found)


def _others(text: str, given: dict[str, Any]) -> dict[str, Any]:
    line = text.strip()
    raw = parsed(line if line.startswith("{") else f"{{{line}}}", "other settings")
    found: dict[str, Any] = {}
    for key, value in raw.items():
        inside = value.items() if isinstance(value, dict) and key != "data.mapping" else [("", value)]
        found |= {f"{key}.{name}" if name else str(key): each for name, each in inside}
    for key in found:
        if given.get(key):
            raise StudioError(f"other settings: {key}", "has a field of its own above", "Keep one of them.")
    return found


def _shown(run_id: int | None) -> int:
    if run_id is None:
        raise StudioError("", "No run is shown", "Choose one in the list.")
    return run_id


def _opened(made: Any) -> list[Any]:
    """The new run with the fields folded away, or what is wrong beside them."""
    try:
        return [made(), gr.Accordion(open=False), ""]
    except Exception as error:
        return [gr.skip(), gr.skip(), error_box(error)]


def _signature(run_id: int | None) -> Any:
    if run_id is None:
        return None
    return run_id, inherit.steps(run_id), runs.get(run_id)["state"], datasets.names()


def _fields(run_id: int | None) -> list[Any]:
    """The steps that were kept, and the run's own values where nothing is typed."""
    kept = [] if run_id is None else inherit.steps(run_id)
    if run_id is None or not kept:
        steps = [("none kept yet", LAST)]
    else:
        steps = [(f"{kept[-1]}, the last", LAST), *((str(one), one) for one in kept[-2::-1])]
    config = None if run_id is None else runs.recipe(run_id)
    training = config.training if config else None
    names = "+".join(part.dataset for part in config.data.parts) if config else ""
    ended = run_id is not None and runs.get(run_id)["state"] in queue.ENDED
    return [
        Choice(choices=steps, interactive=bool(kept)),
        gr.Textbox(placeholder=f"{training.learning_rate:g}" if training else ""),
        gr.Textbox(placeholder=_length(training) if training else ""),
        Choice(choices=[(names or "as it is", LAST), *((name, name) for name in datasets.names())]),
        gr.Button("Branch and train" if kept else "No step is kept yet", interactive=bool(kept)),
        gr.Button("Train it again" if ended else "Train it again when it has ended", interactive=ended),
    ]


def _length(training: Any) -> str:
    return f"{training.max_steps} steps" if training.max_steps else f"{training.epochs:g}"


def _offered(run_id: int | None) -> Any:
    return None if run_id is None else retry.offered(run_id)


def _smaller(run_id: int | None) -> list[Any]:
    plan = _offered(run_id)
    if plan is None:
        return [gr.Row(visible=False), ""]
    listed = ", ".join(f"{forms.label(key)} {value}" for key, value in plan.settings.items())
    how = f"It goes on from step {plan.step}." if plan.step is not None else "It begins anew, as a new run."
    return [gr.Row(visible=True), box("warning", f"The smaller plan: {listed}. {how}")]
