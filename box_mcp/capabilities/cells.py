"""Rows of a terminal: one cell for each column, and how many columns a character takes.

Of a wide character (CJK, emoji) the second cell is empty, so that the cells of a row, joined, are
its text. A row ends where nothing was written after.
"""

from __future__ import annotations

from functools import lru_cache
from unicodedata import category, east_asian_width

Row = list[str]

MAX_JOINED = 16  # characters in one cell: a letter and its accents, or the parts of an emoji
_JOINING = {"Mn", "Me", "Cf"}  # accents, and what shapes the character before it
_SOFT_HYPHEN = "\u00ad"  # of those the one that terminals give a column


@lru_cache(maxsize=4096)
def width(char: str) -> int:
    """How many columns `char` takes: 0, 1 or 2."""
    if category(char) in _JOINING and char != _SOFT_HYPHEN:
        return 0
    return 2 if east_asian_width(char) in {"W", "F"} else 1


def cells_of(text: str) -> Row:
    """`text`, which has no control characters, as cells; an accent joins what it stands on."""
    if text.isascii():
        return list(text)
    cells: Row = []
    for char in text:
        columns = width(char)
        if columns:
            cells += (char, "")[:columns]
        elif cells:
            place = -1 if cells[-1] else -2
            cells[place] = (cells[place] + char)[:MAX_JOINED]
    return cells


def blanks(count: int) -> Row:
    """So many cells with nothing in them."""
    return [" "] * count


def blank_rows(count: int) -> list[Row]:
    """So many rows with nothing in them."""
    return [[] for _ in range(count)]


def shown(rows: list[Row]) -> int:
    """How many rows there are down to the last one with something in it."""
    return next((count for count in range(len(rows), 0, -1) if rows[count - 1]), 0)


def split(row: Row, column: int) -> None:
    """Makes blanks of a character that lies on both sides of the left edge of `column`."""
    if column >= len(row) or row[column]:
        return
    start = end = column
    while not row[start]:
        start -= 1
    while end < len(row) and not row[end]:
        end += 1
    row[start:end] = blanks(end - start)


def erase(row: Row, start: int, end: int) -> None:
    """Makes blanks of the cells from `start` up to `end`."""
    split(row, start)
    split(row, end)
    if end < len(row):
        row[start:end] = blanks(end - start)
    else:
        del row[start:]
