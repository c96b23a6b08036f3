"""The signals of boxes, which run Linux whatever the server runs on."""

from __future__ import annotations

from enum import IntEnum


class BoxSignal(IntEnum):
    """As `signal.Signals` has them on Linux: elsewhere it has others, by other numbers."""

    SIGHUP = 1
    SIGINT = 2
    SIGQUIT = 3
    SIGILL = 4
    SIGTRAP = 5
    SIGABRT = 6
    SIGBUS = 7
    SIGFPE = 8
    SIGKILL = 9
    SIGUSR1 = 10
    SIGSEGV = 11
    SIGUSR2 = 12
    SIGPIPE = 13
    SIGALRM = 14
    SIGTERM = 15
    SIGSTKFLT = 16
    SIGCHLD = 17
    SIGCONT = 18
    SIGSTOP = 19
    SIGTSTP = 20
    SIGTTIN = 21
    SIGTTOU = 22
    SIGURG = 23
    SIGXCPU = 24
    SIGXFSZ = 25
    SIGVTALRM = 26
    SIGPROF = 27
    SIGWINCH = 28
    SIGIO = 29
    SIGPWR = 30
    SIGSYS = 31
    SIGRTMIN = 34
    SIGRTMAX = 64


def signal_name(number: int) -> str:
    """``SIGKILL`` for 9; ``signal 35`` for one that has no name."""
    try:
        return BoxSignal(number).name
    except ValueError:
        return f"signal {number}"
