"""Secrets of routes: fetched when they are needed, and never told to anybody but the upstream.

What goes wrong is told without a word of what a program printed or a file holds.
"""

from __future__ import annotations

import base64
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Protocol

import anyio
import anyio.to_thread
from anyio.abc import Process

from box_mcp.domain.routes import Credential, Upstream
from box_mcp.errors import NoCredential

TIMEOUT = 20.0  # s for a file or a program; some ask the network
KEPT = 300.0  # s that a program's answer is used again
READ = 5.0  # s that a file's line is: one clone asks thrice, and each look takes a thread
TRIED = 5.0  # s in which it is not asked once more, whatever it said
ENDING = 0.5  # s from a program's end to the end of what it printed: it may leave others behind
MAX_PRINTED = 64 * 1024  # bytes

HELPER = ("git", "-c", "credential.interactive=false", "credential", "fill")
QUIET = {"GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "", "GCM_INTERACTIVE": "never"}
"""Nobody is there to be asked for a password."""


class Keyed(Protocol):
    """A route of whatever kind, with a credential of the host's. It is hashable."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def upstream(self) -> Upstream:
        """Where it leads."""
        ...

    @property
    def credential(self) -> Credential:
        """Where its secret comes from."""
        ...


@dataclass(frozen=True)
class Secret:
    """A user's name, and what proves it."""

    user: str
    value: str = field(repr=False)

    @property
    def basic(self) -> str:
        """As HTTP's Authorization has it."""
        return f"Basic {base64.b64encode(f'{self.user}:{self.value}'.encode()).decode()}"

    @property
    def bearer(self) -> str:
        """As HTTP's Authorization has what needs no user's name."""
        return f"Bearer {self.value}"

    @property
    def spellings(self) -> tuple[str, str]:
        """By which one knows it, wherever it stands."""
        return self.value, self.basic.removeprefix("Basic ")


@dataclass(frozen=True)
class _Known:
    """What fetching gave, and when."""

    secret: Secret | NoCredential
    at: float


class Secrets:
    """Of all routes of this server."""

    def __init__(self, timeout: float = TIMEOUT) -> None:
        self._timeout = timeout
        self._known: dict[Keyed, _Known] = {}
        self._turns: defaultdict[Keyed, anyio.Lock] = defaultdict(anyio.Lock)

    def __repr__(self) -> str:
        return f"<Secrets of {len(self._known)} routes>"

    async def of(self, route: Keyed, but: Secret | None = None) -> Secret:
        """The secret of a route; who needs it at the same time shares one fetch.

        `but` is one that was not accepted: it is fetched anew, unless it just was. Raises
        NoCredential.
        """
        async with self._turns[route]:
            known = self._known.get(route)
            if known is None or not _is_fresh(known, route.credential, but):
                known = _Known(await self._fetched(route), time.monotonic())
                self._known[route] = known
        if isinstance(known.secret, NoCredential):
            raise NoCredential(route.name, known.secret.detail)
        return known.secret

    async def _fetched(self, route: Keyed) -> Secret | NoCredential:
        try:
            with anyio.fail_after(self._timeout):
                secret = await _fetch(route)
        except TimeoutError:
            what = "its file can't be read" if route.credential.file else "its program does not end"
            return NoCredential(route.name, f"{what} within {self._timeout:g} s")
        except _Failed as error:
            return NoCredential(route.name, str(error))
        said = f"{secret.user}{secret.value}"
        if not secret.value or not said.isprintable() or ":" in secret.user:
            return NoCredential(route.name, "what was found there can be no secret")
        return secret


def _is_fresh(known: _Known, credential: Credential, but: Secret | None) -> bool:
    """Whether it need not be fetched again."""
    age = time.monotonic() - known.at
    by_program = bool(credential.command or credential.helper)
    if isinstance(known.secret, NoCredential) or known.secret == but:
        return by_program and age < TRIED
    return age < (KEPT if by_program else READ if credential.file else 0.0)


class _Failed(Exception):
    """Why there is no secret."""


async def _fetch(route: Keyed) -> Secret:
    credential = route.credential
    if credential.helper:
        return await _helped(route)
    if credential.command:
        return Secret(credential.user, _first_line(await _printed(credential.command)))
    if credential.file:
        read = await anyio.to_thread.run_sync(_contents, credential.file, abandon_on_cancel=True)
        return Secret(credential.user, _first_line(read))
    value = os.environ.get(credential.variable, "").strip()
    if not value:
        raise _Failed(f"the variable {credential.variable} is not set where box_mcp runs")
    return Secret(credential.user, value)


def _contents(path: str) -> bytes:
    try:
        if not Path(path).is_file():
            raise _Failed("its file is not there")
        with Path(path).open("rb") as file:
            return file.read(MAX_PRINTED)
    except OSError as error:
        raise _Failed(f"its file can't be read: {error.strerror}") from None


def _first_line(data: bytes) -> str:
    return _text(data).partition("\n")[0].strip()


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise _Failed("what was found there is no text") from None


async def _helped(route: Keyed) -> Secret:
    upstream = route.upstream
    path = upstream.path.lstrip("/")
    said = f"protocol={upstream.scheme}\nhost={upstream.authority}\n"
    said += f"path={path}\n\n" if path else "\n"
    answer = _text(await _printed(HELPER, said.encode()))
    found: dict[str, str] = {}
    for line in answer.splitlines():
        key, _, found[key] = line.partition("=")
    if not found.get("password"):
        raise _Failed(f"git's credential helpers know none for {upstream.authority}")
    return Secret(found.get("username", ""), found["password"])


async def _printed(command: Sequence[str], said: bytes = b"") -> bytes:
    """What a program prints that is told `said`.

    If it does not end by itself, it is ended with all that it began; else that may go on: git's
    credential cache is such a thing.
    """
    try:
        process = await anyio.open_process(
            command,
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            cwd=Path.home(),
            env=_environment(),
            start_new_session=True,
        )
    except OSError as error:
        raise _Failed(f"its program {command[0]!r} can't be started: {error.strerror}") from None
    try:
        return await _conversation(process, said)
    finally:
        if process.returncode is None:
            _kill(process)
        with anyio.CancelScope(shield=True):
            await process.aclose()


async def _conversation(process: Process, said: bytes) -> bytes:
    assert process.stdin is not None
    printed = bytearray()
    over = anyio.Event()
    status = 0

    async def listen() -> None:
        assert process.stdout is not None
        with suppress(anyio.EndOfStream):
            while len(printed) < MAX_PRINTED:
                printed.extend(await process.stdout.receive())
        over.set()

    async with anyio.create_task_group() as group:
        group.start_soon(listen)
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            await process.stdin.send(said)
        await process.stdin.aclose()
        status = await process.wait()
        with anyio.move_on_after(ENDING):
            await over.wait()
        group.cancel_scope.cancel()
    if status != 0:
        raise _Failed(f"its program ended with status {status}; run it yourself to see why")
    return bytes(printed)


def _kill(process: Process) -> None:
    """With all that it started, where the system knows such groups."""
    with suppress(ProcessLookupError, PermissionError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)


def _environment() -> Mapping[str, str]:
    return os.environ | QUIET
