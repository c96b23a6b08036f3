"""Commands in a box: run, followed, cut to what a model can read."""

from __future__ import annotations

import json
import shlex
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from secrets import token_hex
from typing import Annotated, Any

from pydantic import Field

from box_mcp.boxd import wire
from box_mcp.capabilities.calls import (
    Count,
    Said,
    alongside,
    answering,
    at_most,
    checked_path,
    parsed,
)
from box_mcp.capabilities.files import write_bytes
from box_mcp.channel import Channel, RemoteCall
from box_mcp.errors import CallInterrupted, InvalidArgument

INLINE_COMMAND = 64 * 1024  # bytes as JSON; a frame takes 256 KiB, variables included
ENV_LIMIT = 64 * 1024  # bytes as JSON of variables given with one command
ANSWER_GRACE = 10.0  # s beyond `yield_after` for the answer of a box that is short of CPU
TITLE = 200  # characters of a command that boxd remembers it by

OnOutput = Callable[[str, int], Awaitable[None]]
"""Called with the newest line of output and the number of bytes printed so far."""


class RunRecord(Said):
    """What boxd tells of a command."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,32}$")]
    running: bool
    left: Count
    exit: Annotated[int, Field(ge=0, le=255)] | None
    signal: Annotated[int, Field(ge=1, le=64)] | None
    cause: Annotated[str, Field(max_length=32)] | None
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    printed: Count
    logged: Count
    log: Annotated[str, Field(pattern=r"^/[ -~]{1,200}$")]


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
    `skipped` bytes between them.
    """

    record: RunRecord
    head: bytes
    skipped: int
    tail: bytes


class Shell:
    """Runs commands through one channel; in `cwd` unless they say where."""

    def __init__(self, channel: Channel, cwd: str = "") -> None:
        self._channel = channel
        self._cwd = cwd

    async def run(
        self,
        command: str,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str | None = None,
        timeout: float,
        yield_after: float,
        max_output: int,
        on_output: OnOutput,
    ) -> Outcome:
        """Runs `command` with the box's shell and returns when it ended, or after `yield_after` s.

        After `timeout` s its whole process tree is killed. When the caller is cancelled, too.
        Half of `max_output` (bytes) is for the beginning of the output, half for its end. Raises
        InvalidArgument, CallRefused (code ``not_started``), BoxBroken when the box answers
        nonsense, and what channels raise.
        """
        request: dict[str, Any] = {
            "command": await self._text(command),
            "title": command[:TITLE],
            "cwd": checked_path("cwd", cwd or self._cwd),
            "env": self._variables(env or {}),
            "stdin": stdin is not None,
            "timeout": timeout,
            "yield_after": yield_after,
            "head": max_output // 2,
            "tail": max_output - max_output // 2,
        }
        async with (
            self._channel.call("run", **request) as call,
            answering(self._channel, yield_after + ANSWER_GRACE),
            alongside(feed, call, stdin) if stdin is not None else nullcontext(),
        ):
            return await self._follow(call, max_output, on_output)

    async def _follow(self, call: RemoteCall, max_output: int, on_output: OnOutput) -> Outcome:
        box = self._channel.box
        parts = [bytearray(), bytearray()]
        skipped = 0
        async for _, item in call.labelled():
            if isinstance(item, bytes):
                parts[skipped > 0] += item
                at_most(box, sum(map(len, parts)), max_output)
            elif "newest" in item:
                progress = parsed(box, Progress, item)
                await on_output(progress.newest, progress.printed)
            else:
                skipped = parsed(box, Gap, item).skipped
        return Outcome(
            parsed(box, RunRecord, call.result), bytes(parts[0]), skipped, bytes(parts[1])
        )

    def _variables(self, env: Mapping[str, str]) -> dict[str, str]:
        for name, value in env.items():
            if not name or "=" in name or "\0" in name + value:
                raise InvalidArgument("env", f"has {name[:TITLE]!r}, which can't be a variable")
        if len(json.dumps(dict(env))) > ENV_LIMIT:
            raise InvalidArgument("env", f"is over {ENV_LIMIT:,} bytes: write a file and source it")
        return dict(env)

    async def _text(self, command: str) -> str:
        if "\0" in command:
            raise InvalidArgument("command", "has a NUL character, which no shell takes")
        text = command.encode(errors="surrogatepass")
        if len(text) <= INLINE_COMMAND and len(json.dumps(command)) <= INLINE_COMMAND:
            return command
        # Too long for a frame: it travels as a file, which is read and gone before it runs.
        path = f"/tmp/.command-{token_hex(8)}"  # noqa: S108 - the box's, with an unguessable name
        await write_bytes(self._channel, path, text)
        quoted = shlex.quote(path)
        return f'eval "$(cat {quoted}; rm -f {quoted})"'


async def feed(call: RemoteCall, stdin: str) -> None:
    """Sends a command its input while others read what it prints."""
    with suppress(CallInterrupted):  # who reads hears of it, too
        await call.send(stdin.encode(errors="surrogatepass"), wire.STDIN)
        await call.finish()
