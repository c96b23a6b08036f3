"""A server of HTTP that may be killed and started again at the same address."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

from benchmarks.bench import OURS, Bench

HOST = "127.0.0.1"
READY = b"GET /readyz HTTP/1.1\r\nHost: %b:%d\r\nConnection: close\r\n\r\n"
START_TIMEOUT = 30.0  # s
LOOK_AGAIN = 0.02  # s
TIMEOUT = 5.0  # s for one look, and for a server's end


class Served:
    """One process at any time; `settings` go over those that all servers of the bench have."""

    def __init__(self, bench: Bench, **settings: object) -> None:
        self.port = free_port()
        self._log = bench.log
        given = {"http__listen": f"{HOST}:{self.port}", **settings}
        self._env = bench.env | {f"BOX_MCP_{name.upper()}": str(it) for name, it in given.items()}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None  # started
        return self._process.pid

    def start(self) -> None:
        """Returns when it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*OURS, "--http"], env=self._env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        until_there(self.port, self._process, self._log)

    def kill(self) -> None:
        """As a crash would."""
        assert self._process is not None  # started
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """As an operator does."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()


def until_there(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Returns when a server is ready, whatever it says; raises RuntimeError."""
    deadline = monotonic() + START_TIMEOUT
    while not said_at(port).startswith(b"HTTP/1.1 "):
        if process.poll() is not None or monotonic() > deadline:
            raise RuntimeError(f"the server did not start:\n{log.read_text()[-2000:]}")
        sleep(LOOK_AGAIN)


def said_at(port: int) -> bytes:
    """How an answer begins; empty where nobody gives one."""
    try:
        with socket.create_connection((HOST, port), TIMEOUT) as line:
            line.sendall(READY % (HOST.encode(), port))
            return line.recv(64)
    except OSError:
        return b""


def descriptors(pid: int) -> int:
    """How many the process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def free_port() -> int:
    with socket.create_server((HOST, 0)) as server:
        return server.getsockname()[1]


@contextmanager
def served(bench: Bench, **settings: object) -> Generator[Served, None, None]:
    server = Served(bench, **settings)
    try:
        server.start()
        yield server
    finally:
        server.stop()
