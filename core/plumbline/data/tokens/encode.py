"""From a row to exactly what the model sees: tokens and loss mask.

`encode` and `encode_all` are the one way from text to tokens: the preview, the trainer and the
evaluation use it.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from operator import itemgetter
from typing import Any, Literal

from plumbline.data.rows import Message, Row
from plumbline.data.tokens.chat_template import Rendered, Renderer, control_tokens, render
from plumbline.data.tokens.tokenize import tokenise
from plumbline.errors import StudioError

Kind = Literal["learned", "masked", "end", "cut"]
MOST_OF_A_CHARACTER = 8  # tokens; four bytes are the longest, an emoji sequence has more
IGNORED = -100  # torch's cross entropy leaves such labels out
BATCH = 500  # rows that are tokenised at once


class EncodeError(StudioError):
    """A row that cannot be encoded; ``row`` is its place among the rows given, from 0."""

    def __init__(self, error: StudioError, row: int, beginning: str) -> None:
        self.row, self.without_place = row, error
        super().__init__(error.where, f"{error.what} (in the row that begins {beginning!r})", error.fix)


@dataclass(frozen=True)
class Encoded:
    """One row as tokens.

    ``input_ids`` and ``labels`` have the same length, at most ``max_length``; a label is the
    token itself where it is learned and IGNORED where it is not. ``cut`` holds the tokens past
    ``max_length``. ``cut_supervised`` of them would have been learned. ``left_out`` names what the
    template leaves out of the learned turns, once for each turn.
    """

    input_ids: list[int]
    labels: list[int]
    cut: list[int]
    cut_supervised: int
    left_out: tuple[str, ...] = ()

    @property
    def supervised(self) -> int:
        """Tokens in the loss. The first token is never predicted, so it never counts."""
        return max(0, len(self.labels) - 1) - self.labels[1:].count(IGNORED)


def encode(row: Row, tokenizer: Any, max_length: int, day: str = "") -> Encoded:
    """Render, tokenise and mask one row.

    :param row: ``messages`` or ``text``, as `plumbline.data.formats.detect` makes it
    :param day: of templates that write one; that of the run, empty before there is one
    :raises StudioError: when the template cannot render the row, or loses the answer
    """
    return next(encode_all([row], tokenizer, max_length, day))


def encode_all(rows: Iterable[Row], tokenizer: Any, max_length: int, day: str = "") -> Iterator[Encoded]:
    """`encode` for many rows, in batches.

    :raises EncodeError: for the first row that cannot be encoded; rows of earlier batches were given before
    :raises StudioError: when no row is at fault: there is no template, or it does not work
    """
    renderer = Renderer(tokenizer, day)
    numbered = enumerate(rows)
    while batch := list(islice(numbered, BATCH)):
        rendered = [_rendered(renderer, number, row) for number, row in batch]
        for each, (ids, offsets) in zip(rendered, tokenise(rendered, renderer), strict=True):
            yield _encoded(each, ids, offsets, max_length)


def prompt_ids(
    messages: list[Message], tokenizer: Any, tools: list[dict[str, Any]] | None = None, day: str = ""
) -> list[int]:
    """Tokens of a conversation that the model is to continue.

    :param day: of templates that write one; that of the run, empty when there is none
    """
    renderer = Renderer(tokenizer, day)
    return next(tokenise([renderer.prompt(messages, tools)], renderer))[0]


def continued_ids(text: str, tokenizer: Any) -> list[int]:
    """Tokens of a plain text that the model is to continue, begun as in pretraining."""
    renderer = Renderer(tokenizer)
    rendered = renderer.text(text)
    return [*rendered.before, *next(tokenise([rendered], renderer))[0]]


def end_tokens(tokenizer: Any) -> frozenset[int]:
    """The tokens that end what the assistant says: the tokenizer's own, and the template's.

    Many templates end a turn with a token that is not the tokenizer's end of sequence.
    """
    try:
        return frozenset(turn_ends(tokenizer)) | {tokenizer.eos_token_id}
    except StudioError:
        return frozenset({tokenizer.eos_token_id})  # no template that works: there is only plain text


@lru_cache(maxsize=8)
def turn_ends(tokenizer: Any) -> tuple[int, ...]:
    """The control tokens that the template writes between an answer and the end of its turn, in order.

    :raises StudioError: when there is no template that works
    """
    answer = "As you like it"
    exchange = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": answer}]
    text, spans = render({"messages": exchange}, tokenizer)
    learned_text = "".join(text[start:end] for start, end in spans)
    closing = learned_text.rpartition(answer)[2] if answer in learned_text else ""
    positions = {token: closing.find(written) for token, written in control_tokens(tokenizer).items()}
    return tuple(
        sorted((token for token, position in positions.items() if position >= 0), key=lambda t: positions[t])
    )


def _rendered(renderer: Renderer, number: int, row: Row) -> Rendered:
    renderer.check(row)
    try:
        rendered = renderer.row(row)
        rendered.text.encode()
    except UnicodeEncodeError:
        error = StudioError("row", "has half a character (a lone surrogate)", "Save the file as UTF-8 again.")
        raise EncodeError(error, number, _beginning(row)) from None
    except StudioError as error:
        raise EncodeError(error, number, _beginning(row)) from error
    return rendered


def _beginning(row: Row) -> str:
    opening = row.get("text") or next((each.get("content") for each in row.get("messages", [])), "") or ""
    return opening[:40].encode(errors="replace").decode()


def _encoded(rendered: Rendered, ids: list[int], offsets: list[Any], max_length: int) -> Encoded:
    labels = [IGNORED] * len(ids)
    for first, last in rendered.spans:
        # Every token with a character in the span: one that holds the end of the header and the
        # beginning of the answer is learned.
        start = bisect_right(offsets, first, key=itemgetter(1))
        end = bisect_left(offsets, last, key=itemgetter(0))
        labels[start:end] = ids[start:end]
    around = [rendered.before, rendered.after]
    before, after = ([*tokens] if rendered.spans else [IGNORED] * len(tokens) for tokens in around)
    ids, labels = [*rendered.before, *ids, *rendered.after], [*before, *labels, *after]
    cut = labels[max_length:]
    return Encoded(
        input_ids=ids[:max_length],
        labels=labels[:max_length],
        cut=ids[max_length:],
        cut_supervised=len(cut) - cut.count(IGNORED),
        left_out=rendered.left_out,
    )


@dataclass(frozen=True)
class Token:
    """One token as the X-ray shows it."""

    text: str
    kind: Kind
    special: bool


def tokens(encoded: Encoded, tokenizer: Any) -> list[Token]:
    """The row's tokens with what becomes of each; ``end`` is an end of turn that is learned."""
    special = control_tokens(tokenizer)
    kinds: list[tuple[int, Kind]] = []
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        kind: Kind = "masked" if label == IGNORED else "end" if token in special else "learned"
        kinds.append((token, kind))
    kinds += [(token, "cut") for token in encoded.cut]
    shown: list[Token] = []
    pending: list[int] = []
    for position, (token, kind) in enumerate(kinds):
        pending.append(token)
        text = tokenizer.decode(pending)
        # A character of several bytes may be several tokens: they are shown as the one thing they spell.
        goes_on = (
            position + 1 < len(kinds)
            and kinds[position + 1][1] == kind
            and len(pending) < MOST_OF_A_CHARACTER
        )
        if text.endswith("\ufffd") and goes_on:
            continue
        shown.append(Token(text, kind, token in special))
        pending = []
    return shown
