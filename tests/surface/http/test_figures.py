"""Metrics over HTTP: where they are shown, and to whom."""

from __future__ import annotations

import httpx2
import pytest

from box_mcp.errors import CannotServe
from box_mcp.surface.http.figures import parse_secluded
from tests.support.http import serving_http


@pytest.mark.parametrize(
    "address", ["127.0.0.1:9464", "[::1]:9464", "9464", "10.1.2.3:9464", "unix:/run/metrics.sock"]
)
def test_addresses_that_strangers_do_not_reach_are_taken(address: str):
    assert str(parse_secluded(address)).endswith(address)


@pytest.mark.parametrize("address", ["0.0.0.0:9464", "[::]:9464", "192.0.3.1:9464", "nonsense"])
def test_metrics_have_no_address_that_strangers_reach(address: str):
    with pytest.raises(CannotServe):
        parse_secluded(address)


async def test_metrics_have_an_address_of_their_own_for_whoever_reaches_it(
    server_env: dict[str, str], free_tcp_port: int
):
    where = f"127.0.0.1:{free_tcp_port}"
    hosts = '["metrics.example.org"]'
    async with serving_http(server_env, http__metrics=where, http__hosts=hosts) as server:
        async with httpx2.AsyncClient(base_url=f"http://{where}") as http:
            shown = await http.get("/metrics")
            assert shown.status_code == 200
            assert shown.headers["content-type"].startswith("text/plain; version=")
            assert "box_mcp_spares 0.0" in shown.text
            assert (await http.get("/mcp")).status_code == 404
            assert (await http.post("/metrics")).status_code == 405
            for name in ("evil.example", "evil.example:9464", "127.0.0.1.evil.example", ""):
                refused = await http.get("/metrics", headers={"Host": name})
                assert refused.status_code in (400, 421), "a page's name that leads here"
                assert "box_mcp" not in refused.text
            known = await http.get("/metrics", headers={"Host": "metrics.example.org:80"})
            assert known.status_code == 200
        async with server.raw(await server.token("alice")) as http:
            assert (await http.get("/metrics")).status_code == 404
