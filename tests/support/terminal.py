"""A program in a terminal of its own: what a person sees there, and types."""

from __future__ import annotations

import os
import select
import subprocess
import termios
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from box_mcp.capabilities.terminal import screen

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence
    from pathlib import Path

PATIENCE = 30.0  # s; nothing takes longer to show, however busy the machine
ROWS, COLUMNS = 40, 120


class Terminal:
    """What a program drew so far, by its own end of a pseudo-terminal."""

    def __init__(self, end: int) -> None:
        self._end = end
        self._drawn = b""

    @property
    def text(self) -> str:
        """The screen as it is now."""
        return screen(self._drawn, ROWS, COLUMNS).text

    def see(self, words: str) -> None:
        """Waits until the screen shows `words`."""
        deadline = time.monotonic() + PATIENCE
        while words not in self.text:
            more = self._draws_more(max(0, deadline - time.monotonic()))
            assert more, f"{words!r} did not show:\n{self.text}"

    def _draws_more(self, patience: float) -> bool:
        if not select.select([self._end], [], [], patience)[0]:
            return False
        try:
            self._drawn += os.read(self._end, 1 << 16)
        except OSError:  # the program has ended
            return False
        return True

    def type(self, words: str) -> None:
        """Presses these keys, faster than anybody could."""
        os.write(self._end, words.encode())


@contextmanager
def in_terminal(
    command: Sequence[str], env: Mapping[str, str], cwd: Path
) -> Generator[Terminal, None, None]:
    """Runs a program in a terminal for the length of the block."""
    ours, its = os.openpty()
    termios.tcsetwinsize(its, (ROWS, COLUMNS))
    process = subprocess.Popen(
        command, env=env, cwd=cwd, stdin=its, stdout=its, stderr=its, start_new_session=True
    )
    os.close(its)
    try:
        yield Terminal(ours)
    finally:
        process.terminate()
        os.close(ours)
        process.wait(PATIENCE)
