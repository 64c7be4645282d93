"""Greedy answers to many prompts at once, for evaluation."""

from collections.abc import Callable
from typing import Any

from core.data.xray import end_tokens, prompt_ids
from core.evaluation.loss import autocast


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
    output = _continued(model, tokenizer, prompts, max_new_tokens, None)
    return [text.strip() for text in tokenizer.batch_decode(output, skip_special_tokens=True)]


def sampled(
    model: Any, tokenizer: Any, prompts: list[list[int]], max_new_tokens: int, temperature: float | None
) -> list[list[int]]:
    """Tokens of one reply to each prompt, with the token that ends it, if it ended.

    :param temperature: of the draw; None takes the likeliest token each time
    """
    ends = end_tokens(tokenizer)
    replies = []
    for tokens in _continued(model, tokenizer, prompts, max_new_tokens, temperature).tolist():
        length = next((place + 1 for place, token in enumerate(tokens) if token in ends), len(tokens))
        replies.append(tokens[:length])
    return replies


def _continued(
    model: Any, tokenizer: Any, prompts: list[list[int]], max_new_tokens: int, temperature: float | None
) -> Any:
    """(prompts, new tokens); behind its end a reply is filled up."""
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
            do_sample=temperature is not None,
            temperature=temperature,
            top_p=None,
            top_k=None if temperature is None else 0,
            eos_token_id=sorted(end_tokens(tokenizer)),
            pad_token_id=tokenizer.pad_token_id,
        )
    return output[:, length:]
