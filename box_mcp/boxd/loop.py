"""A small event loop: descriptors, timers, child processes, and a clock that stops when frozen.

asyncio would cost more time and memory at start than all of boxd.
"""

from __future__ import annotations

import contextlib
import functools
import heapq
import os
import select
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

TICK = 1.0  # s; while a timer is set, how often the loop looks whether the box was frozen
FROZEN_AFTER = 1.0  # s; a wake-up later than this was a freeze, not load
THAW_GRACE = 30.0  # s added to a patient timer after a thaw: clients need a moment to come back
SWEEP_FROM = 64  # timers; from here on the cancelled ones are thrown out before their time


class Timer:
    """A callback that is due at `when` on the loop's clock, unless cancelled."""

    __slots__ = ("callback", "patient", "when")

    def __init__(self, when: float, callback: Callable[[], None], patient: bool) -> None:
        self.when = when
        self.patient = patient
        self.callback: Callable[[], None] | None = callback

    def __lt__(self, other: Timer) -> bool:
        return self.when < other.when

    def cancel(self) -> None:
        """Makes sure that the callback is not called; twice is fine."""
        self.callback = None


class Loop:
    """Calls back when descriptors are ready, timers are due, children ended."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._readers: dict[int, Callable[[], None]] = {}
        self._writers: dict[int, Callable[[], None]] = {}
        self._timers: list[Timer] = []
        self._sweep_at = SWEEP_FROM
        self._frozen = 0.0
        self._stopping = False
        self.on_child: Callable[[int, int], None] | None = None
        self.awaited: dict[int, Callable[[], None]] = {}
        """Children, and what is called in place of `on_child` when one has ended."""
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def __repr__(self) -> str:
        return f"<Loop fds={len({*self._readers, *self._writers})} timers={len(self._timers)}>"

    def time(self) -> float:
        """Seconds of thawed time: the monotonic clock less the time spent frozen."""
        return time.monotonic() - self._frozen

    def call_later(
        self, delay: float, callback: Callable[[], None], *, patient: bool = False
    ) -> Timer:
        """Calls `callback` once, `delay` seconds of thawed time from now.

        A patient timer is put off by `THAW_GRACE` when the box was frozen meanwhile.
        """
        if len(self._timers) >= self._sweep_at:
            self._timers = [timer for timer in self._timers if timer.callback is not None]
            heapq.heapify(self._timers)
            self._sweep_at = max(SWEEP_FROM, 2 * len(self._timers))
        timer = Timer(self.time() + delay, callback, patient)
        heapq.heappush(self._timers, timer)
        return timer

    def on_readable(self, fd: int, callback: Callable[[], None] | None) -> None:
        """Calls `callback` whenever `fd` can be read; None ends that."""
        self._set(self._readers, fd, callback)

    def on_writable(self, fd: int, callback: Callable[[], None] | None) -> None:
        """Calls `callback` whenever `fd` can be written; None ends that."""
        self._set(self._writers, fd, callback)

    def stop(self) -> None:
        """Makes `run` return after the current round."""
        self._stopping = True

    def _stop_on_signal(self, _number: int, _frame: object) -> None:
        self.stop()

    def run(self) -> None:
        """Runs until `stop`. Descriptors are level-triggered; each gets one call a round."""
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _ignore)
        signal.signal(signal.SIGTERM, self._stop_on_signal)
        self.on_readable(self._wake_r, self._drain_signals)
        while not self._stopping:
            self._round()

    def _set(
        self, table: dict[int, Callable[[], None]], fd: int, callback: Callable[[], None] | None
    ) -> None:
        known = fd in self._readers or fd in self._writers
        if callback is None:
            table.pop(fd, None)
        else:
            table[fd] = callback
        events = (select.EPOLLIN if fd in self._readers else 0) | (
            select.EPOLLOUT if fd in self._writers else 0
        )
        if events and known:
            self._poll.modify(fd, events)
        elif events:
            self._poll.register(fd, events)
        elif known:
            self._poll.unregister(fd)

    def _round(self) -> None:
        before = time.monotonic()
        wait = self._until_next_timer()
        ready = self._poll.poll(-1 if wait is None else wait)
        if wait is not None:
            self._notice_freeze(time.monotonic() - before - wait)
        for fd, events in ready:
            if events & ~select.EPOLLOUT and (reader := self._readers.get(fd)):
                self._call(reader)
            if events & ~select.EPOLLIN and (writer := self._writers.get(fd)):
                self._call(writer)
        self._fire_timers()

    def _until_next_timer(self) -> float | None:
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return None
        return min(max(self._timers[0].when - self.time(), 0.0), TICK)

    def _notice_freeze(self, late: float) -> None:
        if late <= FROZEN_AFTER:
            return
        self._frozen += late
        for timer in self._timers:
            if timer.patient:
                timer.when += THAW_GRACE
        heapq.heapify(self._timers)

    def _fire_timers(self) -> None:
        now = self.time()
        while self._timers and self._timers[0].when <= now:
            timer = heapq.heappop(self._timers)
            callback, timer.callback = timer.callback, None
            if callback is not None:
                self._call(callback)

    def _call(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception as error:  # noqa: BLE001 - one call's bug must not end everybody's box
            report(error)

    def _drain_signals(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_r, 4096)
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                if (ended := self.awaited.pop(pid, None)) is not None:
                    self._call(ended)
                elif self.on_child is not None:
                    self._call(functools.partial(self.on_child, pid, status))


def report(error: Exception) -> None:
    """Prints a bug's traceback to stderr, where the container's log has it."""
    sys.excepthook(type(error), error, error.__traceback__)


def _ignore(_number: int, _frame: object) -> None:
    """A signal whose only effect is to wake the loop."""
