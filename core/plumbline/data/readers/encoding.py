"""Bytes that must be text: in UTF-8, or in the encoding that the user names.

Nothing is guessed and nothing replaced; what is not UTF-8 is named with its place and what it looks like.
"""

import codecs
from pathlib import Path

from plumbline.data.readers.limits import CHUNK
from plumbline.errors import StudioError

ENCODINGS = ("utf-8", "utf-16", "windows-1252", "iso-8859-1", "iso-8859-15", "windows-1251", "shift_jis",
             "euc-jp", "gb18030", "big5", "euc-kr", "macroman")  # fmt: skip
NEWLINE = b"\n"
SEEN = 64 * 1024  # bytes that tell whether a chosen encoding contradicts the file
FIX = "Choose that encoding, or save the file as UTF-8."


def refuse_utf16(name: str, head: bytes) -> None:
    """:raises StudioError: when the first bytes are UTF-16, or not text at all"""
    even, odd = head[:200:2].count(0), head[1:200:2].count(0)
    few, many = sorted((even, odd))
    if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or many > 2 * few + max(
        2, len(head[:200]) // 8
    ):
        raise StudioError(f"{name} line 1", "looks like UTF-16", "Choose that encoding, or save it as UTF-8.")
    if head.count(0) > max(8, len(head) // 8):
        raise StudioError(name, "holds bytes that are not text", "Choose a file of text rows.")


def recoded(path: Path, name: str, encoding: str, target: Path) -> Path:
    """Write the file's text as UTF-8. :raises StudioError: with the line that is not in that encoding"""
    if encoding not in ENCODINGS:
        raise StudioError(
            name, f"cannot be read as {encoding!r}", f"Known encodings: {', '.join(ENCODINGS)}."
        )
    with open(path, "rb") as source:
        head = source.read(SEEN)
    _refuse_garbled(name, head, encoding)
    decoder = codecs.getincrementaldecoder(_in_order(encoding, head))()
    line = 1
    with open(path, "rb") as source, open(target, "wb") as out:
        while True:
            block = source.read(CHUNK)
            try:
                text = decoder.decode(block, final=not block)
                out.write(text.encode("utf-8"))
            except UnicodeError as error:
                if isinstance(error, UnicodeDecodeError):
                    line += error.object[: error.start].count(NEWLINE)
                raise StudioError(
                    f"{name} line {line}", f"is not {encoding}", "Choose another encoding."
                ) from None
            line += text.count("\n")
            if not block:
                return target


def _refuse_garbled(name: str, head: bytes, encoding: str) -> None:
    """:raises StudioError: when the first bytes are UTF-8 or UTF-16, and another encoding was chosen"""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        known = "utf-16"
    else:
        known = "utf-8" if _is_utf8(head) else encoding
    if known != encoding:
        what = f"is {known.upper()} (reading it as {encoding} would garble it)"
        raise StudioError(name, what, f"Choose {known}.")


def _is_utf8(head: bytes) -> bool:
    """Whether bytes begin as UTF-8 says, or are UTF-8 with characters that ASCII does not have."""
    if head.startswith(codecs.BOM_UTF8):
        return True
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, final=len(head) < SEEN)
    except UnicodeDecodeError:
        return False
    return not head.isascii()


def _in_order(encoding: str, head: bytes) -> str:
    """UTF-16 that does not begin with its byte order, by where its zeros are; else the encoding itself."""
    if encoding != "utf-16" or head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return encoding
    even, odd = head[::2].count(0), head[1::2].count(0)
    return encoding if even == odd else "utf-16-be" if even > odd else "utf-16-le"


def refuse_other(path: Path, name: str) -> None:
    """For a file that did not read as UTF-8.

    :raises StudioError: with line, byte and a likely encoding of what is not UTF-8
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    line, column = 1, 0  # where the last block ended
    with open(path, "rb") as source:
        while True:
            block = source.read(CHUNK)
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                # The decoder may have held back bytes of the block before.
                data, carried_over = error.object, len(error.object) - len(block)
                before = data[: error.start]
                last = before.rfind(NEWLINE)
                byte = error.start - last if last >= 0 else column - carried_over + error.start + 1
                where = f"{name} line {line + before.count(NEWLINE)}, byte {byte}"
                raise StudioError(where, _not_utf8(data, error.start), FIX) from None
            if not block:
                return
            line += block.count(NEWLINE)
            last = block.rfind(NEWLINE)
            column = len(block) - last - 1 if last >= 0 else column + len(block)


def explain(line: bytes) -> str:
    """What is not UTF-8 in a line, as a phrase that follows its number; empty when it all is."""
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return f"byte {error.start + 1}: {_not_utf8(line, error.start)}; choose that encoding"
    return ""


def _not_utf8(data: bytes, position: int) -> str:
    return f"0x{data[position]:02x} is not UTF-8; the file looks like {_likely(data[-256 * 1024 :])}"


def _likely(sample: bytes) -> str:
    """A name for the encoding, for the message only: multi-byte ones are strict enough to tell."""
    high = sum(byte >= 0x80 for byte in sample[:4096]) / max(1, len(sample[:4096]))
    if high > 0.2:
        for encoding in ("shift_jis", "gb18030", "euc-kr", "big5", "windows-1251"):
            try:
                codecs.getincrementaldecoder(encoding)().decode(sample)
            except UnicodeDecodeError:
                continue
            return encoding
    return "windows-1252"
