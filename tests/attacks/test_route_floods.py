"""From code in a box that floods its routes: other boxes go on as if there was nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from tests.support.client import until
from tests.support.routed import BATCH, HERE, MINE, OTHER, PUSH, PUSH_REFS, READABLE, head

if TYPE_CHECKING:
    from tests.support.routed import Routed

CONNECTIONS = """
import resource, socket, time
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
lines = []
while len(lines) < 3000:
    try:
        lines.append(socket.create_connection(("127.0.0.1", 3129), 1))
        lines[-1].sendall(b"GET /")
    except OSError:
        break
print("flooding", len(lines), flush=True)
while True:
    for line in lines:
        try:
            line.send(b"x", socket.MSG_DONTWAIT)
        except OSError:
            pass
    time.sleep(0.1)
"""
POURING = """
import socket, threading
def pour():
    while True:
        try:
            with socket.create_connection(("127.0.0.1", 3129), 5) as line:
                line.sendall(HEAD)
                while PIECE:
                    line.sendall(PIECE)
                while line.recv(9999):
                    pass
        except OSError:
            pass
for _ in range(30):
    threading.Thread(target=pour).start()
print("flooding", flush=True)
"""
CHUNKED = r"Content-Type: application/x-git-receive-pack-request", "Transfer-Encoding: chunked"
CHUNK = b"10000\r\n%b\r\n" % (b" " * 65536)
FLOODS = {
    "connections": ("", b"", CONNECTIONS),
    "requests": (head("GET", "/nothing", "Connection: close"), b"", POURING),
    "refusals": (head("GET", f"/app/{OTHER}{PUSH_REFS}", "Connection: close"), b"", POURING),
    "bodies": (head("POST", f"/app/{MINE}/{PUSH}", *CHUNKED), CHUNK, POURING),
    "batches": (head("POST", f"/app/{MINE}{BATCH}", *CHUNKED), CHUNK, POURING),
    "bodies that are refused": (head("POST", f"/app/{OTHER}/{PUSH}", *CHUNKED), CHUNK, POURING),
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
async def test_a_flood_leaves_others_their_git(flood: tuple[str, bytes, str], routed: Routed):
    words, piece, program = flood
    program = program.replace("PIECE", repr(piece))
    program = program.replace("HEAD", repr(words.encode().decode("unicode_escape").encode()))
    await routed.server.say("file_write", box="mine", path="/tmp/flood.py", content=program)
    before = routed.server.process.memory_info().rss
    await routed.server.run(
        "exec python3 /tmp/flood.py > /tmp/flood", box="mine", background=True, timeout=60
    )

    async def floods() -> bool:
        return "flooding" in await routed.run("cat /tmp/flood; true")

    await until(floods, "the flood")
    for _ in range(3):
        with anyio.fail_after(10):
            url = f"http://{HERE}/reading/{READABLE}"
            assert await routed.run(f"git ls-remote {url} main", "sibling")
            assert await routed.run("echo still here", "mine")
    grown = routed.server.process.memory_info().rss - before
    assert grown < 200 * 1024 * 1024
    await routed.run("pkill -9 -f flood.py; rm /tmp/flood")
    assert [*routed.beyond()] == []

    async def recovers() -> bool:
        return bool(await routed.run(f"git ls-remote http://{HERE}/app/{MINE} main; true"))

    await until(recovers, "the flooded box's own git")
