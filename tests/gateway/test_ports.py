"""Exposed ports over a real boxd, which here shares the loopback with the test."""

from __future__ import annotations

import socket
import struct
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import anyio
import psutil
import pytest
from anyio.abc import SocketAttribute

from box_mcp.domain.names import BoxId
from box_mcp.errors import BoxError, BoxNotFound, LimitReached
from box_mcp.events import BoxMoved
from box_mcp.gateway import ports as module
from box_mcp.gateway.ports import Ports
from tests.capabilities.test_watching import BOX, claimed
from tests.support.boxd import LocalBoxd, local_boxd

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

    from anyio.abc import SocketStream

    from box_mcp.gateway.ports import Exposure
    from box_mcp.slots import Claim

ID = BOX.id
HALF = b"HTTP/1.0 200 OK\r\n\r\nhalf of it"


@pytest.fixture(scope="module")
def boxd() -> Iterator[LocalBoxd]:
    yield from local_boxd()


class House:
    """The ports of a server, and a box to claim, which fails with `error` if there is one."""

    def __init__(self, box: Claim) -> None:
        self.ports = Ports()
        self.error: BoxError | None = None
        self.claims = 0
        self.ever = 0
        self._box = box

    @asynccontextmanager
    async def claim(self) -> AsyncGenerator[Claim, None]:
        if self.error is not None:
            raise self.error
        self.claims += 1
        self.ever += 1
        try:
            yield self._box
        finally:
            self.claims -= 1

    def expose(self, port: int) -> Exposure:
        return self.ports.expose(self.claim, ID, "web", port)


@pytest.fixture
async def house(boxd: LocalBoxd) -> AsyncGenerator[House, None]:
    async with claimed(boxd) as box:
        made = House(box)
        async with made.ports.open():
            yield made
    assert made.claims == 0


@dataclass
class Service:
    """What listens in the box: it sends everything back, in pieces as they come."""

    port: int
    connections: int = 0
    ended: int = 0

    async def echo(self, stream: SocketStream) -> None:
        self.connections += 1
        async with stream:
            with suppress(anyio.BrokenResourceError):
                async for data in stream:
                    await stream.send(data)
                await stream.send(b"bye")
        self.ended += 1


@pytest.fixture
async def service() -> AsyncGenerator[Service, None]:
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as group,
    ):
        made = Service(listener.extra(SocketAttribute.local_port))
        group.start_soon(listener.serve, made.echo)
        yield made
        group.cancel_scope.cancel()


def request(exposure: Exposure, host: str = f"{ID}.localhost", more: str = "") -> bytes:
    line = f"GET / HTTP/1.1\r\nHost: {host}:{exposure.address.port}\r\n{more}\r\n"
    return line.encode()


async def free_port() -> int:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        return listener.extra(SocketAttribute.local_port)


async def arrive(exposure: Exposure, host: str = "127.0.0.1") -> SocketStream:
    return await anyio.connect_tcp(host, exposure.address.port)


async def exactly(stream: SocketStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += await stream.receive(size - len(data))
    return data


async def rest(stream: SocketStream) -> str:
    """All that still comes."""
    return b"".join([data async for data in stream]).decode()


async def asked(exposure: Exposure, sent: bytes) -> str:
    """What a connection is answered."""
    async with await arrive(exposure) as stream:
        await stream.send(sent)
        return await rest(stream)


async def settled(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - it happens in other tasks
        await anyio.sleep(0.005)


async def test_all_bytes_pass_as_they_are_in_both_directions(house: House, service: Service):
    exposure = house.expose(service.port)
    async with await arrive(exposure) as stream:
        for sent in (request(exposure), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\0\xff" * 300_000):
            async with anyio.create_task_group() as group:
                group.start_soon(stream.send, sent)
                assert await exactly(stream, len(sent)) == sent
        assert house.claims == 1
    await settled(lambda: house.claims == 0)


async def test_an_end_of_one_direction_leaves_the_other(house: House, service: Service):
    exposure = house.expose(service.port)
    async with await arrive(exposure) as stream:
        await stream.send(request(exposure))
        await stream.send_eof()
        assert (await rest(stream)).endswith("\r\n\r\nbye")
    await settled(lambda: service.ended == 1 and house.claims == 0)


async def test_half_an_answer_is_not_taken_for_a_whole_one(house: House):
    """Neither where who answers is reset, nor where the port is closed meanwhile."""
    go_on = anyio.Event()

    async def break_off(stream: SocketStream) -> None:
        async with stream:
            await stream.send(HALF)
            await go_on.wait()
            raw = stream.extra(SocketAttribute.raw_socket)
            with suppress(OSError):  # it was closed before
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as group,
    ):
        group.start_soon(listener.serve, break_off)
        port = listener.extra(SocketAttribute.local_port)
        close = partial(house.ports.close, ID, port)
        for end in (lambda: group.start_soon(close), go_on.set):
            exposure = house.expose(port)
            async with await anyio.connect_tcp("127.0.0.1", exposure.address.port) as stream:
                await stream.send(request(exposure))
                assert await exactly(stream, len(HALF)) == HALF
                end()
                with pytest.raises(anyio.BrokenResourceError):
                    await stream.receive()
        group.cancel_scope.cancel()


async def test_the_port_has_the_same_number_if_that_is_free(house: House, service: Service):
    wanted = await free_port()
    assert house.expose(wanted).address.port == wanted
    assert house.expose(service.port).address.port not in (wanted, service.port)


async def test_it_listens_on_the_loopback_only_and_on_both_of_its_addresses(
    house: House, service: Service
):
    port = house.expose(service.port).address.port
    listening = {
        one.laddr.ip
        for one in psutil.Process().net_connections()
        if one.status == psutil.CONN_LISTEN and one.laddr.port == port
    }
    assert listening == {"127.0.0.1", "::1"}


async def test_the_name_and_ipv6_lead_to_the_box_too(house: House, service: Service):
    exposure = house.expose(service.port)
    assert exposure.address.url == f"http://{ID}.localhost:{exposure.address.port}/"
    async with await arrive(exposure, "::1") as stream:
        await stream.send(sent := request(exposure, "web.localhost"))
        assert await exactly(stream, len(sent)) == sent


@pytest.mark.parametrize(
    ("host", "more", "status"),
    [
        ("evil.example", "", 421),
        ("localhost", "", 421),
        (f"{ID}.localhost", "Origin: http://evil.example\r\n", 403),
    ],
)
async def test_who_is_refused_gets_words_and_does_not_wake_the_box(
    house: House, service: Service, host: str, more: str, status: int
):
    exposure = house.expose(service.port)
    answer = await asked(exposure, request(exposure, host, more))
    assert answer.startswith(f"HTTP/1.1 {status} ")
    assert "Connection: close\r\n" in answer
    assert house.ever == service.connections == 0


async def test_a_refusal_is_read_in_spite_of_a_body_that_nobody_read(
    house: House, service: Service
):
    exposure = house.expose(service.port)
    answer = await asked(exposure, request(exposure, "localhost") + b"x" * 200_000)
    assert exposure.address.url in answer


async def test_where_nobody_listens_the_answer_says_what_to_do(house: House):
    port = await free_port()
    async with await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port):
        exposure = house.expose(port)  # under another number: this one would lead back here
    answer = await asked(exposure, request(exposure))
    assert answer.startswith("HTTP/1.1 502 ")
    assert f"nobody listens on port {port} in {ID}" in answer
    assert house.ports.of(ID) == [exposure]


async def test_a_box_that_can_not_be_woken_says_why_and_may_be_asked_again(
    house: House, service: Service
):
    exposure = house.expose(service.port)
    house.error = LimitReached("awake", 3)
    answer = await asked(exposure, request(exposure))
    assert answer.startswith("HTTP/1.1 503 ")
    assert house.error.explain() in answer
    house.error = None
    async with await arrive(exposure) as stream:
        await stream.send(sent := request(exposure))
        assert await exactly(stream, len(sent)) == sent


async def test_a_box_that_is_found_to_be_gone_closes_its_port(house: House, service: Service):
    exposure = house.expose(service.port)
    house.error = BoxNotFound(ID)
    answer = await asked(exposure, request(exposure))
    assert answer.startswith("HTTP/1.1 503 ")
    await refused(exposure)
    assert house.ports.of(ID) == []


async def refused(exposure: Exposure) -> None:
    """Waits until nobody takes connections."""
    with pytest.raises(OSError):  # noqa: PT012, PT011 - each of them says so
        while True:
            async with await arrive(exposure):
                await anyio.sleep(0.005)


async def test_a_box_that_is_deleted_closes_its_ports_and_no_others(house: House, service: Service):
    exposure = house.expose(service.port)
    other = BoxId("box-bbbbbbbb")
    kept = house.ports.expose(house.claim, other, None, service.port)
    async with await arrive(exposure) as stream:
        await stream.send(sent := request(exposure))
        assert await exactly(stream, len(sent)) == sent
        house.ports.notice(BoxMoved(ID, "running", "frozen", "idle"))
        assert house.ports.of(ID) == [exposure]
        house.ports.notice(BoxMoved(ID, "frozen", "deleted", "asked for"))
        assert house.ports.of(ID) == []
        with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
            await stream.receive()
    await refused(exposure)
    assert house.ports.of(other) == [kept]


async def test_a_closed_port_ends_its_connections_and_its_number_is_free_at_once(
    house: House, service: Service
):
    exposure = house.expose(service.port)
    async with await arrive(exposure) as stream:
        await stream.send(sent := request(exposure))
        assert await exactly(stream, len(sent)) == sent
        assert await house.ports.close(ID, service.port)
        assert house.claims == 0
    number = exposure.address.port
    assert house.ports.expose(house.claim, ID, None, number).address.port == number
    assert not await house.ports.close(ID, service.port)


async def test_connections_can_be_ended_while_the_port_stays(house: House, service: Service):
    exposure = house.expose(service.port)
    async with await arrive(exposure) as stream:
        await stream.send(sent := request(exposure))
        assert await exactly(stream, len(sent)) == sent
        await house.ports.hang_up(ID)
        assert house.claims == 0
    assert house.ports.of(ID) == [exposure]
    async with await arrive(exposure) as stream:
        await stream.send(sent)
        assert await exactly(stream, len(sent)) == sent


async def test_silence_ends_a_connection_and_lets_the_box_go(
    house: House, service: Service, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "IDLE", 0.5)
    exposure = house.expose(service.port)
    async with await arrive(exposure) as stream:
        sent, begun = request(exposure), anyio.current_time()
        while anyio.current_time() < begun + 1.0:  # talks for longer than that
            await stream.send(sent)
            assert await exactly(stream, len(sent)) == sent
        with pytest.raises(anyio.BrokenResourceError):
            await stream.receive()
    await settled(lambda: house.claims == 0)


async def test_who_says_nothing_is_left_after_a_while_and_never_gets_to_the_box(
    house: House, service: Service, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "HEAD_TIMEOUT", 0.1)
    exposure = house.expose(service.port)
    assert await asked(exposure, b"GET / HTTP/1.1\r\nHost: ") == ""
    async with await arrive(exposure) as stream:
        await stream.send_eof()
        assert await rest(stream) == ""
    assert house.ever == 0


async def test_a_connection_that_is_reset_before_it_is_taken_does_no_harm(
    house: House, service: Service
):
    exposure = house.expose(service.port)
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", exposure.address.port)) as hasty:
            hasty.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    async with await arrive(exposure) as stream:
        await stream.send(sent := request(exposure))
        assert await exactly(stream, len(sent)) == sent


async def test_no_more_connections_than_so_many_are_taken(
    house: House, service: Service, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "MAX_CONNECTIONS", 1)
    exposure = house.expose(service.port)
    async with await arrive(exposure) as stream:
        await stream.send(sent := request(exposure))
        assert await exactly(stream, len(sent)) == sent
        assert (await asked(exposure, sent)).startswith("HTTP/1.1 503 ")
        await stream.send(sent)
        assert await exactly(stream, len(sent)) == sent


async def test_a_port_is_exposed_once_and_no_more_of_them_than_so_many(
    house: House, service: Service, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "MAX_PORTS", 1)
    assert house.expose(service.port) is house.expose(service.port)
    with pytest.raises(LimitReached):
        house.expose(service.port + 1)
