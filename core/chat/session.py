"""Chat with a base and its adapter: one loaded model, two answers to the same prompt, streamed.

The session draws from its own random generator, so that a training run in another thread
keeps its random state; one answer at a time per process.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from core.data.xray import end_tokens, prompt_ids
from core.errors import StudioError
from core.evaluation.compare import only, refuse_without_adapter
from core.evaluation.generate import task_of
from core.evaluation.loss import autocast
from core.home import run_folder
from core.jobs import queue
from core.models import adapter_check, adapters, hardware, load
from core.store import runs
from core.training.artifact import refuse_other_tokenizer

SIDES = ("base", "adapter")


@dataclass(frozen=True)
class Generation:
    """How an answer is sampled. Temperature 0 is greedy."""

    max_new_tokens: int = 512
    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int = 50
    repetition_penalty: float = 1.1
    seed: int = 0

    def problems(self) -> dict[str, str]:
        found = {}
        if not 1 <= self.max_new_tokens <= 8192:
            found["max_new_tokens"] = "must be 1 to 8192"
        if not 0 <= self.temperature <= 5:
            found["temperature"] = "must be 0 to 5"
        if not 0 < self.top_p <= 1:
            found["top_p"] = "must be above 0 and at most 1"
        if self.top_k < 0:
            found["top_k"] = "must be 0 (off) or more"
        if not 0.1 <= self.repetition_penalty <= 5:
            found["repetition_penalty"] = "must be 0.1 to 5"
        return found


@dataclass
class Loaded:
    """The one model that chat holds. ``busy`` is held while it answers."""

    run_id: int
    stamp: float
    model: Any
    tokenizer: Any
    busy: threading.Lock = field(default_factory=threading.Lock)


_guard = threading.Lock()
_loaded: Loaded | None = None


def opened(run_id: int) -> Loaded:
    """The chat model of a run, loaded when another one (or none) was.

    :raises StudioError: when the run has no adapter, its tokenizer has changed, or a job holds the GPU
    """
    global _loaded
    refuse_without_adapter(run_id)
    folder = run_folder(run_id) / "artifact"
    stamp = (folder / "adapter_model.safetensors").stat().st_mtime
    with _guard:
        if _loaded is not None and (_loaded.run_id, _loaded.stamp) == (run_id, stamp):
            return _loaded
        active = queue.active()
        if active is not None and hardware.device().value == "cuda":
            raise StudioError(
                "chat",
                f"the GPU is in use by {active['kind']} of run {active['run_id']}",
                "Try when it has ended.",
            )
        _loaded = None
        config = runs.recipe(run_id)
        tokenizer = load.tokenizer(config.model.base, config.model.revision)
        refuse_other_tokenizer(folder, tokenizer)
        adapter_check.refuse_other_base(folder, config.model.base, config.model.revision)
        model = adapters.opened(load.base_model(config), folder)
        _loaded = Loaded(run_id, stamp, model, tokenizer)
        return _loaded


def close(gpu_only: bool = False) -> Loaded | None:
    """Let go of the chat model.

    :param gpu_only: keep it when it is not on a GPU
    :returns: what was let go of; its memory can return once its ``busy`` is free. None when there was none
    """
    global _loaded
    with _guard:
        if _loaded is None or (gpu_only and _loaded.model.device.type != "cuda"):
            return None
        chat, _loaded = _loaded, None
        return chat


def is_loaded(run_id: int) -> bool:
    return _loaded is not None and _loaded.run_id == run_id


def answer(
    run_id: int, histories: dict[str, list[dict[str, str]]], settings: Generation, stop: threading.Event
) -> Iterator[dict[str, str]]:
    """Answer both conversations, a token of each in turn.

    :param histories: messages for ``base`` and ``adapter``, each ending with the user's turn
    :returns: the answers so far, after every token
    :raises StudioError: when the settings are wrong, or another answer is being given
    """
    wrong = settings.problems()
    if wrong:
        raise StudioError("generation", "; ".join(f"{name} {text}" for name, text in wrong.items()))
    chat = opened(run_id)
    if not chat.busy.acquire(blocking=False):
        raise StudioError("chat", "another answer is being written", "Wait for it, or stop it.")
    try:
        streams = {side: _Stream(chat, side, histories[side], settings) for side in histories}
        while any(not stream.done for stream in streams.values()) and not stop.is_set():
            for stream in streams.values():
                stream.step()
            yield {side: stream.text() for side, stream in streams.items()}
    finally:
        chat.busy.release()


class _Stream:
    """One answer in the making: tokens so far and the cached keys and values."""

    def __init__(self, chat: Loaded, side: str, messages: list[dict[str, str]], settings: Generation) -> None:
        import torch
        from transformers import LogitsProcessorList
        from transformers.generation import logits_process as processors

        self.chat, self.side, self.settings = chat, side, settings
        prompt = prompt_ids(messages, chat.tokenizer)
        room = chat.model.config.max_position_embeddings - len(prompt)
        if room < 1:
            raise StudioError("chat", f"the conversation has {len(prompt)} tokens, too long", "Clear it.")
        self.left = min(settings.max_new_tokens, room)
        self.ids: Any = torch.tensor([prompt], device=chat.model.device)
        self.prompt_length = len(prompt)
        self.pending = self.ids
        self.cache: Any = None
        self.done = False
        self.random = torch.Generator(device=chat.model.device).manual_seed(settings.seed)
        # A slider at a whole number gives an int, which transformers refuses: hence float().
        self.processors = LogitsProcessorList()
        if settings.repetition_penalty != 1:
            self.processors.append(
                processors.RepetitionPenaltyLogitsProcessor(float(settings.repetition_penalty))
            )
        if settings.temperature > 0:
            self.processors.append(processors.TemperatureLogitsWarper(float(settings.temperature)))
            if settings.top_k:
                self.processors.append(processors.TopKLogitsWarper(settings.top_k))
            if settings.top_p < 1:
                self.processors.append(processors.TopPLogitsWarper(float(settings.top_p)))

    def step(self) -> None:
        """Add one token, unless the answer is complete."""
        import torch

        if self.done:
            return
        model = self.chat.model
        with torch.no_grad(), autocast(model), only(model, self.side):
            output = model(
                input_ids=self.pending, past_key_values=self.cache, use_cache=True, logits_to_keep=1
            )
        self.cache = output.past_key_values
        scores = self.processors(self.ids, output.logits[:, -1].float())
        if self.settings.temperature > 0:
            token = torch.multinomial(scores.softmax(dim=-1), 1, generator=self.random)
        else:
            token = scores.argmax(dim=-1, keepdim=True)
        self.ids = torch.cat([self.ids, token], dim=1)
        self.pending = token
        self.left -= 1
        self.done = self.left == 0 or token.item() in end_tokens(self.chat.tokenizer)

    def text(self) -> str:
        return self.chat.tokenizer.decode(self.ids[0, self.prompt_length :], skip_special_tokens=True)


def examples(run_id: int, count: int = 3) -> list[str]:
    """Prompts from the held-out rows, to click instead of typing."""
    from core.data import mix

    chosen = mix.choose(runs.recipe(run_id).data)
    rows = [row for _, row in mix.held_out_rows(chosen, count)]
    tasks = [task for row in rows if (task := task_of(row))]
    # A turn that only calls a tool has no content.
    return [task.messages[-1].get("content") or "" for task in tasks]
