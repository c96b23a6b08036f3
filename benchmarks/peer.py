"""Both ends of a TCP connection, alike in a box and outside of it: standard library only.

``peer.py serve PORT``                    a server on 127.0.0.1; says "up"
``peer.py probe PORT BYTES TRIPS [PROXY]``  a client, which prints a JSON object; PROXY is a port

A connection's first byte says what the server does: s sends as many bytes as are asked for, k takes
all and tells how many there were, e sends back what comes.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time

HOST = "127.0.0.1"
BLOCK = 64 * 1024
SOURCE, SINK, ECHO = b"s", b"k", b"e"
WORD = b"x" * 64


def serve(port: int) -> None:
    with socket.create_server((HOST, port), backlog=100) as listener:
        print("up", flush=True)
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=answer, args=(connection,), daemon=True).start()


def answer(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection:
        kind = connection.recv(1)
        if kind == SOURCE:
            pour(connection, int(connection.recv(20)))
        elif kind == SINK:
            connection.sendall(b"%d" % drained(connection))
        elif kind == ECHO:
            while data := connection.recv(BLOCK):
                connection.sendall(data)


def pour(connection: socket.socket, count: int) -> None:
    block = bytes(BLOCK)
    while count > 0:
        count -= connection.send(block[:count])


def drained(connection: socket.socket) -> int:
    count = 0
    while data := connection.recv(BLOCK):
        count += len(data)
    return count


def dial(port: int, kind: bytes, proxy: int) -> socket.socket:
    """A connection to a server, by CONNECT if there is a proxy."""
    connection = socket.create_connection((HOST, proxy or port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if proxy:
        connection.sendall(
            f"CONNECT {HOST}:{port} HTTP/1.1\r\nHost: {HOST}:{port}\r\n\r\n".encode()
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += connection.recv(1000)
        if b" 200 " not in head:
            raise RuntimeError(head.decode())
    connection.sendall(kind)
    return connection


def probe(port: int, count: int, trips: int, proxy: int) -> dict[str, object]:
    """Seconds of everything: `down` and `up` of so many bytes, the rest of each trip."""
    with dial(port, SOURCE, proxy) as connection:
        time.sleep(0.05)  # the number comes by itself
        began = time.perf_counter()
        connection.sendall(b"%d" % count)
        came = drained(connection)
        down = time.perf_counter() - began
    with dial(port, SINK, proxy) as connection:
        began = time.perf_counter()
        pour(connection, count)
        connection.shutdown(socket.SHUT_WR)
        went = int(connection.recv(99))
        up = time.perf_counter() - began
    if (came, went) != (count, count):
        raise RuntimeError(f"{came} and {went} bytes of {count} arrived")
    with dial(port, ECHO, proxy) as connection:
        there_and_back = [trip(connection) for _ in range(trips)]
    connects: list[float] = []
    for _ in range(trips):
        began = time.perf_counter()
        with dial(port, ECHO, proxy) as connection:
            trip(connection)
            connects.append(time.perf_counter() - began)
    return {"down": down, "up": up, "trips": there_and_back, "connects": connects}


def trip(connection: socket.socket) -> float:
    began = time.perf_counter()
    connection.sendall(WORD)
    if not connection.recv(BLOCK):
        raise RuntimeError("the server hung up")
    return time.perf_counter() - began


def main() -> None:
    what, *numbers = sys.argv[1:]
    if what == "serve":
        serve(int(numbers[0]))
    port, count, trips, proxy = [*map(int, numbers), 0][:4]
    print(json.dumps(probe(port, count, trips, proxy)))


if __name__ == "__main__":
    main()
