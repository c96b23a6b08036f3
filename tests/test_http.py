"""The real server over HTTP: who is served, by what, and how it ends."""

from __future__ import annotations

import json
import re
import signal
import socket
import ssl
import subprocess
from typing import TYPE_CHECKING, Any

import anyio
import httpx2
import pytest

from box_mcp.identity.tokens import Tokens
from tests.support.certificates import certificate
from tests.support.client import COMMAND, ERAS, LEGACY, MODERN, PATIENCE, docker, text, until
from tests.support.http import HttpServer, serving_http

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from tests.support.client import Server

BOTH_ERAS = pytest.mark.parametrize("era", ERAS)
HEAD = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
SLOW = "echo begun; echo $$ > slow; sleep 300"
WAITING = "echo $$ > running; while [ ! -e go ]; do sleep 0.1; done"


@pytest.fixture(scope="module")
async def here(shared_env: dict[str, str]) -> AsyncGenerator[HttpServer, None]:
    """A server for all tests that do not end it."""
    async with serving_http(shared_env) as server:
        yield server


@pytest.mark.parametrize("mode", [*ERAS, "auto"])
async def test_tools_work_and_the_first_call_makes_a_box(here: HttpServer, mode: str):
    async with here.caller("ann", mode) as ann:
        assert len((await ann.client.list_tools()).tools) > 30
        assert (await ann.run("whoami; pwd")).endswith("box\n/workspace\n")


async def test_a_principal_has_one_default_box_and_each_older_session_its_own(here: HttpServer):
    async with here.caller("ann") as one, here.caller("ann") as two:
        assert await one.hostname() == await two.hostname()
        assert await one.hostname(meta={"threadId": "other"}) != await two.hostname()
        async with here.caller("ann", LEGACY) as old, here.caller("ann", LEGACY) as older:
            assert await old.hostname() not in (await one.hostname(), await older.hostname())


@BOTH_ERAS
async def test_what_is_anothers_is_not_there(here: HttpServer, era: str):
    async with here.caller("ann", era) as ann, here.caller("ben", era) as ben:
        box = await ann.hostname()
        assert box not in await ben.say("box_list")
        theirs = await ben.fail("shell_run", command="id", box=box)
        nobodys = await ben.fail("shell_run", command="id", box="box-zzzzzzzz")
        assert theirs.replace(box, "box-zzzzzzzz") == nobodys


async def test_who_looks_only_may_not_run_anything(here: HttpServer):
    async with here.caller("ann") as ann, here.caller("ann", scopes=("boxes:read",)) as looking:
        box = await ann.hostname()
        assert box in await looking.say("box_list")
        assert "boxes:shell" in await looking.fail("shell_run", command="id", box=box)


async def test_a_token_that_is_revoked_is_good_no_more_at_once(here: HttpServer):
    token = await here.token("cem")
    async with here.raw(token, **HEAD) as http:
        ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
        assert (await http.post("/mcp", json=ping)).status_code == 400  # there is no session
        tokens = Tokens(here.state / "tokens.db")
        assert await tokens.revoke(token.split("_")[1])
        await tokens.aclose()
        assert (await http.post("/mcp", json=ping)).status_code == 401


async def test_a_session_is_of_no_use_to_others(here: HttpServer):
    async with here.raw(await here.token("ann"), **HEAD) as ann:
        session = (await begin(ann)).headers["mcp-session-id"]
        mine = await ann.post("/mcp", json=listing(), headers={"mcp-session-id": session})
        assert mine.status_code == 200
    async with here.raw(await here.token("ben"), **HEAD) as ben:
        stolen = await ben.post("/mcp", json=listing(), headers={"mcp-session-id": session})
        assert stolen.status_code == 404


async def test_a_large_file_is_written_by_one_call(here: HttpServer):
    async with here.caller("ann") as ann:
        await ann.say("file_write", path="large", content="x" * 6_000_000)
        assert "6000000" in await ann.run("wc -c < large")


async def test_a_call_is_cancelled_when_its_client_hangs_up(here: HttpServer):
    async with here.caller("ann") as ann:
        pid = await hung_up(here, ann, MODERN)
        await until(lambda: gone(ann, pid), "the end of a command that nobody waits for")


async def test_a_call_of_an_older_client_goes_on_when_its_connection_breaks(here: HttpServer):
    async with here.caller("ann") as ann:
        pid = await hung_up(here, ann, LEGACY)
        assert await ann.lives(pid)
        await ann.run(f"kill {pid}")


async def test_the_log_shows_no_token(here: HttpServer):
    token = await here.token("ann")
    async with here.raw(f"{token}x") as http:
        assert (await http.get("/mcp")).status_code == 401
    said = here.log.read_text()
    assert "served at" in said
    assert token.split("_")[2] not in said


async def test_at_the_end_calls_come_to_theirs_and_nothing_new_is_let_in(
    shared_env: dict[str, str],
):
    async with (
        serving_http(shared_env) as server,
        server.caller("dan") as dan,
        server.caller("dan", LEGACY) as old,
        anyio.create_task_group() as group,
    ):
        await old.hostname()
        said: list[str] = []

        async def run(caller: Server) -> None:
            said.append(await caller.run(f"{WAITING}; echo well"))

        async def listen() -> None:
            async with dan.client.listen(tools_list_changed=True) as news:
                async for _ in news:
                    pass
            said.append("over")

        boxes = [await one.hostname() for one in (dan, old)]
        for one in (dan, old):
            group.start_soon(run, one)
            await one.pid_in("running")
        group.start_soon(listen)
        async with server.raw() as watching:
            assert (await watching.get("/readyz")).text == "ok\n"
            server.process.terminate()
            await until(lambda: refuses(server), "the end of listening")
        for box in boxes:
            docker("exec", box, "touch", "/workspace/go")
        assert await server.ended() == 0
        assert said[0] == "over"  # the stream ended at once
        assert [one.splitlines()[-1] for one in said[1:]] == ["well", "well"]


async def test_what_is_cut_off_goes_on_in_its_box_and_the_next_server_finds_it(
    shared_env: dict[str, str],
):
    async with serving_http(shared_env) as server:
        pid, said = await cut_off(server, "twice")
        assert tells_what_goes_on(said)
    port = server.base.rpartition(":")[2]
    async with serving_http(shared_env, port, http__drain="0.2") as server:
        await still_runs(server, pid)
        pid, said = await cut_off(server, "late")
        assert tells_what_goes_on(said)
    async with serving_http(shared_env) as server:
        await still_runs(server, pid)
        pid, _ = await cut_off(server, "killed")
    async with serving_http(shared_env) as server:
        await still_runs(server, pid)


async def test_over_a_unix_socket_whoever_may_use_it_is_its_user(
    shared_env: dict[str, str], tmp_path: Path
):
    path = tmp_path / "box.sock"
    async with serving_http(shared_env, f"unix:{path}", http__auth="none") as server:
        assert path.stat().st_mode & 0o777 == 0o600
        async with server.caller("local", token="") as user:
            assert "boxes" in await user.say("box_list")
        assert await server.stop() == 0
    assert not path.exists()


async def test_with_a_certificate_tls_is_spoken_and_proxies_are_believed_where_they_are_trusted(
    shared_env: dict[str, str], tmp_path: Path
):
    made = certificate(tmp_path)
    settings = {
        "http__tls_certificate": str(made.certificate),
        "http__tls_key": str(made.key),
        "http__trusted_proxies": '["127.0.0.1/32"]',
        "http__refusals_per_minute": "1",
    }
    async with serving_http(shared_env, **settings) as server:
        server.verify = ssl.create_default_context(cafile=str(made.certificate))
        assert server.url.startswith("https://")
        async with server.caller("ann") as ann:
            assert "boxes" in await ann.say("box_list")
        for client, status in (("1.2.3.4", 401), ("1.2.3.4", 429), ("1.2.3.5", 401)):
            async with server.raw("wrong", X_Forwarded_For=client) as http:
                assert (await http.get("/mcp")).status_code == status
        certificate(tmp_path)
        server.process.send_signal(signal.SIGHUP)
        await until(lambda: trusts(server, made.certificate), "another certificate")


async def test_without_an_engine_the_server_serves_and_says_what_is_missing(
    server_env: dict[str, str],
):
    env = {**server_env, "DOCKER_HOST": "unix:///nowhere.sock"}
    async with serving_http(env) as server:
        server.process.send_signal(signal.SIGHUP)  # there is nothing to read anew
        async with server.raw() as http:
            assert (await http.get("/healthz")).status_code == 200
            ready = await http.get("/readyz")
            assert (ready.status_code, ready.text) == (503, "no engine\n")
        async with server.caller("ann") as ann:
            assert (await ann.client.list_tools()).tools
            assert "unix:///nowhere.sock" in await ann.fail("shell_run", command="id")


@pytest.mark.parametrize(("listen", "words"), [("0.0.0.0:0", "in the clear"), ("taken", "in use")])
def test_what_can_not_be_served_is_told_before_anything_is(
    server_env: dict[str, str], listen: str, words: str
):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        if listen == "taken":
            listen = str(holder.getsockname()[1])
        done = subprocess.run(
            [*COMMAND, "--http", listen],
            env=server_env,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


async def cut_off(server: HttpServer, how: str) -> tuple[int, str]:
    """The pid of a command whose call the server did not wait for, and what the call was told."""
    pid, said = 0, list[str]()
    async with server.caller("eve") as eve, anyio.create_task_group() as group:

        async def run() -> None:
            result = await eve.call("shell_run", command=SLOW, yield_after=100)
            said.append(text(result))

        await eve.run("rm -f slow")
        group.start_soon(run)
        pid = await eve.pid_in("slow")
        if how == "killed":
            server.kill()
            group.cancel_scope.cancel()
            return pid, ""
        server.process.terminate()
        if how == "twice":
            await until(lambda: refuses(server), "the end of listening")
            server.process.send_signal(signal.SIGINT)
        assert await server.ended() == 0
        await until(lambda: true(said), "an answer to the call")
    return pid, said[0]


def tells_what_goes_on(said: str) -> bool:
    told = "a command that the call began goes on" in said
    return told and "`process_list`" in said and "went away" not in said


async def still_runs(server: HttpServer, pid: int) -> None:
    """And is found by the tools that who was cut off is told of."""
    async with server.caller("eve") as eve:
        assert await eve.lives(pid)
        listed = await eve.say("process_list")
        (process,) = re.findall(r"^(p\d+) +running\b", listed, re.MULTILINE)
        assert "begun" in await eve.say("process_output", id=process)
        await eve.run(f"kill {pid}")


async def begin(http: httpx2.AsyncClient) -> httpx2.Response:
    """The answer to who begins a session."""
    about = {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "a test", "version": "1"},
    }
    said = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": about}
    answer = await http.post("/mcp", json=said)
    assert answer.status_code == 200, answer.text
    note = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    session = {"mcp-session-id": answer.headers["mcp-session-id"]}
    assert (await http.post("/mcp", json=note, headers=session)).status_code == 202
    return answer


def listing() -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}


async def hung_up(server: HttpServer, watching: Server, era: str) -> int:
    """The pid of a command whose call's connection broke while it ran."""
    box = await watching.hostname()
    await watching.run("rm -f slow", box=box)
    arguments = {"name": "shell_run", "arguments": {"command": SLOW, "box": box}}
    said: dict[str, Any] = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": arguments}
    async with server.raw(await server.token("ann"), **HEAD) as http:
        if era == LEGACY:
            about = {"mcp-session-id": (await begin(http)).headers["mcp-session-id"]}
        else:
            said["params"]["_meta"] = {
                "io.modelcontextprotocol/protocolVersion": MODERN,
                "io.modelcontextprotocol/clientCapabilities": {},
            }
            about = {
                "mcp-protocol-version": MODERN,
                "mcp-method": "tools/call",
                "mcp-name": "shell_run",
            }
        pid = 0
        async with anyio.create_task_group() as group:
            group.start_soon(post, http, said, about)
            pid = await watching.pid_in("slow", box=box)
            group.cancel_scope.cancel()
    return pid


async def post(http: httpx2.AsyncClient, said: dict[str, Any], about: dict[str, str]) -> None:
    answer = await http.post("/mcp", content=json.dumps(said).encode(), headers=about)
    pytest.fail(f"it was answered: {answer.status_code} {answer.text}")


async def gone(server: Server, pid: int) -> bool:
    return not await server.lives(pid)


async def true(found: list[str]) -> bool:
    return bool(found)


async def trusts(server: HttpServer, authority: Path) -> bool:
    server.verify = ssl.create_default_context(cafile=str(authority))
    try:
        async with server.raw() as http:
            return (await http.get("/healthz")).status_code == 200
    except httpx2.ConnectError:
        return False


async def refuses(server: HttpServer) -> bool:
    try:
        async with await anyio.connect_tcp("127.0.0.1", int(server.base.rpartition(":")[2])):
            return False
    except OSError:
        return True
