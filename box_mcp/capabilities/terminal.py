"""What was printed to a terminal, as text: what went by, what is on the screen, or as it is."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass

from box_mcp.capabilities.cells import Row, shown
from box_mcp.capabilities.display import TAB, Display
from box_mcp.capabilities.sequences import play

ROWS, COLUMNS = 24, 80  # of a terminal of unknown size
MAX_ROWS, MAX_COLUMNS = 200, 500  # of any terminal: they bound what one sequence can cost
BLANKS, BLANKS_EACH = 2000, 2  # a transcript may have where nothing was printed, and per character
_CONTROL = r"[\x00-\x08\x0b-\x1f\x7f-\x9f]"
_ALTERNATE = rb"\x1b\[\?(?:47|1047|1049)([hl])"
_MODES = rb"\x1b\[\?([0-9;]*+)([hl])"


@dataclass(frozen=True)
class Screen:
    """A terminal's screen: its rows from the top, the cursor's place from 1, the window's title."""

    lines: tuple[str, ...]
    row: int
    col: int
    title: str

    @property
    def text(self) -> str:
        """All rows down to the last one with something in it."""
        return "\n".join(self.lines).rstrip("\n")


def as_printed(output: bytes) -> str:
    """`output` with its control sequences; what is no UTF-8 is replaced."""
    return output.decode(errors="replace")


def legible(output: bytes, rows: int = ROWS, cols: int = COLUMNS) -> str:
    """What a person would have seen of `output` go by: plain text with tabs and line breaks.

    What was printed over, such as a progress bar, is there in its last state. What was cleared or
    scrolled away is kept, but for screens that programs have left (vim, less). Colours, titles and
    the rest are left out. The terminal's size matters where programs address rows and columns by
    number: apt's status line does. The text is no longer than six times `output` and 4000.

    `output` may begin anywhere: the rest of a control sequence is text then, and lines that came
    before can't be printed over. 2-8 MB/s; plain text 100; hostile output at least 0.2.
    """
    text = as_printed(output).replace("\r\n", "\n")
    if not re.search(_CONTROL, text):
        return text
    transcript = Transcript(
        _within(rows, MAX_ROWS), _within(cols, MAX_COLUMNS), BLANKS + BLANKS_EACH * len(text)
    )
    play(text, transcript)
    return transcript.text()


def screen(output: bytes, rows: int, cols: int) -> Screen:
    """What a terminal of this size shows after `output`: vim, less, top, a dialog.

    `output` may begin anywhere. The rest of a control sequence is text then. Programs draw only
    what changes: the rest of the screen stays blank until they draw it anew, which most do when
    the size changes. 2-6 MB/s; hostile output at least 0.2.
    """
    display = Display(_within(rows, MAX_ROWS), _within(cols, MAX_COLUMNS))
    play(as_printed(output), display)
    lines = tuple("".join(row).rstrip() for row in display.lines)
    title = "".join(char for char in display.title if char.isprintable())
    display.settle()
    return Screen(lines, display.y + 1, display.x + 1, title)


def below_full_screen(output: bytes) -> bytes:
    """What came after a full-screen program, if one was on the screen when `output` began."""
    found = re.search(_ALTERNATE, output)
    return output[found.end() :] if found and found[1] == b"l" else output


def sends_application_keys(output: bytes) -> bool:
    """Whether `output` leaves the terminal in application mode, as `keys.key_bytes` has it."""
    switched = [on for modes, on in re.findall(_MODES, output) if b"1" in modes.split(b";")]
    return switched[-1:] == [b"h"]


class Transcript(Display):
    """A terminal whose lines may be of any length, and which keeps what leaves its screen.

    Beyond a line's end the cursor can be sent as far as `cols`; no more than `grants` blanks are
    made where nothing was printed.
    """

    def __init__(self, rows: int, cols: int, grants: int) -> None:
        super().__init__(rows, sys.maxsize)
        self._cols = cols
        self._grants = grants
        self._left: list[str] = []

    def last_column(self) -> int:
        """Of a usual terminal, or of the line if that is longer."""
        return max(self._cols, len(self.lines[self.y])) - 1

    def granted(self, count: int) -> int:
        """All of them, while there are grants."""
        count = min(count, self._grants)
        self._grants -= count
        return count

    def leave(self, rows: list[Row]) -> None:
        """They are kept above the screen."""
        self._left += ["".join(row) for row in rows if row or self.granted(1)]

    def clear(self) -> None:
        """What was shown is kept above the screen, too."""
        if self.main is None:
            self.leave(self.lines[: shown(self.lines)])
        super().clear()

    def line_feed(self) -> None:
        """To the next row's start: what goes to no terminal ends its lines so."""
        self.index()
        self.x = 0

    def tab(self) -> None:
        """Tabs stay what they are, but where they only move over what is there."""
        stop = (self.x // TAB + 1) * TAB
        if self.x < len(self.lines[self.y]):
            self.x = stop
        else:
            self.put(["\t", *[""] * (stop - self.x - 1)])

    def text(self) -> str:
        """Everything, down to the cursor at least."""
        main = self.main or []
        end = max(shown(self.lines), self.y + 1)
        rows = main[: shown(main)] + self.lines[:end]
        return "\n".join([*self._left, *("".join(row) for row in rows)])


def _within(count: int, most: int) -> int:
    return max(2, min(count, most))  # a wide character takes two columns
