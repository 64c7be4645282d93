"""Chat: the same prompt to the base and to the adapter, side by side, streamed."""

import threading
from collections.abc import Iterator
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
from plumbline_studio.tabs.chat.pane import pane

STYLES = {
    "Factual": (0.0, 1.0, 0, 1.0),
    "Balanced": (0.7, 0.9, 50, 1.1),
    "Creative": (1.1, 0.95, 100, 1.1),
}
EXAMPLES = 3
MOST_STOPS = 1000
# One event per question, by its token; setting it stops the answer. Lives only as long as it.
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
    # The page keeps its conversations itself and decides what is shown (assets/chat.js). From here come the
    # chosen run's titles and rows to try; a question goes there and back as answers to it.
    titles, rows, question, said, halt = Held(), Held(), Held(), Held(), Held()
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

    def in_page(name: str, *inputs: Any) -> dict[str, Any]:
        """An event that assets/chat.js handles."""
        outputs = [base, adapter, system, prompt, notice, question, halt]
        return {"fn": None, "inputs": [*inputs, prompt], "outputs": outputs, "js": name, **quiet}

    page.blocks.load(**in_page("plumbline.chat.restore"))
    prompt.change(**in_page("plumbline.chat.typed"))
    titles.change(**in_page("plumbline.chat.open", titles))
    gr.on([send.click, prompt.submit], **in_page("plumbline.chat.ask"))
    answering = question.change(
        _answer,
        [question, system, alone, *settings],
        said,
        concurrency_limit=4,
        concurrency_id="chat",
        trigger_mode="multiple",
        **quiet,
    )
    said.change(**in_page("plumbline.chat.hear", said))
    answering.failure(**in_page("plumbline.chat.lost"))
    stop.click(**in_page("plumbline.chat.stop"))
    clear.click(**in_page("plumbline.chat.clear"))
    halt.change(_stop, halt, None, queue=False, **quiet)
    style.input(
        lambda name: STYLES[name], style, [temperature, top_p, top_k, repetition], queue=False, **quiet
    )
    for number, button in enumerate(samples):
        button.click(**in_page(f"(...given) => plumbline.chat.sample({number}, ...given)", rows))
    page.views += [
        View([notice, titles, system, prompt], _who, _opened),
        View([rows, alone, *samples], lambda run_id: (run_id, run_id is not None), _rows),
    ]


def _answer(question: Any, system: str, alone: bool, *settings: float | None) -> Iterator[dict[str, Any]]:
    """Answer a question of a page: after every word, all that was said so far.

    :param question: as assets/chat.js makes it: token, run, prompt, and the conversation so far
    :returns: token, conversation, notice, what goes back into the box, and whether this was the last
    """
    if not isinstance(question, dict):
        yield gr.skip()  # a page that was just opened
        return
    token, run_id, prompt = (question.get(name) for name in ("token", "run", "prompt"))
    held = question.get("talk")

    def said(talk: Talk | None, notice: str, back: str = "", over: bool = False) -> dict[str, Any]:
        return {"token": token, "talk": talk, "notice": notice, "back": back, "over": over}

    try:
        if run_id is None:
            raise StudioError("chat", "there is no run", "Train a run first.")
        if not conversation.may_ask(held or conversation.empty(), prompt):
            raise StudioError("chat", "there is no question", "Write one first.")
        chosen = _generation(settings)
        chosen.refuse()
        continues = runs.recipe(run_id).method.name == "pretraining"
    except StudioError as error:
        yield said(held, box("warning", message_of(error)), prompt, over=True)
        return
    now = conversation.asked(held or conversation.empty(), prompt, system, "text" if continues else "user")
    stop = _begun(token)
    told = ""
    try:
        waiting = "Loading the model; only the first answer waits."
        yield said(now, "" if session.is_loaded(run_id) else box("good", waiting))
        asked = now
        sides: dict[str, Any] = {
            side: prompt if continues else conversation.sent(asked, side, alone) for side in session.SIDES
        }
        for answers in session.answer(run_id, sides, chosen, stop):
            now = conversation.answered(asked, answers)
            yield said(now, "")
    except Exception as error:
        told = error_box(error)
    finally:
        if _stops.get(token) is stop:
            del _stops[token]
    kept, back = conversation.taken_back(now)
    yield said(kept, told, back, over=True)


def _begun(token: str) -> threading.Event:
    """What ends the answer to a question: set already when Stop came first.

    A question that comes again (its connection broke) ends the answer that nobody would see.
    """
    known = _stops.get(token)
    if known is not None and known.is_set():
        return known
    if known is not None:
        known.set()
    stop = _stops[token] = threading.Event()
    return stop


def _generation(settings: tuple[Any, ...]) -> session.Generation:
    most, temperature, top_p, top_k, repetition, seed = settings
    return session.Generation(most, temperature, top_p, top_k, repetition, seed)


def _stop(token: str | None) -> None:
    """End an answer, or let it end as soon as it begins."""
    if token is None:
        return
    _stops.setdefault(token, threading.Event()).set()
    while len(_stops) > MOST_STOPS:
        del _stops[next(iter(_stops))]


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


def _opened(run_id: int | None) -> list[Any]:
    """What the chosen run is called, and what it can be asked."""
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
    base, adapter = _titles(run_id)
    return [
        notice,
        {"run": run_id, "base": base, "adapter": adapter},
        gr.Textbox(visible=not continues),
        gr.Textbox(placeholder="Continue this text" if continues else "Ask both"),
    ]


def _rows(run_id: int | None) -> list[Any]:
    """Held-out rows to try, whether each is asked alone, and their buttons."""
    asks: list[Any] = []
    alone = False
    if run_id is not None:
        found = session.examples(run_id, EXAMPLES)
        asks, alone = found.asks, found.alone
    rows, buttons = [], []
    for ask in asks[:EXAMPLES]:
        held, question = (conversation.empty(), ask) if isinstance(ask, str) else conversation.of_task(ask)
        lines = (question or "(answer a tool)").strip().splitlines() or ["(an empty question)"]
        rows.append({"talk": held, "question": question})
        buttons.append(gr.Button(f"Try: {lines[0 if isinstance(ask, str) else -1][:70]}", visible=True))
    absent = [gr.Button(visible=False) for _ in range(EXAMPLES - len(buttons))]
    return [{"run": run_id, "rows": rows}, alone, *buttons, *absent]
