"""Chat: the same prompt to the base and to the adapter, side by side, streamed."""

import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import gradio as gr

from plumbline.chat import conversation, session
from plumbline.chat.conversation import Talk
from plumbline.errors import StudioError, message_of
from plumbline.evaluation.compare import refuse_without_adapter
from plumbline.jobs import queue
from plumbline.store import runs
from plumbline_studio.held import Held
from plumbline_studio.live import Page, View
from plumbline_studio.messages import box, empty, error_box
from plumbline_studio.tabs.chat.pane import pane, shown

STYLES = {
    "Factual": (0.0, 1.0, 0, 1.0),
    "Balanced": (0.7, 0.9, 50, 1.1),
    "Creative": (1.1, 0.95, 100, 1.1),
}
EXAMPLES = 3
# The conversations of a page by run, as text: keys of what a browser keeps are text.
Talks = dict[str, Talk]
# One event per page that is being answered; setting it stops the answer. Lives only as long as it.
_stops: dict[str, threading.Event] = {}


def build(page: Page) -> None:
    notice = gr.HTML(
        empty("Train a run first; then base and adapter answer here side by side."), elem_id="chat-notice"
    )
    with gr.Row():
        with gr.Column(scale=4, min_width=260):
            system = gr.Textbox(
                label="System prompt",
                info="Sent before the conversation, when it is not empty",
                lines=1,
                max_lines=6,
                elem_id="chat-system",
            )
        with gr.Column(scale=1, min_width=240):
            alone = gr.Checkbox(
                label="Each question alone",
                info="Sent without the questions and answers before it",
                elem_id="chat-alone",
            )
    with gr.Row():
        with gr.Column(min_width=320):
            base = pane("chat-base", "The base answers here.")
        with gr.Column(min_width=320):
            adapter = pane("chat-adapter", "The adapter answers here.")
    with gr.Row():
        prompt = gr.Textbox(
            placeholder="Ask both",
            show_label=False,
            lines=2,
            max_lines=8,
            scale=5,
            submit_btn=False,
            elem_id="prompt",
        )
        with gr.Column(scale=1, min_width=160):
            send = gr.Button("Send", variant="primary", elem_id="send")
            with gr.Row():
                stop = gr.Button("Stop", size="sm", min_width=60, elem_id="chat-stop")
                clear = gr.Button("Clear", size="sm", min_width=60, elem_id="chat-clear")
    with gr.Row():
        samples = [gr.Button(visible=False, size="sm", elem_id=f"sample-{n}") for n in range(EXAMPLES)]
    with gr.Accordion("Generation settings", open=False):
        style = gr.Radio(
            list(STYLES), value="Factual", label="Style", info="Factual is greedy: always the same answer"
        )
        with gr.Row():
            most = gr.Slider(1, 2048, value=256, step=1, label="Longest answer (tokens)")
            temperature = gr.Slider(0, 2, value=0.0, step=0.05, label="Temperature (0 is greedy)")
            top_p = gr.Slider(0.05, 1, value=1.0, step=0.05, label="Top p")
        with gr.Row():
            top_k = gr.Slider(0, 200, value=0, step=1, label="Top k (0 is off)")
            repetition = gr.Slider(1, 2, value=1.0, step=0.05, label="Repetition penalty")
            seed = gr.Number(
                0, label="Seed", info=f"0 to {session.LARGEST_SEED:,}", precision=0, elem_id="chat-seed"
            )
    settings = [most, temperature, top_p, top_k, repetition, seed]
    who, talks = Held(), Held({})
    back = Held("")  # a question that got no answer, on its way back into the box
    opened = gr.Textbox(visible="hidden", elem_id="chat-opened")  # changes whenever the panes are emptied
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    asking = gr.on(
        [send.click, prompt.submit],
        _answer,
        [page.run, who, prompt, system, alone, talks, *settings],
        [base, adapter, prompt, notice, talks, back],
        concurrency_limit=4,
        concurrency_id="chat",
        trigger_mode="once",
        **quiet,
    )
    # Kept over a reload: the panes are filled from it when the chosen run is drawn.
    taken = "() => [plumbline.token(), ...plumbline.takenTalks()]"
    page.blocks.load(None, None, [who, talks, prompt], js=taken, **quiet)
    keep = "(talks, prompt) => plumbline.keepTalks(talks, prompt)"
    gr.on([talks.change, prompt.change], None, [talks, prompt], None, js=keep, **quiet)
    asking.then(_put_back, [back, prompt], [back, prompt], queue=False, **quiet)
    stop.click(_stop, who, None, queue=False, **quiet)
    # What empties the panes ends the answer that would go on filling them.
    anew: dict[str, Any] = {"queue": False, "cancels": [asking], **quiet}
    opened.change(
        _open, [page.run, who, talks, prompt], [base, adapter, system, talks, prompt, alone], **anew
    )
    clear.click(_clear, [page.run, who, talks, prompt], [base, adapter, talks, prompt], **anew)
    style.input(
        lambda name: STYLES[name], style, [temperature, top_p, top_k, repetition], queue=False, **quiet
    )
    for number, button in enumerate(samples):
        outputs = [base, adapter, system, talks, prompt, notice]
        button.click(partial(_sample, number), [page.run, who, talks], outputs, **anew)
    page.views += [
        View([notice, base, adapter, opened, system, prompt], _who, _emptied),
        View(samples, lambda run_id: (run_id, run_id is not None), _sample_buttons),
    ]


def _answer(
    run_id: int | None,
    who: str,
    prompt: str,
    system: str,
    alone: bool,
    talks: Talks,
    *settings: float | None,
) -> Iterator[tuple[Any, ...]]:
    """Panes, prompt, notice, conversations, and a question that goes back into the box."""
    still = gr.skip()
    try:
        if run_id is None:
            raise StudioError("chat", "there is no run", "Train a run first.")
        held = talks.get(str(run_id), conversation.empty())
        if not conversation.may_ask(held, prompt):
            raise StudioError("chat", "there is no question", "Write one first.")
        before = _stops.get(who)
        if before is not None and not before.is_set():
            raise StudioError("chat", "this page is being answered", "Wait for the answer, or stop it.")
        chosen = _generation(settings)
        chosen.refuse()
        continues = runs.recipe(run_id).method.name == "pretraining"
    except StudioError as error:
        yield still, still, still, box("warning", message_of(error)), still, still
        return
    asked = conversation.asked(held, prompt, system, "text" if continues else "user")
    stop = _stops[who] = threading.Event()

    def drawn(one: Talk) -> tuple[Any, Any]:
        talks[str(run_id)] = one
        return _drawn(run_id, one)

    now, told = asked, ""
    try:
        waiting = "Loading the model; only the first answer waits."
        told = "" if session.is_loaded(run_id) else box("good", waiting)
        yield *drawn(asked), "", told, talks, ""
        sides: dict[str, Any] = {
            side: prompt if continues else conversation.sent(asked, side, alone) for side in session.SIDES
        }
        for said in session.answer(run_id, sides, chosen, stop):
            now = conversation.answered(asked, said)
            yield *drawn(now), still, "", talks, ""
        told = ""
    except Exception as error:
        told = error_box(error)
    finally:
        if _stops.get(who) is stop:
            del _stops[who]
    kept, question = conversation.taken_back(now)
    yield *drawn(kept), still, told, talks, question


def _generation(settings: tuple[Any, ...]) -> session.Generation:
    most, temperature, top_p, top_k, repetition, seed = settings
    return session.Generation(most, temperature, top_p, top_k, repetition, seed)


def _put_back(back: str, prompt: str) -> tuple[str, Any]:
    """Put a question that got no answer before whatever was typed meanwhile."""
    return "", (f"{back}\n{prompt}" if prompt.strip() else back) if back else gr.skip()


def _stop(who: str) -> None:
    event = _stops.get(who)
    if event is not None:
        event.set()


def _ended(who: str, talks: Talks, prompt: str) -> Any:
    """Stop what this page asked, in whichever run, and put a question without an answer into the box."""
    _stop(who)
    for run_id, held in talks.items():
        talks[run_id], question = conversation.taken_back(held)
        prompt = _put_back(question, prompt)[1] if question else prompt
    return prompt


def _open(run_id: int | None, who: str, talks: Talks, prompt: str) -> tuple[Any, ...]:
    """Fill the panes with what was said to the chosen run before."""
    prompt = _ended(who, talks, prompt)
    held = talks.get(str(run_id), conversation.empty())
    try:
        alone = run_id is not None and session.examples(run_id).alone
    except StudioError:
        alone = False  # its dataset is gone
    return *_drawn(run_id, held), held["system"], talks, prompt, alone


def _clear(run_id: int | None, who: str, talks: Talks, prompt: str) -> tuple[Any, ...]:
    prompt = _ended(who, talks, prompt)
    talks.pop(str(run_id), None)
    return *_drawn(run_id, conversation.empty()), talks, prompt


def _sample(number: int, run_id: int | None, who: str, talks: Talks) -> tuple[Any, ...]:
    """A held-out row's conversation up to its answer, with its last question in the box."""
    still = gr.skip()
    _ended(who, talks, "")
    try:
        asks = [] if run_id is None else session.examples(run_id).asks
    except StudioError as error:
        return still, still, still, talks, still, box("warning", message_of(error))
    if number >= len(asks):
        return still, still, still, talks, still, still
    ask = asks[number]
    held, question = (conversation.empty(), ask) if isinstance(ask, str) else conversation.of_task(ask)
    talks[str(run_id)] = held
    return *_drawn(run_id, held), held["system"], talks, question, ""


def _drawn(run_id: int | None, held: Talk) -> tuple[Any, Any]:
    base, adapter = _titles(run_id)
    return shown(run_id, base, held, "base"), shown(run_id, adapter, held, "adapter")


def _titles(run_id: int | None) -> tuple[str, str]:
    if run_id is None or not runs.exists(run_id):
        return "", ""
    run = runs.get(run_id)
    return (
        f"Base: {run['base']}, adapter switched off",
        f"Adapter: {run['name']} (run {run_id}) at step {run['step']}",
    )


def _who(run_id: int | None) -> Any:
    return None if run_id is None else (run_id, runs.get(run_id)["state"] in queue.ENDED)


def _emptied(run_id: int | None) -> list[Any]:
    """Empty panes under the chosen run's names, and what it can be asked; `_open` fills them then."""
    notice = ""
    continues = False
    if run_id is None:
        notice = empty("Train a run first; then base and adapter answer here side by side.")
    else:
        continues = runs.recipe(run_id).method.name == "pretraining"
        try:
            refuse_without_adapter(run_id)
        except StudioError as error:
            notice = box("warning", message_of(error))
    return [
        notice,
        *_drawn(run_id, conversation.empty()),
        f"{run_id} {time.time_ns()}",
        gr.Textbox(visible=not continues),
        gr.Textbox(placeholder="Continue this text" if continues else "Ask both"),
    ]


def _sample_buttons(run_id: int | None) -> list[Any]:
    asks = [] if run_id is None else session.examples(run_id).asks
    buttons = []
    for number in range(EXAMPLES):
        if number < len(asks):
            ask = asks[number]
            text = ask if isinstance(ask, str) else conversation.of_task(ask)[1] or "(answer a tool)"
            lines = text.strip().splitlines() or ["(an empty question)"]
            line = lines[0] if isinstance(ask, str) else lines[-1]
            buttons.append(gr.Button(f"Try: {line[:70]}", visible=True))
        else:
            buttons.append(gr.Button(visible=False))
    return buttons
