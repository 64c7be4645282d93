"""Texts in which a chat template is written out, read back as the conversations that they were made from.

Knows the published forms: ChatML, Llama 2 to 4, Mistral, Gemma, Phi, Zephyr, DeepSeek, Command R, GLM,
the headings of Alpaca, and Vicuna. A text is read whole or not at all.
"""

import re
from dataclasses import dataclass
from typing import Any

from plumbline.data.errors import RowError
from plumbline.data.rows import Message

_ROLES = {
    **dict.fromkeys(("user", "human", "prompter", "instruction", "input", "question"), "user"),
    **dict.fromkeys(
        ("assistant", "model", "gpt", "bot", "response", "chatbot", "output", "answer"), "assistant"
    ),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "ipython", "observation"), "tool"),
}
_PREAMBLE = re.compile(r"Below is an instruction that describes a task(?:, paired with an input[^.]*)?\. "
                       r"Write a response that appropriately completes the request\.")  # fmt: skip


@dataclass(frozen=True)
class Form:
    """How a template writes turns.

    :param header: what begins a turn, with its role as the only group
    :param end: what may end one
    :param begin: what may stand before the first
    :param exact: whether the space around what is said belongs to it
    """

    name: str
    header: re.Pattern[str]
    end: re.Pattern[str]
    begin: re.Pattern[str]
    exact: bool = False


def _form(name: str, header: str, end: str, begin: str = "", exact: bool = False) -> Form:
    return Form(
        name,
        re.compile(header),
        re.compile(rf"(?:{end})\s*\Z" if end else r"\s*\Z"),
        re.compile(rf"\s*(?:{begin})*\s*" if begin else r"\s*"),
        exact,
    )


FORMS = (
    _form("Phi-4", r"<\|im_start\|>(\w+)<\|im_sep\|>\n?", r"<\|im_end\|>"),
    _form(
        "ChatML",
        r"<\|im_start\|>(\w+)\n",
        r"<\|im_end\|>(?:\s*<\|endoftext\|>)?",
        r"<s>|<\|endoftext\|>",
        exact=True,
    ),
    _form(
        "Llama 3",
        r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\s*",
        r"<\|eo[tm]_id\|>(?:\s*<\|end_of_text\|>)?|<\|end_of_text\|>",
        r"<\|begin_of_text\|>",
    ),
    _form("Llama 4", r"<\|header_start\|>(\w+)<\|header_end\|>\s*", r"<\|eo[tm]\|>", r"<\|begin_of_text\|>"),
    _form("Gemma", r"<start_of_turn>(\w+)\n", r"<end_of_turn>(?:\s*<eos>)?", r"<bos>"),
    _form(
        "Command R",
        r"<\|START_OF_TURN_TOKEN\|><\|(\w+?)_TOKEN\|>",
        r"<\|END_OF_TURN_TOKEN\|>",
        r"<BOS_TOKEN>",
    ),
    _form("DeepSeek", r"<｜(User|Assistant)｜>", r"<｜end▁of▁sentence｜>", r"<｜begin▁of▁sentence｜>"),
    _form(
        "Zephyr or Phi",
        r"<\|(system|user|assistant|prompter|observation)\|>\s*",
        r"<\|end\|>(?:\s*<\|endoftext\|>)?|</s>|<\|endoftext\|>",
        r"<s>|\[gMASK\]|<sop>",
    ),
    _form(
        "headings (Alpaca)",
        r"(?:(?<=\n)|\A)### ?"
        r"(System|Instruction|Input|Question|Human|User|Response|Assistant|Output|Answer):\s*",
        r"</s>|<\|endoftext\|>|<\|im_end\|>",
        r"<s>",
    ),
    _form("Vicuna", r"(?:(?<=\s)|(?<=</s>)|\A)(USER|ASSISTANT): ?", r"</s>", r"<s>"),
)
_INST = re.compile(r"\[INST\](.*?)\[/INST\]", re.DOTALL)
_SYS = re.compile(r"\s*<<SYS>>\n?(.*?)\n?<</SYS>>\s*", re.DOTALL)
_SYSTEM_PROMPT = re.compile(r"\s*\[SYSTEM_PROMPT\](.*?)\[/SYSTEM_PROMPT\]", re.DOTALL)
# A control token inside of what is said: then the text was not read whole.
_CONTROL = re.compile(
    r"<\|[A-Za-z_]{2,30}\|>|<｜[^｜\s]{2,30}｜>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>"
)


def form_of(text: str) -> str | None:
    """The name of the form that a text is written in; None when it is none, or is not read whole."""
    for name, messages in _readings(text):
        if _is_whole(messages):
            return name
    return None


def messages_in(text: str, column: str) -> list[Message]:
    """:raises RowError: when the text is not a whole conversation in one of the forms"""
    why = "holds none of the known forms of turns"
    for name, messages in _readings(text):
        if _is_whole(messages):
            return messages
        why = f"is not whole {name}"
    raise RowError(f"{column} {why}", "Import it as plain text (a mapping: kind=text) to learn it as it is")


def _is_whole(messages: list[Message]) -> bool:
    all_have_text = all(turn["content"].strip() and not _CONTROL.search(turn["content"]) for turn in messages)
    roles = [turn["role"] for turn in messages]
    return all_have_text and roles[-1:] == ["assistant"] and "user" in roles and "system" not in roles[1:]


def _readings(text: str) -> Any:
    """The text by each form whose marks it has, with the form's name."""
    if "[INST]" in text:
        yield "Llama 2 or Mistral", _bracketed(text)
    for form in FORMS:
        headers = list(form.header.finditer(text))
        roles = {_ROLES.get(header[1].lower()) for header in headers}
        if {"user", "assistant"} <= roles:
            yield form.name, _turns(text, form, headers)


def _turns(text: str, form: Form, headers: list[re.Match[str]]) -> list[Message]:
    messages: list[Message] = []
    before = form.begin.sub("", text[: headers[0].start()], count=1).strip()
    if before and not _PREAMBLE.fullmatch(before):
        messages.append({"role": "system", "content": before})
    stops = [*(header.start() for header in headers[1:]), len(text)]
    for header, stop in zip(headers, stops, strict=True):
        content = form.end.sub("", text[header.end() : stop], count=1)
        role = _ROLES.get(header[1].lower(), "")
        content = content if form.exact else content.strip()
        asks_again = role == "user" and messages and messages[-1]["role"] == "user"
        if asks_again and header[1] in ("Input", "Question", "Human", "User"):
            messages[-1]["content"] += f"\n\n{content}" if content else ""  # Alpaca's input
        elif content or role != "assistant" or stop != len(text):
            messages.append({"role": role, "content": content})
    return [turn for turn in messages if turn["role"] != "system" or turn["content"]]


def _bracketed(text: str) -> list[Message]:
    """Llama 2 and Mistral: questions in brackets, answers after them."""
    messages: list[Message] = []
    brackets = list(_INST.finditer(text))
    if not brackets:
        return []
    before = re.sub(r"\A\s*(<s>)?\s*", "", text[: brackets[0].start()])
    if system := _SYSTEM_PROMPT.fullmatch(before.rstrip()):
        messages.append({"role": "system", "content": system[1].strip()})
    elif before.strip():
        return []
    stops = [*(bracket.start() for bracket in brackets[1:]), len(text)]
    for bracket, stop in zip(brackets, stops, strict=True):
        asked = bracket[1]
        if (system := _SYS.match(asked)) and not messages:
            messages.append({"role": "system", "content": system[1].strip()})
            asked = asked[system.end() :]
        answer = re.sub(r"\s*(</s>)?\s*(<s>)?\s*\Z", "", text[bracket.end() : stop])
        messages.append({"role": "user", "content": asked.strip()})
        messages.append({"role": "assistant", "content": answer.strip()})
    return [turn for turn in messages if turn["role"] != "system" or turn["content"]]
