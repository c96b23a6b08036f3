"""A real git server: `git http-backend` behind HTTP's Basic; and repositories for it, made fast."""

from __future__ import annotations

import base64
import os
import random
import shutil
import subprocess
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tests.support.webserver import PIECE, Exchange, Gone, Web, web

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping

USER, TOKEN = "x-access-token", "ghp_0nlyTheHostKnows/This+Token="
"""A credential as forges have them, with signs that look different in URLs and in base64."""

FIRST = 1_700_000_000
"""When the first commit was made, in seconds; each further one is a minute younger."""

ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": os.devnull,
    "LC_ALL": "C",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_AUTHOR_DATE": f"{FIRST} +0000",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.org",
    "GIT_COMMITTER_DATE": f"{FIRST} +0000",
}
"""git's, as if there were no user: the same everywhere and each time."""


def git(*arguments: str | Path, cwd: Path | None = None, **more: str) -> str:
    """What git prints on this machine; `more` are variables."""
    done = subprocess.run(
        ["git", *arguments],
        cwd=cwd,
        env=ENVIRONMENT | more,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"git {arguments}: {done.stderr}"
    return done.stdout.strip()


@dataclass(frozen=True)
class Content:
    """What a repository is made of.

    `files` text files in folders of up to 50 each are in the first commit; each further commit
    changes one of them. `extra` are files of the last commit, `big` further bytes that nothing
    makes smaller. Branches have one commit of their own each, tags lie evenly on ``main``.
    """

    commits: int = 300
    files: int = 40
    branches: tuple[str, ...] = ("feature/one", "old")
    tags: tuple[str, ...] = ("v1.0", "v2.0")
    extra: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    big: int = 0


@dataclass
class Server:
    """A git server; `users` are names and passwords, all of whom may read and write everything."""

    web: Web
    root: Path
    users: dict[str, str]
    public: set[str] = field(default_factory=set[str])

    @property
    def url(self) -> str:
        """Its base, for 127.0.0.1."""
        return self.web.url

    def add(self, name: str, content: Content = Content(), *, public: bool = False) -> str:
        """A new repository, such as ``me/app.git``; returns its URL."""
        make_repository(self.root / name, content)
        return self._added(name, public)

    def add_copy(self, name: str, of: Path, *, public: bool = False) -> str:
        """The same, with all that another repository has."""
        shutil.copytree(of, self.root / name)
        return self._added(name, public)

    def git(self, name: str, *arguments: str) -> str:
        """What git says of a repository here."""
        return git("--git-dir", self.root / name, *arguments)

    def authenticated(self, exchange: Exchange) -> str:
        """Who asks, by the right password; "" else."""
        kind, _, word = exchange.headers.get("Authorization", "").partition(" ")
        with suppress(ValueError):
            user, _, password = base64.b64decode(word, validate=True).decode().partition(":")
            if kind.lower() == "basic" and password and self.users.get(user) == password:
                exchange.asked.who = user
        return exchange.asked.who

    def denied(self, exchange: Exchange, name: str, *, write: bool) -> bool:
        """Whether a request to a repository has been refused."""
        if self.authenticated(exchange) or (name in self.public and not write):
            return False
        exchange.answer(
            401, {"WWW-Authenticate": 'Basic realm="git"'}, b"Authentication required\n"
        )
        return True

    def _added(self, name: str, public: bool) -> str:
        if public:
            self.public.add(name)
        return f"{self.url}/{name}"

    def serve(self, exchange: Exchange) -> bool:
        """As a handler of `web`."""
        path = exchange.asked.path
        name, dot, rest = path.lstrip("/").partition(".git")
        repository, write = name + dot, "git-receive-pack" in exchange.asked.target
        if not dot or not rest.startswith("/") or rest.startswith("/info/lfs/"):
            return False
        if not self.denied(exchange, repository, write=write):
            if (self.root / repository).is_dir():
                self._run(exchange, path)
            else:
                exchange.answer(404, body=b"no such repository\n")
        return True

    def _run(self, exchange: Exchange, path: str) -> None:
        asked = exchange.asked
        variables = {
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": asked.method,
            "PATH_INFO": path,
            "QUERY_STRING": asked.target.partition("?")[2],
            "CONTENT_TYPE": asked.header("Content-Type"),
            "HTTP_CONTENT_ENCODING": asked.header("Content-Encoding"),
            "GIT_PROTOCOL": asked.header("Git-Protocol"),
            "REMOTE_ADDR": "127.0.0.1",
        } | ({"REMOTE_USER": asked.who} if asked.who else {})
        with subprocess.Popen(
            ["git", "http-backend"],
            env=ENVIRONMENT | {key: value for key, value in variables.items() if value},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as program:
            assert program.stdin is not None
            assert program.stdout is not None
            feeder = threading.Thread(target=_feed, args=(exchange, program.stdin))
            feeder.start()
            try:
                status, headers = _head(program.stdout)
                exchange.answer(status, headers, _pieces(program.stdout))
            except BaseException:
                program.kill()
                with suppress(OSError):  # the feeder may wait for the client
                    exchange.connection.shutdown(2)
                raise
            finally:
                feeder.join()


def _feed(exchange: Exchange, sink: IO[bytes]) -> None:
    with suppress(OSError, ValueError, Gone), sink:
        for piece in exchange.body():
            sink.write(piece)


def _head(source: IO[bytes]) -> tuple[int, dict[str, str]]:
    status, headers = 200, dict[str, str]()
    while line := source.readline().decode("latin-1").strip():
        name, _, value = line.partition(":")
        if name == "Status":
            status = int(value.split()[0])
        else:
            headers[name] = value.strip()
    return status, headers


def _pieces(source: Any) -> Iterator[bytes]:
    while piece := source.read1(PIECE):
        yield piece


@contextmanager
def serving_git(
    root: Path, users: Mapping[str, str] | None = None, **how: Any
) -> Generator[Server, None, None]:
    """A server of the repositories below `root`; `how` is as for `web`."""
    root.mkdir(parents=True, exist_ok=True)
    with web(**how) as listening:
        server = Server(listening, root, dict(users or {USER: TOKEN}))
        listening.handlers.append(server.serve)
        yield server


def make_repository(path: Path, content: Content = Content()) -> None:
    """A bare repository, the same each time for the same content."""
    git("init", "--quiet", "--bare", "--initial-branch=main", path)
    settings = ("uploadpack.allowFilter", "uploadpack.allowAnySHA1InWant", "http.receivepack")
    with (path / "config").open("a") as config:
        config.writelines(
            f"[{name.replace('.', ']' + chr(10) + chr(9))} = true\n" for name in settings
        )
    done = subprocess.run(
        ["git", "-c", "pack.compression=0", "fast-import", "--quiet"],
        cwd=path,
        env=ENVIRONMENT,
        input=b"".join(_stream(content)),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()


def _stream(content: Content) -> Iterator[bytes]:
    """As git-fast-import(1) reads it."""
    texts = [f"src/part{at // 50}/file{at}.txt" for at in range(content.files)]
    luck = random.Random(7)
    for number in range(content.commits):
        yield _commit("main", number, f"Change {number}")
        if number == 0:
            yield b"M 644 inline README.md\n" + _data(b"# An example\n")
            for at, name in enumerate(texts):
                yield b"M 644 inline %b\n" % name.encode() + _data(b"file %d\n" % at * 20)
        elif texts:
            name = texts[number % len(texts)]
            lines = b"change %d of %b\n" % (number, name.encode()) * 20
            yield b"M 644 inline %b\n" % name.encode() + _data(lines)
        if number == content.commits - 1:
            for name, data in content.extra.items():
                yield b"M 644 inline %b\n" % name.encode() + _data(data)
            for at in range(-(-content.big // (1 << 20))):
                yield b"M 644 inline big/%d.bin\n" % at + _data(luck.randbytes(1 << 20))
    for at, branch in enumerate(content.branches):
        yield _commit(branch, content.commits + at, f"Work on {branch}", "refs/heads/main")
        yield b"M 644 inline work.txt\n" + _data(f"work on {branch}\n".encode())
    for at, tag in enumerate(content.tags):
        commit = (at + 1) * content.commits // len(content.tags)
        yield b"tag %b\nfrom :%d\n" % (tag.encode(), commit)
        yield b"tagger Ada <ada@example.org> %d +0000\n" % FIRST + _data(f"{tag}\n".encode())


def _commit(branch: str, number: int, message: str, parent: str = "") -> bytes:
    when = FIRST + 60 * number
    mark = f"commit refs/heads/{branch}\nmark :{number + 1}\n"
    head = f"{mark}committer Ada <ada@example.org> {when} +0000\n"
    return (
        head.encode() + _data(message.encode()) + (f"from {parent}\n".encode() if parent else b"")
    )


def _data(data: bytes) -> bytes:
    return b"data %d\n%b\n" % (len(data), data)
