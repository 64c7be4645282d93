"""What is wrong with single rows of a file, and the error that lists them."""

from typing import NamedTuple

from plumbline.errors import StudioError

SHOWN_PROBLEMS = 8
KEPT_PROBLEMS = 1000


class Problem(NamedTuple):
    """Why one record cannot be used.

    ``line`` counts from 1; for Parquet it is the row. ``row`` counts records, 0 where nobody counted.
    ``fix`` is what helps, where that is not to mend the file.
    """

    line: int
    what: str
    file: int = 0
    row: int = 0
    fix: str = ""

    @property
    def place(self) -> str:
        """``line 7``, and the row where the two differ, as in a table with line breaks in its cells."""
        return f"line {self.line}" + (f" (row {self.row})" if self.row not in (0, self.line) else "")


class DataError(StudioError):
    """A file that cannot be imported, with every bad line (the first few are listed).

    :param count: all problems, of which ``problems`` may hold only the first
    """

    def __init__(self, names: list[str], problems: list[Problem], fix: str, count: int | None = None) -> None:
        self.problems = problems
        self.count = len(problems) if count is None else count
        if self.count == 1:
            first = problems[0]
            super().__init__(f"{names[first.file]} {first.place}", first.what, fix)
            return
        many = len(names) > 1
        listed = "".join(
            f"\n{names[p.file] + ' ' if many else ''}{p.place}: {p.what}" for p in problems[:SHOWN_PROBLEMS]
        )
        more = f"\nand {self.count - SHOWN_PROBLEMS:,} more" if self.count > SHOWN_PROBLEMS else ""
        where = ", ".join(names[:3]) + (" and more" if len(names) > 3 else "")
        super().__init__(where, f"{self.count:,} rows cannot be used:{listed}{more}", f"\n{fix}")


class RowError(Exception):
    """This record cannot become a row; the text follows the line number.

    :param fix: what helps, where that is not to mend the file
    """

    def __init__(self, what: str, fix: str = "") -> None:
        self.fix = fix
        super().__init__(what)


def kind_of(value: object) -> str:
    """A JSON value's type in words, for messages."""
    names = {
        str: "a text",
        bool: "a truth value",
        int: "a number",
        float: "a number",
        list: "a list",
        bytes: "bytes",
    }
    return names.get(type(value), "null" if value is None else "an object")
