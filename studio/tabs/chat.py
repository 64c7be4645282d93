"""Chat: the same prompt to the base and to the adapter, side by side, streamed."""

import itertools
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import gradio as gr

from core.chat import session
from core.errors import StudioError, message_of
from core.evaluation.compare import refuse_without_adapter
from core.jobs import queue
from core.store import runs
from studio.live import Page, View
from studio.messages import box, empty, error_box

STYLES = {
    "Factual": (0.0, 1.0, 0, 1.0),
    "Balanced": (0.7, 0.9, 50, 1.1),
    "Creative": (1.1, 0.95, 100, 1.1),
}
History = list[dict[str, Any]]
# One event per page that is being answered; Stop sets it. Lives only as long as an answer.
_stops: dict[str, threading.Event] = {}


def build(page: Page) -> None:
    notice = gr.HTML(
        empty("Train a run first; then base and adapter answer here side by side."), elem_id="chat-notice"
    )
    common = {"height": 420, "buttons": ["copy"], "render_markdown": False, "allow_tags": False}
    with gr.Row():
        base = gr.Chatbot(label="Base", elem_id="chat-base", placeholder="The base answers here.", **common)
        adapter = gr.Chatbot(
            label="Adapter", elem_id="chat-adapter", placeholder="The adapter answers here.", **common
        )
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
                stop = gr.Button("Stop", size="sm", min_width=60)
                clear = gr.Button("Clear", size="sm", min_width=60)
    with gr.Row():
        samples = [gr.Button(visible=False, size="sm", elem_id=f"sample-{number}") for number in range(3)]
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
            seed = gr.Number(0, label="Seed", precision=0)
    settings = [most, temperature, top_p, top_k, repetition, seed]
    who = gr.State(lambda: uuid.uuid4().hex)
    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    asking = [page.run, who, prompt, base, adapter, *settings]
    for trigger in (send.click, prompt.submit):
        trigger(
            _answer,
            asking,
            [base, adapter, prompt, notice],
            concurrency_limit=4,
            concurrency_id="chat",
            **quiet,
        )
    stop.click(_stop, who, None, queue=False, **quiet)
    clear.click(lambda: ([], []), None, [base, adapter], queue=False, **quiet)
    style.input(
        lambda name: STYLES[name], style, [temperature, top_p, top_k, repetition], queue=False, **quiet
    )
    for number, button in enumerate(samples):
        button.click(
            lambda run_id, number=number: _sample(run_id, number), page.run, prompt, queue=False, **quiet
        )
    page.views += [
        View([notice, base, adapter], _who, _titles),
        View(samples, lambda run_id: (run_id, run_id is not None), _sample_buttons),
    ]


def to_messages(history: History) -> list[dict[str, str]]:
    """What a chatbot holds as plain messages; Gradio gives content as a list of parts."""
    messages = []
    for turn in history:
        content = turn["content"]
        if isinstance(content, list):
            content = "".join(part.get("text", "") for part in content if isinstance(part, dict))
        messages.append({"role": turn["role"], "content": str(content)})
    return messages


def _answer(
    run_id: int | None, who: str, prompt: str, base: History, adapter: History, *settings: float
) -> Iterator[tuple[Any, ...]]:
    if run_id is None:
        yield gr.skip(), gr.skip(), gr.skip(), box("warning", "Train a run first.")
        return
    if not prompt.strip():
        yield gr.skip(), gr.skip(), gr.skip(), box("warning", "Write a question first.")
        return
    most, temperature, top_p, top_k, repetition, seed = settings
    chosen = session.Generation(int(most), temperature, top_p, int(top_k), repetition, int(seed or 0))
    asked = {"role": "user", "content": prompt}
    histories = {"base": [*to_messages(base), asked], "adapter": [*to_messages(adapter), asked]}
    waiting = (
        "" if session.is_loaded(run_id) else box("good", "Loading the model; only the first answer waits.")
    )
    yield histories["base"], histories["adapter"], "", waiting
    stop = _stops[who] = threading.Event()
    texts: dict[str, str] = {}
    try:
        for texts in session.answer(run_id, histories, chosen, stop):
            yield *(_with(histories[side], texts[side]) for side in session.SIDES), gr.skip(), ""
    except Exception as error:
        kept = error_box(error)
        yield *(_with(histories[side], texts.get(side, "")) for side in session.SIDES), prompt, kept
    finally:
        _stops.pop(who, None)


def _with(history: History, text: str) -> History:
    return [*history, {"role": "assistant", "content": text}] if text else history


def _stop(who: str) -> None:
    event = _stops.get(who)
    if event is not None:
        event.set()


def _who(run_id: int | None) -> Any:
    return None if run_id is None else (run_id, runs.get(run_id)["state"] in queue.ENDED)


def _titles(run_id: int | None) -> list[Any]:
    """Pane names for the chosen run; another run starts a new conversation."""
    if run_id is None:
        return [gr.skip(), gr.skip(), gr.skip()]
    run = runs.get(run_id)
    try:
        refuse_without_adapter(run_id)
    except StudioError as error:
        return [box("warning", message_of(error)), gr.Chatbot([]), gr.Chatbot([])]
    return [
        "",
        gr.Chatbot([], label=f"Base: {run['base']}, adapter switched off"),
        gr.Chatbot([], label=f"Adapter: {run['name']} (run {run_id}) at step {run['step']}"),
    ]


def _sample(run_id: int | None, number: int) -> str:
    prompts = [] if run_id is None else session.examples(run_id)
    return next(itertools.islice(prompts, number, None), "")


def _sample_buttons(run_id: int | None) -> list[Any]:
    prompts = [] if run_id is None else session.examples(run_id)
    buttons = []
    for number in range(3):
        if number < len(prompts):
            lines = prompts[number].strip().splitlines() or ["(an empty question)"]
            buttons.append(gr.Button(f"Try: {lines[-1][:70]}", visible=True))
        else:
            buttons.append(gr.Button(visible=False))
    return buttons
