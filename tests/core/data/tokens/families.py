"""Twelve families of chat templates, their tokenizers, and conversations to try them on."""

import copy
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from plumbline.data.tokens.encode import IGNORED, Encoded, encode
from plumbline.models.load import tokenizer

FOLDER = Path(__file__).parent / "templates"
LONG = 100_000
_MARK = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")


@dataclass(frozen=True)
class Family:
    """A template and the tokenizer that goes with it; ``lacks`` names conversations it refuses."""

    control: str
    bos: str
    eos: str
    end: str
    lacks: tuple[str, ...] = ()
    words: str = ""  # added tokens that are not control tokens


ALTERNATING = ("opening", "twice")
TOOLS_OF = {"llama3", "mistral", "qwen3", "gptoss"}
FAMILIES = {
    "chatml": Family("<|im_start|> <|im_end|>", "<|endoftext|>", "<|im_end|>", "<|im_end|>"),
    "llama2": Family("<s> </s>", "<s>", "</s>", "</s>", ALTERNATING),
    "llama3": Family(
        "<|begin_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|>",
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|eot_id|>",
    ),
    "mistral": Family(
        "<s> </s> [INST] [/INST] [TOOL_CALLS] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] "
        "[TOOL_RESULTS] [/TOOL_RESULTS]",
        "<s>",
        "</s>",
        "</s>",
        ALTERNATING,
    ),
    "gemma": Family(
        "<bos> <eos> <start_of_turn> <end_of_turn>",
        "<bos>",
        "<eos>",
        "<end_of_turn>",
        ("system", "in the system prompt", *ALTERNATING),
    ),
    "phi3": Family(
        "<s> <|endoftext|> <|system|> <|user|> <|assistant|> <|end|>", "<s>", "<|endoftext|>", "<|end|>"
    ),
    "qwen3": Family(
        "<|im_start|> <|im_end|>",
        "<|endoftext|>",
        "<|im_end|>",
        "<|im_end|>",
        words="<think> </think> <tool_call> </tool_call>",
    ),
    "olmo2": Family("", "<|endoftext|>", "<|endoftext|>", "<|endoftext|>"),
    "zephyr": Family("<s> </s>", "<s>", "</s>", "</s>"),
    "command_r": Family(
        "<BOS_TOKEN> <|START_OF_TURN_TOKEN|> <|END_OF_TURN_TOKEN|> "
        "<|USER_TOKEN|> <|SYSTEM_TOKEN|> <|CHATBOT_TOKEN|>",
        "<BOS_TOKEN>",
        "<|END_OF_TURN_TOKEN|>",
        "<|END_OF_TURN_TOKEN|>",
        ALTERNATING,
    ),
    "gptoss": Family(
        "<|start|> <|message|> <|channel|> <|end|> <|return|> <|call|>",
        "<|start|>",
        "<|return|>",
        "<|return|>",
    ),
    "deepseek_r1": Family(
        "<｜begin▁of▁sentence｜> <｜end▁of▁sentence｜>",
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        words="<｜User｜> <｜Assistant｜> <think> </think>",
    ),
}


def talk(*contents: str, system: str = "", first: str = "user") -> list[dict[str, Any]]:
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    turns = [{"role": roles[number % 2], "content": said} for number, said in enumerate(contents)]
    return [*([{"role": "system", "content": system}] if system else []), *turns]


def call(content: str, **arguments: Any) -> dict[str, Any]:
    function = {"name": "weather", "arguments": arguments}
    calls = [{"type": "function", "id": "call12345", "function": function}]
    return {"role": "assistant", "content": content, "tool_calls": calls}


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
RAIN = {"role": "tool", "name": "weather", "content": "rain"}
TALKS: dict[str, list[dict[str, Any]]] = {
    "single": talk("Hi there", "Hello, you!"),
    "many turns": talk("Hi", "Hello!", "How are you?", "I am well.", "And now?", "Now too."),
    "system": talk("Hi", "Hello!", "Bye", "See you.", system="Be kind."),
    "space around": talk(" Hi \n", "\n  Hello!  \n", "Bye ", " See you. "),
    "the answer is the question": talk("Hello", "Hello", "Hello", "Hello"),
    "in the system prompt": talk("Say yes", "yes", "Once more", "yes", system="Say yes, only yes."),
    "nothing but space": talk("Hi", "Hello!", "Say nothing", " "),
    "not English": talk("日本語は？", "はい 😀", "é?", "ß 👩‍👩‍👧"),
    "opening": talk("Welcome!", "Hi", "Hello!", "Bye", first="assistant")[:3],
    "twice": [*talk("Hi", "Hello!"), {"role": "assistant", "content": "Are you there?"}],
    "thinking": talk(
        "Hi", "<think>\nA greeting.\n</think>\n\nHello!", "Bye", "<think>\nGone\n</think>\n\nSee you."
    ),
}
TOOL_TALKS: dict[str, list[dict[str, Any]]] = {
    "tool": [*talk("Rain in Rome?"), call("", city="Rome"), RAIN, *talk("Yes.", first="assistant")],
    "tool, late": [
        *talk("Hi", "Hello!", "Rain in Rome?"),
        call("", city="Rome", days=2),
        RAIN,
        *talk("Yes.", "Thanks", first="assistant"),
        *talk("Gladly.", first="assistant"),
    ],
    "tool, last": [*talk("Rain in Rome?"), call("", city="Rome")],
}
CASES = [
    (family, name)
    for family, facts in FAMILIES.items()
    for name in [*TALKS, *(TOOL_TALKS if family in TOOLS_OF else [])]
    if name not in facts.lacks
]


@lru_cache
def model_of(family: str, marked: bool) -> Any:
    """The starter's tokenizer with the family's tokens and template."""
    facts, chosen = FAMILIES[family], copy.deepcopy(tokenizer("starter"))
    # Phi's tokens swallow the whitespace that follows them.
    control = [AddedToken(token, special=True, rstrip=family == "phi3") for token in facts.control.split()]
    chosen.add_tokens(control, special_tokens=True)
    chosen.add_tokens([AddedToken(token, special=False) for token in facts.words.split()])
    chosen.bos_token, chosen.eos_token = facts.bos, facts.eos
    source = (FOLDER / f"{family}.jinja").read_text(encoding="utf-8")
    chosen.chat_template = source if marked else _MARK.sub("", source)
    return chosen


def row_of(name: str) -> dict[str, Any]:
    return {"messages": TALKS[name]} if name in TALKS else {"messages": TOOL_TALKS[name], "tools": TOOLS}


def as_trl_does(row: dict[str, Any], chosen: Any) -> dict[str, Any]:
    from trl.data_utils import _tokenize

    return _tokenize(
        chosen,
        row["messages"],
        return_assistant_tokens_mask=True,
        chat_template=None,
        tools=row.get("tools"),
    )


def mask(encoded: Encoded) -> list[int]:
    return [int(label != IGNORED) for label in encoded.labels]


def learned(family: str, messages: list[dict[str, Any]], tools: Any = None) -> str:
    chosen = model_of(family, False)
    encoded = encode({"messages": messages, "tools": tools}, chosen, LONG)
    return chosen.decode([label for label in encoded.labels if label != IGNORED])
