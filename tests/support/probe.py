"""Attempts to reach something, as one program: ``python3 probe.py < ATTEMPTS``.

It runs in boxes and in ordinary containers, so it takes nothing but the standard library. ATTEMPTS
is a JSON object of attempts by their names, each ``[how, host, port]``; `how` is one of `HOW`. All
are made at once. What comes out is a JSON object of what each one got: words that begin with
``no:`` where it got nothing.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PATIENCE = 5.0
IP_FREEBIND = 15
ICMP_ECHO = 8
LOOSE_SOURCE_ROUTE = 131


def tcp(mark: str, host: str, port: int) -> str:
    """A connection, a line each way."""
    with socket.create_connection((host, port), PATIENCE) as line:
        line.sendall(mark.encode() + b"\n")
        return line.recv(999).decode()


def tcp_mapped(mark: str, host: str, port: int) -> str:
    """By a socket for IPv6, to an address that means one of IPv4."""
    return tcp(mark, f"::ffff:{socket.gethostbyname(host)}", port)


def udp(mark: str, host: str, port: int, size: int = 0, source: str = "") -> str:
    """A datagram each way."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        line.settimeout(PATIENCE)
        if source:
            line.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
            line.bind((source, 0))
        line.sendto(mark.encode().ljust(size, b"."), (host, port))
        return line.recv(9999)[:99].decode()


def udp_in_pieces(mark: str, host: str, port: int) -> str:
    """One that is longer than a packet."""
    return udp(mark, host, port, size=5000)


def shout(mark: str, host: str, port: int) -> str:
    """A datagram to many, which nobody has to answer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        line.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 8)
        line.sendto(mark.encode(), (host, port))
    return "shouted"


def by_way_of(mark: str, host: str, port: int) -> str:
    """A datagram with a route of its own: ``router>host``."""
    router, _, target = host.partition(">")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        line.settimeout(PATIENCE)
        option = struct.pack("!BBB4sB", LOOSE_SOURCE_ROUTE, 7, 4, socket.inet_aton(target), 0)
        line.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, option)
        line.sendto(mark.encode(), (router, port))
        return line.recv(999).decode()


def in_the_name_of(mark: str, host: str, port: int) -> str:
    """A datagram from somebody else's address: ``source>host``."""
    source, _, target = host.partition(">")
    return udp(mark, target, port, source=source)


def ping(mark: str, host: str, port: int) -> str:
    """An echo request as anybody may send it, where engines set the machine up for that."""
    echo = struct.pack("!BBHHH", ICMP_ECHO, 0, 0, 0, 1) + mark.encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as line:
        line.settimeout(PATIENCE)
        line.sendto(echo, (host, port))
        return f"echo of {line.recv(999)[8:].decode()}"


def link_local(mark: str, host: str, port: int) -> str:
    """A connection within the box's own link, by IPv6: ``address`` or ``group``."""
    number = max(socket.if_nameindex())[0]
    kind = socket.SOCK_DGRAM if host.startswith("ff") else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET6, kind) as line:
        line.settimeout(PATIENCE)
        line.connect((host, port, 0, number))
        line.sendall(mark.encode() + b"\n")
        return line.recv(999).decode()


def name(mark: str, host: str, port: int) -> str:
    """What a name leads to."""
    return " ".join(sorted({str(found[4][0]) for found in socket.getaddrinfo(host, None)}))


def name_of(mark: str, host: str, port: int) -> str:
    """What has an address."""
    return socket.gethostbyaddr(host)[0]


def dns(mark: str, host: str, port: int) -> str:
    """A question about a name, to a resolver of one's own choice: ``name@resolver``."""
    asked, _, resolver = host.partition("@")
    labels = b"".join(bytes([len(part)]) + part.encode() for part in asked.split("."))
    query = b"\1\1" + struct.pack("!5H", 0x0100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        line.settimeout(PATIENCE)
        line.sendto(query, (resolver, port))
        answer = line.recv(999)
    return socket.inet_ntoa(answer[-4:]) if answer[6:8] != b"\0\0" else "no: unknown"


def unix(mark: str, host: str, port: int) -> str:
    """A socket by its path, or an abstract one by its name (``@name``)."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(PATIENCE)
        line.connect(host.replace("@", "\0"))
        line.sendall(mark.encode() + b"\n")
        return line.recv(999).decode()


def neighbour(mark: str, host: str, port: int) -> str:
    """Whether an address answers ARP, after all of its /24 were asked."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        for last in range(1, 255):
            try:
                line.sendto(b"", (f"{host.rpartition('.')[0]}.{last}", port))
            except OSError:
                continue
    rows = [row.split() for row in Path("/proc/net/arp").read_text().splitlines()[1:]]
    return next((row[3] for row in rows if row[0] == host and row[2] != "0x0"), "no: nobody")


HOW = {
    how.__name__: how
    for how in (
        *(tcp, tcp_mapped, udp, udp_in_pieces, shout, by_way_of, in_the_name_of, ping),
        *(link_local, name, name_of, dns, unix, neighbour),
    )
}


def attempt(mark: str, how: str, host: str, port: int) -> str:
    """What it gets."""
    try:
        return HOW[how](mark, host, port) or "no: it was closed"
    except OSError as error:
        return f"no: {error}"


def main() -> None:
    """Makes all attempts that it is told."""
    attempts: dict[str, list[str | int]] = json.load(sys.stdin)
    with ThreadPoolExecutor(len(attempts)) as pool:
        futures = {
            mark: pool.submit(attempt, mark, str(how), str(host), int(port))
            for mark, (how, host, port) in attempts.items()
        }
    print(json.dumps({mark: future.result() for mark, future in futures.items()}))  # noqa: T201


if __name__ == "__main__":
    main()
