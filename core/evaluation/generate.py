"""Answers to many prompts at once: the likeliest ones to evaluate with, drawn ones to learn from."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from core.data.xray import end_tokens, prompt_ids
from core.evaluation.loss import autocast
from core.training.memory import Halving

WHOLE = 2.0**40  # shares of probability as whole numbers: finer than float32 holds them, and no sum overflows


def answers(
    model: Any,
    tokenizer: Any,
    conversations: list[list[dict[str, str]]],
    max_new_tokens: int,
    batch: int,
    each_batch: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """The model's greedy reply to each conversation, special tokens removed.

    :param each_batch: called with the number of prompts done, may raise to stop
    """
    prompts = [prompt_ids(messages, tokenizer) for messages in conversations]
    # Prompts of like length share a batch, which saves padding; replies return in given order.
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    replies = [""] * len(prompts)
    for start in range(0, len(order), batch):
        each_batch(start)
        chosen = order[start : start + batch]
        for number, text in zip(
            chosen, _reply(model, tokenizer, [prompts[n] for n in chosen], max_new_tokens), strict=True
        ):
            replies[number] = text
    return replies


def _reply(model: Any, tokenizer: Any, prompts: list[list[int]], max_new_tokens: int) -> list[str]:
    output = _continued(model, tokenizer, prompts, max_new_tokens, [])
    return [text.strip() for text in tokenizer.batch_decode(output, skip_special_tokens=True)]


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
    at_once: Halving,
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
            found = _continued(model, tokenizer, [prompts[n] for n in chosen], max_new_tokens, processors)
            return [_until(ends, tokens) for tokens in found.tolist()]

        replies += at_once.run(doing, some, 1, len(left))
    places = {number: place for place, number in enumerate(order)}
    return [replies[places[number]] for number in range(len(prompts))]


def _until(ends: Collection[int], tokens: list[int]) -> list[int]:
    length = next((place + 1 for place, token in enumerate(tokens) if token in ends), len(tokens))
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
    model: Any, tokenizer: Any, prompts: list[list[int]], max_new_tokens: int, processors: list[Any]
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
    with torch.no_grad(), autocast(model):
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            logits_processor=processors,
            eos_token_id=sorted(end_tokens(tokenizer)),
            pad_token_id=tokenizer.pad_token_id,
        )
    return output[:, length:]
