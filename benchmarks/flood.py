"""One client that takes all it can get, as a process of its own: ``python -m benchmarks.flood``.

calls      so many calls under way at any time, each in the client's own box
sessions   sessions opened and never ended, so many at most
deaf       so many connections that ask for much and never read what comes
bodies     so many requests with large bodies, of which the last byte does not come
dribble    so many connections whose requests never come to their end

It goes on until its stdin ends, and then prints what it was answered, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import socket
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from benchmarks.thin import PROTOCOL
from benchmarks.thinhttp import CLIENT, JSON_HEAD, PATH, HungUp, Line, Refused, ThinHttp

NICE = 10  # what the flood itself takes of the processor is not the server's doing
OPENERS = 20  # connections that open sessions
REST = 0.5  # s until a connection that was cut is made anew
DRIBBLE = 1.0  # s between two bytes
PIPELINED = 200  # requests on a connection that nothing is read from
LARGE, PIECE = 15 * 1024**2, 1024**2  # bytes of a body, and of what is sent of it at once
SMALL = 4096  # bytes that the kernel keeps of answers
FLOODING = "flooding"


@dataclass
class Flood:
    host: str
    port: int
    token: str
    amount: int
    came: Counter[str] = field(default_factory=Counter[str])

    def client(self, number: int) -> ThinHttp:
        return ThinHttp(self.host, self.port, self.token, modern=number % 2 == 0)

    async def calls(self, number: int) -> None:
        client = self.client(2 * number)
        while True:
            try:
                answer = await client.call("shell_run", command="true")
                self.came["error" if answer.failed else "done"] += 1
            except Refused as refused:
                self.came[str(refused.status)] += 1
            except HungUp:
                self.came["hung up"] += 1
                await asyncio.sleep(REST)

    async def sessions(self, number: int) -> None:
        if number >= OPENERS:
            return
        line = Line(self.host, self.port)
        head = f"{JSON_HEAD}Authorization: Bearer {self.token}\r\n"
        about = {"protocolVersion": PROTOCOL, "capabilities": {}, "clientInfo": CLIENT}
        message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": about}
        body = json.dumps(message).encode()
        while self.came["200"] < self.amount:
            try:
                self.came[str((await line.ask("POST", PATH, head, body)).status)] += 1
            except HungUp:
                self.came["hung up"] += 1
                await asyncio.sleep(REST)

    async def deaf(self, number: int) -> None:
        """Asks for much in one go; those of the old era hold a stream open, too."""
        client, loop = self.client(number), asyncio.get_running_loop()
        while True:
            try:
                await client.request("tools/list", {})
                client.line.close()
                asked = client.written("tools/list", {}, "") * PIPELINED
                if not client.modern:
                    asked += client.line.written("GET", PATH, client.head())
                with socket.socket() as line:
                    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
                    line.setblocking(False)
                    await loop.sock_connect(line, (self.host, self.port))
                    self.came["deaf"] += 1
                    await loop.sock_sendall(line, asked)
                    await asyncio.sleep(math.inf)
            except (OSError, HungUp, Refused) as error:
                self.came[type(error).__name__] += 1
                await asyncio.sleep(REST)

    async def bodies(self, number: int) -> None:
        client = self.client(2 * number)
        head = client.line.written("POST", PATH, client.head("ping")).decode()
        head = head.replace("Content-Length: 0", f"Content-Length: {LARGE}")
        while True:
            try:
                reader, writer = await asyncio.open_connection(self.host, self.port)
                self.came["begun"] += 1
                writer.write(head.encode())
                for _ in range(LARGE // PIECE):
                    writer.write(bytes(PIECE - 1))
                    await writer.drain()
                answer = await reader.readline()
                self.came[answer[9:12].decode() or "hung up"] += 1
                writer.close()
            except OSError:
                self.came["cut"] += 1
            await asyncio.sleep(REST)

    async def dribble(self, number: int) -> None:
        head = f"POST {PATH} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n{JSON_HEAD}".encode()
        ends = b"X-Slow: " if number % 2 else b"Content-Length: 1000\r\n\r\n"
        while True:
            try:
                _, writer = await asyncio.open_connection(self.host, self.port)
                self.came["opened"] += 1
                writer.write(head + ends)
                while not writer.is_closing():
                    writer.write(b"x")
                    await asyncio.sleep(DRIBBLE)
            except OSError:
                await asyncio.sleep(REST)

    async def run(self, kind: str) -> None:
        work: Callable[[int], Awaitable[None]] = getattr(self, kind)
        tasks = [asyncio.ensure_future(work(number)) for number in range(self.amount)]
        print(FLOODING, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        print(json.dumps(self.came), flush=True)


def main() -> None:
    kind, host, port, amount = sys.argv[1:]
    os.nice(NICE)
    asyncio.run(Flood(host, int(port), os.environ["FLOOD_TOKEN"], int(amount)).run(kind))


if __name__ == "__main__":
    main()
