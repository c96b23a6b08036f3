"""Listing and finding resources, by a server whose boxes are in memory."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from mcp import Client

from box_mcp.app import backend
from box_mcp.engines.fake import FakeEngine
from box_mcp.settings import Settings
from box_mcp.surface import resources
from box_mcp.surface.server import make_server
from tests.support.client import ERAS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from mcp.server import MCPServer

    from box_mcp.surface.sessions import Backend


@pytest.mark.parametrize("era", ERAS)
async def test_many_boxes_are_listed_page_by_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, era: str
):
    @asynccontextmanager
    async def in_memory(_: MCPServer[Backend]) -> AsyncGenerator[Backend, None]:
        async with backend(Settings(state_dir=tmp_path, warm_max=0), engine=FakeEngine()) as made:
            yield made

    monkeypatch.setattr(resources, "PAGE", 2)
    async with Client(make_server(in_memory), mode=era) as client:
        for name in "abcde":
            await client.call_tool("box_create", {"name": name})
        pages: list[list[str]] = []
        cursor = None
        while cursor or not pages:
            page = await client.list_resources(cursor=cursor)
            pages.append([one.name for one in page.resources])
            cursor = page.next_cursor
        assert pages == [["a", "b"], ["c", "d"], ["e"]]
        await client.call_tool("box_delete", {"box": "b", "discard": True})
        found = await client.list_resources(cache_mode="bypass")
        assert [one.name for one in found.resources] == ["a", "c"]
