"""Try a chat template on three short conversations, before any row is rendered with it.

It is rendered where every row is, under limits: see `plumbline.data.tokens.template_sandbox`.
"""

import json
from functools import lru_cache
from typing import Any

from plumbline.data.tokens import template_sandbox
from plumbline.errors import StudioError

SECONDS = 2  # of processor time for one conversation
FIX = "Choose another base model, or mend its chat template."

ANSWERS = ("The sky is blue, as a rule.", "At dusk it turns red.")
_ONE = [{"role": "user", "content": "What colour is it?"}, {"role": "assistant", "content": ANSWERS[0]}]
_TWO = [*_ONE, {"role": "user", "content": "And later?"}, {"role": "assistant", "content": ANSWERS[1]}]
_SYSTEM = [{"role": "system", "content": "Be brief."}, *_ONE]
_TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks a word up.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string", "description": "It."}}},
    },
}


def check_template(tokenizer: Any, tools: bool = False) -> str:
    """The tokenizer's chat template, once it has shown that it can be rendered.

    :param tools: the template for conversations with tools, where a model has one of its own
    :raises StudioError: when there is none, or it fails, loops, explodes or drops the assistant
    """
    if not tokenizer.chat_template:
        raise StudioError(
            "model.base",
            "has no chat template",
            "Choose an instruction-tuned model, or a dataset of plain text.",
        )
    try:
        template = tokenizer.get_chat_template(tools=[_TOOL] if tools else None)
    except ValueError as error:
        raise StudioError("chat template", f"is not one but several: {error}"[:300], FIX) from error
    if template != template_sandbox.own_template():
        named = isinstance(tokenizer.chat_template, dict)
        problem = _problem(template, json.dumps(tokenizer.special_tokens_map), tools and named)
        if problem is not None:
            raise StudioError("chat template", problem, FIX)
    return template


@lru_cache(maxsize=64)
def _problem(template: str, special_tokens: str, tools: bool) -> str | None:
    """What is wrong with the template, or None. :raises StudioError: when that cannot be found out"""
    tool_list = [_TOOL] if tools else None

    def written(messages: list[dict[str, str]]) -> str:
        return template_sandbox.written(
            template, messages, tool_list, json.loads(special_tokens), seconds=SECONDS
        )[0]

    try:
        for messages in (_ONE, _TWO):
            text = written(messages)
            for answer in (message["content"] for message in messages if message["role"] == "assistant"):
                if text.count(answer) != 1:
                    return f"{'repeats' if answer in text else 'drops'} what the assistant says"
    except template_sandbox.Failed as failed:
        where = f"fails in line {failed.line}" if failed.line else "fails"
        return f"{where}: {failed.message.rstrip('.')}"[:300]
    except template_sandbox.Exceeded as exceeded:
        return str(exceeded)
    try:
        written(_SYSTEM)
    except template_sandbox.Exceeded as exceeded:
        return str(exceeded)
    except template_sandbox.Failed:
        return None  # a template may refuse a system message, and says so when a row has one
    return None
