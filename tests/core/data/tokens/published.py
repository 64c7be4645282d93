"""Published chat templates, conversations of every kind, and what becomes of each: the table of the docs.

``python -m tests.core.data.tokens.published`` writes the table anew; `test_published.py` fails when it does
not match.
What is learned is looked up in the tokens themselves: every text of a conversation begins and ends with a
word that stands nowhere else, so nothing here depends on how the product finds the turns.
"""

import copy
import json
import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from plumbline.data.tokens.encode import IGNORED, encode
from plumbline.errors import StudioError
from plumbline.home import assets
from plumbline.models.load import tokenizer

LONG = 100_000
TABLE = assets() / "docs" / "templates.md"
REBUILT = Path(__file__).parent / "templates"
# In transformers' own tests or on the models' pages; TRL does not ship them.
REBUILT_NAMES = ("command_r", "llama2", "mistral", "olmo2", "zephyr")
# What ends a turn, by how the template's name begins; the longest beginning counts.
ENDS = {
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "command_r": "<|END_OF_TURN_TOKEN|>",
    "deepseek": "<｜end▁of▁sentence｜>",
    "diffusion_gemma": "<turn|>",
    "gemma": "<end_of_turn>",
    "gemma4": "<turn|>",
    "glm4moe": "<|user|>",
    "gptoss": "<|return|>",
    "idefics3": "<end_of_utterance>",
    "lfm2": "<|im_end|>",
    "llama2": "</s>",
    "llama3": "<|eot_id|>",
    "llava_next": "</s>",
    "mistral": "</s>",
    "muse_glimmer": "<|eot|>",
    "nemotron": "<|im_end|>",
    "olmo2": "<|endoftext|>",
    "phi3": "<|end|>",
    "qwen": "<|im_end|>",
    "smolvlm": "<end_of_utterance>",
    "zephyr": "</s>",
}
_CONTROL = re.compile(
    r"<\|[A-Za-z_0-9]+\|>|<\|[a-z_]+>|<[a-z_]+\|>|<｜[^｜]+｜>|<(?:start|end)_of_\w+>|</?s>|<bos>|<eos>"
    r"|\[/?[A-Z_]+\]"
)
_MARKER = re.compile(r"\w+?(?:first|last)\b")
_MARKS = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")


@lru_cache
def templates() -> dict[str, tuple[str, str]]:
    """Source and text of each template by name; the sources are ``TRL`` and ``rebuilt``."""
    import trl

    shipped = (Path(trl.__file__).parent / "chat_templates").glob("*.jinja")
    found = {
        path.stem: ("TRL", path.read_text(encoding="utf-8"))
        for path in sorted(shipped)
        if not path.stem.endswith("_training")
    }
    for name in REBUILT_NAMES:
        text = (REBUILT / f"{name}.jinja").read_text(encoding="utf-8")
        found[name] = ("rebuilt", _MARKS.sub("", text))
    return dict(sorted(found.items()))


@lru_cache
def model_of(name: str) -> Any:
    """The starter's tokenizer with the template and the control tokens that it writes."""
    source, chosen = templates()[name][1], copy.deepcopy(tokenizer("starter"))
    end = ENDS[max((prefix for prefix in ENDS if name.startswith(prefix)), key=len)]
    control = sorted({*_CONTROL.findall(source), end})
    chosen.add_tokens([AddedToken(token, special=True) for token in control], special_tokens=True)
    chosen.eos_token, chosen.chat_template = end, source
    return chosen


def said(name: str, text: str = "and so on") -> str:
    return f"{name}first {text} {name}last"


def system(name: str = "rule") -> dict[str, Any]:
    return {"role": "system", "content": said(name)}


def user(name: str, text: str = "what is it?") -> dict[str, Any]:
    return {"role": "user", "content": said(name, text)}


def answer(name: str, text: str = "it is so", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": said(name, text) if name else text, **more}


def result(name: str, function: str = "weather", number: int = 1) -> dict[str, Any]:
    call_id = f"call0000{number}"
    named = {"name": function} if function else {}
    return {"role": "tool", **named, "tool_call_id": call_id, "content": said(name)}


def call(*calls: tuple[str, dict[str, Any]], content: str = "", **more: Any) -> dict[str, Any]:
    made = [
        {"type": "function", "id": f"call0000{number}", "function": {"name": name, "arguments": arguments}}
        for number, (name, arguments) in enumerate(calls, 1)
    ]
    return {"role": "assistant", "content": content, "tool_calls": made, **more}


def thought(name: str, text: str) -> str:
    return f"<think>\n{said(name)}\n</think>\n\n{text}"


def _tool(name: str) -> dict[str, Any]:
    properties = {"city": {"type": "string", "description": "Where."}}
    parameters = {"type": "object", "properties": properties, "required": ["city"]}
    return {
        "type": "function",
        "function": {"name": name, "description": "Looks it up.", "parameters": parameters},
    }


TOOLS = [_tool("weather"), _tool("time_of_day")]
ROME = {"city": said("rome")}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one question": [user("ask"), answer("reply")],
    "several turns": [
        user("ask"),
        answer("reply"),
        user("more"),
        answer("again"),
        user("end"),
        answer("bye"),
    ],
    "system": [system(), user("ask"), answer("reply"), user("more"), answer("again")],
    "equal answers": [user("ask"), answer("", "Yes."), user("more"), answer("", "Yes.")],
    "answer as asked": [user("ask", "Say yes"), answer("", "Say yes"), user("more"), answer("reply")],
    "space around": [user("ask"), answer("", f"\n\n  {said('reply')} \n"), user("more"), answer("again")],
    "several lines": [user("ask"), answer("reply", "- a\n- b\n\n```py\nx = {'a': 1}\n```\n")],
    "unicode": [
        user("ask", "日本語は？ 👩‍👩‍👧"),
        answer("reply", "はい😀 é e\u0301 שלום नमस्ते"),
        user("more"),
        answer("again"),
    ],
    "signs only": [user("ask"), answer("", '"'), user("more"), answer("", "👍")],
    "control tokens quoted": [
        user("ask", "<|im_end|><|eot_id|></s><end_of_turn><turn|>"),
        answer("reply", "<|im_end|> <|eot_id|> </s> <end_of_turn> <turn|> end it"),
    ],
    "markup": [user("ask", "<b>?</b>"), answer("reply", "<b>&amp; \"it\" 'is' \\n</b> {{ x }} {% y %}")],
    "not learned": [user("ask"), answer("old", learn=False), user("more"), answer("again")],
    "answer twice": [user("ask"), answer("reply"), answer("again")],
    "question twice": [user("ask"), user("more"), answer("reply")],
    "answer first": [answer("reply"), user("ask"), answer("again")],
    "reasoning inline": [user("ask"), answer("", thought("why", said("reply")))],
    "reasoning inline, turns": [
        user("ask"),
        answer("", thought("why", said("reply"))),
        user("more"),
        answer("", thought("how", said("again"))),
    ],
    "reasoning_content": [user("ask"), answer("reply", reasoning_content=said("why"))],
    "reasoning_content, turns": [
        user("ask"),
        answer("reply", reasoning_content=said("why")),
        user("more"),
        answer("again", reasoning_content=said("how")),
    ],
    "thinking": [user("ask"), answer("reply", thinking=said("why"))],
    "tools, none called": [user("ask"), answer("reply")],
    "call": [user("ask"), call(("weather", ROME)), result("rain"), answer("reply")],
    "call, last": [user("ask"), call(("weather", ROME))],
    "call and words": [
        user("ask"),
        call(("weather", ROME), content=said("look")),
        result("rain"),
        answer("reply"),
    ],
    "call and reasoning": [
        user("ask"),
        call(("weather", ROME), reasoning_content=said("why")),
        result("rain"),
        answer("reply"),
    ],
    "two calls": [
        user("ask"),
        call(("weather", ROME), ("time_of_day", {"city": said("oslo")})),
        result("rain"),
        result("noon", "time_of_day", 2),
        answer("reply"),
    ],
    "two calls of one function": [
        user("ask"),
        call(("weather", ROME), ("weather", {"city": said("oslo")})),
        result("rain"),
        result("snow", "weather", 2),
        answer("reply"),
    ],
    "calls in turn": [
        system(),
        user("ask"),
        call(("weather", ROME)),
        result("rain"),
        call(("time_of_day", {"city": said("oslo")})),
        result("noon", "time_of_day"),
        answer("reply"),
        user("more"),
        answer("again"),
    ],
    "function named in arguments": [
        user("ask", "weather?"),
        call(("weather", {"city": "weather", "note": said("rome", "the weather, call weather")})),
        result("rain"),
        answer("reply", "The weather"),
    ],
    "arguments of every kind": [
        user("ask"),
        call(
            (
                "weather",
                {
                    "Zone": said("zone"),
                    "city": said("rome", 'a "quoted" \\ b\n日本 <x> & y'),
                    "days": 27,
                    "exact": True,
                    "most": None,
                    "where": {"lat": 41.9, "b": [said("deep"), "two"]},
                },
            )
        ),
        result("rain"),
        answer("reply"),
    ],
    "call without arguments": [user("ask"), call(("pinglast", {})), result("pong", ""), answer("reply")],
    "empty system, empty result": [
        {"role": "system", "content": ""},
        user("ask"),
        call(("weather", ROME)),
        {**result("rain"), "content": ""},
        answer("reply"),
    ],
}


def row_of(name: str) -> dict[str, Any]:
    messages = CONVERSATIONS[name]
    uses_tools = name.startswith("tools") or any(turn.get("tool_calls") for turn in messages)
    return {"messages": messages, **({"tools": TOOLS} if uses_tools else {})}


@dataclass(frozen=True)
class Held:
    """What turns hold, as the words that each part begins and ends with.

    ``answers``, ``words``, ``reasoning`` and ``calls`` are those of learned turns, one entry a part.
    """

    answers: list[set[str]]
    words: list[set[str]]
    reasoning: list[set[str]]
    calls: list[set[str]]
    others: set[str]


def held(messages: list[dict[str, Any]]) -> Held:
    found = Held([], [], [], [], set())
    for turn in messages:
        if turn["role"] != "assistant" or turn.get("learn") is False:
            found.others.update(_MARKER.findall(turn["content"]))
            continue
        content, inline = turn["content"], ""
        if "</think>" in content:
            inline, content = content.split("</think>")
        reasoning = inline + turn.get("reasoning_content", "") + turn.get("thinking", "")
        calls = turn.get("tool_calls", [])
        words = {*_MARKER.findall(content)} if calls else {content.strip(), *_MARKER.findall(content)}
        (found.words if calls else found.answers).append(words)
        found.reasoning.append({*_MARKER.findall(reasoning)})
        found.calls.extend({*_MARKER.findall(json.dumps(one["function"]))} for one in calls)
    return found


@dataclass(frozen=True)
class Outcome:
    """What became of a conversation: its learned text and warnings, or why it was refused."""

    learned: str
    left_out: tuple[str, ...]
    refused: str = ""

    @property
    def word(self) -> str:
        if self.refused:
            return "refused"
        counts = Counter(self.left_out)
        return "; ".join(f"no {what}" for what in counts) or "whole"


def outcome(template: str, conversation: str) -> Outcome:
    chosen = model_of(template)
    try:
        encoded = encode(row_of(conversation), chosen, LONG)
    except StudioError as error:
        return Outcome("", (), error.what)
    kept = [label for label in encoded.labels if label != IGNORED]
    return Outcome(chosen.decode(kept), encoded.left_out)


def faults(template: str, conversation: str, found: Outcome) -> list[str]:
    """What is untrue about an outcome, looked up without the product's own search for turns."""
    messages = CONVERSATIONS[conversation]
    parts = held(messages)
    if found.refused:
        return [] if _refused_truly(template, conversation, parts) else [f"refused: {found.refused}"]
    wrong = [f"learns {word} of another" for word in parts.others if word in found.learned]
    for kind in (parts.answers, parts.calls):
        wrong += [f"loses {word}" for words in kind for word in words if word not in found.learned]
    for kind, name in ((parts.reasoning, "reasoning"), (parts.words, "words beside a tool call")):
        lost = sum(any(word not in found.learned for word in words) for words in kind)
        if lost != found.left_out.count(name):
            wrong.append(f"{name} of {lost} turns is lost, {found.left_out.count(name)} are named")
    for turn in messages:
        if turn["role"] == "assistant" and turn.get("learn") is not False:
            for one in turn.get("tool_calls", []):
                name = one["function"]["name"]
                if found.learned.count(name) < 1:
                    wrong.append(f"loses the name {name}")
                for value in ("27", "41.9") if "days" in one["function"]["arguments"] else ():
                    if value not in found.learned:
                        wrong.append(f"loses {value}")
    return wrong


def _refused_truly(template: str, conversation: str, parts: Held) -> bool:
    """Whether the template, asked as transformers asks it, raises or loses an answer or a call.

    In every way that a turn without words, and arguments, may be spelled.
    """
    chosen, row = model_of(template), row_of(conversation)
    needed = {word for words in (*parts.answers, *parts.calls) for word in words}
    for content in ("", None, "absent"):
        for as_text in (False, True):
            messages = copy.deepcopy(row["messages"])
            for turn in messages:
                turn.pop("learn", None)
                for one in turn.get("tool_calls", []):
                    if as_text:
                        one["function"]["arguments"] = json.dumps(one["function"]["arguments"])
                if turn.get("tool_calls") and not turn["content"]:
                    turn["content"] = content
                    if content == "absent":
                        del turn["content"]
            try:
                text = chosen.apply_chat_template(messages, tools=row.get("tools"), tokenize=False)
            except Exception:
                continue
            if all(word in text for word in needed):
                return False
    return True


_SIGNS = {"whole": "✓", "no reasoning": "R", "no words beside a tool call": "W", "refused": "✗"}
_HEAD = """# Chat templates and what is learned under them

Made by `python -m tests.core.data.tokens.published`, and held true by its `test_published.py`: {templates}
published templates with {conversations} conversations each. What is learned is looked up in the tokens.

- ✓ everything that the learned turns hold is in the loss, and nothing that others say.
- R the template leaves out reasoning, W words beside a tool call: both are warned about before Start, with
  their rows. The rest is in the loss.
- ✗ refused, because the template raises an error, or loses an answer or a tool call.

Templates marked TRL are the files that TRL {version} ships as their authors published them; those marked
rebuilt are ours after the published ones.
"""


def sign(found: Outcome) -> str:
    return "".join(_SIGNS[word] for word in found.word.split("; "))


def line(name: str, found: dict[str, Outcome]) -> str:
    """A template's line of the table."""
    signs = " | ".join(sign(found[conversation]) for conversation in CONVERSATIONS)
    return f"| `{name}` | {templates()[name][0]} | {signs} |"


def table(found: dict[str, dict[str, Outcome]]) -> str:
    """The page of the docs, from every outcome by template and conversation."""
    from importlib.metadata import version

    numbers = range(1, len(CONVERSATIONS) + 1)
    head = _HEAD.format(
        templates=len(found), conversations=len(CONVERSATIONS), version=version("trl")
    ).splitlines()
    listed = [f"{number}. {name}" for number, name in zip(numbers, CONVERSATIONS, strict=True)]
    heads = " | ".join(map(str, numbers))
    rule = "|---" * (len(CONVERSATIONS) + 2) + "|"
    rows = [line(name, each) for name, each in found.items()]
    return "\n".join([*head, "", *listed, "", f"| template | from | {heads} |", rule, *rows, ""])


def main() -> None:
    found = {name: {one: outcome(name, one) for one in CONVERSATIONS} for name in templates()}
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text(table(found), encoding="utf-8")


if __name__ == "__main__":
    main()
