"""Answers to many prompts at once: the likeliest ones to evaluate with, drawn ones to learn from."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from plumbline.data.rows import Message, Row
from plumbline.data.tokens.encode import end_tokens, prompt_ids
from plumbline.models.out_of_memory import OomBackoff
from plumbline.models.precision import autocast

NEAR = 4  # steps of a logit's precision: what the company of other prompts moves it by
WHOLE = 2.0**40  # shares of probability as whole numbers: finer than float32 holds them, and no sum overflows


@dataclass(frozen=True)
class Task:
    """What a row asks of a model: its conversation up to the last answer, and the answer it should get.

    Evaluation, chat and the check of a merged model all ask a row in this way.
    """

    messages: list[Message]
    answer: str
    tools: list[dict[str, Any]] | None = None
    calls: bool = False  # whether that answer calls a tool: then its text is not all of it

    def prompt(self, tokenizer: Any, day: str) -> list[int]:
        """:param day: of the run, for templates that write one

        :raises StudioError: when the template cannot render the conversation
        """
        return prompt_ids(self.messages, tokenizer, self.tools, day)


def task_of(row: Row) -> Task | None:
    """The task of a row's last assistant turn; None for plain text."""
    messages = row.get("messages", [])
    for number in range(len(messages) - 1, 0, -1):
        if messages[number]["role"] == "assistant":
            # A turn that only calls a tool has no content.
            answer = messages[number]
            calls = bool(answer.get("tool_calls"))
            return Task(messages[:number], answer.get("content") or "", row.get("tools"), calls)
    return None


@dataclass(frozen=True)
class Reply:
    """An answer without its special tokens.

    :param cut: the limit of new tokens ended it, not the model
    :param close: at one of its tokens a second one was as likely, as far as the precision tells: computed
        beside other prompts, the answer may be another
    """

    text: str
    cut: bool
    close: bool = False


def answers(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    max_new_tokens: int,
    batch: int,
    each_batch: Callable[[int], None] = lambda done: None,
) -> list[Reply]:
    """The model's greedy reply to each prompt.

    :param prompts: as tokens
    :param each_batch: called with the number of prompts done, may raise to stop
    """
    # Prompts of like length share a batch, which saves padding; replies return in given order.
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    replies: dict[int, Reply] = {}
    for start in range(0, len(order), batch):
        each_batch(start)
        chosen = order[start : start + batch]
        ties = _Ties(model.dtype)
        some = [prompts[number] for number in chosen]
        token_lists = greedy(model, tokenizer, some, max_new_tokens, processors=[ties])
        for position, (number, tokens) in enumerate(zip(chosen, token_lists, strict=True)):
            replies[number] = replace(reply(tokenizer, tokens), close=ties.among(position, len(tokens)))
    return [replies[number] for number in range(len(prompts))]


class _Ties:
    """A logits processor that changes nothing and notes where the two likeliest tokens are next to equal."""

    def __init__(self, dtype: Any) -> None:
        import torch

        self.precision = torch.finfo(dtype).eps
        self.noted: list[Any] = []

    def __call__(self, ids: Any, scores: Any) -> Any:
        import torch

        first, second = scores.topk(2).values.unbind(-1)
        step = self.precision * torch.exp2(torch.floor(torch.log2(first.abs().clamp_min(1e-30))))
        self.noted.append(first - second <= NEAR * step)
        return scores

    def among(self, row: int, count: int) -> bool:
        """:param count: the tokens of the row's reply"""
        return any(bool(ties[row]) for ties in self.noted[:count])


def greedy(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    max_new_tokens: int,
    ends: Collection[int] | None = None,
    processors: Sequence[Any] = (),
) -> list[list[int]]:
    """Tokens of the likeliest reply to each prompt, with the token that ends it, if it ended.

    :param ends: None for `end_tokens`
    :param processors: look at the logits, or change them
    """
    ends = end_tokens(tokenizer) if ends is None else ends
    continued = _continued(model, tokenizer, prompts, max_new_tokens, list(processors), ends)
    return [_until(ends, tokens) for tokens in continued.tolist()]


def reply(tokenizer: Any, tokens: list[int]) -> Reply:
    """:param tokens: up to the one that ended it, if one did"""
    text = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Reply(text, not tokens or tokens[-1] not in end_tokens(tokenizer))


@dataclass(frozen=True)
class Draw:
    """How replies are drawn: with numbers of their own, so that none depends on what is answered beside it.

    :param numbers: uniform in [0, 1), one for each token that a reply may get, (replies, max_new_tokens)
    """

    temperature: float
    numbers: Any


def sampled(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    max_new_tokens: int,
    at_once: OomBackoff,
    doing: str,
    draw: Draw | None = None,
    each_batch: Callable[[int], None] = lambda done: None,
) -> list[list[int]]:
    """Tokens of one reply to each prompt, with the token that ends it, if it ended.

    :param at_once: prompts; fewer from when memory ran out on
    :param doing: what is told then, as in ``trying answers at step 4``
    :param draw: None takes the likeliest token each time
    :param each_batch: called with the number of prompts done, may raise to stop
    """
    ends = end_tokens(tokenizer)
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    replies: list[list[int]] = []
    while left := order[len(replies) :]:
        each_batch(len(replies))

        def some(count: int, left: list[int] = left) -> list[list[int]]:
            chosen = left[:count]
            processors = [] if draw is None else [_drawing(draw.temperature, draw.numbers[chosen])]
            some_prompts = [prompts[n] for n in chosen]
            continued = _continued(model, tokenizer, some_prompts, max_new_tokens, processors, ends)
            return [_until(ends, tokens) for tokens in continued.tolist()]

        replies += at_once.run(doing, some, 1, len(left))
    places = {number: position for position, number in enumerate(order)}
    return [replies[places[number]] for number in range(len(prompts))]


def _until(ends: Collection[int], tokens: list[int]) -> list[int]:
    length = next((position + 1 for position, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:length]


def _drawing(temperature: float, numbers: Any) -> Callable[[Any, Any], Any]:
    """A logits processor that leaves the token alone that each row's next number falls on."""
    import torch

    count = 0

    def drawn(ids: Any, scores: Any) -> Any:
        nonlocal count
        shares = torch.softmax(scores / temperature, dim=-1)
        # Sums of whole numbers do not depend on their order: they are the same every time on a GPU too.
        ends = (shares * WHOLE).long().cumsum(dim=-1)
        number = torch.from_numpy(numbers[:, count : count + 1]).to(scores.device)
        count += 1
        token = torch.searchsorted(ends, (number * ends[:, -1:]).long(), right=True)
        # Weights that have become NaN give no shares: any token will do until the loss is looked at.
        token.clamp_(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)

    return drawn


def _continued(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    max_new_tokens: int,
    processors: list[Any],
    ends: Collection[int],
) -> Any:
    """(prompts, new tokens), the likeliest each time; behind its end a reply is filled up.

    :param processors: change the logits before
    """
    import torch

    length = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), length), tokenizer.pad_token_id)
    mask = torch.zeros((len(prompts), length), dtype=torch.long)
    for number, prompt in enumerate(prompts):
        ids[number, length - len(prompt) :] = torch.tensor(prompt)
        mask[number, length - len(prompt) :] = 1
    with torch.no_grad(), autocast(model), _own_settings_aside(model):
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            logits_processor=processors,
            eos_token_id=sorted(ends),
            pad_token_id=tokenizer.pad_token_id,
        )
    return output[:, length:]


@contextmanager
def _own_settings_aside(model: Any) -> Iterator[None]:
    """Within, a base's own generation settings count for nothing.

    Where a call leaves a setting out, transformers takes the base's: a penalty on repetition among them,
    so the reply would not be the likeliest one.
    """
    from peft import PeftModel
    from transformers import GenerationConfig

    base = model.get_base_model() if isinstance(model, PeftModel) else model
    own, base.generation_config = base.generation_config, GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = own
