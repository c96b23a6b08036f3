"""Ports for the user, and what a box may reach, changed while it runs, on real Docker."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import signal
import socket
from contextlib import closing
from functools import partial
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any, Literal

import pytest
from anyio import to_thread
from mcp_types import ElicitResult

from box_mcp.app import TIDY_TIMEOUT
from tests.support.client import ERAS, PATIENCE, container_state, serving
from tests.support.internet import HTTP, INTERNET, PROGRAM, TCP

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from tests.support.client import Server
    from tests.support.internet import Internet

WEB, TALK = 8000, 8001
"""Ports of the box; on the first it listens on its own loopback only."""

KEPT = 12  # connections that a browser keeps open

ECHO, SITE = f"{INTERNET}:{TCP}", f"{INTERNET}:{HTTP}"

HOLD = f"""python3 -u - <<'END'
import socket
line = socket.create_connection(("127.0.0.1", 3128))
line.sendall(b"CONNECT {ECHO} HTTP/1.1\\r\\nHost: {ECHO}\\r\\n\\r\\n")
try:
    while data := line.recv(999):
        print(data.decode())
except ConnectionResetError:
    pass
print("it was cut")
END"""
"""A connection through the proxy that is kept up."""

WAIT = """python3 -u - <<'END'
import socket
line = socket.create_connection(("127.0.0.1", 3128))
line.sendall(b"\\5")
print("it stands")
try:
    line.recv(1)
except ConnectionResetError:
    print("it was cut")
END"""
"""One to the proxy, which leads nowhere yet."""

FETCH = f"curl -sS --max-time 5 http://{SITE}/"


def shared(env: dict[str, str], **options: Any) -> AbstractAsyncContextManager[Server]:
    """A server of the session that tests share a box in."""
    return serving(env, "--session", "shared", **options)


async def box_of(server: Server) -> str:
    return (await server.tell("box_info"))["id"]


async def started(server: Server, command: str, words: str) -> str:
    """The process id of a command in the background that has printed these words."""
    found = re.search(r"\bp\d+\b", await server.run(command, background=True))
    assert found
    said = await server.say("process_output", id=found[0], pattern=words, wait=PATIENCE)
    assert "pattern found" in said
    return found[0]


async def exposed(server: Server, port: int) -> int:
    """Where a port of the shared box is on this machine."""
    found = re.search(r"localhost:(\d+)/", await server.say("port_expose", port=port))
    assert found
    return int(found[1])


async def fetched(port: int, host: str, path: str = "/") -> tuple[int, str]:
    """What is answered on a port of this machine to who asks for a host."""

    def fetch() -> tuple[int, str]:
        with closing(HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as line:
            line.request("GET", path, headers={"Host": f"{host}:{port}"})
            answer = line.getresponse()
            return answer.status, answer.read().decode()

    return await to_thread.run_sync(fetch)


def opened(port: int, host: str) -> socket.socket:
    """A WebSocket."""
    line = socket.create_connection(("127.0.0.1", port), PATIENCE)
    key = base64.b64encode(os.urandom(16)).decode()
    line.sendall(
        f"GET / HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
        "Sec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    with line.makefile("rb", buffering=0) as heard:
        assert heard.readline().startswith(b"HTTP/1.1 101 ")
        while heard.readline() != b"\r\n":
            pass
    return line


def talked(port: int, host: str, word: bytes) -> bytes:
    """The answer to one short message over a WebSocket."""
    with opened(port, host) as line, line.makefile("rb") as heard:
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(word))
        line.sendall(bytes([0x81, 0x80 | len(word)]) + mask + masked)
        return heard.read(heard.read(2)[1])


async def test_servers_in_a_box_are_reached_by_browsers_and_nobody_listens_after_port_close(
    shared_env: dict[str, str],
):
    async with shared(shared_env) as server:
        await server.say("file_write", path="services.py", content=PROGRAM.read_text())
        await server.run("mkdir -p site; echo 'hello from the box' > site/a.txt")
        web, talk = f"python3 -um http.server --bind 127.0.0.1 -d site {WEB}", f"ws:{TALK}"
        await started(server, web, "Serving HTTP")
        await started(server, f"python3 -u services.py web /tmp/log {talk}", "ready")
        box, port = await box_of(server), await exposed(server, WEB)
        host = f"{box}.localhost"
        assert await fetched(port, host, "/a.txt") == (200, "hello from the box\n")
        for other in ("localhost", "127.0.0.1", "evil.example", "box-aaaaaaaa.localhost"):
            assert (await fetched(port, other))[0] == 421

        talking = await exposed(server, TALK)
        said = await to_thread.run_sync(partial(talked, talking, host, b"a word"))
        assert said == b"web heard a word"

        told = (await server.tell("box_info"))["ports"]
        assert told == [
            f"http://{host}:{port}/ leads to {WEB}",
            f"http://{host}:{talking}/ leads to {TALK}",
        ]
        await server.say("port_close", port=TALK)
        with pytest.raises(ConnectionRefusedError):
            await fetched(talking, host)
        assert (await fetched(port, host, "/a.txt"))[0] == 200


async def test_a_request_wakes_a_paused_box_and_an_open_connection_does_not_keep_it_from_pausing(
    shared_env: dict[str, str],
):
    async with shared(shared_env) as server:
        box, port = await box_of(server), await exposed(server, WEB)
        with closing(HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as kept:
            kept.request("GET", "/a.txt", headers={"Host": f"{box}.localhost:{port}"})
            assert (await to_thread.run_sync(kept.getresponse)).status == 200
            await server.say("box_pause")
            assert container_state(box) == "paused"
        assert (await fetched(port, f"{box}.localhost", "/a.txt"))[0] == 200
        assert container_state(box) == "running"


async def test_what_a_box_may_reach_changes_at_once_and_connections_are_cut(
    shared_env: dict[str, str], internet: Internet
):
    async with shared(shared_env) as server:
        opened = "read -r -t 9 line <&5; echo $line"
        said = await server.run(f"exec 5<>/dev/tcp/{INTERNET}/{TCP}; {opened}", session="s")
        assert said.endswith("this is internet\n")

        await server.say("network_policy", network="allowlist", allow=[ECHO])
        said = await server.run("echo too late >&5; read -r -t 1 line <&5", session="s")
        assert "exit 0" not in said
        assert "too late" not in internet.internet.heard()
        held = await started(server, HOLD, "this is internet")
        said = await server.run(FETCH)
        assert said.startswith(f'[1 connection refused: {SITE} · network_policy(allow=["{SITE}"])')
        assert "refused" not in (await server.run("true"))

        answer = await server.say("network_policy", allow=[SITE])
        assert f"allowlist ({ECHO}, {INTERNET}:{HTTP})" in answer
        assert "this is internet, asked for /\n" in await server.run(FETCH)
        assert "running" in await server.say("process_output", id=held)

        await server.say("network_policy", network="allowlist", allow=[SITE])
        said = await server.say("process_output", id=held, until="exit", wait=PATIENCE)
        assert said.endswith("it was cut\n")
        assert "this is internet" in await server.run(FETCH)

        await server.say("network_policy", network="none")
        assert "exit 0" not in await server.run(FETCH)
        await server.say("network_policy", network="full")
        assert "this is internet, asked for /\n" in await server.run(FETCH)
        refused = (await server.tell("box_info"))["refused"]
        assert any(one.startswith(f"{SITE} (1): ") for one in refused)


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("action", ["accept", "decline"])
async def test_a_private_address_is_allowed_by_the_person_only(
    shared_env: dict[str, str], era: str, action: Literal["accept", "decline"]
):
    async def ask(context: object, params: object) -> ElicitResult:
        assert "10.77.0.7:5432" in str(params)
        return ElicitResult(action=action, content={"allow": True} if action == "accept" else None)

    async with shared(shared_env, mode=era, ask=ask) as server:
        wanted = {"network": "allowlist", "allow": ["10.77.0.7:5432"]}
        if action == "accept":
            assert "allowlist (10.77.0.7:5432)" in await server.say("network_policy", **wanted)
        else:
            assert "did not allow it" in await server.fail("network_policy", **wanted)
        await server.say("network_policy", network="full")


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
async def test_a_server_ends_at_once_with_connections_open_and_their_ends_hear_of_it(
    shared_env: dict[str, str], end: signal.Signals
):
    async with shared(shared_env) as server:
        await server.say("network_policy", network="allowlist", allow=[ECHO])
        held = await started(server, WAIT, "it stands")
        host, port = f"{await box_of(server)}.localhost", await exposed(server, TALK)
        with contextlib.ExitStack() as browser:
            open_one = partial(opened, port, host)
            lines = [await to_thread.run_sync(open_one) for _ in range(KEPT)]
            for line in lines:
                browser.enter_context(line)
            server.process.send_signal(end)
            await to_thread.run_sync(partial(server.process.wait, 2 * TIDY_TIMEOUT))
            for line in lines:
                with pytest.raises(ConnectionResetError):
                    line.recv(1)
    async with shared(shared_env) as server:
        said = await server.say("process_output", id=held, until="exit", wait=PATIENCE)
        assert said.endswith("it was cut\n")
        await server.say("network_policy", network="full")


async def test_a_deleted_box_takes_its_ports_with_it(shared_env: dict[str, str]):
    async with shared(shared_env) as server:
        box, port = await box_of(server), await exposed(server, WEB)
        await server.say("box_delete", box=box)
        with pytest.raises(ConnectionRefusedError):
            await fetched(port, f"{box}.localhost")
