"""Rendered texts to tokens with their places; a control token that a row merely quotes is spelled out."""

from collections.abc import Iterator
from copy import deepcopy
from functools import lru_cache
from typing import Any

from plumbline.data.tokens.chat_template import Rendered, Renderer
from plumbline.errors import StudioError

Tokens = tuple[list[int], list[tuple[int, int]]]  # ids, and the characters that each stands for
Placed = tuple[int, tuple[int, int]]


def tokenise(rendered: list[Rendered], renderer: Renderer) -> Iterator[Tokens]:
    """The tokens of each text. :raises StudioError: when the tokenizer cannot tell their places"""
    if not renderer.tokenizer.is_fast:
        raise StudioError("model.base", "has no fast tokenizer", "Choose a base with a tokenizer.json.")
    # The template writes its own special tokens, so none are added here.
    encoded = renderer.tokenizer(
        [each.text for each in rendered],
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,  # a length past the model's is told by the cut, not by a log line
    )
    for each, ids, offsets in zip(rendered, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        yield _spelled_out(each, ids, offsets, renderer) if each.unescape else (ids, offsets)


def _spelled_out(
    rendered: Rendered, ids: list[int], offsets: list[tuple[int, int]], renderer: Renderer
) -> Tokens:
    """Between two control tokens that the template wrote, a piece that quotes one is tokenised anew."""
    text, position, first = rendered.text, 0, 0
    new_ids: list[int] = []
    new_offsets: list[tuple[int, int]] = []
    written = [
        number
        for number, (token, (start, end)) in enumerate(zip(ids, offsets, strict=True))
        if token in renderer.control and text[start:end].strip() == renderer.control[token].strip()
    ]
    for number in [*written, len(ids)]:
        end = offsets[number][0] if number < len(ids) else len(text)
        piece, own = text[position:end], ids[first:number]
        if any(ord(character) in rendered.unescape for character in piece):
            for token, (start, stop) in _spell(piece, own, rendered.unescape, renderer):
                new_ids.append(token)
                new_offsets.append((position + start, position + stop))
        else:
            new_ids += own
            new_offsets += offsets[first:number]
        new_ids += ids[number : number + 1]
        new_offsets += offsets[number : number + 1]
        position, first = offsets[number][1] if number < len(ids) else end, number + 1
    return new_ids, new_offsets


def _spell(piece: str, own: list[int], unescape: dict[int, str], renderer: Renderer) -> list[Placed]:
    speller = _speller(renderer.tokenizer)
    # Alone, the piece may begin differently than in its place (a word mark at the start of a text):
    # then something goes before it that no token joins, and is taken away again.
    lead = "" if speller.encode(piece, add_special_tokens=False).ids == own else "\0"
    return _apart(piece.translate(unescape), lead, 0, speller, renderer.control)


def _apart(text: str, lead: str, origin: int, speller: Any, control: dict[int, str]) -> list[Placed]:
    """Tokens of a text, none of them a control token.

    Unigram tokenizers hold those among their pieces, and find them again in letters: such a text is cut
    within the first one that is found, and both halves are tokenised alone.

    :param lead: goes before the text and is taken away again
    :param origin: where the text stands
    """
    spelled = speller.encode(lead + text, add_special_tokens=False)
    placed = [
        (token, (origin + start - len(lead), origin + end - len(lead)))
        for token, (start, end) in zip(spelled.ids, spelled.offsets, strict=True)
        if end > len(lead) or not lead
    ]
    for token, (start, end) in placed:
        inside = [cut for cut in range(max(start, origin) + 1, end) if not text[cut - origin - 1].isspace()]
        if token in control and inside:
            cut = inside[0] - origin
            left = _apart(text[:cut], lead, origin, speller, control)
            return left + _apart(text[cut:], "\0", origin + cut, speller, control)
    return placed


@lru_cache(maxsize=2)
def _speller(tokenizer: Any) -> Any:
    # A copy, because the setting would be seen by other threads that use the tokenizer.
    copy = deepcopy(tokenizer.backend_tokenizer)
    copy.encode_special_tokens = True
    return copy
