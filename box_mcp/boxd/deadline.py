"""How long a worker may take."""

from __future__ import annotations

import signal

from .connection import Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def set_deadline(seconds: float, what: str) -> None:
    """Raises Refusal `seconds` from now on, wherever this process is then; `what` was too slow."""

    def give_up(_number: int, _frame: object) -> NoReturn:
        raise Refusal("too_slow", f"{what} was not done within {seconds:g} s")

    signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
