"""What all work in a box needs: its answers parsed, its silence bounded."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

import anyio
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from box_mcp.capabilities.refusals import advising
from box_mcp.channel import Channel
from box_mcp.domain.paths import parse
from box_mcp.errors import BoxBroken, CallInterrupted, InvalidArgument

MAX_PATH = 4096  # bytes; the kernel's own limit (PATH_MAX)
FILES_TIMEOUT = 50.0  # s for work on files; boxd gives it up after 40, clients after 60

Count = Annotated[int, Field(ge=0, lt=2**63)]


class Said(BaseModel):
    """Something that a box said: untrusted, so parsed strictly."""

    model_config = ConfigDict(frozen=True, strict=True)


Model = TypeVar("Model", bound=Said)


def parsed(box: str, model: type[Model], said: dict[str, Any] | None) -> Model:
    """`said` as a `model`; raises BoxBroken when it is none."""
    try:
        return model.model_validate(said)
    except ValidationError:
        raise BoxBroken(box, f"its daemon sent no proper {model.__name__}") from None


def at_most(box: str, size: int, limit: int) -> None:
    """Raises BoxBroken when a box has sent more than the `limit` that it was given."""
    if size > limit:
        raise BoxBroken(box, "its daemon sent more than was asked for")


def checked_path(name: str, path: str) -> str:
    """The path that a caller means by `path`, unless no file system takes it.

    Raises InvalidArgument; `name` is what the caller calls the argument.
    """
    try:
        path = parse(path)
    except ValueError as error:
        raise InvalidArgument(name, str(error)) from None
    if len(path.encode(errors="surrogatepass")) > MAX_PATH:
        raise InvalidArgument(name, f"is longer than {MAX_PATH:,} bytes")
    return path


async def collected(
    channel: Channel,
    op: str,
    path: str,
    most: int,
    /,
    *,
    name: str = "path",
    upload: bytes | None = None,
    **arguments: Any,
) -> tuple[bytes, dict[str, Any] | None]:
    """What a request about `path` sends, at most `most` bytes, and its END's object.

    `name` is what the caller calls the path.
    """
    path = checked_path(name, path)
    pieces: list[bytes] = []
    size = 0
    with advising(channel.box, path):
        async with (
            answering(channel, FILES_TIMEOUT),
            channel.call(op, upload=upload, expect=most, path=path, **arguments) as call,
        ):
            async for _, item in call.labelled():
                if isinstance(item, bytes):
                    pieces.append(item)
                    size += len(item)
                    at_most(channel.box, size, most)
            return b"".join(pieces), call.result


@asynccontextmanager
async def answering(channel: Channel, seconds: float) -> AsyncGenerator[None, None]:
    """Gives a box that has not answered after `seconds` up, with CallInterrupted.

    The channel is closed then: whatever the matter is (a box frozen by somebody else, a hung
    daemon), the next call looks and connects anew. What runs in the box goes on.
    """
    with anyio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        await channel.aclose()
        raise CallInterrupted(channel.box, f"it gave no answer within {seconds:g} s")
