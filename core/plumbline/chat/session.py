"""Chat with a base and its adapter: one loaded model, two answers to the same prompt, streamed.

The session draws from its own random generator, so that a training run in another thread
keeps its random state; one answer at a time per process.
"""

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from plumbline.data.selection import mix
from plumbline.data.tokens.encode import continued_ids, end_tokens
from plumbline.errors import StudioError
from plumbline.evaluation.compare import only, refuse_without_adapter
from plumbline.evaluation.generate import Task, task_of
from plumbline.home import run_folder
from plumbline.jobs import queue
from plumbline.models import adapter_check, adapters, hardware, load
from plumbline.models.artifact import refuse_other_tokenizer
from plumbline.models.precision import autocast
from plumbline.store import runs

SIDES = ("base", "adapter")
LARGEST_SEED = 2**32 - 1
PATIENCE = 3.0  # seconds that a question waits for an answer that is being stopped


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
        """What is wrong, by setting; a field of the page that was emptied is None."""
        allowed = {
            "max_new_tokens": (1 <= (self.max_new_tokens or 0) <= 8192, "must be 1 to 8192"),
            "temperature": (_within(self.temperature, 0, 5), "must be 0 to 5"),
            "top_p": (_within(self.top_p, 0, 1) and self.top_p > 0, "must be above 0 and at most 1"),
            "top_k": (_within(self.top_k, 0, 2**31), "must be 0 (off) or more"),
            "repetition_penalty": (_within(self.repetition_penalty, 0.1, 5), "must be 0.1 to 5"),
            "seed": (_within(self.seed, 0, LARGEST_SEED), f"must be 0 to {LARGEST_SEED:,}"),
        }
        return {name: limits for name, (good, limits) in allowed.items() if not good}

    def refuse(self) -> None:
        """:raises StudioError: naming every setting that is wrong"""
        wrong = self.problems()
        if wrong:
            raise StudioError("generation", "; ".join(f"{name} {text}" for name, text in wrong.items()))


def _within(value: float | None, least: float, most: float) -> bool:
    return value is not None and least <= value <= most


@dataclass(frozen=True)
class Said:
    """An answer so far. ``note`` says what ended it, when the model itself did not."""

    text: str
    note: str = ""


@dataclass
class Loaded:
    """The one model that chat holds. ``busy`` is held while it answers; ``day`` is the run's."""

    run_id: int
    stamp: float
    model: Any
    tokenizer: Any
    day: str
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
        if _loaded is not None and not _free(_loaded):
            raise _busy(_loaded)  # two models would be held
        active = queue.active()
        if active is not None and hardware.device().value == "cuda":
            raise StudioError(
                "chat",
                f"the GPU is in use by {active['kind']} of run {active['run_id']}",
                "Try when it has ended.",
            )
        if _loaded is not None:
            _loaded = None
            hardware.release_memory()  # two models would be held until Python looks for circles
        config = runs.recipe(run_id)
        tokenizer = load.tokenizer(config.model.base, config.model.revision)
        refuse_other_tokenizer(folder, tokenizer)
        adapter_check.refuse_other_base(folder, config.model.base, config.model.revision)
        model = adapters.opened(load.base_model(config), folder)
        _loaded = Loaded(run_id, stamp, model, tokenizer, config.data.day)
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


def _free(chat: Loaded) -> bool:
    """Whether it answers nobody, after a while for an answer that is being stopped."""
    if not chat.busy.acquire(timeout=PATIENCE):
        return False
    chat.busy.release()
    return True


def _busy(chat: Loaded) -> StudioError:
    what = f"is writing another answer, of run {chat.run_id}"
    return StudioError("chat", what, "Wait for it, or stop it on the page that asked.")


def answer(
    run_id: int, asked: dict[str, Task | str], settings: Generation, stop: threading.Event
) -> Iterator[dict[str, Said]]:
    """Answer both sides, a token of each in turn.

    :param asked: for ``base`` and ``adapter`` a conversation to answer, or a text to continue
    :returns: the answers so far, after every token; when stopped, once more with a note
    :raises StudioError: when the settings are wrong, or another answer is being given
    """
    settings.refuse()
    chat = opened(run_id)
    if not chat.busy.acquire(timeout=PATIENCE):
        raise _busy(chat)
    try:
        streams = {side: _Stream(chat, side, task, settings) for side, task in asked.items()}
        while any(not stream.done for stream in streams.values()) and not stop.is_set():
            for stream in streams.values():
                stream.step()
            yield {side: stream.said() for side, stream in streams.items()}
        if any(stream.written for stream in streams.values()) and stop.is_set():
            yield {side: stream.said("stopped") for side, stream in streams.items()}
    finally:
        chat.busy.release()


class _Stream:
    """One answer in the making: tokens so far and the cached keys and values."""

    def __init__(self, chat: Loaded, side: str, asked: Task | str, settings: Generation) -> None:
        import torch
        from transformers import LogitsProcessorList
        from transformers.generation import logits_process as processors

        self.chat, self.side, self.settings = chat, side, settings
        tokenizer = chat.tokenizer
        if isinstance(asked, str):
            prompt = continued_ids(asked, tokenizer)
        else:
            prompt = asked.prompt(tokenizer, chat.day)
        # Families without learned or rotary places have no such limit in their config.
        text = chat.model.config.get_text_config(decoder=True)
        most = getattr(text, "max_position_embeddings", None)
        room = settings.max_new_tokens if most is None else most - len(prompt)
        if room < 1:
            what = f"this has {len(prompt):,} tokens, the model has room for {most:,}"
            raise StudioError("chat", what, "Shorten it, clear the conversation, or ask each question alone.")
        self.left = min(settings.max_new_tokens, room)
        self.ids: Any = torch.tensor([prompt], device=chat.model.device)
        self.prompt_length = len(prompt)
        self.pending = self.ids
        self.cache: Any = None
        self.done = False
        self.cut = False
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
        ended = token.item() in end_tokens(self.chat.tokenizer)
        self.cut = self.left == 0 and not ended
        self.done = ended or self.cut

    @property
    def written(self) -> int:
        """Tokens so far."""
        return self.ids.shape[1] - self.prompt_length

    def said(self, otherwise: str = "") -> Said:
        """:param otherwise: the note when it has not ended"""
        text = self.chat.tokenizer.decode(
            self.ids[0, self.prompt_length :], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        if not self.done and not otherwise:
            return Said(text.rstrip("\ufffd"))  # the tokens to come may complete the character
        if self.cut:
            return Said(text, f"cut at {self.written:,} tokens")
        return Said(text, otherwise if not self.done else "" if text else "an empty answer")


@dataclass(frozen=True)
class Examples:
    """Held-out rows to click instead of typing: tasks, or beginnings of texts for a run on plain texts.

    :param alone: whether these rows are questions of a class each, which a conversation would mix up
    """

    asks: list[Task | str]
    continues: bool
    alone: bool


BEGINNING = 30  # words of a text that are shown as something to continue


def examples(run_id: int, count: int = 3) -> Examples:
    """:raises StudioError: when the run or its dataset is gone"""
    config = runs.recipe(run_id)
    rows = [row for _, row in mix.held_out_rows(mix.of_run(run_id), count)]
    if config.method.name == "pretraining":
        texts = [row["text"] for row in rows if row.get("text")]
        return Examples([_beginning(text) for text in texts[:count]], True, False)
    asked_rows = [(row, task) for row in rows if (task := task_of(row))]
    alone = bool(asked_rows) and all(row.get("label") == task.answer for row, task in asked_rows)
    return Examples([task for _, task in islice(asked_rows, count)], False, alone)


def _beginning(text: str) -> str:
    words = re.match(rf"\s*(?:\S+\s+){{0,{BEGINNING - 1}}}\S+", text)
    return words[0] if words else text
