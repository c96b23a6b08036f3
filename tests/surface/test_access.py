"""What tokens let their bearers do: by group, to read or to change, and how often."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from mcp import Client, MCPError
from mcp.client import advertise
from mcp_types import INVALID_REQUEST, ElicitResult, Request, Result

from box_mcp.app import backend, server_of
from box_mcp.domain.access import Grant, Group, parse_scope
from box_mcp.domain.box import State
from box_mcp.domain.catalogue import Order
from box_mcp.domain.names import LOCAL, Principal
from box_mcp.domain.plan import Act
from box_mcp.engines.fake import FakeEngine
from box_mcp.events import CallEnded
from box_mcp.lifecycle import Caller
from box_mcp.settings import Settings
from box_mcp.surface.access import COMMANDS, FILES, Need, needed
from box_mcp.surface.pacing import pacing
from box_mcp.surface.requests import GRANT, HOLDING, granting
from box_mcp.surface.server import make_server
from box_mcp.surface.sessions import EVERYWHERE
from box_mcp.surface.tasks import TASKS
from tests.support.client import ERAS, LEGACY, MODERN, PATIENCE, text
from tests.support.grants import ME, YOU, Bearers, grant

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator
    from pathlib import Path

    from mcp.server import MCPServer

    from box_mcp.events import Event
    from box_mcp.surface.sessions import Backend

Asked = Request[dict[str, Any], str]

GROUPS = {
    "box": Group.LIFECYCLE,
    "snapshot": Group.LIFECYCLE,
    "shell": Group.SHELL,
    "process": Group.SHELL,
    "file": Group.FILES,
    "git": Group.GIT,
    "pull": Group.GIT,
    "issue": Group.GIT,
    "agent": Group.AGENT,
    "port": Group.NETWORK,
    "network": Group.NETWORK,
}
"""Of tools, by the first word of their names."""

READERS = {
    *("box_list", "box_info", "box_changes", "snapshot_list", "process_list", "process_output"),
    *("file_read", "file_list", "file_search", "git_status", "git_diff", "git_log"),
    "agent_status",
}
REFUSED = "Your token does not let you use"
SCOPES = [
    *("boxes", "boxes:read"),
    *(f"boxes:{group}" for group in Group),
    *(f"boxes:{group}:read" for group in Group),
]
COMMAND = "box-aaaaaaaa.p1.1800000000.12000"
RUN = "run-aaaaaaaa"


def unheard(_: object) -> None:
    """A hook that nobody listens to."""


@asynccontextmanager
async def untouched(_: MCPServer[Backend]) -> AsyncGenerator[Any, None]:
    yield SimpleNamespace(hook=unheard)


def covers(scope: str, tool: str) -> bool:
    parsed = parse_scope(scope)
    group = GROUPS[tool.partition("_")[0]]
    return parsed.group in (None, group) and (tool in READERS or not parsed.reads)


@dataclass
class House:
    """A server over an engine in memory, and what it tells of what happens."""

    bearers: Bearers
    server: Backend
    engine: FakeEngine
    events: list[Event]

    @property
    def ended(self) -> list[CallEnded]:
        """What became of requests."""
        return [event for event in self.events if isinstance(event, CallEnded)]


@asynccontextmanager
async def house(path: Path, **chosen: Any) -> AsyncGenerator[House, None]:
    settings = Settings(state_dir=path, warm_max=0, models=None, **chosen)
    events: list[Event] = []
    engine = FakeEngine()
    async with backend(settings, engine=engine, remote=True) as running:
        server = replace(running, hook=events.append)

        @asynccontextmanager
        async def lifespan(_: MCPServer[Backend]) -> AsyncGenerator[Backend, None]:
            yield server

        yield House(Bearers(server_of(settings, lifespan, remote=True)), server, engine, events)


async def ask(client: Client, method: str, params: dict[str, Any]) -> Any:
    with anyio.fail_after(PATIENCE):
        return await client.session.send_request(Asked(method=method, params=params), Result)


@pytest.mark.parametrize("scope", SCOPES)
async def test_a_token_is_for_the_tools_of_its_scope_and_no_others(scope: str):
    bearers = Bearers(make_server(untouched), grant(scope))
    async with bearers.client() as client:
        tools = [tool.name for tool in (await client.list_tools()).tools]
        # Without arguments none does anything; but that is found out later.
        refused = {one for one in tools if REFUSED in text(await client.call_tool(one, {}))}
    assert refused == {tool for tool in tools if not covers(scope, tool)}
    assert len(tools) > len(READERS)


@pytest.mark.parametrize("era", ERAS)
async def test_a_refusal_is_a_tools_own_and_says_what_is_missing(era: str):
    bearers = Bearers(make_server(untouched), grant("boxes:files", "boxes:git:read"))
    async with bearers.client(era) as client:
        answer = await client.call_tool("shell_run", {"command": "true"})
    assert answer.is_error
    assert text(answer) == (
        "Your token does not let you use shell_run. It is for: boxes:files, boxes:git:read. Go on "
        "without, or ask the user for a token with the scope 'boxes:shell', which whoever runs the "
        "server of box_mcp can give."
    )


async def test_a_token_of_no_scope_is_for_nothing():
    bearers = Bearers(make_server(untouched))
    bearers.given = Grant(ME, ())
    async with bearers.client() as client:
        assert "It is for: nothing" in text(await client.call_tool("box_list", {}))


@pytest.mark.parametrize(
    ("method", "params", "need"),
    [
        ("tools/call", {"name": "no_such_tool"}, None),
        ("tools/call", {"name": ["shell_run"]}, None),
        ("tools/call", {}, None),
        ("tools/list", {}, None),
        ("resources/templates/list", {}, None),
        ("ping", {}, None),
        ("resources/read", {"uri": "box://it/files/a"}, FILES),
        ("resources/list", {}, FILES),
        ("completion/complete", {}, FILES),
        ("subscriptions/listen", {"notifications": {"resourceSubscriptions": ["x"]}}, FILES),
        ("subscriptions/listen", {"notifications": {"resourcesListChanged": True}}, None),
        ("subscriptions/listen", {"notifications": ["resourceSubscriptions"]}, None),
        ("tasks/get", {"taskId": COMMAND}, Need(COMMANDS, reads=True)),
        ("tasks/get", {"taskId": RUN}, Need((Group.AGENT,), reads=True)),
        ("tasks/cancel", {"taskId": COMMAND}, Need(COMMANDS, reads=False)),
        ("tasks/update", {"taskId": RUN}, Need((Group.AGENT,), reads=False)),
        ("tasks/get", {"taskId": [RUN]}, Need(COMMANDS, reads=True)),
        ("tasks/get", {}, Need(COMMANDS, reads=True)),
    ],
)
def test_what_a_request_takes(method: str, params: dict[str, Any], need: Need | None):
    assert needed({}, method, params) == need


@pytest.mark.parametrize(
    ("scope", "method", "params", "permitted"),
    [
        ("boxes:shell", "resources/read", {"uri": "box://it/files/a"}, False),
        ("boxes:files:read", "resources/read", {"uri": "box://it/files/a"}, True),
        ("boxes:shell:read", "tasks/get", {"taskId": COMMAND}, True),
        ("boxes:git:read", "tasks/get", {"taskId": COMMAND}, True),
        ("boxes:agent", "tasks/get", {"taskId": COMMAND}, False),
        ("boxes:agent:read", "tasks/get", {"taskId": RUN}, True),
        ("boxes:shell", "tasks/get", {"taskId": RUN}, False),
        ("boxes:read", "tasks/cancel", {"taskId": COMMAND}, False),
        ("boxes:read", "tasks/update", {"taskId": RUN}, False),
        ("boxes:git", "tasks/cancel", {"taskId": COMMAND}, True),
    ],
)
async def test_other_requests_are_refused_as_requests(
    scope: str, method: str, params: dict[str, Any], permitted: bool, tmp_path: Path
):
    async with house(tmp_path) as home:
        home.bearers.given = grant(scope)
        async with home.bearers.client(extensions=[advertise(TASKS)]) as client:
            with pytest.raises(MCPError) as caught:
                await ask(client, method, params)
    assert (REFUSED in str(caught.value)) is not permitted
    assert (caught.value.code == INVALID_REQUEST) is not permitted
    assert [one.outcome for one in home.ended] == ["invalid" if permitted else "refused"]


async def test_who_may_not_read_files_is_told_of_no_list_of_them(tmp_path: Path):
    async with house(tmp_path) as home, home.bearers.client() as client:
        for scope, told in (("boxes:shell", None), ("boxes:files:read", True)):
            home.bearers.given = grant(scope)
            async with client.listen(tools_list_changed=True, resources_list_changed=True) as heard:
                assert heard.honored.tools_list_changed is True
                assert heard.honored.resources_list_changed is told
        home.bearers.given = grant("boxes:shell")
        with pytest.raises(MCPError, match=REFUSED):
            await client.list_resources()


async def test_who_only_reads_makes_no_box_and_is_told_how_to_see_one(tmp_path: Path):
    async with house(tmp_path) as home, home.bearers.client() as client:
        home.bearers.given = grant("boxes:read")
        answer = await client.call_tool("file_read", {"path": "a"})
        assert "You may look at boxes here, and make none: pass `box`" in text(answer)
        assert (await client.list_resources()).resources == []
        assert home.engine.boxes == {}


async def test_who_only_reads_wakes_boxes(tmp_path: Path):
    async with house(tmp_path) as home, home.bearers.client() as client:
        await client.call_tool("file_write", {"path": "a", "content": "written"})
        (box,) = home.engine.boxes
        lifecycle = home.server.lifecycle
        await lifecycle.pause(Caller(ME, EVERYWHERE), box, Act.FREEZE)
        home.bearers.given = grant("boxes:read")
        for arguments in ({}, {"box": box}):
            assert "written" in text(
                await client.call_tool("file_read", {"path": "a", **arguments})
            )
        assert (await lifecycle.info(Caller(ME, EVERYWHERE), box)).box.state is State.RUNNING


async def test_a_server_that_only_reads_makes_no_box_for_anybody(tmp_path: Path):
    async with house(tmp_path, read_only=True) as home, home.bearers.client() as client:
        assert {tool.name for tool in (await client.list_tools()).tools} == READERS
        answer = await client.call_tool("file_read", {"path": "a"})
        assert "You may look at boxes here, and make none" in text(answer)
        assert home.engine.boxes == {}


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(("who", "asked"), [(ME, 0), (LOCAL, 1)])
async def test_only_whose_settings_they_are_is_asked_to_go_beyond_them(
    who: Principal, asked: int, era: str, tmp_path: Path
):
    questions: list[object] = []

    async def agree(_: object, params: object) -> ElicitResult:
        questions.append(params)
        return ElicitResult(action="accept", content={"allow": True})

    closed = {"network": "allowlist", "allow": ["pypi.example"]}
    async with house(tmp_path, **closed) as home:
        home.bearers.given = grant(principal=who)
        async with home.bearers.client(era, elicitation_callback=agree) as client:
            made = await client.call_tool("box_create", {"network": "full"})
    assert len(questions) == asked
    assert made.is_error is not bool(asked)
    assert made.is_error is ("`ceiling` in the settings of box_mcp's server" in text(made))
    assert len(home.engine.boxes) == asked


@pytest.mark.parametrize("era", ERAS)
async def test_a_server_without_tools_for_files_has_no_resources(era: str, tmp_path: Path):
    async with house(tmp_path, toolsets=[Group.SHELL]) as home, home.bearers.client(era) as client:
        await home.server.lifecycle.create(Caller(ME, EVERYWHERE), Order("it"))
        assert (await client.list_resources()).resources == []
        assert (await client.list_resource_templates()).resource_templates == []
        with pytest.raises(MCPError):
            await client.read_resource("box://it/files/workspace/")


@pytest.mark.parametrize("era", ERAS)
async def test_over_http_what_lost_its_grant_is_not_taken_for_who_started_the_server(
    era: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    async with house(tmp_path) as home:
        inner = home.bearers.server._lowlevel_server  # pyright: ignore[reportPrivateUsage]
        del inner.middleware[0]  # what lays the grant on requests
        try:
            async with Client(home.bearers.server, mode=era) as client:
                await client.call_tool("box_create", {})
                pytest.fail("somebody was served")
        except* MCPError:
            assert "bore no grant" in caplog.text
        assert await home.server.lifecycle.known(Caller(LOCAL, "any")) == []


async def test_over_http_a_call_is_held_for_as_long_as_it_takes():
    told: list[str] = []

    @contextmanager
    def holding() -> Generator[None, None, None]:
        told.append("begun")
        yield
        told.append("ended")

    async def call(_: Any) -> dict[str, Any]:
        told.append("called")
        return {}

    request = SimpleNamespace(scope={GRANT: grant(), HOLDING: holding})
    context: Any = SimpleNamespace(request=request, method="ping")
    assert await granting(context, call) == {}
    assert told == ["begun", "called", "ended"]


async def test_callers_over_http_have_nothing_of_the_servers_own_machine(tmp_path: Path):
    roots = [tmp_path / "allowed"]
    roots[0].mkdir()
    (roots[0] / "file").write_text("of the server's user")
    async with house(tmp_path / "state", host_roots=roots) as home, home.bearers.client() as client:
        assert home.server.host is None
        for who in (ME, LOCAL):
            home.bearers.given = grant(principal=who)
            for tool, given in (
                ("file_upload", {"host_path": str(roots[0] / "file")}),
                ("file_download", {"path": "a", "host_path": str(roots[0] / "b")}),
                ("git_clone", {"url": f"host:{roots[0]}"}),
            ):
                assert "is on another machine" in text(await client.call_tool(tool, given))
    assert [path.name for path in roots[0].iterdir()] == ["file"]


async def test_calls_of_tools_are_counted_for_each_principal_by_whatever_protocol(tmp_path: Path):
    async with (
        house(tmp_path, calls_per_minute=3) as home,
        home.bearers.client(LEGACY) as old,
        home.bearers.client(MODERN) as new,
    ):
        for client in (old, new, old):
            assert not (await client.call_tool("box_list", {})).is_error
        for client in (old, new):
            refused = await client.call_tool("box_list", {})
            assert refused.is_error
            assert "You have made the 3 calls that you may make in a minute" in text(refused)
        home.bearers.given = grant("boxes:read")  # another token
        assert (await new.call_tool("box_list", {})).is_error
        home.bearers.given = grant(principal=YOU)
        assert not (await new.call_tool("box_list", {})).is_error
        assert (await new.list_resources()).resources == []
    assert [one.outcome for one in home.ended] == [*["ok"] * 3, *["refused"] * 3, "ok"]
    assert {one.error for one in home.ended} == {"", "TooManyCalls"}


async def test_calls_that_are_refused_count_and_time_gives_calls_back(tmp_path: Path):
    moment = 100.0
    async with house(tmp_path) as home:
        inner = home.bearers.server._lowlevel_server  # pyright: ignore[reportPrivateUsage]
        inner.middleware.insert(1, pacing(2, lambda: moment))
        home.bearers.given = grant("boxes:read")
        async with home.bearers.client() as client:
            for _ in range(2):
                assert REFUSED in text(await client.call_tool("shell_run", {"command": "true"}))
            assert "Wait 30 s before the next" in text(await client.call_tool("box_list", {}))
            moment += 29.0
            assert "Wait 1 s before the next" in text(await client.call_tool("box_list", {}))
            moment += 1.0
            assert not (await client.call_tool("box_list", {})).is_error
