"""Real clients over HTTP, each with a token of its own, told of the server as docs/http.md says.

All work at the same time with one server, which is restarted when each of them has made a box. Only
models are scripts; whatever a client asks, it asks on loopback.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import httpx2
import pytest
from anyio.to_thread import run_sync
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client

from box_mcp.capabilities.harnesses.base import Access, Assignment
from box_mcp.capabilities.harnesses.known import KNOWN
from box_mcp.domain.models import Dialect
from tests.support import node
from tests.support.client import fresh_state, text
from tests.support.http import HttpServer, serving_http
from tests.support.model_server import ScriptedModel, serve_model
from tests.support.script import Act, JsonObject, Say, Use
from tests.support.tap import Tap, tapped
from tests.test_claude_code import MODEL, PROMPT, environment

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

pytestmark = pytest.mark.timeout(node.INSTALL_TIMEOUT + 120)  # the first run installs the clients

DOCS = Path(__file__).parent.parent / "docs" / "http.md"
ENDPOINT = "http://127.0.0.1:8765/mcp"
"""The one in the documents."""

RUN_TIMEOUT = 90.0
"""Seconds for what a client does in all; it takes a few, and waits for the others."""

BY_AND_BY = 0.5
"""Seconds in which a client that has lost the server may find it again."""

TRIES = 60
PATIENT = {"MCP_CONNECTION_NONBLOCKING": "0", "MCP_CONNECT_TIMEOUT_MS": "60000"}
FILE = "/workspace/hello.txt"
HELLO = f"echo hello from $(hostname) | tee {FILE}"
SAME: Any = {"threadId": "the same conversation"}
NOT_GOOD = "The token is not good here"


class Restart:
    """The one of the server: who has come half way waits for it."""

    def __init__(self, clients: int) -> None:
        self.half_way = threading.Barrier(clients + 1, timeout=RUN_TIMEOUT)
        self.over = threading.Event()

    def wait(self) -> None:
        """Comes half way, and goes on when the server is back."""
        self.half_way.wait()
        assert self.over.wait(RUN_TIMEOUT)


@dataclass
class Visit:
    """One client's: its way to the server, its token, and what its calls were answered with."""

    tap: Tap
    token: str
    home: Path
    restart: Restart
    results: list[str] = field(default_factory=list[str])

    @property
    def box(self) -> str:
        """The one that it got."""
        found = re.search(r"hello from (box-[a-z0-9]{8})", self.results[0])
        assert found, self.results
        return found[1]

    def documented(self, language: str, about: str) -> str:
        """What the documents have for a client, with the server's real endpoint."""
        blocks = re.findall(
            rf"^```{language}\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL
        )
        (block,) = (block for block in blocks if about in block)
        assert ENDPOINT in block
        return block.replace(ENDPOINT, self.tap.url)


def claude_code(era: str, visit: Visit) -> None:
    """Told to wait for its servers before it begins: the model's script needs them."""
    with visiting(visit, named=era == "legacy") as model:
        env = {**of_claude_code(visit, era, model), **PATIENT}
        given = ["--model", MODEL, "--strict-mcp-config", "--mcp-config", ".mcp.json"]
        unasked = ["--permission-mode", "bypassPermissions"]
        run([str(node.claude_code()), "-p", PROMPT, *unasked, *given], env, visit.home)
        assert model.refused == []


def of_claude_code(visit: Visit, era: str, model: ScriptedModel) -> dict[str, str]:
    """Its environment, in a directory that has the documents' configuration."""
    (visit.home / ".mcp.json").write_text(visit.documented("json", "mcpServers"))
    chosen = {"MCP_PROTOCOL_NEGOTIATION": era, "BOX_MCP_TOKEN": visit.token}
    return {**environment(model, visit.home), **chosen}


def codex(visit: Visit) -> None:
    with visiting(visit, named=False) as model:
        done = run_codex(visit, model)
        assert (done.returncode, model.refused) == (0, []), done.stderr


def run_codex(visit: Visit, model: ScriptedModel) -> subprocess.CompletedProcess[str]:
    settings = visit.home / ".codex" / "config.toml"
    settings.parent.mkdir()
    settings.write_text(visit.documented("toml", "mcp_servers"))
    access = Access(Dialect.OPENAI, f"{model.url}/v1", "a-dummy-key")
    launch = KNOWN["codex"].launch(
        Assignment(PROMPT, str(visit.home / "scratch"), access, model="gpt-5.5")
    )
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), model.url)
    own = {"HOME": str(visit.home), "PATH": os.environ["PATH"], "NO_PROXY": "127.0.0.1"}
    env = {**own, **proxies, **launch.env, "BOX_MCP_TOKEN": visit.token}
    command = [str(node.codex()), *launch.command[1:]]
    return run(command, env, visit.home, launch.stdin, check=False)


@contextmanager
def visiting(visit: Visit, *, named: bool) -> Generator[ScriptedModel, None, None]:
    """A model that has its agent visit; one that is `named` says in which box the file is."""

    def read(_: list[JsonObject]) -> Act:
        visit.results.append(model.tool_results()[-1].text)
        visit.restart.wait()
        which = {"box": visit.box} if named else {}
        return Use("mcp__box__file_read", {"path": FILE, **which})

    def end(_: list[JsonObject]) -> Act:
        result = model.tool_results()[-1].text
        if "still connecting" in result:  # the client finds the server again by and by
            time.sleep(BY_AND_BY)
            return Use("mcp__box__file_read", {"path": FILE, "box": visit.box})
        visit.results.append(result)
        return Say("All done.")

    script = [Use("mcp__box__shell_run", {"command": HELLO}), read, *[end] * TRIES]
    with serve_model(script, tool_prefix="mcp__box") as model:
        yield model


def inspector(era: str, visit: Visit) -> None:
    """A process for each call; in older protocols each has a session, and a box, of its own."""
    hello = inspect(era, visit, "--tool-name", "shell_run", "--tool-arg", f"command={HELLO}")
    visit.results.append(hello)
    visit.restart.wait()
    named = ["--tool-arg", f"box={visit.box}"] if era == "legacy" else []
    read = ["--tool-name", "file_read", "--tool-arg", f"path={FILE}", *named]
    visit.results.append(inspect(era, visit, *read))


def inspect(era: str, visit: Visit, *options: str) -> str:
    """The text of one call."""
    done = run_inspector(era, visit, "--method", "tools/call", *options)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout)["result"]["content"][0]["text"]


def run_inspector(era: str, visit: Visit, *options: str) -> subprocess.CompletedProcess[str]:
    line = visit.documented("bash", "inspector").replace("$BOX_MCP_TOKEN", visit.token)
    _, _, *documented = shlex.split(line)  # after npx and what it gets
    method = documented.index("--method")
    told = [era if word == "modern" else word for word in documented[:method]]
    env = {**node.node_environment(), "MCP_INSPECTOR_SECRET_STORE": "memory"}
    command = [*node.inspector(), *told, "--format", "json", *options]
    return run(command, env, visit.home, check=False)


def sdk(mode: str, visit: Visit) -> None:
    anyio.run(_sdk, mode, visit)


async def _sdk(mode: str, visit: Visit) -> None:
    """All say that theirs is the same conversation."""
    visit.results.append(await ask(mode, visit, "shell_run", command=HELLO))
    await run_sync(visit.restart.wait)
    visit.results.append(await ask(mode, visit, "file_read", path=FILE))


async def ask(mode: str, visit: Visit, tool: str, **arguments: str) -> str:
    """The text of one call, over a connection of its own."""
    headers = {"Authorization": f"Bearer {visit.token}"}
    async with httpx2.AsyncClient(headers=headers, timeout=RUN_TIMEOUT) as http:
        transport = streamable_http_client(visit.tap.url, http_client=http)
        async with Client(transport, mode=mode) as client:
            assert tool in {one.name for one in (await client.list_tools()).tools}
            return text(await client.call_tool(tool, arguments, meta=SAME))


def run(
    command: list[str], env: Mapping[str, str], home: Path, said: str = "", *, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """A client's process."""
    done = subprocess.run(
        command,
        env=env,
        cwd=home,
        input=said,
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT,
        check=False,
    )
    assert done.returncode == 0 or not check, f"{done.stdout}\n{done.stderr}"
    return done


MODERN, OLDER = "2026-07-28", "2025-"
CLIENTS: Mapping[str, tuple[Callable[[Visit], Any], str]] = {
    "claude-code-auto": (partial(claude_code, "auto"), MODERN),
    "claude-code-legacy": (partial(claude_code, "legacy"), OLDER),
    "codex": (codex, OLDER),
    "inspector-modern": (partial(inspector, "modern"), MODERN),
    "inspector-legacy": (partial(inspector, "legacy"), OLDER),
    "sdk-auto": (partial(sdk, "auto"), MODERN),
    "sdk-legacy": (partial(sdk, "legacy"), OLDER),
    "sdk-2026-07-28": (partial(sdk, "2026-07-28"), MODERN),
}
"""Each with the revision of the protocol that it speaks, or the beginning of it."""


@dataclass
class Scene:
    """All visits, and the server as it is after its restart."""

    server: HttpServer
    visits: Mapping[str, Visit]


@pytest.fixture(scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Scene, None]:
    restart = Restart(len(CLIENTS))
    async with AsyncExitStack() as stack:
        env = stack.enter_context(fresh_state(tmp_path_factory.mktemp("server")))
        server = await stack.enter_async_context(serving_http(env))
        visits = {
            name: Visit(
                await stack.enter_async_context(tapped(server.url)),
                await server.token(name),
                tmp_path_factory.mktemp(name),
                restart,
            )
            for name in CLIENTS
        }
        async with anyio.create_task_group() as tasks:
            for name, visit in visits.items():
                tasks.start_soon(run_sync, partial(go, name, visit))
            await run_sync(restart.half_way.wait)
            await server.stop()
            server = await stack.enter_async_context(serving_http(env))
            for visit in visits.values():
                visit.tap.server = server.url
            restart.over.set()
        yield Scene(server, visits)


def go(name: str, visit: Visit) -> None:
    client, _ = CLIENTS[name]
    try:
        client(visit)
        assert len(visit.results) == 2
    except BaseException as error:
        visit.restart.half_way.abort()  # nobody need wait for it
        error.add_note(f"{name} was told: {visit.results}")
        raise


@pytest.fixture
async def stranger(scene: Scene, tmp_path: Path) -> AsyncGenerator[Visit, None]:
    """Somebody whose token is not good."""
    good = await scene.server.token("somebody")
    async with tapped(scene.server.url) as tap:
        yield Visit(tap, good[:-1] + ("x" if good[-1] != "x" else "y"), tmp_path, Restart(1))


@pytest.mark.parametrize("name", CLIENTS)
async def test_a_client_works_in_a_box_and_finds_it_after_a_restart(
    scene: Scene, name: str
) -> None:
    visit = scene.visits[name]
    ran, read = visit.results
    assert f"[made the box {visit.box}" in ran or "[exit 0" in ran
    assert f"hello from {visit.box}" in read
    assert b'"tools/list"' in visit.tap.said


async def test_no_two_principals_have_a_box_together(scene: Scene) -> None:
    assert len({visit.box for visit in scene.visits.values()}) == len(CLIENTS)


@pytest.mark.parametrize("name", CLIENTS)
async def test_a_client_speaks_its_revision_of_the_protocol(scene: Scene, name: str) -> None:
    _, revision = CLIENTS[name]
    said = set(scene.visits[name].tap.header("MCP-Protocol-Version"))
    assert said
    assert {version for version in said if not version.startswith(revision)} == set()


@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_claude_code_shows_that_it_is_connected(
    scene: Scene, era: str, tmp_path: Path
) -> None:
    visit = Visit(
        scene.visits["claude-code-auto"].tap, await scene.server.token("ann"), tmp_path, Restart(1)
    )
    assert "Connected" in await run_sync(listed, era, visit)


async def test_claude_code_shows_what_is_wrong_with_a_token(stranger: Visit) -> None:
    shown = await run_sync(listed, "auto", stranger)
    assert "Failed to connect" in shown
    assert NOT_GOOD in shown


def listed(era: str, visit: Visit) -> str:
    """What `claude mcp list` prints."""
    settings = visit.home / ".claude" / "settings.local.json"
    settings.parent.mkdir()
    settings.write_text(json.dumps({"enableAllProjectMcpServers": True}))
    with serve_model([]) as model:
        env = of_claude_code(visit, era, model)
        env["CLAUDE_CONFIG_DIR"] = str(visit.home / "own")
        shown = run([str(node.claude_code()), "mcp", "list"], env, visit.home).stdout
        assert model.refused == []
    return shown


async def test_codex_shows_what_is_wrong_with_a_token(stranger: Visit) -> None:
    with serve_model([], tool_prefix="mcp__box") as model:
        done = await run_sync(run_codex, stranger, model)
        assert model.refused == []
    assert done.returncode != 0
    assert NOT_GOOD in done.stderr


@pytest.mark.parametrize("era", ["modern", "legacy"])
async def test_the_inspector_shows_that_a_token_is_not_good(stranger: Visit, era: str) -> None:
    asked = ["--method", "tools/list", "--stored-auth-only"]  # it would ask a person to log in
    done = await run_sync(run_inspector, era, stranger, *asked)
    assert done.returncode != 0
    assert "auth_required" in done.stderr


@pytest.mark.parametrize("mode", ["auto", "legacy", "2026-07-28"])
async def test_the_sdk_raises_what_is_wrong_with_a_token(stranger: Visit, mode: str) -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        await ask(mode, stranger, "box_list")
    assert caught.group_contains(MCPError, match=NOT_GOOD)
