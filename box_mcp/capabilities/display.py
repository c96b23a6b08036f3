"""What a terminal shows: rows of cells, a cursor, and what can be done to them; no colours."""

from __future__ import annotations

from box_mcp.capabilities.cells import Row, blank_rows, blanks, cells_of, erase, split

TAB = 8  # columns


class Display:
    """A screen; `sequences.play` makes it what some output makes of it.

    The cursor is in column `x` of row `y`, both from 0. `x` equals `columns` after something was
    written to the last column: terminals wrap no sooner than the next character comes. Counts
    and places may be of any size.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self.rows = rows
        self.columns = columns
        self.title = ""
        self.lines = blank_rows(rows)
        self.main: list[Row] | None = None  # is set aside while the alternate screen is shown
        self.x = self.y = 0
        self._newest = ""
        self.soft_reset()
        self._saved = [self._cursor()] * 2  # of the main screen and of the alternate one

    def soft_reset(self) -> None:
        """All modes as in the beginning; what is shown stays."""
        self.top, self.bottom = 0, self.rows - 1  # the rows that scroll
        self.wraps = True
        self.inserts = False
        self.translations: tuple[dict[int, int], dict[int, int]] = ({}, {})  # of sets G0 and G1
        self.charset = 0  # which of them is in use

    def reset(self) -> None:
        """All as in the beginning."""
        self.alternate(on=False)
        self.clear()
        self.move(0, 0)
        self.soft_reset()

    # What a subclass may do in another way.

    def last_column(self) -> int:
        """The last one that the cursor can be sent to."""
        return self.columns - 1

    def granted(self, count: int) -> int:
        """How many of `count` cells may be filled that nothing was printed for."""
        return count

    def leave(self, rows: list[Row]) -> None:
        """These rows of the main screen are scrolled out of sight."""

    def line_feed(self) -> None:
        """One row down in the same column."""
        self.index()

    def tab(self) -> None:
        """On to the next tab stop."""
        self.to_stop(1)

    # Text.

    def write(self, text: str) -> None:
        """Prints `text`, which has no control characters."""
        self._newest = text[-1:]
        cells = cells_of(text.translate(self.translations[self.charset]))
        done = 0
        while done < len(cells):
            if self.x >= self.columns:
                self._overflow()
            room = self.columns - self.x
            piece = cells[done : done + room]
            done += len(piece)
            if done < len(cells):
                if not cells[done]:  # a wide character is not cut in two
                    piece[-1] = " "
                    done -= 1
                if not self.wraps:
                    piece[-1] = cells[-1] or " "
                    done = len(cells)
            self.put(piece)

    def repeat(self, count: int) -> None:
        """Prints the latest character again and again, for one row at most."""
        self.write(self._newest * self.granted(min(count, self.last_column() + 1)))

    def _overflow(self) -> None:
        if self.wraps:
            self.x = 0
            self.index()
        else:
            self.settle()

    def put(self, cells: Row) -> None:
        """Writes `cells` into the cursor's row, which must have room for them."""
        row = self.lines[self.y]
        if self.x > len(row):
            row += blanks(self.granted(self.x - len(row)))
            self.x = len(row)
        split(row, self.x)
        end = self.x + len(cells)
        if self.inserts:
            row[self.x : self.x] = cells
            erase(row, self.columns, len(row))
        else:
            split(row, end)
            row[self.x : end] = cells
        self.x = end

    # The cursor.

    def settle(self) -> None:
        """Back onto the last column: the character that would wrap does not come."""
        self.x = min(self.x, self.columns - 1)

    def move(self, x: int, y: int) -> None:
        """Sends the cursor there, or as far as it goes."""
        self.y = max(0, min(y, self.rows - 1))
        self.x = max(0, min(x, self.last_column()))

    def to_stop(self, count: int) -> None:
        """On by so many tab stops; back, if `count` is negative."""
        if self.x < self.columns:
            self.move((self.x // TAB + count) * TAB, self.y)

    def up(self, count: int) -> None:
        """Rows up, not out of what scrolls."""
        self.y = max(self.y - count, self.top if self.y >= self.top else 0)

    def down(self, count: int) -> None:
        """Rows down, not out of what scrolls."""
        self.y = min(self.y + count, self.bottom if self.y <= self.bottom else self.rows - 1)

    def save(self) -> None:
        """Remembers where the cursor is, and the character sets."""
        self._saved[self.main is not None] = self._cursor()

    def restore(self) -> None:
        """Back to what was last saved."""
        self.x, self.y, self.charset, self.translations = self._saved[self.main is not None]

    def _cursor(self) -> tuple[int, int, int, tuple[dict[int, int], dict[int, int]]]:
        return self.x, self.y, self.charset, self.translations

    # Scrolling.

    def index(self) -> None:
        """One row down; from the last one that scrolls, everything moves up instead."""
        self.settle()
        if self.y == self.bottom:
            self.scroll_up(1)
        else:
            self.y = min(self.y + 1, self.rows - 1)

    def reverse_index(self) -> None:
        """One row up; from the first one that scrolls, everything moves down instead."""
        self.settle()
        if self.y == self.top:
            self.scroll_down(1)
        else:
            self.y = max(self.y - 1, 0)

    def scroll_up(self, count: int) -> None:
        """What scrolls loses rows at its top."""
        gone = self._remove_rows(self.top, count)
        if self.top == 0 and self.main is None:
            self.leave(gone)

    def scroll_down(self, count: int) -> None:
        """What scrolls loses rows at its bottom."""
        self._insert_rows(self.top, count)

    def insert_rows(self, count: int) -> None:
        """Makes room at the cursor's row."""
        if self.top <= self.y <= self.bottom:
            self.x = 0
            self._insert_rows(self.y, count)

    def remove_rows(self, count: int) -> None:
        """Takes the cursor's row away, and those below it."""
        if self.top <= self.y <= self.bottom:
            self.x = 0
            self._remove_rows(self.y, count)

    def _insert_rows(self, start: int, count: int) -> None:
        end = self.bottom + 1
        count = min(count, end - start)
        del self.lines[end - count : end]
        self.lines[start:start] = blank_rows(count)

    def _remove_rows(self, start: int, count: int) -> list[Row]:
        end = self.bottom + 1
        removed = self.lines[start : min(start + count, end)]
        del self.lines[start : start + len(removed)]
        self.lines[end - len(removed) : end - len(removed)] = blank_rows(len(removed))
        return removed

    def set_margins(self, top: int, bottom: int) -> None:
        """Which rows scroll, from 1; 0 stands for the first or the last one."""
        top, bottom = max(top, 1), min(bottom or self.rows, self.rows)
        if top < bottom:
            self.top, self.bottom = top - 1, bottom - 1
            self.move(0, 0)

    def alternate(self, *, on: bool) -> None:
        """Shows another screen, blank at first, or the main one again, as it was."""
        if on and self.main is None:
            self.main, self.lines = self.lines, blank_rows(self.rows)
        elif not on and self.main is not None:
            self.main, self.lines = None, self.main

    # Erasing.

    def clear(self) -> None:
        """Erases everything that is shown."""
        self.lines = blank_rows(self.rows)

    def erase_in_display(self, how: int) -> None:
        """From the cursor on (0), up to it (1), or all (2)."""
        if how == 2:
            self.clear()
        elif how == 0:
            self.erase_in_line(0)
            self.lines[self.y + 1 :] = blank_rows(self.rows - self.y - 1)
        elif how == 1:
            self.erase_in_line(1)
            self.lines[: self.y] = blank_rows(self.y)

    def erase_in_line(self, how: int) -> None:
        """In the cursor's row, as `erase_in_display`."""
        row = self.lines[self.y]
        if how in {0, 1, 2}:
            erase(row, self.x if how == 0 else 0, self.x + 1 if how == 1 else len(row))

    def erase_cells(self, count: int) -> None:
        """From the cursor on; the rest of its row stays in place."""
        erase(self.lines[self.y], self.x, self.x + count)

    def insert_cells(self, count: int) -> None:
        """Makes room at the cursor; the rest of its row moves on."""
        row = self.lines[self.y]
        if self.x < len(row):
            split(row, self.x)
            row[self.x : self.x] = blanks(self.granted(min(count, self.columns - self.x)))
            erase(row, self.columns, len(row))

    def remove_cells(self, count: int) -> None:
        """From the cursor on; the rest of its row moves up to it."""
        row = self.lines[self.y]
        split(row, self.x)
        split(row, self.x + count)
        del row[self.x : self.x + count]
