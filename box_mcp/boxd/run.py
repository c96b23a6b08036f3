"""One command: what is known of it, who listens to it, how it is ended.

Process.begin ──▶ running ──main ended──▶ ended ──nothing of its tree left──▶ gone
                     └── end_tree: TERM, grace, KILL ──▶ ended, gone
"""

from __future__ import annotations

import signal
import time

from .output import Log, newest_line
from .tree import Family, below, send_signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any, Callable

    from .loop import Loop, Timer
    from .tree import Stat

KILL_GRACE = 2.0  # s between the polite signal and the end
KILL_EVERY = 0.02  # s between two looks at a tree that is being ended, doubled each time up to
KILL_SELDOM = 1.0  # s
GLANCES = 20  # one after the other, before such a look, and
GLANCE_TIME = 0.1  # s in which the next one begins: nobody is served meanwhile
ANSWER_AFTER_KILL = 5.0  # s; a tree that can't be ended (a dead network disk) is told as `left`
NOTE_SOON = 0.02  # s until the first note of the newest output line: short commands need none
NOTE_EVERY = 0.25  # s between two notes of the newest output line
HEARTBEAT = 15.0  # s between two notes when nothing is printed: clients give up what is silent
RECENT = 400  # bytes in which the newest line is looked for
MANY_TIMERS = 64  # of one run; those that are over are then forgotten
TITLE = 1000  # characters of a command that are remembered


class Listener:
    """Somebody who wants to hear of a run. Leaves by `Run.leave`."""

    def on_output(self, label: int, data: bytes, /) -> None:
        """The command printed something; it is in the log already."""

    def on_newest(self, note: dict[str, Any], /) -> None:
        """The newest line, every now and then."""

    def on_ended(self) -> None:
        """There is a result, and all of the output that belongs to it."""

    def on_failed(self, message: str, /) -> None:
        """The command could not be started."""


class Host:
    """Where a command runs: whose processes are whose there."""

    pid: int
    """Of the runner."""
    session = False
    """Whether it goes on after the command."""
    terminal: tuple[int, int] | None = None
    """Rows and columns, where there is one."""

    def members(self, run: Run, family: Family, /, *, whole: bool = True) -> list[Stat]:
        """The living processes of a run, parents first; with `whole`, its host's own, too."""
        raise NotImplementedError

    def polite(self, run: Run, told: set[int], /) -> list[int]:
        """Whom to ask to end; `told` were asked already."""
        raise NotImplementedError


class Run:
    """One command; `host` is where it runs, None from then on when nothing of it is left."""

    def __init__(
        self,
        loop: Loop,
        name: str,
        host: Host,
        log: Log,
        request: dict[str, Any],
        changed: Callable[[Run], None],
    ) -> None:
        self.name = name
        self.host: Host | None = host
        self.log = log
        self.printed = 0
        self.left = True  # anything of its tree may still live
        self.concluded = False  # its end, and what it printed until then, was told
        self.on_record = False
        self.put_away = False
        self.cause: str | None = None
        self.keeps_awake = request.get("keep_awake") is True
        self.facts: dict[str, Any] = {
            "id": name,
            "command": str(request.get("title", ""))[:TITLE],
            "session": request.get("session") or None,
            "fresh": False,
            "over": False,
            "terminal": host.terminal,
            "started": time.time(),
        }
        self._loop = loop
        self._changed = changed
        self._started = loop.time()
        self._ended_at: float | None = None
        self._ended: dict[str, Any] | None = None
        self._overdue = False
        self._recent = b""
        self._listeners: list[Listener] = []
        self._note_due: Timer | None = None
        self._noted = False
        self._timers: list[Timer] = []
        self.later(HEARTBEAT, self._beat)

    def __repr__(self) -> str:
        return f"<Run {self.name} ended={self._ended} gone={self.gone}>"

    @property
    def gone(self) -> bool:
        """True when nothing of its tree is left."""
        return self.host is None

    @property
    def ended(self) -> bool:
        """True when the command itself has ended; children that it left may live."""
        return self._ended is not None

    @property
    def settled(self) -> bool:
        """True when it has ended, and left nothing that lives."""
        return self.gone or (self.concluded and not self.left)

    @property
    def busy(self) -> bool:
        """True while anything of the tree lives and the deadline has not passed."""
        return not self.gone and not self._overdue

    def members(self, family: Family | None = None) -> list[Stat]:
        """The living processes of its tree."""
        if self.host is None or not self.left:
            return []
        return self.host.members(self, family or Family())

    def record(self, members: list[Stat] | None = None) -> dict[str, Any]:
        """What is known of this run; ``exit`` and ``signal`` are null while it runs."""
        seconds = (self._ended_at or self._loop.time()) - self._started
        if members is None and self.ended:
            members = self.members()
        return {
            **self.facts,
            "running": self._ended is None,
            "left": len(members or ()) if self.ended else 0,
            "exit": None,
            "signal": None,
            "cpu": None,
            "peak": None,
            "cause": self.cause,
            "seconds": round(seconds, 6),
            "printed": self.printed,
            "logged": self.log.size,
            "dropped": self.log.dropped,
            "log": self.log.files,
            **(self._ended or {}),
        }

    def newest(self) -> dict[str, Any]:
        """The newest line, and how much was printed so far."""
        return {"newest": newest_line(self._recent), "printed": self.printed}

    def limit(self, timeout: float | None) -> None:
        """Ends the tree after `timeout` seconds."""
        if timeout is not None:
            self.later(timeout, self._deadline)

    def later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Calls back, unless the run is gone by then."""
        timer = self._loop.call_later(delay, callback)
        if len(self._timers) >= MANY_TIMERS:
            self._timers = [timer for timer in self._timers if timer.callback is not None]
        self._timers.append(timer)
        return timer

    def join(self, listener: Listener) -> None:
        """`listener` hears of everything from here on."""
        self._listeners.append(listener)

    def leave(self, listener: Listener) -> None:
        """`listener` hears no more; the run goes on."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    def feed(self, label: int, data: bytes) -> None:
        """Takes what the command printed."""
        self.printed += len(data)
        self.log.write(data)
        self._recent = (self._recent + data[-RECENT:])[-RECENT:]
        if self._listeners:
            for listener in list(self._listeners):
                listener.on_output(label, data)
            if self._note_due is None:
                delay = NOTE_EVERY if self._noted else NOTE_SOON
                self._note_due = self._loop.call_later(delay, self._note)

    def end_tree(self, cause: str) -> None:
        """TERM to the whole tree, KILL after the grace; `cause` is told in the result."""
        if self.gone or self.cause is not None:
            return
        self.cause = cause
        self._terminate(set[int]())
        self.later(KILL_GRACE, self._kill)
        self.later(KILL_GRACE + ANSWER_AFTER_KILL, self.conclude)

    def finish(self, ended: dict[str, Any]) -> None:
        """The command itself has ended, with the exit status that `ended` tells."""
        if self._ended is None:
            self._ended = ended
            self._ended_at = self._loop.time()
            if self.left:
                self._changed(self)

    def fail(self, message: str) -> None:
        """The command could not be started."""
        self.cause = "not_started"
        for listener in list(self._listeners):
            listener.on_failed(message)

    def conclude(self) -> None:
        """Tells everybody the result, as far as there is one."""
        self.concluded = self.concluded or self.ended
        for listener in list(self._listeners):
            listener.on_ended()

    def release(self) -> None:
        """Nothing is left of the tree."""
        if self.host is None:
            return
        self.host = None
        for timer in self._timers:
            timer.cancel()
        self.log.close()
        self.conclude()
        self._changed(self)

    def _note(self) -> None:
        self._note_due, self._noted = None, True
        note = self.newest()
        for listener in list(self._listeners):
            listener.on_newest(note)

    def _beat(self) -> None:
        if self._note_due is None:
            self._note()
        self.later(HEARTBEAT, self._beat)

    def _deadline(self) -> None:
        self._overdue = True
        if self._ended is None:
            self.end_tree("timeout")
        self._changed(self)

    def _terminate(self, told: set[int]) -> None:
        # Until there is somebody: the runner may have yet to fork the command, and a session's
        # shell goes on with what comes next. Else once: who cleans up must be let.
        if self.host is None:
            return
        tree = set(self.host.polite(self, told)) - told
        for pid in tree:
            send_signal(pid, signal.SIGTERM)
            send_signal(pid, signal.SIGCONT)
        told |= tree
        if not told or (self.host.session and not self.ended):
            self.later(KILL_EVERY, lambda: self._terminate(told))

    def _kill(self) -> None:
        kill(self._loop, self._doomed, self._soon_known)

    def _doomed(self) -> list[int]:
        if self.host is None:
            return []
        return [one.pid for one in self.host.members(self, Family(), whole=self._takes_all())]

    def _soon_known(self) -> list[int]:
        return below(self.host.pid) if self.host is not None and self._takes_all() else []

    def _takes_all(self) -> bool:
        return self.host is not None and (not self.host.session or not self.ended)


def kill(
    loop: Loop,
    look: Callable[[], list[int]],
    glance: Callable[[], list[int]],
    stopped: Collection[int] = (),
    pause: float = KILL_EVERY,
) -> None:
    """Kills whom `look` finds, until it finds nobody.

    Whoever forks is stopped first, until a look finds nobody new: killing one by one would lose the
    race against a fork bomb. A look takes longer than some processes live: hence `glance`, which
    finds most of them, at once.
    """
    known, began = set(stopped), time.monotonic()
    for _ in range(GLANCES):
        if not (new := set(glance()) - known):
            break
        _stop(new)
        known |= new
        if time.monotonic() - began > GLANCE_TIME:
            break
    tree = set(look())
    _stop(tree - known)
    if not tree:
        return
    if tree <= known:
        for pid in tree:
            send_signal(pid, signal.SIGKILL)
        tree = set[int]()
    later = min(2 * pause, KILL_SELDOM)
    loop.call_later(pause, lambda: kill(loop, look, glance, tree, later))


def _stop(pids: set[int]) -> None:
    for pid in pids:
        send_signal(pid, signal.SIGSTOP)
