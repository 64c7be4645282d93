"""A user's file made ready to read: its format recognised, unpacked, in UTF-8, within limits.

Nothing is guessed about its text: a file that is not UTF-8 is refused with what it looks like,
and read in another encoding only when the user names one.
"""

import codecs
import gzip
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from core.errors import StudioError
from core.home import folder

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
ENCODINGS = ("utf-8", "utf-16", "windows-1252", "iso-8859-1", "iso-8859-15", "windows-1251", "shift_jis",
             "euc-jp", "gb18030", "big5", "euc-kr", "macroman")  # fmt: skip
MAX_LINE = 16 * 1024**2
CHUNK = 4 * 1024**2
MAX_RATIO = 100  # of unpacked to packed bytes; real text stays below 30

# What the first bytes say about files that hold no rows of text, and what to do about each.
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"\x89PNG", "is a PNG picture", "Text is what is learned from here."),
    (b"\xff\xd8\xff", "is a JPEG picture", "Text is what is learned from here."),
    (b"GIF8", "is a GIF picture", "Text is what is learned from here."),
    (b"RIFF", "is a sound, video or picture file", "Text is what is learned from here."),
    (b"ID3", "is a sound file", "Text is what is learned from here."),
    (b"\x00\x00\x00\x18ftyp", "is a video", "Text is what is learned from here."),
    (b"\x00\x00\x00\x20ftyp", "is a video", "Text is what is learned from here."),
    (b"%PDF", "is a PDF", "Save its text as .txt or .md."),
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

    The name says the format and stands in messages; it is never used as a path.
    """

    path: Path
    name: str


@dataclass(frozen=True)
class Reading:
    """How files are read where a file does not say it itself.

    :param encoding: one of ENCODINGS
    :param delimiter: of CSV; empty means recognised from the file
    :param header: whether the first CSV line names the columns; None means recognised
    :param chunk: most characters in one row of a plain text or Markdown file
    """

    encoding: str = "utf-8"
    delimiter: str = ""
    header: bool | None = None
    chunk: int = 2000


@dataclass(frozen=True)
class File:
    """A file ready to read. ``path`` holds UTF-8 for every kind but Parquet and Arrow."""

    path: Path
    name: str
    kind: Kind
    reading: Reading


def max_bytes() -> int:
    """Largest file, unpacked. PLUMBLINE_MAX_BYTES changes it."""
    return int(os.environ.get("PLUMBLINE_MAX_BYTES", 20 * 1024**3))


def max_rows() -> int:
    """Most rows of one dataset. PLUMBLINE_MAX_ROWS changes it."""
    return int(os.environ.get("PLUMBLINE_MAX_ROWS", 10_000_000))


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
    with open(path, "rb") as file:
        head = file.read(4096)
    packed = head[:2] == b"\x1f\x8b"
    staging = tempfile.TemporaryDirectory(dir=folder("staging"))
    try:
        if packed:
            path = _unpacked(path, name, Path(staging.name) / "unpacked")
            with open(path, "rb") as file:
                head = file.read(4096)
            if head[257:262] == b"ustar":
                raise StudioError(name, "is a tar archive", "Unpack it and choose the files in it.")
            if not head:
                raise StudioError(name, "is empty inside", "Choose a file with at least one row.")
        _refuse_hopeless(path, name, head)
        kind = _kind(name, head, packed)
        if kind not in ("parquet", "arrow"):
            path = _as_utf8(path, name, reading.encoding, head, Path(staging.name) / "utf8")
        yield File(path, name, kind, reading)
    finally:
        staging.cleanup()


def _kind(name: str, head: bytes, packed: bool) -> Kind:
    suffixes = [suffix.lower() for suffix in Path(name).suffixes]
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
    for magic, what, fix in _MAGIC:
        # Two letters are also how a text may begin; a program's header holds zero bytes too.
        if head.startswith(magic) and (len(magic) > 3 or b"\x00" in head or not head[:64].isascii()):
            raise StudioError(name, what, fix)
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


def _as_utf8(path: Path, name: str, encoding: str, head: bytes, target: Path) -> Path:
    """The path of the same text in UTF-8: the file itself when it is UTF-8 already.

    :raises StudioError: with line and byte of what is not text in that encoding
    """
    if encoding not in ENCODINGS:
        raise StudioError(
            name, f"cannot be read as {encoding!r}", f"Known encodings: {', '.join(ENCODINGS)}."
        )
    if encoding == "utf-8":
        if (
            head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            or head[:200].count(b"\x00") > len(head[:200]) // 4
        ):
            raise StudioError(
                f"{name} line 1", "looks like UTF-16", "Choose that encoding, or save it as UTF-8."
            )
        _check_utf8(path, name)
        return path
    decoder = codecs.getincrementaldecoder(encoding)()
    line = 1
    with open(path, "rb") as source, open(target, "wb") as out:
        while True:
            block = source.read(CHUNK)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                raise StudioError(
                    f"{name} line {line}", f"is not {encoding}", "Choose another encoding."
                ) from None
            line += text.count("\n")
            out.write(text.encode("utf-8", "strict"))
            if not block:
                return target


def _check_utf8(path: Path, name: str) -> None:
    """:raises StudioError: with line, byte and a likely encoding of what is not UTF-8"""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line, line_bytes = 1, 0
    with open(path, "rb") as source:
        while True:
            block = source.read(CHUNK)
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                data = error.object
                before = data[: error.start]
                line += before.count(b"\n")
                column = (
                    error.start - before.rfind(b"\n") if b"\n" in before else line_bytes + error.start + 1
                )
                # Bytes that the decoder held back belong to the block before.
                column -= (len(data) - len(block)) if b"\n" not in before else 0
                raise StudioError(
                    f"{name} line {line}, byte {column}",
                    f"0x{data[error.start]:02x} is not UTF-8; the file looks like {_likely(source, data)}",
                    "Choose that encoding, or save the file as UTF-8.",
                ) from None
            if not block:
                return
            line += block.count(b"\n")
            line_bytes = len(block) - block.rfind(b"\n") - 1 if b"\n" in block else line_bytes + len(block)


def _likely(source: BinaryIO, data: bytes) -> str:
    """A name for the encoding, for the message only: multi-byte ones are strict enough to tell."""
    sample = data[-256 * 1024 :]
    high = sum(byte >= 0x80 for byte in sample[:4096]) / max(1, len(sample[:4096]))
    if high > 0.2:
        for encoding in ("shift_jis", "gb18030", "euc-kr", "big5", "windows-1251"):
            try:
                codecs.getincrementaldecoder(encoding)().decode(sample)
            except UnicodeDecodeError:
                continue
            return encoding
    return "windows-1252"
