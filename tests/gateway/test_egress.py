from __future__ import annotations

import socket
import ssl
import threading
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

import anyio
import pytest
from anyio.abc import SocketAttribute
from anyio.streams.tls import TLSStream
from hypothesis import given
from hypothesis import strategies as st

from box_mcp.domain.network import Address, Mode, Network, Surroundings, parse_rules
from box_mcp.gateway.dialling import MAX_STUCK, Resolver, connect, is_beside, own_addresses
from box_mcp.gateway.egress import Egress
from box_mcp.gateway.visit import ACCESS_DENIED
from box_mcp.gateway.ways import Limits, Refused, Ways
from tests.gateway.test_hello import HELLO, hello, real_hello, record
from tests.support.egress import LOOPBACK, Place, echo, everything, listening, proxy, until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from anyio.abc import SocketStream

pytestmark = pytest.mark.anyio

HERE = f"{LOOPBACK}:*"
PATIENCE = 20.0


async def refused(box: Place, target: str) -> str:
    """The words that a tunnel is refused with."""
    answer = await box.ask(f"CONNECT {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 403 "), answer
    return answer.decode()


async def closed(client: SocketStream) -> bool:
    """Whether the connection is reset, whatever came before."""
    with anyio.fail_after(PATIENCE):
        try:
            await everything(client)
        except anyio.BrokenResourceError:
            return True
    return False


@asynccontextmanager
async def unanswering() -> AsyncGenerator[int, None]:
    """The port of a listener that has no room for another connection, and never will have."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind((LOOPBACK, 0))
        listener.listen(0)
        for one in (first, second):
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        await anyio.wait_writable(first)
        yield listener.getsockname()[1]


async def test_bytes_pass_both_ways_and_each_end_ends_by_itself():
    heard: list[bytes] = []

    async def site(stream: SocketStream) -> None:
        await stream.send(b"first")
        heard.append(await everything(stream))
        await stream.send(b"last")

    async with (
        listening(site) as port,
        proxy("a.example:*", HERE) as box,
        await box.tunnel(f"a.example:{port}") as client,
    ):
        assert await client.receive() == b"first"
        await client.send(b"all of it")
        await client.send_eof()
        assert await everything(client) == b"last"
        assert heard == [b"all of it"]


async def test_a_name_that_leads_to_a_private_address_is_refused():
    async with listening(echo) as port, proxy("a.example:*") as box:
        told = await refused(box, f"a.example:{port}")
        assert "it leads to 127.0.0.1, and that is the user's own machine" in told
        assert box.refused == {f"a.example:{port}": 1}


async def test_what_a_name_leads_to_is_connected_to_without_another_look():
    async with (
        listening(echo) as port,
        proxy("a.example:*", HERE) as box,
        await box.tunnel(f"a.example:{port}"),
    ):
        assert box.asked == ["a.example"]


async def test_of_several_addresses_only_those_that_are_allowed_are_tried():
    seen: list[str] = []

    async def site(stream: SocketStream) -> None:
        seen.append(str(stream.extra(SocketAttribute.local_address)[0]))

    names = {"both.example": ["127.0.0.9", LOOPBACK]}
    async with (
        listening(site, "0.0.0.0") as port,
        proxy("both.example:*", HERE, names=names) as box,
        await box.tunnel(f"both.example:{port}") as client,
    ):
        await everything(client)
    assert seen == [LOOPBACK]


async def test_when_one_address_does_not_answer_the_next_one_is_tried():
    names = {"both.example": ["127.0.0.9", LOOPBACK]}
    async with (
        listening(echo) as port,
        proxy("*:*", "127.0.0.0/8:*", names=names) as box,
        await box.tunnel(f"both.example:{port}") as client,
    ):
        await client.send(b"x")
        assert await client.receive() == b"x"


async def test_addresses_that_stay_silent_are_overtaken():
    silent, other = ip_address(LOOPBACK), ip_address("127.0.0.9")
    async with unanswering() as port, listening(echo, str(other), port):
        with anyio.fail_after(5):
            address, stream = await connect([silent, other], port)
        await stream.aclose()
        assert address == other


async def test_a_host_that_does_not_answer_is_given_up():
    limits = Limits(connect=0.1)
    async with unanswering() as port, proxy("*:*", HERE, limits=limits) as box:
        asked = f"CONNECT a.example:{port} HTTP/1.1\r\nHost: x\r\n\r\n"
        answer = await box.ask(asked.encode())
        assert answer.startswith(b"HTTP/1.1 504 ")
        assert b"it does not answer" in answer
        assert box.refused == {}


@pytest.mark.parametrize("mode", [Mode.NONE, Mode.FULL])
async def test_the_other_modes_hold_in_the_proxy_too(mode: Mode):
    async with proxy() as box:
        box.network = Network(mode)
        told = await refused(box, "a.example:443")
        assert ("no network" in told) is (mode is Mode.NONE)
        assert ("own machine" in told) is (mode is Mode.FULL)


async def test_private_ranges_that_any_box_may_reach_are_found_and_closed_ones_never():
    ranges = (ip_network("10.1.0.0/16"),)
    network = Network(Mode.ALLOWLIST, parse_rules(["*:*", "10.1.2.3:*"]))

    async def look_up(name: str) -> list[Address]:
        assert name == "a.example"
        return [ip_address("10.1.2.3")]

    ways = Ways(lambda: network, Surroundings(opened=ranges), look_up, Limits())
    assert await ways.find("a.example", 80) == (ip_address("10.1.2.3"),)
    ways = replace(ways, surroundings=Surroundings(opened=ranges, closed=ranges))
    with pytest.raises(Refused, match="never reached"):
        await ways.find("a.example", 80)


@pytest.mark.parametrize("address", [LOOPBACK, "127.0.0.9"])
async def test_what_any_box_may_reach_is_not_on_this_machine(address: str):
    everything = Surroundings(opened=(ip_network("0.0.0.0/0"),))
    async with (
        listening(echo) as port,
        proxy("*:*", HERE, names={"a.example": [address]}, surroundings=everything) as box,
    ):
        assert "own machine" in await refused(box, f"a.example:{port}")
        assert "own machine" in await refused(box, f"{LOOPBACK}:{port}")


async def test_a_tunnel_that_is_not_allowed_any_more_is_cut_at_once_and_others_stay():
    async with (
        listening(echo) as port,
        proxy("a.example:*", "b.example:*", HERE) as box,
        await box.tunnel(f"a.example:{port}") as one,
        await box.tunnel(f"b.example:{port}") as other,
    ):
        box.set("b.example:*", HERE)
        assert await closed(one)
        await other.send(b"still")
        assert await other.receive() == b"still"
        assert box.refused == {f"a.example:{port}": 1}
        (told,) = box.egress.refused.since()
        assert "any more" in told.reason


async def test_a_name_that_is_still_allowed_is_cut_when_where_it_leads_is_not():
    async with (
        listening(echo) as port,
        proxy("a.example:*", HERE) as box,
        await box.tunnel(f"a.example:{port}") as client,
    ):
        box.set("a.example:*")
        assert await closed(client)


async def test_an_answer_under_way_is_cut():
    async def site(stream: SocketStream) -> None:
        await until(stream, b"\r\n\r\n")
        await stream.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        await anyio.sleep_forever()

    async with (
        listening(site) as port,
        proxy("a.example:*", HERE) as box,
        await box.dial() as client,
    ):
        await client.send(f"GET http://a.example:{port}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await until(client, b"half\r\n")
        box.set()
        assert await closed(client)


async def test_a_policy_that_changes_while_a_name_is_looked_up_is_kept():
    changing = {"a.example": [LOOPBACK]}
    async with listening(echo) as port, proxy("a.example:*", HERE, names=changing) as box:

        class Changing(dict[str, list[str]]):
            def __getitem__(self, name: str) -> list[str]:
                box.network = Network(Mode.ALLOWLIST)
                return changing[name]

        box.names = Changing(changing)
        assert "no rule allows it" in await refused(box, f"a.example:{port}")


async def test_a_silent_connection_ends_and_one_that_speaks_does_not():
    async with (
        listening(echo) as port,
        proxy("*:*", HERE, limits=Limits(idle=1.0)) as box,
        await box.tunnel(f"a.example:{port}") as speaking,
        await box.tunnel(f"a.example:{port}") as silent,
        await box.dial() as mute,
    ):
        with anyio.move_on_after(1.2):
            while True:
                await speaking.send(b"x")
                await speaking.receive()
                await anyio.sleep(0.05)
        assert await closed(silent)
        assert await closed(mute)
        await speaking.send(b"y")
        assert await speaking.receive() == b"y"


async def test_a_server_that_ends_closes_both_ends():
    ended = anyio.Event()

    async def site(stream: SocketStream) -> None:
        await everything(stream)
        ended.set()

    async with listening(site) as port:
        async with proxy("*:*", HERE) as box:
            client = await box.tunnel(f"a.example:{port}")
        with anyio.fail_after(5):
            await ended.wait()
            await everything(client)
        await client.aclose()


async def test_a_client_that_is_reset_takes_the_other_end_with_it():
    ended = anyio.Event()

    async def site(stream: SocketStream) -> None:
        await everything(stream)
        ended.set()

    async with listening(site) as port, proxy("*:*", HERE) as box:
        client = await box.tunnel(f"a.example:{port}")
        await client.aclose()
        with anyio.fail_after(5):
            await ended.wait()


@asynccontextmanager
async def tls(
    box: Place, first: bytes, target: str = "a.example"
) -> AsyncGenerator[tuple[SocketStream, list[bytes]], None]:
    """A tunnel to a site that answers, into which these bytes went, and what came there."""
    heard: list[bytes] = []

    async def site(stream: SocketStream) -> None:
        async for data in stream:
            heard.append(data)
            await stream.send(b"answer")

    async with listening(site) as port, await box.tunnel(f"{target}:{port}") as client:
        await client.send(first)
        yield client, heard


async def test_tls_that_is_meant_for_the_host_passes():
    async with proxy("a.example:*", HERE) as box:
        for first in (HELLO, record(HELLO[5:100]) + record(HELLO[100:]), real_hello("A.EXAMPLE")):
            async with tls(box, first) as (client, heard):
                assert await client.receive() == b"answer"
                assert heard[0] == first
        assert box.refused == {}


async def test_tls_may_come_byte_by_byte():
    async with proxy("a.example:*", HERE) as box, tls(box, b"") as (client, heard):
        for byte in HELLO:
            await client.send(bytes([byte]))
        assert await client.receive() == b"answer"
        assert heard == [HELLO]


@pytest.mark.parametrize(
    ("first", "why"),
    [
        (real_hello("b.example"), "meant for 'b.example'"),
        (real_hello("x.a.example"), "meant for 'x.a.example'"),
        (real_hello(None), "does not name the host"),
        (hello(), "does not name the host"),
        (b"\x16\x03\x01\x00\x05hello", "no proper greeting"),
        (b"\x16\x03\x01\xff\xff", "no proper greeting"),
        (b"".join(record(HELLO[5 + at : 6 + at]) for at in range(99)), "no proper greeting"),
    ],
)
async def test_other_tls_is_cut_before_a_byte_of_it_arrives(first: bytes, why: str):
    async with proxy("a.example:*", "b.example:*", HERE) as box:
        async with tls(box, first) as (client, heard):
            with anyio.fail_after(5):
                assert await client.receive() == ACCESS_DENIED
            assert await closed(client)
            assert heard == []
        (refusal,) = box.egress.refused.since()
        assert why in refusal.reason
        assert refusal.target.startswith("a.example:")


async def test_a_client_is_told_by_tls_itself():
    context = ssl.create_default_context()
    async with (
        listening(echo) as port,
        proxy("a.example:*", HERE) as box,
        await box.tunnel(f"a.example:{port}") as client,
    ):
        with pytest.raises(ssl.SSLError, match=r"(?i)access.denied"):
            await TLSStream.wrap(client, hostname="b.example", ssl_context=context)


async def test_tls_to_an_address_needs_no_name():
    async with proxy(HERE) as box:
        for first in (real_hello(None), real_hello("b.example")):
            async with tls(box, first, LOOPBACK) as (client, _):
                assert await client.receive() == b"answer"


async def test_what_ends_before_it_is_tls_is_passed_on():
    async with proxy("a.example:*", HERE) as box, tls(box, HELLO[:50]) as (client, heard):
        await client.send_eof()
        await everything(client)
        assert heard == [HELLO[:50]]


async def test_a_server_may_speak_first():
    async def site(stream: SocketStream) -> None:
        await stream.send(b"220 ready\r\n")
        assert await stream.receive() == b"STARTTLS\r\n"
        await stream.send(b"go")

    async with (
        listening(site) as port,
        proxy("a.example:*", HERE) as box,
        await box.tunnel(f"a.example:{port}") as client,
    ):
        assert await client.receive() == b"220 ready\r\n"
        await client.send(b"STARTTLS\r\n")
        assert await everything(client) == b"go"


class Fed:
    """A client that sends these pieces, and hears anything."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = [piece for piece in pieces if piece]

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await anyio.lowlevel.checkpoint()
        if not self._pieces:
            raise anyio.EndOfStream
        assert max_bytes > 600
        return self._pieces.pop(0)

    async def send(self, item: bytes) -> None:
        await anyio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        await anyio.lowlevel.checkpoint()


@given(st.lists(st.binary(max_size=300), max_size=5))
def test_whatever_comes_from_a_box_is_answered_or_ends_the_connection(pieces: list[bytes]):
    async def run() -> None:
        place = Place(Egress(Network), {}, Network())
        egress = Egress(Network, look_up=place.look_up)
        for start in (b"", b"\x05\x01\x00", b"\x05\x01\x00\x05\x01\x00\x03", b"GET http://a.b"):
            with anyio.fail_after(5), suppress(anyio.BrokenResourceError):
                await egress.serve(Fed(start, *pieces))

    anyio.run(run)


async def test_this_machine_knows_its_own_addresses():
    mine, other = [ip_address(LOOPBACK), ip_address("127.0.0.9")], ip_address("203.0.113.1")
    assert own_addresses([*mine, other]) == {*mine}


@pytest.mark.parametrize(
    ("address", "source", "beside"),
    [
        ("198.51.100.7", "198.51.100.7", True),
        ("198.51.100.7", "198.51.100.8", False),
        ("2001:db8:0:1::7", "2001:db8:0:1:a:b:c:d", True),
        ("2001:db8:0:2::7", "2001:db8:0:1:a:b:c:d", False),
    ],
)
def test_neighbours_with_public_addresses_are_of_the_machines_network(
    address: str, source: str, beside: bool
):
    assert is_beside(ip_address(address), ip_address(source)) is beside


async def test_the_systems_resolver_is_asked():
    assert ip_address(LOOPBACK) in await Resolver().look_up("localhost")


async def test_look_ups_that_hang_hold_a_few_threads_only(monkeypatch: pytest.MonkeyPatch):
    over = threading.Event()
    asked: list[object] = []

    def hang(*_: object, **__: object) -> list[object]:
        asked.append(over.wait(10))
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    resolver = Resolver()
    failures: list[str] = []

    async def look_up() -> None:
        try:
            with anyio.fail_after(0.05):
                await resolver.look_up("slow.example")
        except OSError as error:
            failures.append(str(error))

    try:
        for _ in range(MAX_STUCK + 3):
            await look_up()
        assert sum("too many" in failure for failure in failures) == 3
    finally:
        over.set()
    with anyio.fail_after(5):
        while failures:  # until the first of them is over
            failures.clear()
            await look_up()
