"""A real box without a network, and the server's proxy as its one way out."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

import anyio
import pytest

from box_mcp.domain.box import Box
from box_mcp.domain.names import BoxId
from box_mcp.domain.network import Mode, Network, Surroundings, parse_rules
from box_mcp.engines.docker import DockerEngine
from box_mcp.events import NetworkChanged
from box_mcp.gateway.proxying import Proxies
from box_mcp.gateway.tally import told
from tests.support.egress import LOOPBACK, UNKNOWN, listening, until
from tests.support.engines import SPEC, Workshop, channel_to, run, said, workshop

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from anyio.abc import SocketStream

    from box_mcp.channel import Channel
    from box_mcp.domain.network import Address

pytestmark = pytest.mark.anyio

SOCKS = """
import socket, struct, sys
link = socket.create_connection(("127.0.0.1", 3128))
name, port = sys.argv[1].encode(), int(sys.argv[2])
link.sendall(b"\\5\\1\\0\\5\\1\\0\\3" + bytes([len(name)]) + name + struct.pack("!H", port))
print(link.makefile('rb').read(12)[3])
"""


@dataclass
class Attended:
    """A box, its server's side, and a site that it may be let through to."""

    channel: Channel
    proxies: Proxies
    site: int
    network: Network

    @property
    def box(self) -> Box:
        return Box(BoxId(self.channel.box), replace(SPEC, network=self.network), created=0)

    def set(self, *rules: str) -> None:
        """Changes what it may reach."""
        self.network = Network(Mode.ALLOWLIST, parse_rules(rules))
        self.proxies.notice(NetworkChanged(self.channel.box))

    @property
    def refused(self) -> str:
        return told(self.proxies.egress(self.channel.box).refused.since())


@pytest.fixture(scope="module")
async def shop() -> AsyncGenerator[Workshop, None]:
    async with workshop(DockerEngine()) as shop:
        await shop.running(network=Network(Mode.NONE))
        yield shop


async def _site(stream: SocketStream) -> None:
    with suppress(anyio.EndOfStream):  # from who wants nothing
        head = await until(stream, b"\r\n\r\n")
        await stream.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
        if b"/slow" in head:
            await anyio.sleep_forever()


async def _look_up(name: str) -> Sequence[Address]:
    if not name.endswith(".example"):
        raise UNKNOWN
    return [ip_address(LOOPBACK)]


@asynccontextmanager
async def attended(shop: Workshop, *rules: str) -> AsyncGenerator[Attended, None]:
    proxies = Proxies(Surroundings(), look_up=_look_up)
    async with channel_to(shop.engine, shop.made[0]) as channel, listening(_site) as site:
        here = Attended(channel, proxies, site, Network(Mode.ALLOWLIST, parse_rules(rules)))
        async with anyio.create_task_group() as group:
            await group.start(proxies.attend, channel, lambda: here.box)
            yield here
            group.cancel_scope.cancel()


async def test_programs_in_a_box_reach_what_is_allowed_without_being_told(shop: Workshop):
    async with attended(shop, "a.example:*", f"{LOOPBACK}:*") as here:
        url = f"http://a.example:{here.site}/"
        assert await said(here.channel, f"curl -sSf {url}") == "hello"
        read = f"import urllib.request; print(urllib.request.urlopen('{url}').read())"
        assert await said(here.channel, f'python3 -c "{read}"') == "b'hello'"
        assert await said(here.channel, f"sudo curl -sSf {url} 2>/dev/null") == "hello"
        assert here.refused == ""


async def test_a_box_without_a_network_knows_its_own_name(shop: Workshop):
    async with attended(shop) as here:
        assert await said(here.channel, "sudo true 2>&1; getent hosts $(hostname) | xargs") == (
            f"127.0.1.1 {here.channel.box}"
        )


async def test_programs_in_a_box_are_told_what_is_not_allowed(shop: Workshop):
    async with attended(shop, "a.example:*", f"{LOOPBACK}:*") as here:
        answer = await said(here.channel, f"curl -sS http://b.example:{here.site}/")
        assert answer.startswith(f"box_mcp: b.example:{here.site} is refused: no rule allows it.")
        assert (await run(here.channel, f"curl -sS https://b.example:{here.site}/")).failed
        assert here.refused == f"2 connections refused: b.example:{here.site} (2)"


async def test_socks_reaches_what_is_allowed(shop: Workshop):
    async with attended(shop, "a.example:*", f"{LOOPBACK}:*") as here:
        url = f"http://a.example:{here.site}/"
        assert await said(here.channel, f"curl -sSf -x socks5h://127.0.0.1:3128 {url}") == "hello"
        ask = f"python3 - %s {here.site} <<'EOF'\n{SOCKS}\nEOF"
        assert await said(here.channel, ask % "a.example") == "0"
        assert await said(here.channel, ask % "b.example") == "2"
        assert here.refused == f"1 connection refused: b.example:{here.site}"


async def test_there_is_no_way_around_the_proxy(shop: Workshop):
    async with attended(shop, "a.example:*", f"{LOOPBACK}:*") as here:
        for command in (
            f"curl -sS --noproxy '*' http://{LOOPBACK}:{here.site}/",
            "curl -sS --noproxy '*' --max-time 5 http://198.51.100.1/",
            "getent hosts a.example",
        ):
            assert (await run(here.channel, command)).failed
        assert await said(here.channel, "ls /sys/class/net") == "lo"


async def test_a_running_download_is_cut_when_it_is_not_allowed_any_more(shop: Workshop):
    async with attended(shop, "a.example:*", f"{LOOPBACK}:*") as here:
        url = f"http://a.example:{here.site}/slow"
        await said(here.channel, f"curl -sSN {url} >/tmp/got 2>/tmp/why & echo $! >/tmp/pid")
        await said(here.channel, "until grep -q hello /tmp/got; do sleep 0.01; done")
        here.set("b.example")
        left = "tail --pid=$(cat /tmp/pid) -f /dev/null; cat /tmp/why"
        assert "curl: (" in await said(here.channel, left)
        assert here.refused == f"1 connection refused: a.example:{here.site}"
