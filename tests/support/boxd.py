"""A real boxd as an unprivileged local process, and a small blocking client of its wire."""

from __future__ import annotations

import atexit
import compileall
import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil

from box_mcp.boxd import wire

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

PATIENCE = 20.0  # s; no wait in these tests is longer, however busy the machine
NOBODY = 65534  # the user of boxd when the tests run as root
START = "import sys; sys.path.insert(0, sys.argv[2]); from boxd.main import main; main()"
NO_FORKS = "import resource as r; r.setrlimit(r.RLIMIT_NPROC, (0, 0)); "  # root's don't heed it
SOURCE = Path(wire.__file__).parent


def eventually(condition: Callable[[], Any], what: str = "") -> None:
    """Waits until `condition` holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what or condition}"
        time.sleep(0.01)


@contextlib.contextmanager
def descriptors_given_back(process: psutil.Process) -> Generator[None, None, None]:
    """All descriptors that a process opens in the block it closes, if some a moment later.

    It may have one open at any moment, to write down what became of a command.
    """
    before = open_files(process)
    yield
    deadline = time.monotonic() + PATIENCE
    while len(now := open_files(process)) > len(before):
        assert time.monotonic() < deadline, f"before: {before}, and now: {now}"
        time.sleep(0.01)


def open_files(process: psutil.Process) -> list[str]:
    """What a process has open, one for each descriptor."""
    found: list[str] = []
    for fd in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            found.append(f"{fd.name} {fd.readlink()}")
    return sorted(found)


def alive(pid: int) -> bool:
    """True while a process runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def listens(path: Path) -> bool:
    """Whether somebody takes connections there; the file itself is there a moment sooner."""
    with socket.socket(socket.AF_UNIX) as link:
        return link.connect_ex(str(path)) == 0


class Failed(Exception):
    """boxd answered FAIL."""

    def __init__(self, failure: dict[str, Any]) -> None:
        super().__init__(failure["message"])
        self.code: str = failure["code"]


class Disconnected(Exception):
    """boxd closed the connection."""


class Call:
    """One stream, as its server sees it."""

    def __init__(self, client: Client, number: int) -> None:
        self.number = number
        self.pieces: list[tuple[int, bytes]] = []
        self.notes: list[dict[str, Any]] = []
        self.answer: dict[str, Any] | None = None
        self.failure: dict[str, Any] | None = None
        self._client = client
        self._may_send = wire.Window()
        self._may_receive = wire.Window()

    @property
    def done(self) -> bool:
        return self.answer is not None or self.failure is not None

    @property
    def room(self) -> int:
        """Bytes that may be sent."""
        return self._may_send.left

    @property
    def data(self) -> bytes:
        return b"".join(data for _, data in self.pieces)

    @property
    def stdout(self) -> bytes:
        return b"".join(data for label, data in self.pieces if label == wire.STDOUT)

    @property
    def stderr(self) -> bytes:
        return b"".join(data for label, data in self.pieces if label == wire.STDERR)

    @property
    def skipped(self) -> int:
        return sum(note.get("skipped", 0) for note in self.notes)

    def result(self) -> dict[str, Any]:
        """Waits for END and returns it; raises Failed on FAIL."""
        self._client.pump_until(lambda: self.done)
        if self.failure is not None:
            raise Failed(self.failure)
        assert self.answer is not None
        return self.answer

    def send(self, data: bytes) -> Self:
        """Sends data as the window allows, until all is sent or the stream is closed."""
        while data and not self.done:
            self._client.pump_until(lambda: self.done or self._may_send.left > 0)
            piece = data[: min(wire.CHUNK, self._may_send.left)]
            self._may_send.spend(len(piece))
            self._client.send(wire.pack_data(self.number, piece))
            data = data[len(piece) :]
        return self

    def finish(self) -> Self:
        self._client.send(wire.pack(wire.FINISH, self.number))
        return self

    def cancel(self) -> Self:
        self._client.send(wire.pack(wire.CANCEL, self.number))
        return self

    def receive(self, frame: wire.Frame) -> None:
        assert not self.done, f"{frame} after the stream's end"
        if frame.kind == wire.DATA:
            self._may_receive.spend(len(frame.payload))
            self.pieces.append((frame.label, frame.payload))
            if credit := self._may_receive.consumed(len(frame.payload)):
                self._client.send(wire.pack_credit(self.number, credit))
        elif frame.kind == wire.CREDIT:
            self._may_send.grant(frame.credit())
        elif frame.kind == wire.NOTE:
            self.notes.append(frame.object())
        elif frame.kind == wire.END:
            self.answer = frame.object()
        elif frame.kind == wire.FAIL:
            self.failure = frame.object()


class Client:
    """One connection to a boxd: reached as the connector does, by handing over a socket."""

    def __init__(self, path: Path, *, greet: bool = True) -> None:
        self.notes: list[dict[str, Any]] = []
        self.hello: dict[str, Any] = {}
        self._calls: dict[int, Call] = {}
        self._count = 0
        self._decoder = wire.Decoder(wire.FROM_BOXD)
        self._line, theirs = socket.socketpair()
        with theirs, socket.socket(socket.AF_UNIX) as link:
            link.connect(str(path))
            socket.send_fds(link, [b"-"], [theirs.fileno()] * 2)
        if greet:
            self.send(wire.pack_object(wire.HELLO, 0, {"version": wire.VERSION}))
            self.pump_until(lambda: self.hello)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._line.close()

    def send(self, data: bytes) -> None:
        try:
            self._line.settimeout(PATIENCE)
            self._line.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Disconnected from error

    def open(self, op: str, **request: Any) -> Call:
        """Opens a stream."""
        self._count += 1
        call = self._calls[self._count] = Call(self, self._count)
        self.send(wire.pack_object(wire.OPEN, call.number, {"op": op, **request}))
        return call

    def run(self, script: str, **request: Any) -> Call:
        """Opens a stream that runs a shell script, with 6000 bytes of head and tail."""
        asked = {"command": script, "head": 6000, "tail": 6000, "timeout": 60}
        return self.open("run", **{**asked, **request})

    def call(self, op: str, **request: Any) -> dict[str, Any]:
        """Opens a stream and waits for its result."""
        return self.open(op, **request).result()

    def write(self, path: str, data: bytes) -> dict[str, Any]:
        """Writes a file."""
        return self.open("write", path=path).send(data).finish().result()

    def pump_until(self, condition: Callable[[], Any]) -> None:
        """Receives until `condition` holds."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            self._pump(deadline - time.monotonic())

    def wait_for_disconnect(self) -> None:
        """Receives until boxd closes the connection."""
        try:
            self.pump_until(lambda: False)
        except Disconnected:
            return

    def _pump(self, timeout: float) -> None:
        assert timeout > 0, f"boxd did not answer within {PATIENCE} s"
        self._line.settimeout(timeout)
        try:
            data = self._line.recv(1 << 18)
        except ConnectionResetError as error:
            raise Disconnected from error
        if not data:
            raise Disconnected
        for frame in self._decoder.feed(data):
            if frame.kind == wire.HELLO:
                self.hello = frame.object()
            elif frame.stream == 0:
                self.notes.append(frame.object())
            elif call := self._calls.get(frame.stream):
                call.receive(frame)


class LocalBoxd:
    """A boxd of one's own: `root` is its file system's root, `workspace` the box's /workspace.

    Its commands run as an unprivileged user; boxd itself does too, unless `as_root`. `path` is
    where it finds programs, if not where everybody does. Without `forks` it can't fork.
    """

    def __init__(
        self,
        *,
        orphan_after: float = 60.0,
        as_root: bool = False,
        path: str | None = None,
        forks: bool = True,
    ) -> None:
        self._as_root = as_root
        self._start = START if forks else NO_FORKS + START
        self._environment = {**os.environ, "PATH": path or os.environ["PATH"]}
        self._home = Path(tempfile.mkdtemp(prefix="boxd-"))
        self.root = self._home / "root"
        self.workspace = self.root / "workspace"
        self.logs = self._home / "log"
        self.socket = self._home / "run" / "boxd.sock"
        self._errors = self._home / "stderr"
        self._settings = {
            "root": str(self.root),
            "socket": str(self.socket),
            "users": [str(NOBODY)],
            "log_dir": str(self.logs),
            "orphan_after": orphan_after,
        }
        self.workspace.mkdir(parents=True)
        if os.geteuid() == 0:
            for folder in (self._home, self.root, self.workspace):
                os.chown(folder, NOBODY, NOBODY)
        self.start()

    def start(self) -> None:
        """Starts it, again if need be, and waits until it listens."""
        self.socket.unlink(missing_ok=True)
        drop = os.geteuid() == 0 and not self._as_root
        nobody: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        command = [_python(), "-I", "-S", "-c", self._start, json.dumps(self._settings), _package()]
        with self._errors.open("ab") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                cwd="/",
                env=self._environment,
                **(nobody if drop else {}),
            )
        eventually(self._listens, "boxd listens")
        self.facts = psutil.Process(self.process.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
            errors = self._errors.read_text()
            assert not errors, errors
        finally:
            shutil.rmtree(self._home)

    def stop(self) -> None:
        """Ends it and whatever it leaves behind, which should be nothing."""
        family = self.descendants()
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()
            end = time.monotonic() + 2
            while any(alive(member.pid) for member in family) and time.monotonic() < end:
                time.sleep(0.005)
            survivors = [member for member in family if alive(member.pid)]
            for survivor in survivors:
                survivor.kill()
        assert not survivors, f"outlived boxd: {survivors}"

    def connect(self, *, greet: bool = True) -> Client:
        return Client(self.socket, greet=greet)

    def pid_in(self, name: str) -> int:
        """The process id that a command writes into a file of the workspace."""
        path = self.workspace / name
        eventually(lambda: path.exists() and path.read_text().endswith("\n"), f"{name} is written")
        return int(path.read_text())

    def descendants(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def zygote(self) -> psutil.Process:
        """The process that forks runners: boxd's only child without children."""
        (zygote,) = (child for child in self.facts.children() if not child.children())
        return zygote

    def spare(self) -> list[psutil.Process]:
        """A runner and its shell, where no command runs."""
        return [process for process in self.descendants() if process != self.zygote()]

    def at_rest(self) -> bool:
        """True when nothing is left but the zygote and the spare: a runner and its shell."""
        family = self.descendants()
        with contextlib.suppress(psutil.NoSuchProcess):
            children = [one for one in family if one.ppid() == self.process.pid]
            quiet = {one.status() for one in family} == {psutil.STATUS_SLEEPING}
            return len(family) == 3 and len(children) == 2 and quiet
        return False

    def memory(self, field: str) -> int:
        """A field of /proc/pid/status or smaps_rollup, in bytes."""
        for name in ("status", "smaps_rollup"):
            for line in Path(f"/proc/{self.process.pid}/{name}").read_text().splitlines():
                if line.startswith(f"{field}:"):
                    return int(line.split()[1]) * 1024
        raise KeyError(field)

    def _listens(self) -> bool:
        assert self.process.poll() is None, self._errors.read_text()
        return listens(self.socket)


def local_boxd() -> Iterator[LocalBoxd]:
    """A fixture's body."""
    with LocalBoxd() as boxd:
        yield boxd


@functools.cache
def _package() -> str:
    """A folder with a copy of boxd that everybody can read, wherever the repository lies."""
    folder = tempfile.mkdtemp(prefix="boxd-package-")
    atexit.register(shutil.rmtree, folder)
    Path(folder).chmod(0o755)
    shutil.copytree(SOURCE, f"{folder}/boxd", ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(folder, quiet=1)
    return folder


@functools.cache
def _python() -> str:
    """The system's Python, which other users can reach too; a virtual environment's may be ours."""
    return shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable
