"""From code in a box that floods its routes: other boxes go on as if there was nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import anyio
import pytest

from tests.support.client import until
from tests.support.routed import BATCH, HERE, MINE, OTHER, PUSH, PUSH_REFS, READABLE, head

if TYPE_CHECKING:
    from tests.support.routed import Routed

MIB = 1024 * 1024

CONNECTIONS = """
import resource, socket, time
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
lines = [socket.socket() for _ in range(min(3000, most - 10))]
for line in lines:
    line.setblocking(False)
    line.connect_ex(("127.0.0.1", 3129))
words, told = dict.fromkeys(lines, HEAD), False
while True:
    for line in lines:
        try:
            line.send(words[line])
            words[line] = PIECE
        except OSError:
            pass
    count = sum(said == PIECE for said in words.values())
    if count >= 400 and not told:
        told = True
        print(count, flush=True)
    time.sleep(PAUSE)
"""
"""Three thousand at once, as many of them as are let in, each with a head that never ends."""

POURING = """
import itertools, socket, threading, time
sent = itertools.count()
def pour():
    while True:
        try:
            with socket.create_connection(("127.0.0.1", 3129), 5) as line:
                line.sendall(HEAD)
                next(sent)
                while PIECE:
                    line.sendall(PIECE)
                    next(sent)
                    time.sleep(PAUSE)
                while line.recv(9999):
                    pass
        except OSError:
            pass
for _ in range(40):
    threading.Thread(target=pour).start()
while (count := int(repr(sent)[6:-1])) < 400:
    time.sleep(0.01)
print(count, flush=True)
"""
"""One request after the other, of forty at once."""

CHUNKED = f"Content-Type: application/x-{PUSH}-request", "Transfer-Encoding: chunked"
CHUNK = b"10000\r\n%b\r\n" % (b" " * 65536)
COMMAND = b"0063%b %b refs/heads/x\n" % (b"0" * 40, b"1" * 40)
DRIP = b"%x\r\n%b\r\n" % (len(COMMAND), COMMAND)


class Flood(NamedTuple):
    """What is said on each connection, again and again, after so many seconds."""

    program: str
    words: str
    piece: bytes = b""
    pause: float = 0.0


FLOODS = {
    "connections": Flood(CONNECTIONS, "GET /", b"x", 0.1),
    "requests": Flood(POURING, head("GET", "/nothing", "Connection: close")),
    "refusals": Flood(POURING, head("GET", f"/app/{OTHER}{PUSH_REFS}", "Connection: close")),
    "bodies": Flood(POURING, head("POST", f"/app/{MINE}/{PUSH}", *CHUNKED), CHUNK),
    "slow bodies": Flood(POURING, head("POST", f"/app/{MINE}/{PUSH}", *CHUNKED), DRIP, 0.05),
    "batches": Flood(POURING, head("POST", f"/app/{MINE}{BATCH}", *CHUNKED), CHUNK),
    "refused bodies": Flood(POURING, head("POST", f"/app/{OTHER}/{PUSH}", *CHUNKED), CHUNK),
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
async def test_a_flood_leaves_others_their_git(flood: Flood, routed: Routed):
    program, words, *more = flood
    words = words.encode().decode("unicode_escape").encode()
    for name, value in zip(("HEAD", "PIECE", "PAUSE"), (words, *more), strict=True):
        program = program.replace(name, repr(value))
    await routed.server.say("file_write", box="mine", path="/tmp/flood.py", content=program)
    routed.forget()
    before = routed.server.process.memory_info().rss
    start = "exec python3 /tmp/flood.py > /tmp/flood"
    await routed.server.run(start, box="mine", background=True, timeout=60)

    async def floods() -> bool:
        return bool(await routed.run("cat /tmp/flood 2> /dev/null; true"))

    await until(floods, "the flood")
    for _ in range(3):
        with anyio.fail_after(10):
            url = f"http://{HERE}/reading/{READABLE}"
            assert await routed.run(f"git ls-remote {url} main", "sibling")
            assert await routed.run("echo still here") == "still here\n"
    assert int(await routed.run("cat /tmp/flood")) >= 400
    assert routed.server.process.memory_info().rss - before < 200 * MIB
    await routed.run("pkill -9 -f flood.py; rm /tmp/flood")
    assert routed.beyond() == []

    async def recovers() -> bool:
        return bool(await routed.run(f"git ls-remote http://{HERE}/app/{MINE} main; true"))

    await until(recovers, "the flooded box's own git")
