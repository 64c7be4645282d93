"""A user's file made ready to read: its format recognised, unpacked, in UTF-8, within limits.

Nothing is guessed about its text: a file that is not UTF-8 is refused with what it looks like,
and read in another encoding only when the user names one.
"""

import codecs
import gzip
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from plumbline.data.readers import encoding, json_lines
from plumbline.data.readers.encoding import ENCODINGS as ENCODINGS
from plumbline.data.readers.limits import CHUNK, MAX_RATIO, max_bytes
from plumbline.errors import StudioError
from plumbline.home import folder

Kind = Literal["jsonl", "json", "csv", "parquet", "arrow", "yaml", "text"]
KINDS: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".markdown": "text",
}
SUFFIXES = (*KINDS, ".gz")
LONGEST_NAME = 60
_TURNING = frozenset(("LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"))
_GZIP = b"\x1f\x8b"

# What the first bytes say about files that hold no rows of text, and what to do about each.
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"\x89PNG", "is a PNG picture", "Text is what is learned from here."),
    (b"\xff\xd8\xff", "is a JPEG picture", "Text is what is learned from here."),
    (b"GIF8", "is a GIF picture", "Text is what is learned from here."),
    (b"RIFF", "is a sound, video or picture file", "Text is what is learned from here."),
    (b"ID3", "is a sound file", "Text is what is learned from here."),
    (b"%PDF-", "is a PDF", "Save its text as .txt or .md."),
    (b"{\\rtf", "is a Rich Text document", "Save it as plain text."),
    (b"\xd0\xcf\x11\xe0", "is an old Office document", "Save it as CSV or plain text."),
    (b"SQLite format 3", "is an SQLite database", "Export the table as CSV."),
    (b"\x89HDF", "is an HDF5 file", "Save the table as Parquet or CSV."),
    (b"\x80\x02", "is a pickle, which is never opened", "Save it as JSONL or Parquet."),
    (b"\x80\x03", "is a pickle, which is never opened", "Save it as JSONL or Parquet."),
    (b"\x80\x04", "is a pickle, which is never opened", "Save it as JSONL or Parquet."),
    (b"\x80\x05", "is a pickle, which is never opened", "Save it as JSONL or Parquet."),
    (b"\x93NUMPY", "is a NumPy array", "Save the rows as JSONL or Parquet."),
    (b"7z\xbc\xaf", "is a 7z archive", "Unpack it and choose the files in it."),
    (b"Rar!", "is a RAR archive", "Unpack it and choose the files in it."),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd", "Unpack it, or use gzip."),
    (b"\xfd7zXZ", "is compressed with xz", "Unpack it, or use gzip."),
    (b"BZh", "is compressed with bzip2", "Unpack it, or use gzip."),
    (b"\x7fELF", "is a program", "Choose a file of text rows."),
    (b"MZ", "is a program", "Choose a file of text rows."),
    (b"GGUF", "is a GGUF model", "Choose a file of text rows."),
    (b"Obj\x01", "is an Avro file", "Save the rows as Parquet or JSONL."),
    (b"ORC", "is an ORC file", "Save the rows as Parquet or JSONL."),
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A file that a user brought: where it is, and what they call it.

    The name says the format and stands in messages; it is never used as a path. Characters that
    would change how a message reads stand in it as marks.
    """

    path: Path
    name: str

    def __post_init__(self) -> None:
        name = "".join(map(_shown, self.name)).rstrip(". ") or "file"
        shown = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 20]}…{name[-19:]}"
        object.__setattr__(self, "name", shown)


def _shown(character: str) -> str:
    """A character of a name; a control or direction-changing one as its mark."""
    number = ord(character)
    if unicodedata.category(character) == "Cs" or unicodedata.bidirectional(character) in _TURNING:
        return "␦"
    return chr(0x2400 + number) if number < 0x20 else "␡" if 0x7F <= number < 0xA0 else character


@dataclass(frozen=True)
class Reading:
    """How files are read where a file does not say it itself.

    :param encoding: one of ENCODINGS
    :param delimiter: of CSV; empty means recognised from the file
    :param header: whether the first CSV line names the columns; None means recognised
    :param chunk: most characters in one row of a plain text or Markdown file
    :raises StudioError: when the delimiter is none
    """

    encoding: str = "utf-8"
    delimiter: str = ""
    header: bool | None = None
    chunk: int = 2000

    def __post_init__(self) -> None:
        one_character = len(self.delimiter) == 1 and (self.delimiter.isprintable() or self.delimiter == "\t")
        if self.delimiter and not (one_character and self.delimiter != '"'):
            what = f"{self.delimiter!r:.40} cannot part the cells of a table"
            fix = "It is one character, and no quote sign: comma, semicolon, tab and bar are usual."
            raise StudioError("delimiter", what, fix)


@dataclass(frozen=True)
class File:
    """A file ready to read. ``path`` should hold UTF-8 for every kind but Parquet and Arrow.

    :param lines: whether it is one JSON object a line, so that parts of it can be read on their own
    """

    path: Path
    name: str
    kind: Kind
    reading: Reading
    lines: bool = False


@contextmanager
def opened(source: Source, reading: Reading = Reading()) -> Iterator[File]:  # noqa: B008 (frozen)
    """The file as UTF-8 on disk, for as long as the context lasts.

    :raises StudioError: when its format is unknown or hopeless, it is too large, or not text
    """
    path, name = source.path, source.name
    size = path.stat().st_size
    if size == 0:
        raise StudioError(name, "is empty", "Choose a file with at least one row.")
    if size > max_bytes():
        raise StudioError(
            name, f"has {size:,} bytes, the limit is {max_bytes():,}", "Split it, or raise the limit."
        )
    with tempfile.TemporaryDirectory(dir=folder("staging")) as staging:
        head = _head(path)
        packed = head[:2] == _GZIP
        if packed:
            path = _unpacked(path, name, Path(staging) / "unpacked")
            head = _head(path)
        _refuse_hopeless(path, name, head)
        kind = _kind(name, head, packed)
        if kind not in ("parquet", "arrow"):
            if reading.encoding != "utf-8":
                path = encoding.recoded(path, name, reading.encoding, Path(staging) / "utf8")
            else:
                encoding.refuse_utf16(name, head)
        lines = kind in ("jsonl", "json") and json_lines.holds_lines(path, kind)
        yield File(path, name, kind, reading, lines)


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(4096)


def _kind(name: str, head: bytes, packed: bool) -> Kind:
    suffixes = [suffix.lower() for suffix in Path(f"file{name}").suffixes]
    if packed and suffixes[-1:] == [".gz"]:
        suffixes.pop()
    suffix = suffixes[-1] if suffixes else ""
    kind = KINDS.get(suffix)
    if head[:4] == b"PAR1":
        return "parquet"
    if kind is not None:
        return kind
    # Without a known suffix only what cannot be anything else is taken.
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    if start in (b"{", b"["):
        return "json"
    shown = suffix or "no suffix"
    raise StudioError(name, f"has no known format ({shown})", f"Use one of {', '.join(SUFFIXES)}.")


def _refuse_hopeless(path: Path, name: str, head: bytes) -> None:
    if not head:
        raise StudioError(name, "is empty inside", "Choose a file with at least one row.")
    binary = b"\x00" in head or not head[:64].isascii()
    for magic, what, fix in _MAGIC:
        # Few letters are also how a text may begin.
        if head.startswith(magic) and (binary or len(magic) > 4):
            raise StudioError(name, what, fix)
    if head[4:8] == b"ftyp" and binary:
        raise StudioError(name, "is a video", "Text is what is learned from here.")
    if head[257:262] == b"ustar" and binary:
        raise StudioError(name, "is a tar archive", "Unpack it and choose the files in it.")
    if head[:2] == _GZIP:
        raise StudioError(name, "is packed twice", "Unpack it once.")
    if head[:4] == b"PK\x03\x04" or head[:4] == b"PK\x05\x06":
        raise StudioError(name, _zip(path), "Unpack it and choose the files in it.")


def _zip(path: Path) -> str:
    """What a zip is, from its directory alone; nothing in it is unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return "is a damaged zip archive"
    if "[Content_Types].xml" in names:
        return "is an Office document (save tables as CSV, documents as plain text)"
    shown = ", ".join(repr(entry[:60]) for entry in names[:3])
    return f"is a zip archive with {len(names):,} entries ({shown})"


def _unpacked(path: Path, name: str, target: Path) -> Path:
    """:raises StudioError: when the gzip is damaged, or unpacks to more than the limits"""
    packed = path.stat().st_size
    limit = min(max_bytes(), max(packed * MAX_RATIO, 1024**2))
    written = 0
    try:
        with gzip.open(path, "rb") as source, open(target, "wb") as out:
            while block := source.read(CHUNK):
                written += len(block)
                if written > limit:
                    raise StudioError(
                        name,
                        f"unpacks to more than {limit:,} bytes from {packed:,}",
                        "Unpack it yourself if you trust it.",
                    )
                out.write(block)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise StudioError(name, f"is not a whole gzip file ({error})"[:200], "Pack it again.") from None
    return target
