"""GitHub's API by an emulator (npm's `emulate`), where an Enterprise server has it: /api/v3.

Before it stands a server of ours, which also has git's repositories if it is given any. It checks
the token, which the emulator does not (it takes each for its only user's), answers as GitHub does
to a branch that is not there (the emulator makes it), and can be told to fail.
"""

from __future__ import annotations

import json
import socket
import subprocess
from contextlib import contextmanager, nullcontext
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

import psutil

from tests.support.node import emulate, node_environment
from tests.support.webserver import Exchange, Web, web

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence
    from pathlib import Path

API = "/api/v3"
PATIENCE = 30.0  # s until the emulator listens


class Hub:
    """The server; `tokens` are those that it accepts, each with the name of its user."""

    def __init__(self, listening: Web, port: int, tokens: Mapping[str, str]) -> None:
        self.web = listening
        self.tokens = dict(tokens)
        self.said: list[tuple[str, dict[str, Any]]] = []
        """Method and target of each request that writes, with what it sent."""
        self._port = port

    @property
    def url(self) -> str:
        """Where repositories are."""
        return self.web.url

    def ask(self, path: str, method: str = "GET", **said: Any) -> Any:
        """What the API says to the first of the users."""
        body = json.dumps(said).encode() if said else b""
        return json.loads(self._forwarded(method, path, body, next(iter(self.tokens)))[1])

    def serve(self, exchange: Exchange) -> bool:
        """As a handler of `web`."""
        asked = exchange.asked
        if not asked.target.startswith(f"{API}/"):
            return False
        body = b"".join(exchange.body())
        token = asked.header("Authorization").removeprefix("token ")
        if token not in self.tokens:
            refusal = {"message": "Bad credentials", "documentation_url": "https://x.invalid"}
            exchange.answer(401, {"Content-Type": "application/json"}, json.dumps(refusal).encode())
            return True
        asked.who = self.tokens[token]
        if body:
            self.said.append((f"{asked.method} {asked.target}", json.loads(body)))
        target = asked.target.removeprefix(API)
        status, answer, headers = self._forwarded(asked.method, target, body, token)
        exchange.answer(status, headers, answer)
        return True

    def _forwarded(
        self, method: str, target: str, body: bytes, token: str
    ) -> tuple[int, bytes, dict[str, str]]:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
        headers = {"Authorization": f"token {token}", "Content-Type": "application/json"}
        connection.request(method, target, body or None, headers)
        answer = connection.getresponse()
        kept = {
            name: answer.headers[name]
            for name in ("Content-Type", "Link")
            if name in answer.headers
        }
        if "Link" in kept:
            own, ours = f"//127.0.0.1:{self._port}/", f"//127.0.0.1:{self.web.port}{API}/"
            kept["Link"] = kept["Link"].replace(own, ours)
        data = answer.read()
        connection.close()
        return answer.status, data, kept


@contextmanager
def serving_github(
    directory: Path,
    tokens: Mapping[str, str],
    repositories: Sequence[str],
    users: Sequence[str] = (),
    public: Sequence[str] = (),
    beside: Web | None = None,
) -> Generator[Hub, None, None]:
    """A server with the API of these repositories, private and `public`.

    `beside` is one that answers for other paths, and then for these, too.
    """
    owners = {name.partition("/")[0] for name in [*repositories, *public]} | {
        *users,
        *tokens.values(),
    }
    seed = {
        "tokens": {token: {"login": login, "scopes": ["repo"]} for token, login in tokens.items()},
        "github": {
            "users": [{"login": login} for login in sorted(owners)],
            "repos": [
                {"owner": owner, "name": name, "private": private, "auto_init": True}
                for private, names in ((True, repositories), (False, public))
                for owner, _, name in (one.partition("/") for one in names)
            ],
        },
    }
    file = directory / "github.json"
    file.write_text(json.dumps(seed))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with nullcontext(beside) if beside else web() as listening:
        base = f"{listening.url}{API}"
        options = ["--service", "github", "--port", str(port), "--seed", str(file)]
        with subprocess.Popen(
            [*emulate(), "start", *options, "--base-url", base],
            env=node_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as program:
            try:
                assert program.stdout is not None
                said: list[str] = []
                for line in program.stdout:
                    said.append(line)
                    if "Ready" in line:
                        break
                else:
                    raise AssertionError("".join(said))
                hub = Hub(listening, port, tokens)
                listening.handlers.append(hub.serve)
                yield hub
            finally:
                for child in psutil.Process(program.pid).children(recursive=True):
                    child.kill()  # `node` is a script that starts it
                program.kill()
