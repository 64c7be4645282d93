"""What a chat template leaves out of learned turns, in words; what helps is found by trying the template."""

from functools import lru_cache

from plumbline.config.schema import RunConfig
from plumbline.data.rows import Message
from plumbline.data.selection import mix, stats
from plumbline.data.selection.stats import LeftOut
from plumbline.data.tokens.assistant_spans import REASONING, WORDS
from plumbline.data.tokens.chat_template import Renderer
from plumbline.errors import StudioError
from plumbline.models import load

SHOWN = 5  # rows that are named


def sentences(left_out: tuple[LeftOut, ...], base: str, revision: str | None) -> list[str]:
    """A sentence for each thing that is left out: of how many answers, in which rows, and what helps.

    :param left_out: of a set of rows, as the template of the base renders them
    """
    return [
        f"{part.what} of {part.turns:,} answer{'s are' if part.turns > 1 else ' is'} left out by the chat "
        f"template of {base}, and not learned ({_rows(part)}). {_help(part.what, base, revision)}"
        for part in left_out
    ]


def warnings(config: RunConfig) -> list[str]:
    """What the template of a recipe's base leaves out of its rows, in sentences.

    :raises StudioError: when a row cannot be rendered, or loses a tool call
    """
    chosen, model = mix.choose(config.data), config.model
    lines = []
    for choice in chosen:
        measured = stats.of_part(choice.part, choice.dataset, model.base, model.revision, config.data.day)
        named = f"{choice.name}: " if len(chosen) > 1 else ""
        lines += [named + text for text in sentences(measured.left_out, model.base, model.revision)]
    return lines


def _rows(part: LeftOut) -> str:
    listed = ", ".join(f"{number:,}" for number in part.numbers[:SHOWN])
    more = part.rows - len(part.numbers[:SHOWN])
    return f"row{'s' if part.rows > 1 else ''} {listed}" + (f" and {more:,} more" if more else "")


@lru_cache(maxsize=32)
def _help(what: str, base: str, revision: str | None) -> str:
    renderer = Renderer(load.tokenizer(base, revision))
    return _help_with_words(renderer) if what == WORDS else _help_with_reasoning(renderer)


def _help_with_reasoning(renderer: Renderer) -> str:
    answer = {"role": "assistant", "content": "Four."}
    inside = {**answer, "content": "<think>\nTwo and two.\n</think>\n\nFour."}
    beside = {**answer, "reasoning_content": "Two and two."}
    question = {"role": "user", "content": "What is it?"}
    alone = [_keeps(renderer, [question, reply], REASONING) for reply in (inside, beside)]
    earlier = [_keeps(renderer, [question, reply, question, answer], REASONING) for reply in (inside, beside)]
    if not any(alone):
        return "It keeps no reasoning: choose a base whose template does, or the answers alone are learned."
    if alone[0] and not alone[1]:
        return "It keeps reasoning only inside of the answer: write it there, as <think>...</think>."
    where = "" if alone[0] else ", in reasoning_content"
    if all(earlier):
        return f"It keeps reasoning only beside an answer without tool calls{where}."
    return f"It keeps only that of the last answer{where}: end each row with an answer that brings it."


def _help_with_words(renderer: Renderer) -> str:
    question, words = {"role": "user", "content": "Rain?"}, {"role": "assistant", "content": "I look it up."}
    function = {"name": "rain", "arguments": {"city": "Rome"}}
    call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
    if _keeps(renderer, [question, words, call], WORDS):
        return "It keeps them as a turn of their own: put them into one before the call."
    return "Choose a base whose template keeps both, or the call alone is learned."


def _keeps(renderer: Renderer, messages: list[Message], what: str) -> bool:
    row = {"messages": messages}
    try:
        renderer.check(row)
        return what not in renderer.row(row).left_out
    except StudioError:
        return False
