"""What is told of requests: whose, of which boxes, with which end; nothing of what was in them."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager, suppress
from dataclasses import astuple, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

import anyio
import pytest
from mcp import Client, MCPError
from mcp_types import ReadResourceRequestParams, ReadResourceResult, Request

from box_mcp.app import backend, sinks_of
from box_mcp.engines.fake import FakeEngine
from box_mcp.events import CallEnded, Event
from box_mcp.settings import Settings
from box_mcp.surface.calls import digest
from box_mcp.surface.server import make_server
from tests.support.client import ERAS, PATIENCE, text
from tests.support.person import YES, Person

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from mcp.server import MCPServer

    from box_mcp.domain.box import BoxSpec
    from box_mcp.domain.names import BoxId
    from box_mcp.surface.sessions import Backend


@dataclass
class Told:
    """A client, and what is told of its calls."""

    client: Client
    events: list[Event] = field(default_factory=list[Event])
    told: anyio.Event = field(default_factory=anyio.Event)

    @property
    def calls(self) -> list[CallEnded]:
        return [event for event in self.events if isinstance(event, CallEnded)]

    async def call(self, tool: str, **arguments: Any) -> str:
        return text(await self.client.call_tool(tool, arguments))

    async def boxes(self, tool: str, **arguments: Any) -> tuple[str, ...]:
        """Which boxes are told of a call that succeeds."""
        result = await self.client.call_tool(tool, arguments)
        assert not result.is_error, text(result)
        assert (self.calls[-1].tool, self.calls[-1].outcome) == (tool, "ok")
        return self.calls[-1].boxes


@asynccontextmanager
async def telling(
    directory: Path,
    era: str = ERAS[-1],
    engine: FakeEngine | None = None,
    person: Person | None = None,
) -> AsyncGenerator[Told, None]:
    """`told` is set with the first."""
    known = Settings(state_dir=directory / "state", warm_max=0)
    events, told = list[Event](), anyio.Event()

    def heard(event: Event) -> None:
        events.append(event)
        if isinstance(event, CallEnded):
            told.set()

    @asynccontextmanager
    async def lifespan(_: MCPServer[Backend]) -> AsyncGenerator[Backend, None]:
        sinks = sinks_of(known)
        sinks.add(heard)
        async with backend(known, engine=engine or FakeEngine(), sinks=sinks) as running:
            yield running

    ask = person and person.ask
    async with Client(make_server(lifespan), mode=era, elicitation_callback=ask) as client:
        with anyio.fail_after(PATIENCE):
            yield Told(client, events, told)


@pytest.mark.parametrize("era", ERAS)
async def test_each_box_that_a_call_is_about_is_named_whether_it_was_opened_or_not(
    tmp_path: Path, era: str
):
    async with telling(tmp_path, era) as here:
        made = json.loads(await here.call("box_create", name="a"))["id"]
        assert here.calls[-1].boxes == (made,)
        (own,) = await here.boxes("file_write", path="f", content="x")
        assert own != made
        for tool in ("box_info", "box_changes", "network_policy", "box_pause", "box_resume"):
            assert await here.boxes(tool, box="a") == (made,)
            assert await here.boxes(tool) == (own,)
        assert await here.boxes("snapshot_create", name="s", box="a") == (made,)
        first, *forks = await here.boxes("box_fork", box="a", count=2)
        assert first == made
        assert len({made, own, *forks}) == 4
        assert await here.boxes("box_list") == ()
        assert await here.boxes("box_delete", box="a", discard=True) == (made,)


async def test_a_call_that_fails_names_the_box_that_it_was_about(tmp_path: Path):
    async with telling(tmp_path) as here:
        made = json.loads(await here.call("box_create"))["id"]
        await here.call("box_pause", box=made, depth="stopped")
        await here.call("box_pause", box=made)
        assert astuple(here.calls[-1])[:8] == (
            *("local", "", "tools/call", "box_pause", (made,)),
            *(digest({"box": made}), "error", "IllegalMove"),
        )


async def test_how_a_request_ended_is_told_with_the_kind_of_what_went_wrong(tmp_path: Path):
    async with telling(tmp_path) as here:
        await here.call("box_info", box="none-such")
        await here.call("file_read", path="none-such")
        await here.call("file_read", lines="needle")
        for ask in (
            here.client.call_tool("needle", {}),
            here.client.read_resource("box://box-aaaaaaaa/needle"),
        ):
            with suppress(MCPError):
                await ask
        told = [(call.method, call.outcome, call.error) for call in here.calls]
    assert told[:2] == [
        ("tools/call", "error", "BoxNotFound"),
        ("tools/call", "error", "CallRefused"),
    ]
    assert [method for method, *_ in told] == ["tools/call"] * 4 + ["resources/read"]
    assert {outcome for _, outcome, _ in told[2:]} <= {"error", "invalid"}


class Slow(FakeEngine):
    """It never comes to an end of making a box; `begun` when it begins."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = anyio.Event()

    async def create(self, box: BoxId, spec: BoxSpec) -> None:
        self.begun.set()
        await anyio.sleep_forever()


@pytest.mark.parametrize("era", ERAS)
async def test_a_call_that_is_cancelled_is_told_as_that(tmp_path: Path, era: str):
    engine = Slow()
    async with telling(tmp_path, era, engine) as here:
        async with anyio.create_task_group() as group:
            group.start_soon(here.call, "box_create")
            await engine.begun.wait()
            group.cancel_scope.cancel()
        await here.told.wait()
    assert [(call.tool, call.outcome) for call in here.calls] == [("box_create", "cancelled")]


async def test_arguments_are_told_as_a_digest_which_is_the_same_for_the_same(tmp_path: Path):
    async with telling(tmp_path) as here:
        for content in ("needle", "needle", "other"):
            await here.call("file_write", path="f", content=content)
    first, second, third = here.calls
    assert first.arguments == second.arguments != third.arguments
    assert "needle" not in repr(here.calls)


class Named(ReadResourceRequestParams):
    """With more than anybody reads."""

    name: str = "box_list"


class Misleading(Request[Named, Literal["resources/read"]]):
    method: Literal["resources/read"] = "resources/read"
    params: Named


async def test_what_a_request_is_about_is_told_whatever_else_it_says(tmp_path: Path):
    async with telling(tmp_path) as here:
        uri = "box://box-00000000/files/secret"
        with suppress(MCPError):
            asked = cast("Any", Misleading(params=Named(uri=uri)))
            await here.client.session.send_request(asked, ReadResourceResult)
    assert [(call.method, call.tool) for call in here.calls] == [("resources/read", uri)]


async def test_what_tells_the_same_to_all_is_not_told(tmp_path: Path):
    async with telling(tmp_path) as here:
        await here.client.list_tools()
        await here.client.list_resource_templates()
    assert here.calls == []


@pytest.mark.parametrize(("era", "outcomes"), [(ERAS[0], ["ok"]), (ERAS[1], ["asked", "ok"])])
async def test_a_call_that_only_asked_the_person_has_done_nothing_yet(
    tmp_path: Path, era: str, outcomes: list[str]
):
    async with telling(tmp_path, era, person=Person(YES)) as here:
        await here.call("box_create", name="a")
        assert "deleted" in await here.call("box_delete", box="a")  # nobody can look into a fake
        assert [call.outcome for call in here.calls[1:]] == outcomes
