"""A box with routes to a git server, another one beside it, and all who might hear of an attack."""

from __future__ import annotations

import base64
import json
import re
import shlex
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from box_mcp.domain.remotes import ROUTES_PORT
from tests.support.client import docker, fresh_state, serving
from tests.support.gitserver import TOKEN, USER, Content, serving_git
from tests.support.internet import INTERNET
from tests.support.lfsserver import serve_lfs, tracked
from tests.support.scene import Home
from tests.support.webserver import web

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
    from pathlib import Path

    from tests.support.client import Server
    from tests.support.gitserver import Server as GitServer
    from tests.support.internet import Internet
    from tests.support.lfsserver import Lfs
    from tests.support.webserver import Asked, Web

FETCH, PUSH = "git-upload-pack", "git-receive-pack"
REFS, PUSH_REFS = f"/info/refs?service={FETCH}", f"/info/refs?service={PUSH}"
BATCH, LOCKS = "/info/lfs/objects/batch", "/info/lfs/locks"
HERE = f"127.0.0.1:{ROUTES_PORT}"
LARGE = b"large " * 999
BASIC = f"Basic {base64.b64encode(f'{USER}:{TOKEN}'.encode()).decode()}"

MINE, READABLE, OTHER = "me/app.git", "me/read.git", "me/other.git"
ROUTES = {
    "app": {"repositories": ["me/app", "me/test-*"], "access": "write"},
    "reading": {"repositories": ["me/read"]},
    "theirs": {"repositories": ["*"], "access": "write", "principals": ["somebody-else"]},
    "unlisted": {"repositories": ["*"], "access": "write"},
}
"""Of which the box has the first two: the third is not its owner's, the fourth not its own."""

MAY = re.compile(
    r"(GET) /me/(app|read|test-\d+)\.git/info/refs\?service=git-upload-pack"
    r"|GET /me/app\.git/info/refs\?service=git-receive-pack"
    r"|GET /me/(app|read|test-\d+)\.git/info/lfs/locks(\?[a-z]+=[\w%:+-]*)?"
    r"|POST /me/(app|read)\.git/(git-upload-pack|info/lfs/objects/batch)"
    r"|POST /me/app\.git/git-receive-pack"
)
"""All that the git server should ever be asked, whatever the box does."""

HEARD = {
    *("accept", "accept-encoding", "accept-language", "authorization", "connection"),
    *("content-encoding", "content-length", "content-type", "git-protocol", "host"),
    *("range", "transfer-encoding", "user-agent"),
}
"""Headers that servers should ever hear."""

SAY = """
import json, socket, sys
def say(words):
    line = socket.create_connection(("127.0.0.1", PORT), 5)
    is_answered = words.startswith("GET ") and "Connection: close" in words
    line.settimeout(20 if is_answered else 1)
    got = b""
    try:
        line.sendall(words.encode("latin-1").decode("unicode_escape").encode("latin-1"))
        while data := line.recv(9999):
            got += data
    except OSError as error:
        got += repr(error).encode()
    return got.decode("latin-1")
with open(sys.argv[1]) as attacks:
    print(json.dumps([say(words) for words in json.load(attacks)]))
""".replace("PORT", str(ROUTES_PORT))
"""Says one thing after the other to the routes, as it stands, and prints what they answer."""


def head(method: str, target: str, *headers: str, host: str = HERE) -> str:
    """Of a request, for `SAY`."""
    lines = "".join(rf"{header}\r\n" for header in (f"Host: {host}", *headers))
    return rf"{method} {target} HTTP/1.1\r\n{lines}\r\n"


@dataclass
class Routed:
    """The boxes ``mine`` and ``sibling``, and the servers that might hear of an attack."""

    server: Server
    forge: GitServer
    thief: Web
    objects: Web
    lfs: Lfs
    large: str
    """The id of a large file."""
    homes: dict[str, Home]
    other: str
    """What only those learn who see another repository: its newest commit."""

    def placed(self, words: str) -> str:
        """With addresses for FORGE, THIEF and SIBLING."""
        words = words.replace("SIBLING", self.homes["sibling"].address)
        for name, there in (("FORGE", self.forge.web), ("THIEF", self.thief)):
            words = words.replace(name, f"127.0.0.1:{there.port}")
        return words

    async def run(self, command: str, box: str = "mine", **more: Any) -> str:
        """What a command prints."""
        answer = await self.server.run(command, box=box, **more)
        return answer.partition("]\n")[2]

    async def say(self, words: Sequence[str], box: str = "mine", who: str = "") -> list[str]:
        """What the routes of a box answer to one thing after the other."""
        for path, text in (("say.py", SAY), ("words", json.dumps([*map(self.placed, words)]))):
            await self.server.say("file_write", box=box, path=f"/tmp/{path}", content=text)
        await self.run(f"{who} python3 /tmp/say.py /tmp/words > /tmp/got", box)
        return json.loads(docker("exec", self.homes[box].id, "cat", "/tmp/got"))

    async def batch(self, route: str = "reading", repository: str = READABLE) -> str:
        """What the routes answer to whoever wants the large file."""
        wanted = {"oid": self.large, "size": len(LARGE)}
        body = json.dumps({"operation": "download", "objects": [wanted]})
        kind = "-H 'Content-Type: application/vnd.git-lfs+json'"
        url = f"http://{HERE}/{route}/{repository}{BATCH}"
        return await self.run(f"curl -sS {kind} -d {shlex.quote(body)} {url}")

    async def link(self, route: str = "reading", repository: str = READABLE) -> str:
        """Where they say that it is."""
        return link_in(await self.batch(route, repository))

    def forget(self) -> None:
        """All that was heard."""
        for there in (self.forge.web, self.thief, self.objects):
            there.heal()
            there.forget()

    def beyond(self, heard: Iterable[Asked] | None = None) -> list[str]:
        """What servers have heard that no box should have been able to say."""
        found = [f"the thief heard {asked}" for asked in self.thief.asked]
        for asked in self.forge.web.asked if heard is None else heard:
            found += self._odd(asked)
        return found

    def _odd(self, asked: Asked) -> Iterator[str]:
        names = [name.lower() for name, _ in asked.headers]
        if not MAY.fullmatch(f"{asked.method} {asked.target}"):
            yield f"the git server heard {asked.method} {asked.target}"
        if not HEARD.issuperset(names) or len(names) > len(set(names)):
            yield f"the git server heard {names}"
        if asked.header("Authorization") != BASIC:
            yield f"the git server heard of {asked.header('Authorization')}"
        if asked.header("Host") != f"127.0.0.1:{self.forge.web.port}":
            yield f"the git server was called {asked.header('Host')}"
        if asked.path == f"/{READABLE}{BATCH}" and not downloads(asked.said):
            yield f"LFS heard {asked.said}"


def downloads(said: bytes) -> bool:
    """Whether the body of a batch can only be understood as a wish to read."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(pairs) == len(dict(pairs))
        return dict(pairs)

    try:
        return json.loads(said.decode(), object_pairs_hook=once)["operation"] == "download"
    except (AssertionError, ValueError, KeyError, TypeError):
        return False


def link_in(answer: str) -> str:
    """The address that an answer to a batch names."""
    (wanted,) = json.loads(answer)["objects"]
    return wanted["actions"]["download"]["href"]


@asynccontextmanager
async def routes_with_enemies(internet: Internet, directory: Path) -> AsyncGenerator[Routed, None]:
    """All of them; large files are on a host in the internet, as object stores are."""
    with ExitStack() as stack:
        there = [(INTERNET, internet.internet.namespace)]
        thief = stack.enter_context(web())
        objects = stack.enter_context(web(tls=directory / "tls", also=there))
        objects.url = f"https://{INTERNET}:{objects.port}"
        forge = stack.enter_context(serving_git(directory / "git"))
        lfs = serve_lfs(forge, directory / "lfs", objects)
        large = lfs.put(LARGE)
        for number, name in enumerate((MINE, READABLE, OTHER, "me/app2.git", "you/me/app.git")):
            forge.add(name, Content(5 + number, extra=tracked({"large.bin": LARGE})))
        env = stack.enter_context(fresh_state(directory))
        route = {"upstream": forge.url, "credential": {"variable": "FORGE_TOKEN"}}
        routes = {name: route | more for name, more in ROUTES.items()}
        env |= {"BOX_MCP_ROUTES": json.dumps(routes), "FORGE_TOKEN": TOKEN}
        env["BOX_MCP_CA_CERTIFICATES"] = str(objects.certificate)
        async with serving(env) as server:
            homes: dict[str, Home] = {}
            for box, own in (("mine", ["app", "reading"]), ("sibling", ["reading", "unlisted"])):
                made = await server.tell("box_create", name=box, routes=own)
                homes[box] = Home.of(str(made["id"]))
            other = forge.git(OTHER, "rev-parse", "main")
            yield Routed(server, forge, thief, objects, lfs, large, homes, other)
