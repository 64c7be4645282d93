"""Checks of what rows say: counted over the whole file while it is imported, with the rows to look at.

Each check looks for something cheap in a whole block of rows first, and only where that is found
at the single rows: a clean file is checked at the speed of a search for a few bytes.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from plumbline.data.formats.columns import are_numbers

SHOWN = 20  # rows that a finding names
LONG_TIMES, LONG_BYTES = 20, 16_000


class Block:
    """Some rows as bytes, searched a hundred times faster than by ``in``: first for two bytes at once."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.array = numpy.frombuffer(data, numpy.uint8)

    def _pairs(self, first: int, second: int) -> Any:
        return (self.array[:-1] == first) & (self.array[1:] == second)

    def holds(self, *marks: bytes) -> bool:
        """Whether any of these, of two bytes or more, is in the block."""
        return any(self._holds(mark) for mark in marks)

    def _holds(self, mark: bytes) -> bool:
        # The search for one byte costs next to nothing, and most blocks lack one of the two.
        if mark[:1] not in self.data or mark[1:2] not in self.data:
            return False
        return bool(self._pairs(*mark[:2]).any()) and (len(mark) == 2 or mark in self.data)

    def count(self, pair: bytes) -> int:
        """How often two bytes (not twice the same) follow one another."""
        return int(numpy.count_nonzero(self._pairs(*pair)))

    def numbers(self) -> Any:
        """Positions (of 16 bytes each) around which numbers as long as a phone's or a card's may stand."""
        packed = numpy.packbits((self.array - 48) < 10)
        counts = _ONES[numpy.append(packed, numpy.zeros(len(packed) % 2, numpy.uint8)).view(numpy.uint16)]
        return numpy.flatnonzero(counts[:-1] + counts[1:] >= 8) * 16


_ONES = numpy.array([bin(word).count("1") for word in range(65536)], numpy.uint8)


@dataclass(frozen=True)
class Check:
    """One kind of trouble inside rows. ``said`` follows "N rows".

    :param in_block: whether the block may hold it at all; None for numbers, which `Block.numbers` finds
    """

    text: str
    pattern: re.Pattern[bytes]
    in_block: Callable[[Block], bool] | None
    sure: Callable[[bytes, re.Pattern[bytes]], bool] | None = None


def _any(*marks: bytes) -> Callable[[Block], bool]:
    return lambda block: block.holds(*marks)


_CARD = re.compile(rb"(?<![\d.])\d(?:[ -]?\d){12,18}(?![\d.])")
_PHONE = re.compile(
    rb"(?<![\w.+])(?:\+\d{1,3}[ .-]?|\(\d{3}\) ?|\d{3}[.-])\d{2,4}(?:[ .-]?\d{2,4}){1,4}(?![\w-])"
)


def _is_phone(line: bytes, pattern: re.Pattern[bytes]) -> bool:
    """Whether a number in the line has as many digits as a phone number."""
    return any(9 <= sum(48 <= byte < 58 for byte in match[0]) <= 15 for match in pattern.finditer(line))


def _is_card(line: bytes, pattern: re.Pattern[bytes]) -> bool:
    """Whether a number in the line passes the Luhn check that card numbers carry."""
    for match in pattern.finditer(line):
        digits = [int(chr(byte)) for byte in match[0] if 48 <= byte < 58]
        doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
        # The first digit of every card network; zeros and repeats are other things.
        if (
            digits[0] in (2, 3, 4, 5, 6)
            and len(set(digits)) > 3
            and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0
        ):
            return True
    return False


CHECKS: dict[str, Check] = {
    "special": Check(
        "hold special tokens in their text (they are learned as plain text)",
        re.compile(
            rb"<\|[^|<>\s]{1,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start_of_turn|end_of_turn|eos|bos|pad|unk)>"
        ),
        _any(b"<|", b"s>", b"[INST]", b"<<SYS>>", b"_turn>", b"<pad>", b"<unk>"),
    ),
    "roles": Check(
        "spell out roles such as “Assistant:” that the chat template writes itself",
        re.compile(rb"(?:\"|\\n)(?:Assistant|### Response|### Assistant):"),
        _any(b"Assistant:", b"### Response:"),
    ),
    "placeholder": Check(
        "hold an unfilled placeholder such as {{name}}: fill it in with the mapping (fill.name=...)",
        re.compile(rb"\{\{ ?[\w .]{1,40} ?\}\}"),
        _any(b"{{"),
    ),
    "invisible": Check(
        "hold invisible or direction-changing characters",
        re.compile(
            rb"\xe2\x80[\x8b\x8e\x8f\xaa-\xae]|\xe2\x81[\xa0-\xa9]|\xef\xbb\xbf|\xf3\xa0[\x80\x81]|\xc2\xad"
        ),
        lambda block: not block.data.isascii(),
    ),
    "control": Check(
        "hold control characters such as NUL",
        re.compile(rb"(?<!\\)(?:\\\\)*\\u00[01][0-9a-f]|\x7f"),
        lambda block: block.holds(b"\\u00") or b"\x7f" in block.data,
    ),
    "replacement": Check(
        "hold the sign � of text that was decoded wrongly before",
        re.compile(rb"\xef\xbf\xbd"),
        _any(b"\xef\xbf\xbd"),
    ),
    "email": Check(
        "hold an e-mail address",
        re.compile(rb"[\w.+-]{1,64}@[\w-]{1,63}\.[A-Za-z]{2,}"),
        lambda block: b"@" in block.data,
    ),
    "phone": Check("hold what looks like a phone number", _PHONE, None, _is_phone),
    "card": Check("hold what looks like a card number", _CARD, None, _is_card),
}


def scan(block: Block, lines: Sequence[bytes]) -> dict[str, list[int]]:
    """Rows of a block (numbered from 0) that each check finds something in."""
    rows_by_check = {}
    numbered = _rows_at(block.numbers(), lines)
    for kind, check in CHECKS.items():
        if check.in_block is not None and not check.in_block(block):
            continue
        search, sure = check.pattern.search, check.sure
        rows = [
            number
            for number in (numbered if check.in_block is None else range(len(lines)))
            if search(lines[number]) and (sure is None or sure(lines[number], check.pattern))
        ]
        if rows:
            rows_by_check[kind] = rows
    return rows_by_check


def _rows_at(positions: Any, lines: Sequence[bytes]) -> list[int]:
    """Numbers of the rows at these positions of their block, and of those that begin right after."""
    if not len(positions):
        return []
    ends = numpy.cumsum([len(line) for line in lines])
    near = numpy.concatenate([positions, positions + 31])
    return numpy.unique(numpy.searchsorted(ends, near.clip(0, ends[-1] - 1), side="right")).tolist()


@dataclass(frozen=True)
class Finding:
    """What a check found in a dataset. ``rows`` are the first of them, from 1, in ``part``."""

    kind: str
    text: str
    part: str = "train"
    rows: tuple[int, ...] = ()


def findings(part: str, index: Any, counted: Any) -> list[Finding]:
    """Everything that the rows of one part should be looked at for."""
    total = len(index)
    where = "" if part == "train" else "held-out "
    all_findings = [
        Finding(
            kind if kind in CHECKS else "reading",
            f"{count:,} of {total:,} {where}rows {CHECKS[kind].text if kind in CHECKS else kind}",
            part,
            tuple(row + 1 for row in rows),
        )
        for kind, (count, rows) in counted.hits.items()
    ]
    repeated = repeats(index["row"])
    if len(repeated):
        all_findings.append(
            Finding(
                "duplicates",
                f"{len(repeated):,} of {total:,} {where}rows repeat an earlier row",
                part,
                tuple(int(row) + 1 for row in repeated[:SHOWN]),
            )
        )
    sizes = index["size"]
    limit = max(LONG_BYTES, LONG_TIMES * float(numpy.median(sizes)) if total else 0)
    long = numpy.flatnonzero(sizes > limit)
    if len(long):
        text = f"{len(long):,} of {total:,} {where}rows are very long (over {limit:,.0f} bytes)"
        all_findings.append(Finding("long", text, part, tuple(int(row) + 1 for row in long[:SHOWN])))
    labels = counted.labels
    if 1 < len(labels) <= 100:
        (most, many), (least, few) = labels.most_common()[0], labels.most_common()[-1]
        if many >= 5 * few:
            text = f"labels are unbalanced: {most!r:.40} has {many:,} {where}rows, {least!r:.40} has {few:,}"
            all_findings.append(Finding("balance", text, part))
    if labels and are_numbers(list(labels)):
        text = f"the labels of {where}rows are numbers ({', '.join(sorted(labels)[:4])}), without their names"
        all_findings.append(Finding("numbers", text, part))
    if len(labels) == 1 and total > 1:
        all_findings.append(
            Finding("balance", f"all {where}rows have the same label {next(iter(labels))!r:.40}", part)
        )
    return all_findings


def repeats(keys: Any) -> Any:
    """Positions of values that came before."""
    order = numpy.argsort(keys, kind="stable")
    ordered = keys[order]
    return numpy.sort(order[1:][ordered[1:] == ordered[:-1]])


def leaks(train: Any, held_out: Any) -> list[Finding]:
    """Held-out rows that are trained on as well: whole rows, or only their question."""
    leaked = []
    whole = numpy.isin(held_out["row"], train["row"])
    asked = numpy.isin(held_out["prompt"], train["prompt"]) & ~whole
    for kind, mask, statement in (
        ("leak", whole, "are training rows too: their score says nothing"),
        ("prompt leak", asked, "ask what a training row asks"),
    ):
        rows = numpy.flatnonzero(mask)
        if len(rows):
            text = f"{len(rows):,} of {len(held_out):,} held-out rows {statement}"
            leaked.append(Finding(kind, text, "held_out", tuple(int(row) + 1 for row in rows[:SHOWN])))
    return leaked
