"""Commands in a box: run, followed, typed into, ended; their output cut to a model's measure."""

from __future__ import annotations

import json
import shlex
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from secrets import token_hex
from typing import Annotated, Any, Literal

from pydantic import Field

from box_mcp.boxd import wire
from box_mcp.capabilities.calls import (
    Count,
    Said,
    answering,
    at_most,
    checked_path,
    parsed,
)
from box_mcp.capabilities.files import write_bytes
from box_mcp.channel import Channel, RemoteCall
from box_mcp.errors import InvalidArgument

INLINE_COMMAND = 64 * 1024  # bytes as JSON, or quoted; a frame takes 256 KiB, variables included
ENV_LIMIT = 64 * 1024  # bytes as JSON of variables given with one command
ANSWER_GRACE = 10.0  # s beyond `yield_after` for the answer of a box that is short of CPU
END_GRACE = 10.0  # s until a tree that is ended is gone, or told as going on
BACKGROUND = 0.03  # s in which a command that runs in the background can fail to start
TITLE = 200  # characters of a command that boxd remembers it by
NAME = 40  # characters of a session's name

OnOutput = Callable[[str, int], Awaitable[None]]
"""Called with the newest line of output and the number of bytes printed so far."""

Until = Literal["output", "quiet", "exit"]

ProcessId = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,32}$")]
Ports = Annotated[list[Annotated[int, Field(ge=0, le=65535)]], Field(max_length=100)]
Pids = Annotated[list[Annotated[int, Field(gt=0)]], Field(max_length=100)]


@dataclass(frozen=True)
class Terminal:
    """The size of a terminal, in characters."""

    rows: int = 24
    cols: int = 80


class RunRecord(Said):
    """What boxd tells of a command. Times in seconds, sizes in bytes; null is what is not known.

    `fresh` and `over` tell whether its session began and ended with it; `left` counts processes
    that it started and that live on after it. Of what it `printed`, the first `logged` bytes are in
    its `log`, but for `dropped` bytes from the middle.
    """

    id: ProcessId
    command: Annotated[str, Field(max_length=1000)]
    session: Annotated[str, Field(max_length=NAME)] | None
    fresh: bool
    over: bool
    terminal: tuple[int, int] | None = Field(strict=False)
    started: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    running: bool
    left: Count
    exit: Annotated[int, Field(ge=0, le=255)] | None
    signal: Annotated[int, Field(ge=1, le=64)] | None
    cause: Annotated[str, Field(max_length=32)] | None
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    cpu: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
    peak: Count | None
    printed: Count
    logged: Count
    dropped: Count
    log: Annotated[str, Field(pattern=r"^/[ -~]{1,200}$")]


class Member(Said):
    """One process of a command's tree."""

    pid: Annotated[int, Field(gt=0)]
    name: Annotated[str, Field(max_length=64)]


class Listed(RunRecord):
    """A command with what its processes hold now: memory, and the TCP ports they listen on."""

    members: Annotated[list[Member], Field(max_length=100)]
    memory: Count
    ports: Ports


class Listing(Said):
    """The newest commands of a box, those that run first; `total` counts all that are known."""

    runs: list[Listed]
    total: Count


class Page(RunRecord):
    """A command, and which bytes of its output are shown: a cursor is an offset in all of it."""

    start: Count
    end: Count
    matched: bool


class Signalled(Said):
    """The processes that got a signal."""

    signalled: Pids


class Progress(Said):
    """A note on a running command: its newest line of output, and how much it printed."""

    newest: Annotated[str, Field(max_length=1000)]
    printed: Count


class Gap(Said):
    """A note that comes between head and tail: so many bytes are left out here."""

    skipped: Annotated[int, Field(gt=0, lt=2**63)]


@dataclass(frozen=True)
class Outcome:
    """A command's result so far: `record.running` tells whether it goes on.

    `head` and `tail` are the first and last bytes printed, stdout and stderr in order, with
    `skipped` bytes between them; `stdout` and `stderr` are what of both went there.
    """

    record: RunRecord
    head: bytes
    skipped: int
    tail: bytes
    stdout: bytes = b""
    stderr: bytes = b""


async def unheard(_line: str, _printed: int) -> None:
    """For who does not want to hear of progress."""


class Shell:
    """Runs commands through one channel; in `cwd` unless they say where.

    All methods raise CallRefused (codes ``not_started``, ``not_found``, ``busy``, ``ended``,
    ``no_input``, ``denied``, ``invalid``), BoxBroken when the box answers nonsense, and what
    channels raise. Who is cancelled while it only looks on changes nothing.
    """

    def __init__(self, channel: Channel, cwd: str = "") -> None:
        self._channel = channel
        self._cwd = cwd

    @property
    def box(self) -> str:
        """The id of the box."""
        return self._channel.box

    async def run(
        self,
        command: str,
        *,
        timeout: float | None,
        yield_after: float,
        quiet: float | None = None,
        max_output: int,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str | None = None,
        user: str | None = None,
        session: str | None = None,
        terminal: Terminal | None = None,
        background: bool = False,
        keep_awake: bool = False,
        on_output: OnOutput = unheard,
        title: str = "",
        tail: int | None = None,
        visits: bool = False,
    ) -> Outcome:
        """Runs `command` with the box's shell and returns when it ended, or after `yield_after` s.

        With `quiet`, also when it prints nothing for so many seconds: it may wait for input.
        After `timeout` s its whole process tree is killed. When the caller is cancelled, too.
        Half of `max_output` (bytes) is for the beginning of the output, half for its end, unless
        `tail` says how much. In the `background`, it returns at once and its input stays open, as
        that of a `terminal` does. A `session` keeps its bash, with directory and variables, for the
        next command that names it. It is listed as `title`. One that only `visits` its directory
        does not have the next command's shell wait there.
        """
        if background:
            yield_after = BACKGROUND
        if tail is None:
            tail = max_output - max_output // 2
        if stdin is not None and terminal is not None:
            raise InvalidArgument("stdin", "can't be given to a terminal: type by process_input")
        text, upload = command, None
        if stdin is not None:
            data = stdin.encode(errors="surrogatepass")
            if len(data) <= wire.CHUNK and session is None:
                upload = data
            else:
                text = await self._with_input(command, data)
        request: dict[str, Any] = {
            "command": await self._text(text),
            "title": (title or command)[:TITLE],
            "cwd": checked_path("cwd", cwd or self._cwd or "."),
            "moves": cwd is not None,
            "visits": visits,
            "env": _variables(env or {}),
            "stdin": upload is not None,
            "user": user,
            "session": _session_name(session),
            "terminal": (terminal.rows, terminal.cols) if terminal else None,
            "background": background,
            "keep_awake": keep_awake,
            "timeout": timeout,
            "yield_after": yield_after,
            "quiet": quiet,
            "head": max_output - tail,
            "tail": tail,
        }
        async with (
            self._channel.call("run", upload=upload, **request) as call,
            answering(self._channel, yield_after + ANSWER_GRACE),
        ):
            printed = await self._receive(call, max_output, on_output)
        return Outcome(parsed(self._channel.box, RunRecord, call.result), *printed)

    async def output(
        self,
        process: str,
        *,
        limit: int,
        cursor: int | None = None,
        wait: float = 0.0,
        until: Until = "output",
        pattern: str | None = None,
        on_output: OnOutput = unheard,
    ) -> tuple[Page, bytes]:
        """What a command printed from `cursor` on, `limit` bytes at most; None for the newest.

        Waits up to `wait` s for what `until` says, or for a match of `pattern`, beyond the cursor.
        """
        request: dict[str, Any] = {
            "id": process,
            "limit": limit,
            "cursor": cursor,
            "wait": wait,
            "until": until,
            "pattern": pattern,
        }
        async with (
            self._channel.call("output", **request) as call,
            answering(self._channel, wait + ANSWER_GRACE),
        ):
            data, *_ = await self._receive(call, limit, on_output)
        return parsed(self._channel.box, Page, call.result), data

    async def outcome(self, process: str, max_output: int) -> Outcome:
        """What `run` would have returned, had it looked now."""
        page, tail = await self.output(process, limit=max_output)
        if not page.running:  # the last of its output may be on its way still
            page, tail = await self.output(process, limit=max_output, wait=1.0, until="exit")
        head = b""
        if page.start > 0:
            half = max_output // 2
            _, head = await self.output(process, limit=half, cursor=0)
            tail = tail[-(max_output - half) :]
        return Outcome(page, head, page.end - len(tail) - len(head), tail)

    async def type(
        self,
        process: str,
        data: bytes,
        *,
        end: bool = False,
        rows: int | None = None,
        cols: int | None = None,
    ) -> RunRecord:
        """Gives a command input, and then its `end`; changes the size of its terminal.

        What the record says was printed is what was before the input.
        """
        size = (rows, cols) if rows or cols else None
        request: dict[str, Any] = {"id": process, "end": end, "terminal": size}
        async with answering(self._channel, ANSWER_GRACE):
            said = await self._channel.request("input", upload=data, **request)
        return parsed(self._channel.box, RunRecord, said)

    async def signal(self, process: str, number: int, pid: int | None = None) -> list[int]:
        """Signals a command's whole tree, or one process of it; returns who got it."""
        async with answering(self._channel, ANSWER_GRACE):
            said = await self._channel.request("signal", id=process, signal=number, pid=pid)
        return parsed(self._channel.box, Signalled, said).signalled

    async def end(self, process: str) -> RunRecord:
        """Ends a command's whole tree, politely first; returns when that is done."""
        async with answering(self._channel, END_GRACE + ANSWER_GRACE):
            said = await self._channel.request("end", id=process)
        return parsed(self._channel.box, RunRecord, said)

    async def processes(self) -> Listing:
        """The commands that are known, those that run first, then the newest."""
        async with answering(self._channel, ANSWER_GRACE):
            return parsed(self._channel.box, Listing, await self._channel.request("processes"))

    async def _receive(
        self, call: RemoteCall, limit: int, on_output: OnOutput
    ) -> tuple[bytes, int, bytes, bytes, bytes]:
        """What comes, `limit` bytes at most: before a gap, how many are left out there, behind.

        Then the same once more, by where it went.
        """
        box = self._channel.box
        parts, sides = [bytearray(), bytearray()], [bytearray(), bytearray()]
        skipped = 0
        async for label, item in call.labelled():
            if isinstance(item, bytes):
                parts[skipped > 0] += item
                at_most(box, sum(map(len, parts)), limit)
                sides[label == wire.STDERR] += item
            elif "newest" in item:
                progress = parsed(box, Progress, item)
                await on_output(progress.newest, progress.printed)
            else:
                skipped = parsed(box, Gap, item).skipped
        head, tail, stdout, stderr = map(bytes, (*parts, *sides))
        return head, skipped, tail, stdout, stderr

    async def _with_input(self, command: str, data: bytes) -> str:
        """`command`, reading `data` from a file that is gone before it runs."""
        path = await self._stow("input", data)
        return f"{{ rm -f {path} 2>/dev/null; eval {shlex.quote(command)}\n}} < {path}"

    async def _text(self, command: str) -> str:
        if "\0" in command:
            raise InvalidArgument("command", "has a NUL character, which no shell takes")
        text = command.encode(errors="surrogatepass")
        if len(text) <= INLINE_COMMAND and _travels_inline(command):
            return command
        # Too long for a frame: it travels as a file, which is read and gone before it runs.
        path = await self._stow("command", text)
        return f'eval "$(cat {path}; rm -f {path})"'

    async def _stow(self, what: str, content: bytes) -> str:
        """The path of a new file in the box, of a name that nobody can guess, nor need quote."""
        path = f"/tmp/.{what}-{token_hex(8)}"  # noqa: S108 - the box's
        await write_bytes(self._channel, path, content)
        return path


def _travels_inline(command: str) -> bool:
    return max(len(json.dumps(command)), len(shlex.quote(command))) <= INLINE_COMMAND


def _variables(env: Mapping[str, str]) -> dict[str, str]:
    for name, value in env.items():
        if not name or "=" in name or "\0" in name + value:
            raise InvalidArgument("env", f"has {name[:TITLE]!r}, which can't be a variable")
    if len(json.dumps(dict(env))) > ENV_LIMIT:
        raise InvalidArgument("env", f"is over {ENV_LIMIT:,} bytes: write a file and source it")
    return dict(env)


def _session_name(session: str | None) -> str | None:
    if session is not None and not (0 < len(session) <= NAME and session.isprintable()):
        raise InvalidArgument("session", f"has no name of 1-{NAME} printable characters")
    return session
