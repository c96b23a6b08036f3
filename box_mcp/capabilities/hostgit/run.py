"""git on the user's machine, by GitPython: the one door to it.

Whatever a repository, its settings or this server's own environment say, no program is run for it
but git, none of its hooks, and nothing goes out by a network::

    environment   no GIT_* of this server; no prompts, no protocol
    settings      over all others: no hooks, no fsmonitor, no upkeep, no recursion
    filters       `without` has settings that put some out of use
    time          a deadline for each command; a `Leash` ends all of them, whole trees

Blocking: what uses it runs in a thread, under `carrying.leashed`. Import this module only when it
is needed: it imports GitPython, which takes 70 ms and looks for git.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

# This module is imported only when it is needed.
import git  # noqa: TID253
from git.exc import GitCommandError, GitCommandNotFound  # noqa: TID253

TIMEOUT = 300.0  # s for one command; clients give their calls up long before
GRACE = 2.0  # s for a git that was asked to end, so that it removes its lock files
MAX_SAID = 64 * 1024**2  # bytes of what one command prints: names of refs, of files
PIECE = 64 * 1024  # bytes
MAX_COMPLAINT = 4000  # characters of what it says on stderr
WINDOWS = sys.platform == "win32"

SETTINGS = (
    "core.fsmonitor=",
    "core.alternateRefsCommand=:",
    "core.askPass=",
    "core.protectHFS=true",
    "core.protectNTFS=true",
    "credential.helper=",
    "gc.auto=0",
    "maintenance.auto=false",
    "safe.bareRepository=all",  # the user named it
    "submodule.recurse=false",
)
ENVIRONMENT = {
    "GIT_ALLOW_PROTOCOL": "none",
    "GIT_ASKPASS": "",
    "GIT_CEILING_DIRECTORIES": "",
    "GIT_EDITOR": ":",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_REFLOG_ACTION": "box-mcp",
    "GIT_TERMINAL_PROMPT": "0",
    "LANGUAGE": "C",
    "LC_ALL": "C",
    "SSH_ASKPASS": "",
}


class CutOff(Exception):
    """The caller has gone away: whatever was under way was ended."""


class Leash:
    """All processes of one call. `cut` may come from any thread, and no more can begin then."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self.is_cut = False

    def cut(self) -> None:
        """Asks all that run to end, and makes them a little later."""
        with self._lock:
            self.is_cut = True
            running = bool(self._running)
        if running:
            self._signal_all(last=False)
            patience = threading.Timer(GRACE, self._signal_all, kwargs={"last": True})
            patience.daemon = True
            patience.start()

    def start(
        self, command: Sequence[str], *, whole: bool, **options: Any
    ) -> subprocess.Popen[bytes]:
        """A process that this holds, unless it is to come to its end as a `whole`.

        Raises CutOff, and OSError.
        """
        with self._lock:
            if self.is_cut:
                raise CutOff
            process = subprocess.Popen[bytes](command, **options)
            if not whole:
                self._running.add(process)
            return process

    def drop(self, process: subprocess.Popen[bytes]) -> None:
        """It has ended."""
        with self._lock:
            self._running.discard(process)

    def _signal_all(self, *, last: bool) -> None:
        with self._lock:
            for process in self._running:
                _signal(process, last=last)


class Guarded(git.Git):
    """GitPython's git in `directory`; `guarded` makes it. Raises GitCommandError and CutOff."""

    def __init__(
        self,
        leash: Leash,
        directory: Path,
        settings: Sequence[str],
        variables: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(str(directory))
        self._leash = leash
        self._directory = directory
        self._settings = (*settings,)
        self._variables = dict(variables or {})

    def also(self, *settings: str, **variables: str | Path) -> Guarded:
        """The same with more settings and variables."""
        more = {name: str(value) for name, value in variables.items()}
        both = (*self._settings, *settings)
        return Guarded(self._leash, self._directory, both, {**self._variables, **more})

    def run(
        self,
        *arguments: str,
        stdin: bytes | IO[bytes] | None = None,
        stdout: IO[bytes] | None = None,
        good: Sequence[int] = (0,),
        whole: bool = False,
    ) -> bytes:
        """What a command prints, unless that goes to `stdout`; `whole` as `Leash.start` has it."""
        command = [self.GIT_PYTHON_GIT_EXECUTABLE]
        for setting in self._settings:
            command += ["-c", setting]
        return self.execute(
            [*command, *arguments], stdin=stdin, stdout=stdout, good=good, whole=whole
        )

    def line(self, *arguments: str, good: Sequence[int] = (0,)) -> str:
        """The one line that a command prints."""
        return os.fsdecode(self.run(*arguments, good=good)).rstrip("\r\n")

    def filters(self) -> set[str]:
        """The names of all filters that settings read here know."""
        return {key.partition(".")[2].rpartition(".")[0] for key in self.keys(r"^filter\.")}

    def keys(self, pattern: str) -> list[str]:
        """The names of all settings read here that match a regular expression."""
        found = self.run("config", "-z", "--name-only", "--get-regexp", pattern, good=(0, 1))
        return [os.fsdecode(key) for key in found.split(b"\0") if key]

    def filtered(self, paths: Iterable[bytes], known: set[str]) -> dict[bytes, str]:
        """By path, the filter that git would run on it, of those that are `known`."""
        asked = b"".join(path + b"\0" for path in paths)
        if not known or not asked:
            return {}
        said = self.run("check-attr", "-z", "--stdin", "filter", stdin=asked).split(b"\0")
        found = zip(said[::3], map(os.fsdecode, said[2::3]), strict=False)
        return {path: by for path, by in found if by in known}

    def without(self, filters: Iterable[str]) -> Guarded:
        """The same with these filters out of use."""
        off = {"clean": "", "smudge": "", "process": "", "required": "false"}
        return self.overriding(
            {f"filter.{name}.{key}": value for name in filters for key, value in off.items()}
        )

    def overriding(self, settings: Mapping[str, str]) -> Guarded:
        """The same with settings whose names are the user's own choice."""
        if odd := [name for name in settings if "=" in name]:
            raise GitCommandError(("git", "config"), 1, f"{odd[0]} can't be put out of use")
        return self.also(*(f"{name}={value}" for name, value in settings.items()))

    def execute(self, command: Any, *_: Any, **options: Any) -> Any:
        """As GitPython's, which inherits the environment, and can't end a tree on every system."""
        stdin, stdout = options.get("stdin"), options.get("stdout")
        data = stdin if isinstance(stdin, bytes) else None
        try:
            process = self._leash.start(
                command,
                whole=options.get("whole", False),
                cwd=self._directory,
                env=environment(self._variables),
                stdin=subprocess.PIPE if data is not None else stdin or subprocess.DEVNULL,
                stdout=stdout or subprocess.PIPE,
                stderr=subprocess.PIPE,
                **_own_group(),
            )
        except OSError as error:
            if error.filename in (None, command[0]):
                raise GitCommandNotFound(command, error) from error
            raise  # the directory is gone
        said = bytearray()
        hearing = threading.Thread(target=_hear, args=(process, process.stdout, said), daemon=True)
        process.stdout = None  # it may be more than memory has room for
        hearing.start()
        try:
            complaint, late = self._communicate(process, data)
            hearing.join(GRACE)
        finally:
            self._leash.drop(process)
        if self._leash.is_cut:
            raise CutOff
        if len(said) > MAX_SAID:
            raise GitCommandError(command, 0, "it printed more than anybody reads")
        words = complaint.decode(errors="replace").strip()[-MAX_COMPLAINT:]
        if late:
            words = f"it was ended after {TIMEOUT:g} s; {words}"
        if late or process.returncode not in options.get("good", (0,)):
            raise GitCommandError(command, process.returncode, words)
        return bytes(said)

    @staticmethod
    def _communicate(process: subprocess.Popen[bytes], data: bytes | None) -> tuple[bytes, bool]:
        """What it complained of, and whether it took too long."""
        try:
            return _told(process, data, TIMEOUT), False
        except subprocess.TimeoutExpired:
            _signal(process, last=False)
        try:
            return _told(process, None, GRACE), True
        except subprocess.TimeoutExpired:
            _signal(process, last=True)
        return _told(process, None, None), True


def guarded(leash: Leash, directory: Path, nothing: Path) -> Guarded:
    """As the module tells. Hooks are looked for at `nothing`, where there is nothing."""
    return Guarded(leash, directory, (f"core.hooksPath={nothing}", *SETTINGS))


def complaint(error: GitCommandError) -> str:
    """What git complained of, in its own words and no others, which may be names out of a box."""
    text = str(error.stderr).strip()
    text = text.removeprefix("stderr:").strip().removeprefix("'").removesuffix("'")
    lines = [line.strip() for line in text.splitlines()]
    words = " ".join(line for line in lines if line) or f"it ended with status {error.status}"
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in words)


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """This server's, without what would tell git what to do, and with `variables`."""
    own = {name: value for name, value in os.environ.items() if not name.upper().startswith("GIT_")}
    return {**own, **ENVIRONMENT, **variables}


def _told(process: subprocess.Popen[bytes], data: bytes | None, timeout: float | None) -> bytes:
    """What it complains of until its end."""
    _, complaint = process.communicate(data, timeout)
    return complaint or b""


def _hear(process: subprocess.Popen[bytes], pipe: IO[bytes] | None, said: bytearray) -> None:
    """What it prints goes into `said`; ends it when that is too much."""
    if pipe is None:
        return
    with pipe:
        while piece := os.read(pipe.fileno(), PIECE):
            said += piece
            if len(said) > MAX_SAID:
                _signal(process, last=True)
                return


def _own_group() -> Mapping[str, Any]:
    """Whose processes can be ended together."""
    return {} if WINDOWS else {"start_new_session": True}


def _signal(process: subprocess.Popen[bytes], *, last: bool) -> None:
    """Ends a process with all that it started."""
    if process.poll() is not None:
        return
    if WINDOWS:
        tree = ["taskkill", "/F", "/T", "/PID", str(process.pid)]
        subprocess.run(tree, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        return
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL if last else signal.SIGTERM)
