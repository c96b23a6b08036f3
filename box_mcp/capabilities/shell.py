"""Commands in a box: run, followed, cut to what a model can read."""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from secrets import token_hex

from pydantic import BaseModel, ConfigDict, ValidationError

from box_mcp.boxd import wire
from box_mcp.capabilities.files import write_bytes
from box_mcp.channel import Channel
from box_mcp.errors import BoxBroken, InvalidArgument

INLINE_COMMAND = (
    64 * 1024
)  # bytes; the kernel takes 128 KiB per argument (MAX_ARG_STRLEN), a frame 256
ENV_LIMIT = 64 * 1024  # bytes of variables given with one command
TITLE = 200  # characters of a command that boxd remembers it by

OnOutput = Callable[[str, int], Awaitable[None]]
"""Called with the newest line of output and the number of bytes printed so far."""


class RunRecord(BaseModel):
    """What boxd tells of a command; parsed strictly, since it comes out of a box."""

    model_config = ConfigDict(frozen=True, strict=True)

    id: str
    running: bool
    left: int
    exit: int | None
    signal: int | None
    cause: str | None
    seconds: float
    printed: int
    logged: int
    log: str


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
    """Runs commands through one channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

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
        InvalidArgument, CallRefused (code ``not_started``) and what channels raise.
        """
        env = dict(env or {})
        if sum(len(key) + len(value) for key, value in env.items()) > ENV_LIMIT:
            raise InvalidArgument(
                "env", f"is over {ENV_LIMIT} characters: write a file and source it"
            )
        request = {
            "argv": await self._argv(command),
            "title": command[:TITLE],
            "cwd": cwd,
            "env": env,
            "stdin": stdin is not None,
            "timeout": timeout,
            "yield_after": yield_after,
            "head": max_output // 2,
            "tail": max_output - max_output // 2,
        }
        parts = [bytearray(), bytearray()]
        skipped = 0
        async with self._channel.call("run", **request) as call:
            if stdin is not None:
                await call.send(stdin.encode(errors="surrogateescape"), wire.STDIN)
                await call.finish()
            async for _, item in call.labelled():
                if isinstance(item, bytes):
                    parts[skipped > 0] += item
                elif "newest" in item:
                    await on_output(str(item["newest"]), int(item.get("printed", 0)))
                else:
                    skipped = max(1, int(item.get("skipped", 1)))
            record = self._parsed(call.result or {})
        return Outcome(record, bytes(parts[0]), skipped, bytes(parts[1]))

    async def _argv(self, command: str) -> list[str]:
        shell = str(self._channel.hello.get("shell") or "/bin/sh")
        text = command.encode(errors="surrogateescape")
        if b"\0" in text:
            raise InvalidArgument("command", "has a NUL character, which no shell takes")
        if len(text) <= INLINE_COMMAND:
            return [shell, "-c", command]
        # Too long for an argument: it travels as a file, which is read and gone before it runs.
        path = f"/tmp/.command-{token_hex(8)}"  # noqa: S108 - the box's, with an unguessable name
        await write_bytes(self._channel, path, text)
        quoted = shlex.quote(path)
        return [shell, "-c", f'eval "$(cat {quoted}; rm -f {quoted})"']

    def _parsed(self, result: dict[str, object]) -> RunRecord:
        try:
            return RunRecord.model_validate(result)
        except ValidationError as error:
            raise BoxBroken(
                self._channel.box,
                f"its daemon sent no proper result ({error.error_count()} faults)",
            ) from None
