"""How long work may take."""

from __future__ import annotations

import signal

from .connection import Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


DEADLINE = 40.0  # s; clients give calls up after 60, and servers a box that is silent after 50


def set_deadline(seconds: float, what: str) -> None:
    """Raises Refusal `seconds` from now on, wherever this process is then; `what` was too slow."""

    def give_up(_number: int, _frame: object) -> NoReturn:
        raise Refusal("too_slow", f"{what} was not done within {seconds:g} s")

    signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def clear_up_in_peace() -> None:
    """From now on neither a deadline nor the end of all interest interrupts this process."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
