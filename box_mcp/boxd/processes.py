"""Commands that run in the box: started, followed, given input, ended with their whole tree.

open_run ──▶ Run ──▶ runner ──▶ the command's shell (started ahead) and all its descendants
              │
              └─ Follower: the stream of the call that started it; it may leave
                 (yield_after, lost connection) while the run goes on
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import marshal
import os
import signal

from . import wire
from .connection import Refusal, Stream
from .output import Excerpt, Log
from .runner import MAX_TEXT, MESSAGE, Runner, Zygote, become_subreaper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any, Callable

    from .connection import Connection
    from .identity import User
    from .loop import Loop, Timer

TELL_BUSY_AFTER = 0.05  # s; short commands are over by then, and nobody needs to hear of them
KILL_GRACE = 2.0  # s between the polite signal and the end
KILL_EVERY = 0.02  # s between two looks at a tree that is being ended, doubled each time up to
KILL_SELDOM = 1.0  # s
ANSWER_AFTER_KILL = 5.0  # s; a tree that can't be ended (a dead network disk) is told as `left`
REFILL_AFTER = 0.05  # s; a new spare is forked when the run that took the last ended, or by then
DRAIN_AFTER_EXIT = 0.2  # s; output of children that outlive their command is not waited for longer
NOTE_EVERY = 0.25  # s between two notes of the newest output line
HEARTBEAT = 15.0  # s between two notes when nothing is printed: clients give up what is silent
PIPE_SIZE = 1024 * 1024  # bytes; a flood then costs fewer turns of the loop
READ_SIZE = 256 * 1024
EXCERPT_LIMIT = 100 * 1024  # bytes of head or tail: both fit into a stream's window
KEEP_ENDED = 100  # ended runs whose record is kept
F_SETPIPE_SZ = 1031  # <linux/fcntl.h>; in Python's fcntl since 3.10


class Processes:
    """All runs of this boxd, and the spare runner for the next."""

    def __init__(self, loop: Loop, root: str, user: User, log_dir: str) -> None:
        self._loop = loop
        self._root = root
        self.user = user
        self._log_dir = log_dir
        self._runs: dict[str, Run] = {}
        self._by_runner: dict[int, Run] = {}
        self._count = 0
        self._told_busy = False
        self.on_busy: Callable[[bool], None] = lambda _: None
        loop.on_child = self._child_ended
        become_subreaper()
        self._zygote = Zygote(user)
        self._spare: Runner | None = None
        self._usual_cwd = user.path(root, "")
        self._refill()

    @property
    def busy(self) -> bool:
        """True while a command runs whose deadline has not passed."""
        return any(run.busy for run in self._by_runner.values())

    def open_run(self, connection: Connection, number: int, request: dict[str, Any]) -> Stream:
        """Starts a command; see `capabilities/shell.py` for the request and its END."""
        limits = seconds_of(request, "timeout"), seconds_of(request, "yield_after")
        text = _text(request["command"])
        cwd = self.user.path(self._root, str(request.get("cwd") or ""))
        env, stdin = dict(request.get("env") or {}), bool(request.get("stdin"))
        follower = Follower(connection, number, request)
        runner = self._runner(cwd, env, stdin)
        runner.start(text)  # all else is done while the shell reads it
        self._count += 1
        name = f"p{self._count}"
        log = Log(os.path.join(self._log_dir, f"{name}.log"), self.user.uid, self.user.gid)
        run = Run(self._loop, name, runner, log, request, self._changed)
        run.limit(*limits)
        self._runs[name] = self._by_runner[run.runner] = run
        run.follow(follower)
        self._changed(run)
        self._forget_old()
        return follower

    def list(self) -> list[dict[str, Any]]:
        """Every run that is known, oldest first."""
        return [run.record() for run in self._runs.values()]

    def end_all(self) -> None:
        """Ends every tree at once; for a boxd that is about to exit."""
        for runner in self._by_runner:
            for pid in descendants(runner):
                send_signal(pid, signal.SIGKILL)

    def _runner(self, cwd: str, env: dict[str, str], stdin: bool) -> Runner:
        """The spare, where it is what is needed, else a new one."""
        self._loop.call_later(REFILL_AFTER, self._refill)
        self._usual_cwd = cwd
        spare = self._spare
        if spare is not None and not (env or stdin) and spare.waits_in(cwd):
            self._spare = None
            return spare
        env = {**self.user.environment(), **env}
        try:
            with contextlib.suppress(ChildProcessError):
                return Runner(self._zygote, cwd, env, stdin=stdin)
            return Runner(self._zygote, cwd, env, stdin=stdin)
        except BlockingIOError:
            raise Refusal("not_started", "the box's process table is full") from None
        except OSError as error:
            raise Refusal("not_started", f"the box can't fork: {error}") from None

    def _refill(self) -> None:
        """Makes a spare for a command like the last."""
        if self._spare is not None:
            if self._spare.waits_in(self._usual_cwd):
                return
            self._spare.close()
            self._spare = None
        with contextlib.suppress(OSError):
            env = self.user.environment()
            self._spare = Runner(self._zygote, self._usual_cwd, env, stdin=False)

    def _changed(self, run: Run) -> None:
        if run.gone:
            self._by_runner.pop(run.runner, None)
            self._refill()
        if self.busy != self._told_busy:
            self._loop.call_later(TELL_BUSY_AFTER, self._tell_busy)

    def _tell_busy(self) -> None:
        if self.busy != self._told_busy:
            self._told_busy = self.busy
            self.on_busy(self._told_busy)

    def _child_ended(self, pid: int, status: int) -> None:
        self._zygote.child_ended(pid)
        if self._spare is not None and pid == self._spare.pid:
            self._spare.close()
            self._spare = None
        if (run := self._by_runner.get(pid)) is not None:
            run.runner_ended()
            if os.WIFSIGNALED(status):
                self._end_orphans()

    def _end_orphans(self) -> None:
        """A killed runner's tree has come to boxd itself: whose it was can't be known any more."""
        spare = {self._spare.pid} if self._spare is not None else set[int]()
        for pid in descendants(os.getpid(), {self._zygote.pid, *self._by_runner, *spare}):
            send_signal(pid, signal.SIGKILL)

    def _forget_old(self) -> None:
        ended = [run for run in self._runs.values() if run.gone]
        for run in ended[: max(0, len(ended) - KEEP_ENDED)]:
            del self._runs[run.name]
            with contextlib.suppress(OSError):
                os.unlink(run.log.path)


class Follower(Stream):
    """The stream of a `run` request, from its OPEN to its END."""

    def __init__(self, connection: Connection, number: int, request: dict[str, Any]) -> None:
        super().__init__(connection, number)
        head = max(0, min(int(request.get("head", 0)), EXCERPT_LIMIT))
        tail = max(0, min(int(request.get("tail", 0)), EXCERPT_LIMIT))
        self.excerpt = Excerpt(head, tail)
        self.run: Run | None = None

    def on_data(self, _label: int, data: bytes, /) -> None:
        """Input for the command."""
        if self.run is not None:
            self.run.write_stdin(data, self)

    def on_finish(self) -> None:
        """The command's input ends here."""
        if self.run is not None:
            self.run.finish_stdin()

    def on_cancel(self) -> None:
        """Ends the command's whole tree; END follows when it is gone."""
        if self.run is not None:
            self.run.end_tree("cancelled")

    def on_disconnect(self) -> None:
        """The command goes on: its server may come back, and its deadline stands."""
        if self.run is not None:
            self.run.unfollow()

    def conclude(self, result: dict[str, Any]) -> None:
        """Sends the kept output and the result."""
        with self.connection.in_one_piece():
            self._send_all(result)

    def _send_all(self, result: dict[str, Any]) -> None:
        for label, data in self.excerpt.head():
            self.send(data, label)
        if self.excerpt.skipped:
            self.note({"skipped": self.excerpt.skipped})
        for label, data in self.excerpt.tail():
            self.send(data, label)
        self.end(result)


class Run:
    """One command, its runner, its pipes and its log."""

    def __init__(
        self,
        loop: Loop,
        name: str,
        runner: Runner,
        log: Log,
        request: dict[str, Any],
        changed: Callable[[Run], None],
    ) -> None:
        self.name = name
        self.runner = runner.pid
        self.log = log
        self.gone = False  # nothing of its tree is left
        self._loop = loop
        self._changed = changed
        self._control = runner.control
        self._stdin: int | None = runner.stdin
        self._stdin_buffer = bytearray()
        self._stdin_finished = not request.get("stdin")
        self._outputs: dict[int, int] = {runner.stdout: wire.STDOUT, runner.stderr: wire.STDERR}
        self._command = str(request.get("title", ""))[:1000]
        self._started = loop.time()
        self._ended_at: float | None = None
        self._ended: dict[str, Any] | None = None
        self._left = True  # anything of the tree may still live
        self._cause: str | None = None
        self._overdue = False
        self._printed = 0
        self._follower: Follower | None = None
        self._note_due: Timer | None = None
        self._timers: list[Timer] = []
        self._watch()

    def __repr__(self) -> str:
        return f"<Run {self.name} runner={self.runner} ended={self._ended} gone={self.gone}>"

    @property
    def busy(self) -> bool:
        """True while anything of the tree lives and the deadline has not passed."""
        return not self.gone and not self._overdue

    def record(self) -> dict[str, Any]:
        """What is known of this run; ``exit`` and ``signal`` are null while it runs."""
        seconds = (self._ended_at or self._loop.time()) - self._started
        return {
            "id": self.name,
            "command": self._command,
            "running": self._ended is None,
            "left": len(descendants(self.runner)) if self._left else 0,
            "exit": None,
            "signal": None,
            "cause": self._cause,
            "seconds": round(seconds, 6),
            "printed": self._printed,
            "logged": self.log.size,
            "log": self.log.path,
            **(self._ended or {}),
        }

    def limit(self, timeout: float | None, yield_after: float | None) -> None:
        """Ends the tree after `timeout` seconds, answers the follower after `yield_after`."""
        if timeout is not None:
            self._later(timeout, self._deadline)
        if yield_after is not None:
            self._later(yield_after, self._conclude)

    def follow(self, follower: Follower) -> None:
        """Gives `follower` the output from here on, and the result."""
        self._follower = follower
        follower.run = self
        self._later(HEARTBEAT, self._beat)

    def unfollow(self) -> None:
        """Nobody listens any more; the run goes on."""
        self._follower = None

    def write_stdin(self, data: bytes, follower: Follower) -> None:
        """Queues input; credit goes back when the command has taken it, or can't any more."""
        if self._stdin is None:
            follower.consumed(len(data))
            return
        self._stdin_buffer += data
        self._feed()

    def finish_stdin(self) -> None:
        """End of input, once what is queued was written."""
        self._stdin_finished = True
        self._feed()

    def end_tree(self, cause: str) -> None:
        """TERM to the whole tree, KILL after the grace; `cause` is told in the result."""
        if self.gone or self._cause is not None:
            return
        self._cause = cause
        self._terminate()
        self._later(KILL_GRACE, lambda: self._kill(set[int](), KILL_EVERY))
        self._later(KILL_GRACE + ANSWER_AFTER_KILL, self._conclude)

    def runner_ended(self) -> None:
        """The runner has exited: its tree is empty, or it was killed by root in the box."""
        self._read_control()
        self._left = False
        if self._ended is None:
            self._main_ended({"exit": None, "signal": int(signal.SIGKILL), "left": False})
        self._drain()
        self._conclude()
        self._release()

    def _watch(self) -> None:
        for fd, label in self._outputs.items():
            with contextlib.suppress(OSError):
                fcntl.fcntl(fd, F_SETPIPE_SZ, PIPE_SIZE)
            self._loop.on_readable(fd, functools.partial(self._output_ready, fd, label))
        self._loop.on_readable(self._control.fileno(), self._read_control)
        if self._stdin_finished:
            self._close_stdin()

    def _later(self, delay: float, callback: Callable[[], None]) -> None:
        self._timers.append(self._loop.call_later(delay, callback))

    def _deadline(self) -> None:
        self._overdue = True
        if self._ended is None:
            self.end_tree("timeout")
        self._changed(self)

    def _terminate(self) -> None:
        tree = descendants(self.runner)
        for pid in tree:
            send_signal(pid, signal.SIGTERM)
            send_signal(pid, signal.SIGCONT)
        if not tree:  # the runner has yet to fork the command, or is about to end
            self._later(KILL_EVERY, self._terminate)

    def _kill(self, stopped: set[int], pause: float) -> None:
        # Whoever forks is stopped first, until a look finds nobody new: killing one by one
        # would lose the race against a fork bomb.
        tree = set[int]() if self.gone else set(descendants(self.runner))
        for pid in tree - stopped:
            send_signal(pid, signal.SIGSTOP)
        if not tree:
            return
        if tree <= stopped:
            for pid in tree:
                send_signal(pid, signal.SIGKILL)
            tree = set[int]()
        later = min(2 * pause, KILL_SELDOM)
        self._loop.call_later(pause, lambda: self._kill(tree, later))

    def _output_ready(self, fd: int, label: int) -> None:
        self._read_output(fd, label)

    def _read_output(self, fd: int, label: int) -> bool:
        """Reads once; False at end of file or when there is nothing (yet)."""
        try:
            data = os.read(fd, READ_SIZE)
        except BlockingIOError:
            return False
        if not data:
            self._close_output(fd)
            return False
        self._printed += len(data)
        self.log.write(data)
        if self._follower is not None:
            self._follower.excerpt.add(label, data)
            if self._note_due is None:
                self._note_due = self._loop.call_later(NOTE_EVERY, self._note)
        return True

    def _note(self) -> None:
        self._note_due = None
        if self._follower is not None and not self._follower.connection.congested:
            newest = self._follower.excerpt.newest_line()
            self._follower.note({"newest": newest, "printed": self._printed})

    def _beat(self) -> None:
        if self._follower is not None:
            self._note()
            self._later(HEARTBEAT, self._beat)

    def _close_output(self, fd: int) -> None:
        if self._outputs.pop(fd, None) is not None:
            self._loop.on_readable(fd, None)
            os.close(fd)
        if not self._outputs and self._ended is not None and self._cause is None:
            self._conclude()

    def _drain(self) -> None:
        # Bounded: a survivor that floods must not hold boxd here.
        for fd, label in list(self._outputs.items()):
            for _ in range(2 * PIPE_SIZE // READ_SIZE):
                if fd not in self._outputs or not self._read_output(fd, label):
                    break

    def _read_control(self) -> None:
        while True:
            try:
                message = self._control.recv(MESSAGE)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if not message:
                return self._loop.on_readable(self._control.fileno(), None)
            self._heard(marshal.loads(message))  # noqa: S302 - from our own fork

    def _heard(self, message: dict[str, Any]) -> None:
        if (failed := message.get("failed")) is not None:
            self._cause = "not_started"
            if self._follower is not None:
                self._follower.fail("not_started", str(failed))
        elif (ended := message.get("ended")) is not None:
            self._main_ended(ended)

    def _main_ended(self, ended: dict[str, Any]) -> None:
        self._left = ended.pop("left")
        self._ended = ended
        self._ended_at = self._loop.time()
        self._close_stdin()
        self._drain()
        if self._outputs and self._cause is None:
            self._later(DRAIN_AFTER_EXIT, self._conclude)
        elif self._cause is None:
            self._conclude()

    def _conclude(self) -> None:
        """Answers the follower with what there is: the result, or "still running"."""
        follower, self._follower = self._follower, None
        if follower is not None and follower.open:
            follower.conclude(self.record())

    def _feed(self) -> None:
        if self._stdin is None:
            return
        try:
            written = os.write(self._stdin, self._stdin_buffer) if self._stdin_buffer else 0
        except BlockingIOError:
            written = 0
        except OSError:  # EPIPE: the command does not read any more
            written = len(self._stdin_buffer)
            self._stdin_finished = True
        del self._stdin_buffer[:written]
        if written and self._follower is not None:
            self._follower.consumed(written)
        if self._stdin_buffer:
            self._loop.on_writable(self._stdin, self._feed)
        elif self._stdin_finished:
            self._close_stdin()
        else:
            self._loop.on_writable(self._stdin, None)

    def _close_stdin(self) -> None:
        if self._stdin is not None:
            self._loop.on_writable(self._stdin, None)
            os.close(self._stdin)
            self._stdin = None
        self._stdin_buffer.clear()

    def _release(self) -> None:
        self.gone = True
        for timer in self._timers:
            timer.cancel()
        self._close_stdin()
        for fd in list(self._outputs):
            self._close_output(fd)
        self._loop.on_readable(self._control.fileno(), None)
        self._control.close()
        self.log.close()
        self._changed(self)


def _text(command: object) -> bytes:
    """A command for a shell's eyes; raises Refusal where no shell takes it."""
    if not isinstance(command, str):
        raise Refusal("invalid", "the command is no text")
    text = command.encode(errors="surrogatepass")
    if b"\0" in text:
        raise Refusal("invalid", "the command has a NUL character, which no shell takes")
    if len(text) > MAX_TEXT:
        raise Refusal("too_large", f"the command is over {MAX_TEXT} bytes")
    return text


def seconds_of(request: dict[str, Any], name: str) -> float | None:
    """The duration `name` of a request, or None; a NaN would stop every timer behind it."""
    if (value := request.get(name)) is None:
        return None
    seconds = float(value)
    if not seconds >= 0:
        raise ValueError(f"{name} is {seconds}")
    return seconds


def descendants(pid: int, without: Collection[int] = ()) -> list[int]:
    """The ids of all processes below `pid`, without those in `without` and what is below them."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (parent := _parent(name)) is not None:
            children.setdefault(parent, []).append(int(name))
    found: list[int] = []
    todo = [pid]
    while todo:
        todo = [child for parent in todo for child in children.get(parent, ())]
        todo = [child for child in todo if child not in without]
        found += todo
    return found


def _parent(pid: str) -> int | None:
    """The parent of a living process; None for zombies and the gone; proc(5), /proc/pid/stat."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            state, parent = stat.read().rsplit(b")", 1)[1].split()[:2]
    except (OSError, ValueError):
        return None
    return None if state in (b"Z", b"X") else int(parent)


def send_signal(pid: int, number: int) -> None:
    """Signals a process that may have gone meanwhile."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
