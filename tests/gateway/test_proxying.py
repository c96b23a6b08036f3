from __future__ import annotations

import anyio
import pytest

from box_mcp.domain.network import Surroundings
from box_mcp.events import BoxMoved, NetworkChanged
from box_mcp.gateway.proxying import PROXY_PORT, Proxies, proxy_env
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
    proxy = Proxies(Surroundings()).egress(BOX)
    async with listening(proxy.serve) as port, await anyio.connect_tcp(LOOPBACK, port) as client:
        await client.send(b"CONNECT a.example:443 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await client.receive()).startswith(b"HTTP/1.1 403 ")
    assert proxy.refused.total == 1


async def test_what_was_refused_is_known_until_the_box_is_gone():
    proxies = Proxies(Surroundings())
    proxies.egress(BOX).refused.add("a.example:443", "no rule allows it")
    proxies.notice(BoxMoved(BOX, "running", "stopped", ""))
    proxies.notice(NetworkChanged(BOX))
    assert proxies.egress(BOX).refused.total == 1
    proxies.notice(BoxMoved(BOX, "stopped", "deleted", ""))
    assert proxies.egress(BOX).refused.total == 0
    proxies.notice(NetworkChanged("box-bbbbbbbb"))


async def test_each_box_has_a_proxy_of_its_own():
    proxies = Proxies(Surroundings())
    assert proxies.egress(BOX) is proxies.egress(BOX)
    assert proxies.egress(BOX) is not proxies.egress("box-bbbbbbbb")
