"""Export: what can leave, how large it is, the proof that it is right, and how to load it."""

import time
from typing import Any

import gradio as gr

from plumbline.errors import StudioError
from plumbline.evaluation.compare import refuse_without_adapter
from plumbline.export import bases
from plumbline.export.adapter import refused_elsewhere
from plumbline.jobs import queue
from plumbline.store import runs
from plumbline_studio.live import Page, View
from plumbline_studio.messages import box, empty, escape, figures, guarded, size
from plumbline_studio.tabs.jobs import progress

ADAPTER_SNIPPET = """from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "run-{run}-adapter")"""
MERGED_SNIPPET = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("run-{run}-merged")
tokenizer = AutoTokenizer.from_pretrained("run-{run}-merged")"""


def build(page: Page) -> None:
    with gr.Row():
        _rung(
            page,
            "adapter",
            "Adapter",
            "The trained weights with recipe, card and checksums, as one zip. "
            "Small; needs its base beside it (peft, vLLM).",
            "Make the adapter zip",
            ADAPTER_SNIPPET,
        )
        _rung(
            page,
            "merge",
            "Merged model",
            "The adapter merged into the 16-bit base, as safetensors with the "
            "tokenizer. Runs anywhere the base runs (transformers, vLLM).",
            "Merge into the base",
            MERGED_SNIPPET,
        )


def _rung(page: Page, kind: queue.Kind, title: str, about: str, action: str, snippet: str) -> None:
    """One thing that can be exported: what it is, a button, its state, its result."""
    with gr.Column():
        gr.Markdown(f"#### {title}\n{about}")
        button = gr.Button(action, variant="primary", interactive=False, elem_id=f"make-{kind}")
        result = gr.HTML(empty("Not made yet."), elem_id=f"result-{kind}")
        code = gr.Code(language="python", interactive=False, visible=False, label="Load it")

    def start(run_id: int | None) -> None:
        if run_id is None:
            return
        refuse_without_adapter(run_id)
        queue.enqueue_once(kind, run_id)

    def state(run_id: int | None) -> Any:
        if run_id is None:
            return None
        job = queue.latest(run_id, kind)
        return (
            run_id,
            runs.get(run_id)["state"],
            job and (job["id"], job["state"], job["phase"], job["progress"]),
        )

    def render(run_id: int | None) -> list[Any]:
        if run_id is None:
            return [
                gr.Button("Train a run first", interactive=False),
                empty("Not made yet."),
                gr.Code(visible=False),
            ]
        job = queue.latest(run_id, kind)
        refused: list[str] = []
        try:
            refuse_without_adapter(run_id)
            refused = refused_elsewhere(run_id) if kind == "adapter" else []
            busy = job is not None and job["state"] not in queue.ENDED
            shown = gr.Button("Working…" if busy else action, interactive=not busy)
        except StudioError:
            shown = gr.Button("Its adapter is not ready yet", interactive=False)
        done = job is not None and job["state"] == "completed"
        base = runs.get(run_id)["base"]
        # The starter is no Hub model: it lies in this project's own folder.
        filled = snippet.format(run=run_id, base="assets/starter" if base == "starter" else base)
        html = _result(job) if job is not None and done else progress(job, title) or empty("Not made yet.")
        html += "".join(box("warning", said) for said in refused)
        return [shown, html, gr.Code(filled, visible=done)]

    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    page.actions.append(button.click(guarded(start), page.run, None, **quiet))
    page.views.append(View([button, result, code], state, render))


def _result(job: dict[str, Any]) -> str:
    made = job["result"]
    rows = [
        ("Made", time.strftime("%Y-%m-%d %H:%M", time.localtime(job["finished_at"]))),
        ("Size", size(made["bytes"])),
        ("In the workspace", f"exports/{job['id']}/{made.get('folder', made['file'])}"),
        ("SHA-256", made["sha256"]),
    ]
    verdict = ""
    if "parity" in made:
        parity = made["parity"]
        same = parity["same_next_token"] == parity["prompts"]
        text = (
            f"Same next token as base + adapter on {parity['same_next_token']} of {parity['prompts']} "
            f"held-out prompts; largest difference of a logit {parity['largest_logit_difference']:.3g}"
        )
        if "same_answers" in parity:  # exports of earlier versions looked at the next token alone
            same = same and parity["same_answers"] == parity["prompts"]
            text += f". Same whole answer, its end included, on {parity['same_answers']} of them"
        verdict = box("good" if same else "warning", text)
        if "bases" in parity:
            found = parity["bases"]
            level = "good" if found["same"] == found["rows"] else "warning"
            verdict += box(level, bases.sentence(found))
    link = f'<p><a href="download/{job["id"]}" download>Download {escape(made["file"])}</a></p>'
    return f'<div class="pl-card">{figures(rows)}{verdict}{link}</div>'
