from __future__ import annotations

import anyio
import pytest

from box_mcp.domain.network import Surroundings
from box_mcp.events import BoxMoved, NetworkChanged
from box_mcp.gateway.proxying import PROXY_PORT, Gateway, proxy_env
from tests.support.egress import LOOPBACK, listening

pytestmark = pytest.mark.anyio

BOX = "box-aaaaaaaa"


def test_programs_are_told_of_the_proxy_in_both_ways_of_writing():
    env = proxy_env()
    assert env["HTTPS_PROXY"] == env["https_proxy"] == f"http://127.0.0.1:{PROXY_PORT}"
    for name in ("HTTP_PROXY", "ALL_PROXY", "NO_PROXY"):
        assert env[name] == env[name.lower()]
    assert "127.0.0.1" in env["NO_PROXY"]


async def test_a_box_that_nobody_attends_to_reaches_nothing():
    proxy = Gateway(Surroundings()).egress(BOX)
    async with listening(proxy.serve) as port, await anyio.connect_tcp(LOOPBACK, port) as client:
        await client.send(b"CONNECT a.example:443 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await client.receive()).startswith(b"HTTP/1.1 403 ")
    assert proxy.refused.total == 1


async def test_what_was_refused_is_known_until_the_box_is_gone():
    gateway = Gateway(Surroundings())
    gateway.egress(BOX).refused.add("a.example:443", "no rule allows it")
    gateway.notice(BoxMoved(BOX, "running", "stopped", ""))
    gateway.notice(NetworkChanged(BOX))
    assert gateway.egress(BOX).refused.total == 1
    gateway.notice(BoxMoved(BOX, "stopped", "deleted", ""))
    assert gateway.egress(BOX).refused.total == 0
    gateway.notice(NetworkChanged("box-bbbbbbbb"))


async def test_each_box_has_a_proxy_of_its_own():
    gateway = Gateway(Surroundings())
    assert gateway.egress(BOX) is gateway.egress(BOX)
    assert gateway.egress(BOX) is not gateway.egress("box-bbbbbbbb")
