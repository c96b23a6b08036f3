"""Sessions of older clients: as many as one may have, and what becomes of those over that."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from mcp.server.lowlevel.server import Server

from box_mcp.domain.access import Grant
from box_mcp.domain.names import Principal
from box_mcp.identity.verifying import Identity
from box_mcp.surface.http.admission import Admission
from box_mcp.surface.http.door import Door, Rules
from box_mcp.surface.http.health import Readiness
from box_mcp.surface.http.sessions import Sessions
from tests.support.asgi import Asking, asking

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

BOTH = ("accept", "application/json, text/event-stream")
JSON = ("content-type", "application/json")
INITIALIZE = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "a test", "version": "1"},
}


class Anybody:
    """Whose token is their name."""

    def knows(self, token: str) -> bool:
        return True

    async def verify(self, token: str) -> Grant | None:
        return Grant(Principal(token))

    async def stands(self, name: str) -> bool:
        return True


class Client:
    """One of a principal's, with the id of its session."""

    def __init__(self, door: Door, who: str, session: str = "") -> None:
        self.door = door
        self.who = who
        self.session = session

    def asking(
        self, method: str, verb: str = "POST", params: Any = None, number: int = 1
    ) -> Asking:
        about = [("mcp-session-id", self.session)] if self.session else []
        body: Any = {"jsonrpc": "2.0", "id": number, "method": method, "params": params or {}}
        said = json.dumps(body).encode() if verb == "POST" else b""
        return asking(verb, body=said, token=self.who, headers=[BOTH, JSON, *about])

    async def begin(self) -> int:
        answer = await self.asking("initialize", params=INITIALIZE).of(self.door)
        self.session = answer.headers.get("mcp-session-id", "")
        return answer.status

    async def ping(self) -> int:
        return (await self.asking("ping").of(self.door)).status


@asynccontextmanager
async def serving(most: int, in_all: int = 100) -> AsyncGenerator[Door, None]:
    async def look() -> None:
        pass

    sessions = Sessions(Server("a test"), 1024 * 1024, most, in_all)
    admission = Admission(Identity([Anybody()]))
    door = Door(sessions, admission, Rules(), Readiness(look), lambda _: None)
    with anyio.fail_after(20):
        async with sessions.run(), door.open():
            yield door


@asynccontextmanager
async def listening(door: Door, who: str) -> AsyncGenerator[tuple[Client, Asking], None]:
    """A client whose session is in use, by a stream that is open."""
    client = Client(door, who)
    assert await client.begin() == 200
    stream = client.asking("", "GET")
    async with anyio.create_task_group() as group:
        group.start_soon(stream.of, door)
        await stream.begun.wait()
        yield client, stream
        stream.gone.set()


async def test_a_session_is_for_the_principal_that_began_it():
    async with serving(3) as door:
        ann = Client(door, "ann")
        assert await ann.begin() == 200
        assert await ann.ping() == 200
        assert await Client(door, "ben", ann.session).ping() == 404
        assert await Client(door, "ann", ann.session).ping() == 200
        assert await Client(door, "ann", "unknown").ping() == 404


async def test_who_begins_one_too_many_loses_the_one_that_was_idle_for_longest():
    async with serving(2) as door:
        first, second, third = (Client(door, "ann") for _ in range(3))
        other = Client(door, "ben")
        for one in (other, first, second):
            assert await one.begin() == 200
        assert await first.ping() == 200
        assert await third.begin() == 200
        assert [await one.ping() for one in (first, second, third)] == [200, 404, 200]
        assert await other.ping() == 200


async def test_when_there_are_no_more_who_has_most_makes_room():
    async with serving(3, in_all=5) as door:
        one, two, three, four = (Client(door, "ann") for _ in range(4))
        ben, ben_too, cedric, dora = (Client(door, who) for who in ("ben", "ben", "cedric", "dora"))
        for client in (ben, ben_too, one, two, three):
            assert await client.begin() == 200
        assert await cedric.begin() == 200, "who has none would wait for hours"
        assert [await client.ping() for client in (one, two, three)] == [404, 200, 200]
        assert await dora.begin() == 200
        alive = [await client.ping() for client in (ben, ben_too, two, three, cedric, dora)]
        assert sorted(alive) == [200] * 5 + [404]
        assert alive[4:] == [200, 200]
        assert await four.begin() == 200


async def test_when_all_are_in_use_nobody_makes_room():
    async with serving(2, in_all=1) as door, listening(door, "ann") as (ann, _):
        assert await Client(door, "ben").begin() == 503
        assert await ann.ping() == 200


async def test_a_session_in_use_is_not_taken_away():
    async with serving(1) as door, listening(door, "ann") as (ann, _):
        assert await Client(door, "ann").begin() == 503
        assert await Client(door, "ben").begin() == 200
        assert await ann.ping() == 200


@pytest.mark.parametrize("method", ["GET", "DELETE", "POST"])
async def test_what_begins_no_session_leaves_none_behind(method: str):
    async with serving(1) as door:
        for _ in range(3):
            answer = await Client(door, "ann").asking("ping", method).of(door)
            assert 400 <= answer.status < 500
        assert await Client(door, "ann").begin() == 200


async def test_a_session_that_ends_under_its_requests_answers_them_and_nothing_is_logged_of_it(
    caplog: pytest.LogCaptureFixture,
):
    async with serving(50) as door:
        for at in range(10):
            ann = Client(door, "ann")
            assert await ann.begin() == 200
            asked = [ann.asking("ping", number=number) for number in range(20)]
            asked.insert(at, ann.asking("", "DELETE"))
            async with anyio.create_task_group() as group:
                for one in asked:
                    group.start_soon(one.of, door)
                    await anyio.lowlevel.checkpoint()
            assert all(one.over and one.status in (200, 404) for one in asked)
    assert [record for record in caplog.records if record.exc_info] == []


async def test_a_session_that_is_ended_is_told_as_gone():
    async with serving(1) as door, listening(door, "ann") as (ann, stream):
        assert (await ann.asking("", "DELETE").of(door)).status == 200
        assert await ann.ping() == 404
        while not stream.over:
            await anyio.lowlevel.checkpoint()


async def test_who_asks_to_go_on_from_an_event_goes_on_from_now():
    async with serving(1) as door, anyio.create_task_group() as group:
        ann = Client(door, "ann")
        assert await ann.begin() == 200
        stream = ann.asking("", "GET")
        stream.scope["headers"].append((b"last-event-id", b"1"))
        group.start_soon(stream.of, door)
        await stream.begun.wait()
        assert stream.status == 200
        stream.gone.set()
