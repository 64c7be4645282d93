"""From a row to exactly what the model sees: rendered template, tokens and loss mask.

`encode` is the only way from text to tokens: the preview, the trainer and the evaluation use it.
"""

from dataclasses import dataclass
from typing import Any, Literal

from core.errors import StudioError

IGNORED = -100  # torch's cross entropy leaves such labels out


@dataclass(frozen=True)
class Encoded:
    """One row as tokens.

    ``input_ids`` and ``labels`` have the same length, at most ``max_length``; a label is the
    token itself where it is learned and IGNORED where it is not. ``cut`` holds the tokens past
    ``max_length``. ``cut_supervised`` of them would have been learned.
    """

    input_ids: list[int]
    labels: list[int]
    cut: list[int]
    cut_supervised: int

    @property
    def supervised(self) -> int:
        """Tokens in the loss. The first token is never predicted, so it never counts."""
        return sum(label != IGNORED for label in self.labels[1:])


def encode(row: dict[str, Any], tokenizer: Any, max_length: int) -> Encoded:
    """Render, tokenise and mask one row.

    :param row: ``messages`` or ``text``, as `core.data.shapes` makes it
    :raises StudioError: when the template cannot render the row, or loses the answer
    """
    if "messages" in row:
        text, spans = render(row["messages"], tokenizer)
        ids, offsets = _tokenise(text, tokenizer)
        learned = [
            start < end and any(start >= first and end <= last for first, last in spans)
            for start, end in offsets
        ]
    else:
        ids = tokenizer(row["text"])["input_ids"]
        if ids[-1:] != [tokenizer.eos_token_id]:
            ids = [*ids, tokenizer.eos_token_id]
        learned = [True] * len(ids)
    labels = [token if on else IGNORED for token, on in zip(ids, learned, strict=True)]
    return Encoded(
        input_ids=ids[:max_length],
        labels=labels[:max_length],
        cut=ids[max_length:],
        cut_supervised=sum(learned[max_length:]),
    )


def render(messages: list[dict[str, str]], tokenizer: Any) -> tuple[str, list[tuple[int, int]]]:
    """The template's text and, as character spans, what the assistant says in it.

    Each span is the difference between the text up to the assistant's turn (with the
    generation prompt) and the text that includes it, so no ``{% generation %}`` is needed.
    Whitespace after the end-of-turn token belongs to the next turn and is not learned.
    """
    text = _apply(messages, tokenizer)
    spans: list[tuple[int, int]] = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _apply(messages[:number], tokenizer, add_generation_prompt=True)
        after = _apply(messages[: number + 1], tokenizer)
        if not (after.startswith(before) and text.startswith(after)):
            before, after = _by_content(message["content"], text, spans[-1][1] if spans else 0)
        spans.append((len(before), len(after.rstrip()) if _ends_turn(after, tokenizer) else len(after)))
    return text, spans


def prompt_ids(messages: list[dict[str, str]], tokenizer: Any) -> list[int]:
    """Tokens of a conversation that the model is to continue."""
    return _tokenise(_apply(messages, tokenizer, add_generation_prompt=True), tokenizer)[0]


def _apply(messages: list[dict[str, str]], tokenizer: Any, add_generation_prompt: bool = False) -> str:
    if not tokenizer.chat_template:
        raise StudioError(
            "model.base",
            "has no chat template",
            "Choose an instruction-tuned model, or a dataset of plain text.",
        )
    if not messages:
        # A conversation that opens with the assistant: templates may not render an empty list.
        return ""
    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except Exception as error:
        # Templates raise through jinja, with any message their author chose.
        raise StudioError("chat template", f"cannot render this conversation: {error}"[:300]) from error


def _by_content(content: str, text: str, start: int) -> tuple[str, str]:
    """Fallback for templates that rewrite earlier turns: find the answer itself."""
    place = text.find(content.strip(), start)
    if place < 0:
        raise StudioError(
            "chat template", "drops or rewrites an assistant turn", "Choose another base model."
        )
    return text[:place], text[: place + len(content.strip())]


def _ends_turn(text: str, tokenizer: Any) -> bool:
    stripped = text.rstrip()
    return any(stripped.endswith(token) for token in tokenizer.all_special_tokens)


def _tokenise(text: str, tokenizer: Any) -> tuple[list[int], list[tuple[int, int]]]:
    # The template writes its own special tokens, so none are added here.
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return encoded["input_ids"], encoded["offset_mapping"]


@dataclass(frozen=True)
class Token:
    """One token as the X-ray shows it."""

    text: str
    kind: Literal["learned", "masked", "end", "cut"]
    special: bool


def tokens(encoded: Encoded, tokenizer: Any) -> list[Token]:
    """The row's tokens with what becomes of each; ``end`` is an end of turn that is learned."""
    special = set(tokenizer.all_special_ids)
    shown = []
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        kind: Literal["learned", "masked", "end", "cut"] = "masked" if label == IGNORED else "learned"
        if kind == "learned" and token in special:
            kind = "end"
        shown.append(Token(tokenizer.decode([token]), kind, token in special))
    return shown + [Token(tokenizer.decode([token]), "cut", token in special) for token in encoded.cut]


@dataclass(frozen=True)
class Summary:
    """What a set of rows comes to at one ``max_length``."""

    rows: int
    tokens: int
    supervised: int
    cut_rows: int
    empty_rows: int
    end_learned_rows: int
    longest: int


def summarise(encoded: list[Encoded], end_token: int) -> Summary:
    """Counts over encoded rows; ``empty_rows`` would train on nothing.

    :param end_token: the tokenizer's end-of-sequence token
    """
    return Summary(
        rows=len(encoded),
        tokens=sum(len(row.input_ids) for row in encoded),
        supervised=sum(row.supervised for row in encoded),
        cut_rows=sum(bool(row.cut) for row in encoded),
        empty_rows=sum(row.supervised == 0 for row in encoded),
        end_learned_rows=sum(end_token in row.labels for row in encoded),
        longest=max((len(row.input_ids) + len(row.cut) for row in encoded), default=0),
    )


def refuse_nothing_to_learn(summary: Summary, max_length: int) -> None:
    """:raises StudioError: when no row has a token to learn within ``max_length``"""
    if summary.supervised == 0:
        raise StudioError(
            "training.max_length",
            f"all {summary.rows} rows have no answer tokens within {max_length} tokens",
            f"The longest row has {summary.longest} tokens: raise max_length.",
        )
