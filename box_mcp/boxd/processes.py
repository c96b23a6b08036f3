"""Commands that run in the box: started, followed, given input, ended with their whole tree.

open_run ──▶ Run ──▶ Process ──▶ runner ──▶ the command's shell (started ahead), all its descendants
              │
              ├─ Follower: the stream of the call that started it; it may leave
              │  (yield_after, lost connection) while the run goes on
              └─ Watcher: the stream of a call that wants a page of its output
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pwd
import signal

from .connection import Refusal, Stream
from .follow import Ending, Follower, Input, Watcher
from .history import KEEP_BYTES, KEEP_ENDED, History
from .identity import Account
from .process import Process, Session, check_command, terminal_of
from .run import ANSWER_AFTER_KILL, KILL_GRACE, Run, kill
from .runner import Runner, Zygote, become_subreaper, quoted
from .tree import Family, below, listening_sockets, ports_of, send_signal
from .wire import MAX_PAYLOAD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from .connection import Connection
    from .history import Past
    from .identity import User
    from .loop import Loop

TELL_BUSY_AFTER = 0.05  # s; short commands are over by then, and nobody needs to hear of them
ANSWER_AFTER = KILL_GRACE + ANSWER_AFTER_KILL  # s; a tree that can't be ended is told as `left`
REFILL_AFTER = 0.05  # s; a new spare is forked when the run that took the last ended, or by then
TITLE_LISTED = 200  # characters of a command in a list
TERMINAL = "xterm-256color"  # what terminals here understand
MAX_LISTED = 100  # runs in one answer, as far as they fit into a frame, but for
LIST_MARGIN = 1024  # bytes
MAX_PIDS = 20  # of one run in that answer


class Processes:
    """All runs of this boxd, its sessions, and the spare runner for the next command."""

    def __init__(self, loop: Loop, root: str, user: User, log_dir: str) -> None:
        self._loop = loop
        self._root = root
        self.user = user
        self._history = History(log_dir, user.uid, user.gid)
        self._runs: dict[str, Run | Past] = {past.name: past for past in self._history.past()}
        self._ended = len(self._runs)  # runs that are over
        self._held = sum(run.log.kept for run in self._runs.values())  # bytes of ended runs' logs
        self._live: dict[int, Process] = {}
        self._sessions: dict[str, Session] = {}
        self._told: tuple[bool, bool] = (False, False)
        self.on_busy: Callable[[], None] = lambda: None
        self.on_change: Callable[[], None] = lambda: None
        loop.on_child = self._child_ended
        become_subreaper()
        self._zygote = Zygote()
        self._spare: Runner | None = None
        self._surroundings: dict[str, str] = {}
        self._usual_cwd = user.path(root, "")
        self._refill()

    @property
    def busy(self) -> bool:
        """True while a command runs whose deadline has not passed."""
        return any(run.busy for run in self._current())

    @property
    def keeps_awake(self) -> bool:
        """True while such a command runs that is to keep the box awake, however long it takes."""
        return any(run.busy and run.keeps_awake for run in self._current())

    def told(self) -> dict[str, bool]:
        """What servers should know of it all."""
        return {"busy": self.busy, "keeps_awake": self.keeps_awake}

    def surround(self, env: dict[str, str]) -> None:
        """From now on, these variables go over an account's own, and under a command's own."""
        if env == self._surroundings:
            return
        self._surroundings = env
        if self._spare is not None:  # it has others
            self._spare.close()
            self._spare = None
        self._loop.call_later(REFILL_AFTER, self._refill)

    def open_run(self, connection: Connection, number: int, request: dict[str, Any]) -> Stream:
        """Starts a command; see `capabilities/shell.py` for the request and its END."""
        timeout, yield_after = seconds_of(request, "timeout"), seconds_of(request, "yield_after")
        quiet = seconds_of(request, "quiet")
        follower = Follower(connection, number, request)
        check_command(request["command"])
        process, text, fresh = self._process_for(request)
        process.begin(text)  # all else is done while the shell reads it
        process.surroundings = self._surroundings
        name = self._history.next_name()
        run = Run(self._loop, name, process, self._history.log(name), request, self._changed)
        run.facts["fresh"] = fresh
        process.adopt(run)
        self._runs[name] = run
        run.limit(timeout)
        follower.follow(run, process)
        follower.limit(yield_after, quiet)
        run.later(TELL_BUSY_AFTER, lambda: self._write_down(run))
        self._changed(run)
        return follower

    def open_output(self, connection: Connection, number: int, request: dict[str, Any]) -> Stream:
        """A page of what a run printed, when it has come; see `Watcher` for the request."""
        watcher = Watcher(connection, number, self._loop, self._find(request), request)
        watcher.watch(seconds_of(request, "wait") or 0.0)
        return watcher

    def open_input(self, connection: Connection, number: int, request: dict[str, Any]) -> Stream:
        """Gives a run the request's DATA; ``end`` ends the input.

        ``terminal`` resizes it: rows and columns, null for what stays.
        """
        run, size = self._find(request), request.get("terminal")

        def give(data: bytes) -> dict[str, Any]:
            if not isinstance(run, Run) or run.ended or (process := self._of(run)) is None:
                raise Refusal("ended", f"{run.name} has ended")
            if size is not None:
                run.facts["terminal"] = process.resize(size)
            printed = run.printed
            if data:
                process.write(data)
            if request.get("end") is True:
                process.end_input()
            return {**run.record(), "printed": printed}

        return Input(connection, number, give)

    def open_signal(self, connection: Connection, number: int, request: dict[str, Any]) -> Stream:
        """Signals a run's whole tree, or ``pid`` in it; END has ``signalled``, a list of ids."""
        wanted, only = int(request["signal"]), request.get("pid")
        if not 0 < wanted < signal.NSIG:
            raise Refusal("invalid", f"there is no signal {wanted}")
        run = self._find(request)
        tree = [one.pid for one in run.members()] if isinstance(run, Run) else []
        if only is not None and only not in tree:
            raise Refusal("not_found", f"{run.name} has no process {only}")
        targets = tree if only is None else [int(only)]
        stream = Stream(connection, number)
        signalled = [pid for pid in targets if send_signal(pid, wanted)]
        stream.end({"signalled": signalled[:MAX_LISTED]})
        return stream

    def open_end(self, connection: Connection, number: int, request: dict[str, Any]) -> Stream:
        """Ends a run's whole tree: TERM, grace, KILL; END is its record when that is done."""
        run = self._find(request)
        ending = Ending(connection, number, request)
        if not isinstance(run, Run) or run.gone:
            ending.end(run.record())
            return ending
        ending.follow(run)
        ending.limit(ANSWER_AFTER, None)
        run.end_tree("ended")
        return ending

    def open_list(self, connection: Connection, number: int, _: dict[str, Any]) -> Stream:
        """The runs that are known, the newest first, those with living processes before all."""
        family, listening = Family(), listening_sockets()
        runs = list(reversed(self._runs.values()))
        runs.sort(key=lambda run: run.settled)
        stream = Stream(connection, number)
        listed: list[dict[str, Any]] = []
        room = MAX_PAYLOAD - LIST_MARGIN
        for run in runs[:MAX_LISTED]:
            record = self._listed(run, family, listening)
            room -= len(json.dumps(record))
            if room < 0:
                break
            listed.append(record)
        stream.end({"runs": listed, "total": len(runs)})
        return stream

    def end_all(self) -> None:
        """Ends every tree at once; for a boxd that is about to exit."""
        family = Family()
        for pid in self._live:
            for one in family.below(pid):
                send_signal(one.pid, signal.SIGKILL)

    def _listed(self, run: Run | Past, family: Family, listening: dict[str, int]) -> dict[str, Any]:
        members = run.members(family) if isinstance(run, Run) else []
        record = run.record(members) if isinstance(run, Run) else run.record()
        own: dict[str, Any] = {
            "members": [{"pid": one.pid, "name": one.name} for one in members[:MAX_PIDS]],
            "memory": sum(one.memory for one in members),
            "ports": ports_of((one.pid for one in members), listening, self.user)[:MAX_PIDS],
        }
        if members:
            own["cpu"] = round(sum(one.cpu_with_children for one in members), 2)
        return {**record, **own, "command": record["command"][:TITLE_LISTED]}

    def _find(self, request: dict[str, Any]) -> Run | Past:
        name = str(request["id"])[:32]
        if (run := self._runs.get(name)) is None:
            raise Refusal(
                "not_found",
                f"this box has no process {name!r}, or no more: process_list shows those it has",
            )
        return run

    def _of(self, run: Run) -> Process | None:
        """Where a run's command is now, if anywhere."""
        return next((live for live in self._live.values() if live.run is run), None)

    def _current(self) -> list[Run]:
        return [run for process in self._live.values() for run in process.runs]

    def _process_for(self, request: dict[str, Any]) -> tuple[Process, str, bool]:
        """Where to run a command, its text there, and whether it begins a session."""
        if request.get("session"):
            return self._session_for(request)
        terminal = terminal_in(request)
        background = request.get("background") is True
        streamed = request.get("stdin") is True
        account = self._account(request.get("user"))
        env = dict(request.get("env") or {})
        cwd = self.user.path(self._root, str(request.get("cwd") or ""))
        self._loop.call_later(REFILL_AFTER, self._refill)
        stdin = streamed or background
        usual = account is self.user and not (env or stdin or terminal)
        visits = request.get("visits") is True
        text = str(request["command"])
        if usual and not visits and self._spare_waits(cwd):
            runner, self._spare = self._spare, None
            assert runner is not None
        elif usual and visits and (runner := self._visitor(cwd)) is not None:
            if runner.cwd != cwd:
                text = f"cd -- {quoted(cwd)} || exit\n{text}"
        else:
            runner = self._runner(account, cwd, env, stdin=stdin, terminal=terminal)
        process = Process(
            self._loop,
            runner,
            stdin=stdin,
            streamed=streamed,
            terminal=terminal,
            gone=self._process_gone,
        )
        self._live[process.pid] = process
        return process, text, False

    def _session_for(self, request: dict[str, Any]) -> tuple[Process, str, bool]:
        name = str(request["session"])
        terminal = terminal_in(request)
        account = self._account(request.get("user"))
        session = self._sessions.get(name)
        text = str(request["command"])
        if session is None or not session.waits():
            return self._new_session(name, account, terminal, request), text, True
        if (run := session.evaluates) is not None:
            raise Refusal("busy", f"its session {name!r} is busy with {run.name}")
        if request.get("user") and account.name != session.account.name:
            raise Refusal("invalid", f"the session {name!r} is {session.account.name}'s")
        if terminal is not None and session.terminal is None:
            raise Refusal("invalid", f"the session {name!r} was begun without a terminal")
        if terminal is not None:
            session.resize(terminal)
        session.before = self._renewals(session) + self._moves(request)
        return session, text, False

    def _new_session(
        self,
        name: str,
        account: Account,
        terminal: tuple[int, int] | None,
        request: dict[str, Any],
    ) -> Session:
        if os.path.basename(account.shell) != "bash":
            raise Refusal("invalid", "sessions need bash, which this box does not have")
        cwd = self.user.path(self._root, str(request.get("cwd") or ""))
        env = dict(request.get("env") or {})
        runner = self._runner(account, cwd, env, terminal=terminal, session=True)
        session = Session(
            self._loop, runner, name, account, terminal=terminal, gone=self._process_gone
        )
        self._live[session.pid] = self._sessions[name] = session
        return session

    def _renewals(self, session: Session) -> str:
        """How a session takes variables that have changed since its last command."""
        now, before, own = self._surroundings, session.surroundings, session.account.environment
        steps: list[str] = []
        for name in sorted({*now, *before}):
            if now.get(name) != before.get(name):
                value = now.get(name, own.get(name))
                step = f"unset -v {quoted(name)}" if value is None else exporting(name, value)
                steps.append(f"\\builtin {step} 2>/dev/null; ")  # unless somebody made it read-only
        return "".join(steps)

    def _moves(self, request: dict[str, Any]) -> str:
        """How a session goes to the request's directory and takes its variables."""
        steps: list[str] = []
        if request.get("moves") is True:
            steps.append(f"cd -- {quoted(self.user.path(self._root, str(request['cwd'])))}")
        for variable, value in dict[str, str](request.get("env") or {}).items():
            steps.append(exporting(variable, value))
        return "".join(f"\\builtin {step} && " for step in steps)

    def _runner(
        self,
        account: Account,
        cwd: str,
        env: dict[str, str],
        *,
        terminal: tuple[int, int] | None,
        **kind: bool,
    ) -> Runner:
        own = {"TERM": TERMINAL} if terminal is not None else {}
        env = {**account.environment, **self._surroundings, **own, **env}
        make = functools.partial(Runner, self._zygote, account, cwd, env, terminal=terminal, **kind)
        try:
            with contextlib.suppress(ChildProcessError):
                return make()
            return make()
        except BlockingIOError:
            raise Refusal("not_started", "the box's process table is full") from None
        except OSError as error:
            raise Refusal("not_started", f"the box can't fork: {error}") from None

    def _account(self, name: object) -> Account:
        if name in (None, "", self.user.name):
            return self.user
        if os.geteuid() != 0:
            raise Refusal("denied", f"this box has no root: commands in it run as {self.user.name}")
        try:
            return Account(pwd.getpwnam(str(name)))
        except KeyError:
            raise Refusal("not_found", f"the box has no user {str(name)[:64]!r}") from None

    def _spare_waits(self, cwd: str) -> bool:
        self._usual_cwd = cwd
        return self._spare is not None and self._spare.waits_in(cwd)

    def _visitor(self, cwd: str) -> Runner | None:
        """The spare, wherever it waits, if there is one that can go to `cwd`."""
        spare = self._spare
        if spare is None or not (cwd.isprintable() and os.path.isdir(cwd) and spare.waits()):
            return None
        self._spare = None
        return spare

    def _refill(self) -> None:
        """Makes a spare for a command like the last."""
        if self._spare is not None:
            if self._spare.waits_in(self._usual_cwd):
                return
            self._spare.close()
            self._spare = None
        with contextlib.suppress(OSError):
            env = {**self.user.environment, **self._surroundings}
            self._spare = Runner(self._zygote, self.user, self._usual_cwd, env)

    def _changed(self, run: Run) -> None:
        if run.gone:
            self._loop.call_later(REFILL_AFTER, lambda: self._put_away(run))
        elif run.ended:
            self._loop.call_later(REFILL_AFTER, lambda: self._write_down(run))
        self.on_change()
        if self._told != (self.busy, self.keeps_awake):
            self._loop.call_later(TELL_BUSY_AFTER, self._tell_busy)

    def _tell_busy(self) -> None:
        now = self.busy, self.keeps_awake
        if self._told != now:
            self._told = now
            self.on_busy()

    def _process_gone(self, process: Process) -> None:
        self._live.pop(process.pid, None)
        if isinstance(process, Session) and self._sessions.get(process.name) is process:
            del self._sessions[process.name]
        self._refill()

    def _child_ended(self, pid: int, status: int) -> None:
        self._zygote.child_ended(pid)
        if self._spare is not None and pid == self._spare.pid:
            self._spare.close()
            self._spare = None
        if (process := self._live.get(pid)) is not None:
            process.ended()
            if os.WIFSIGNALED(status):
                # A killed runner's tree has come to boxd itself: whose it was can't be known.
                kill(
                    self._loop,
                    lambda: [one.pid for one in Family().below(os.getpid(), self._own())],
                    lambda: below(os.getpid(), self._own()),
                )

    def _own(self) -> set[int]:
        """Children that are boxd's by right."""
        spare = {self._spare.pid} if self._spare is not None else set[int]()
        return {self._zygote.pid, *self._live, *spare, *self._loop.awaited}

    def _write_down(self, run: Run) -> None:
        if not run.gone:
            self._history.keep(run.record([]))
            run.on_record = True

    def _put_away(self, run: Run) -> None:
        """Writes down how a run ended, and forgets the oldest when there are too many."""
        if run.on_record or run.printed:
            run.on_record = True
            self._history.keep(run.record())
        run.put_away = True
        self._ended += 1
        self._held += run.log.kept
        while self._ended > 1 and (self._ended > KEEP_ENDED or self._held > KEEP_BYTES):
            oldest = next(run for run in self._runs.values() if run.put_away)
            self._ended -= 1
            self._held -= oldest.log.kept
            del self._runs[oldest.name]
            if oldest.on_record:
                self._history.forget(oldest.name, oldest.log)


def exporting(name: str, value: str) -> str:
    """How bash exports a variable."""
    return f"export {quoted(f'{name}={value}')}"


def terminal_in(request: dict[str, Any]) -> tuple[int, int] | None:
    """The size of the terminal that a request wants, if any."""
    size = request.get("terminal")
    return None if size is None else terminal_of(size)


def seconds_of(request: dict[str, Any], name: str) -> float | None:
    """The duration `name` of a request, or None; a NaN would stop every timer behind it."""
    if (value := request.get(name)) is None:
        return None
    seconds = float(value)
    if not seconds >= 0:
        raise ValueError(f"{name} is {seconds}")
    return seconds
