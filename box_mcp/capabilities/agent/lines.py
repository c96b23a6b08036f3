"""What a harness prints, page by page, cut into lines; pure.

All of it is untrusted: anything may stand in a line, a line may have no end, and of a long output
the middle may be gone.
"""

from __future__ import annotations

from collections.abc import Iterator

MAX_LINE = 4 * 1024 * 1024  # bytes; longer ones are left out
MANY = 1000  # lines that are taken at once


class Lines:
    """The lines of one output, of which pages come one after the other.

    `cursor` is where the next line begins, `end` where the next page is to begin: offsets in all
    that was printed.
    """

    def __init__(self) -> None:
        self.cursor = 0
        self._held = b""  # from the cursor on
        self._skipping = False

    @property
    def end(self) -> int:
        """See the class."""
        return self.cursor + len(self._held)

    def put(self, start: int, page: bytes) -> None:
        """Takes the bytes at `start`; where some before are gone, so is the line they cut."""
        if start > self.end:
            self.cursor, self._held, self._skipping = start, b"", True
        if start == self.end:
            self._held += page

    def take(self, *, last: bool = False) -> Iterator[bytes | None]:
        """`MANY` of the lines that are whole, None in place of one that is not to be had.

        What has no line break yet waits for its rest, unless it is the `last`.
        """
        held, at, left = self._held, 0, MANY
        while left and ((stop := held.find(b"\n", at)) >= 0 or (last and at < len(held))):
            left -= 1
            stop = stop + 1 or len(held)
            line, at = held[at:stop], stop
            self.cursor, self._held = self.cursor + len(line), b""
            left_out, self._skipping = self._skipping or len(line) > MAX_LINE, False
            yield None if left_out else line
        self._held = held[at:]
        if left and len(self._held) > MAX_LINE:
            self.cursor, self._held, self._skipping = self.end, b"", True
