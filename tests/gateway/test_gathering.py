"""Pieces are joined while nobody takes them, and passed on at once where somebody does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from box_mcp.gateway.gathering import pass_on

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

PATIENCE = 10.0


class Source:
    """Gives pieces, and counts them; then fails, if told to."""

    def __init__(self, pieces: Sequence[bytes], failure: Exception | None = None) -> None:
        self.given = 0
        self._pieces = pieces
        self._failure = failure

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        for piece in self._pieces:
            await anyio.lowlevel.checkpoint()
            self.given += 1
            yield piece
        if self._failure is not None:
            raise self._failure


async def test_what_comes_while_nobody_takes_it_is_joined():
    source, said = Source([b"a", b"b", b"", b"c", b"d"]), list[bytes]()

    async def say(piece: bytes) -> None:
        said.append(piece)
        await anyio.wait_all_tasks_blocked()

    with anyio.fail_after(PATIENCE):
        await pass_on(source, say)
    assert said == [b"a", b"bcd"]


async def test_a_piece_is_passed_on_before_the_next_one_comes():
    said = anyio.Event()

    async def pieces() -> AsyncGenerator[bytes, None]:
        yield b"a"
        await said.wait()
        yield b"b"

    async def say(piece: bytes) -> None:
        if piece == b"a":
            said.set()

    with anyio.fail_after(PATIENCE):
        await pass_on(pieces(), say)
    assert said.is_set()


async def test_no_more_is_taken_in_than_may_wait():
    source, ahead = Source([b"1234"] * 20), list[int]()
    said = bytearray()

    async def say(piece: bytes) -> None:
        said.extend(piece)
        await anyio.wait_all_tasks_blocked()
        ahead.append(4 * source.given - len(said))

    with anyio.fail_after(PATIENCE):
        await pass_on(source, say, most=10)
    assert bytes(said) == b"1234" * 20
    assert max(ahead) == 12


async def test_a_failure_of_the_source_comes_behind_all_that_it_gave():
    said = bytearray()

    async def say(piece: bytes) -> None:
        await anyio.wait_all_tasks_blocked()
        said.extend(piece)

    with anyio.fail_after(PATIENCE), pytest.raises(LookupError):
        await pass_on(Source([b"a", b"b"], LookupError()), say)
    assert said == b"ab"


async def test_a_failure_of_whoever_takes_ends_the_source():
    async def endless() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"a"
                await anyio.lowlevel.checkpoint()
        finally:
            ended.set()

    ended = anyio.Event()

    async def say(_: bytes) -> None:
        raise BrokenPipeError

    with anyio.fail_after(PATIENCE), pytest.raises(BrokenPipeError):
        await pass_on(endless(), say)
    assert ended.is_set()


async def test_a_cancelled_call_ends_both():
    source = Source([b"a"] * 10)

    with anyio.move_on_after(PATIENCE) as scope:

        async def say(_: bytes) -> None:
            scope.cancel()
            await anyio.sleep_forever()

        await pass_on(source, say)
    assert scope.cancelled_caught
    assert source.given < 10
