"""The tools that touch the user's machine, where there is none to touch."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import pytest
from mcp import Client

from box_mcp.capabilities.host import Carried
from box_mcp.capabilities.leftout import LeftOut
from box_mcp.capabilities.transfer import Moved
from box_mcp.surface.server import make_server
from box_mcp.surface.sessions import Backend, Limits
from box_mcp.surface.transfer import render
from tests.support.client import text

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from mcp.server import MCPServer


@asynccontextmanager
async def served_over_http(_: MCPServer[Backend]) -> AsyncGenerator[Backend, None]:
    yield Backend(cast("Any", None), Limits(), cast("Any", None), cast("Any", None))


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [("file_upload", {"host_path": "x"}), ("file_download", {"path": "x"})],
)
async def test_over_http_the_tools_point_to_resources_and_make_no_box(
    tool: str, arguments: dict[str, Any]
):
    async with Client(make_server(served_over_http)) as client:
        answer = await client.call_tool(tool, arguments)
    assert answer.is_error
    assert "over HTTP" in text(answer)
    assert "box://" in text(answer)


def test_a_result_tells_what_went_over_and_what_did_not():
    left_out = LeftOut()
    left_out.add(".env", "it holds a secret")
    told = tuple(f"name\n{number}: it is a FIFO" for number in range(25))
    moved = Moved(3, 0, 1, 2_000_000, told, 7, 1.25)
    header, *lines = render("uploaded a to b", Carried(moved, left_out)).splitlines()
    assert header == "[uploaded a to b · 3 files, 1 link · 2,000,000 bytes in 1.2 s]"
    assert lines[0] == "left out, it holds a secret: .env"
    assert lines[1] == "left out: name 0: it is a FIFO"
    assert lines[-1] == "left out: 12 more"
    assert len(lines) == 22
