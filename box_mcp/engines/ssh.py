"""An engine that is reached by ssh: its socket, forwarded to one of this machine's; blocking.

One ssh program carries all connections. docker's own way is a login for each of them, and a program
of its own over there: with 200 boxes, 200 of each.

    ssh://[user@]host[:port][/path/of/docker.sock]

The user's own ssh settings, keys, agent and known hosts count; nothing is ever asked.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from tempfile import mkdtemp
from urllib.parse import unquote, urlsplit

from box_mcp.engines.address import Address
from box_mcp.errors import EngineUnreachable

REMOTE_SOCKET = "/var/run/docker.sock"
CONNECT_TIMEOUT = 15  # s until the network has to have answered
LOGIN_PATIENCE = 30.0  # s for all of a login
ALIVE_EVERY = 15  # s between two looks at a silent line, of which three may fail
END_PATIENCE = 1.0  # s for the program to end when it is asked to
COMPLAINTS = "complaints"  # the file that it complains into
WORDS = 300  # characters of what it complains of

OPTIONS = (
    "BatchMode=yes",
    f"ConnectTimeout={CONNECT_TIMEOUT}",
    f"ServerAliveInterval={ALIVE_EVERY}",
    "ServerAliveCountMax=3",
    "ExitOnForwardFailure=yes",
    "StreamLocalBindMask=0177",
    # A line of our own, that ends with us, and takes nothing else along.
    *("ControlMaster=no", "ControlPath=none", "RemoteCommand=none", "RequestTTY=no"),
    *("ForwardAgent=no", "ForwardX11=no", "PermitLocalCommand=no"),
)


@dataclass(frozen=True)
class Destination:
    """Whom to log in to, and where the engine's socket is over there."""

    host: str
    user: str | None
    port: int | None
    socket: str

    def arguments(self, local: Path) -> list[str]:
        """Of the ssh program, which says what it is told, once the way is open, and ends with that.

        It ends when we do, however we do; and its login may be one that can do nothing but `cat`.
        """
        options = [word for option in OPTIONS for word in ("-o", option)]
        if self.user:
            options += ["-l", self.user]
        if self.port:
            options += ["-p", str(self.port)]
        forward = f"{local}:{self.socket}"
        return [*options, "-L", forward, "--", self.host, "cat"]


def destination(url: str) -> Destination:
    """Where an address of ``ssh://`` leads; raises ValueError."""
    parts = urlsplit(url)
    if not parts.hostname or parts.query or parts.fragment or parts.password:
        raise ValueError("an address is ssh://user@host:port, and the path of a socket if need be")
    path = unquote(parts.path) if parts.path.strip("/") else REMOTE_SOCKET
    if set(path) & set(":%$") or not path.isprintable():
        raise ValueError("the path of its socket can't have such characters")
    user = unquote(parts.username) if parts.username else None
    host = parts.netloc.rpartition("@")[2]  # as it was written: settings of ssh may know it so
    host = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return Destination(host, user, parts.port, path)


class Forward:
    """A socket of this machine that leads to the engine; made when it is first needed.

    When the line breaks, whoever needs it next makes it anew.
    """

    def __init__(self, address: Address) -> None:
        self._url = address.url
        self._making = threading.Lock()
        self._directory: Path | None = None
        self._program: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        open_ = self._program is not None and self._program.poll() is None
        return f"<Forward {self._url} {'open' if open_ else 'closed'}>"

    def open(self) -> str:
        """The path of the socket, with the line behind it open; raises EngineUnreachable."""
        with self._making:
            if self._directory is None:
                self._directory = Path(mkdtemp(prefix="box-mcp-"))
            local = self._directory / "engine.sock"
            if self._program is None or self._program.poll() is not None:
                self._end()
                self._program = self._log_in(local)
            return str(local)

    def complaint(self) -> str:
        """What the ssh program said last, if it had to complain."""
        if self._directory is None:
            return ""
        said = (self._directory / COMPLAINTS).read_text(encoding="utf-8", errors="replace")
        return f"ssh: {said.strip()[-WORDS:]}" if said.strip() else ""

    def close(self) -> None:
        """Ends the line; it may be opened again."""
        with self._making:
            self._end()
            if self._directory is not None:
                shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def _log_in(self, local: Path) -> subprocess.Popen[bytes]:
        ssh = shutil.which("ssh")
        if ssh is None:
            raise EngineUnreachable(self._url, "there is no ssh program on this machine")
        try:
            where = destination(self._url)
        except ValueError as error:
            raise EngineUnreachable(self._url, str(error)) from None
        local.unlink(missing_ok=True)
        with local.with_name(COMPLAINTS).open("wb") as errors:
            program = subprocess.Popen(
                [ssh, *where.arguments(local)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # what ends us by a terminal ends it with us, not before
            )
        if _answers(program):
            return program
        _end(program)
        raise EngineUnreachable(self._url, self.complaint() or "nobody answers to the login")

    def _end(self) -> None:
        if self._program is not None:
            _end(self._program)
        self._program = None


def _answers(program: subprocess.Popen[bytes]) -> bool:
    """Whether a word comes back; others, as login shells like to say, may come before it."""
    assert program.stdin is not None
    assert program.stdout is not None
    output, word = program.stdout.fileno(), token_hex(8).encode()
    heard = b""
    with suppress(BrokenPipeError):  # it has ended, as it tells
        os.write(program.stdin.fileno(), word + b"\n")
    deadline = time.monotonic() + LOGIN_PATIENCE
    while (left := deadline - time.monotonic()) > 0 and select.select([output], [], [], left)[0]:
        piece = os.read(output, 4096)
        heard = heard[-len(word) :] + piece
        if word in heard:
            return True
        if not piece:
            break
    return False


def _end(program: subprocess.Popen[bytes]) -> None:
    assert program.stdin is not None
    assert program.stdout is not None
    program.terminate()
    try:
        program.wait(END_PATIENCE)
    except subprocess.TimeoutExpired:
        program.kill()
        program.wait()
    program.stdin.close()
    program.stdout.close()
