"""A small real LFS server: batch, basic transfers, verification and locks; objects are files.

Who asks for a batch is asked for the git server's password. What then moves objects is allowed by
tokens of its own, which live shortly, as those of forges and object stores.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from tests.support.webserver import PIECE, Exchange, Web

if TYPE_CHECKING:
    from tests.support.gitserver import Server

JSON = "application/vnd.git-lfs+json"
_API = re.compile(r"/(.+\.git)/info/lfs/(objects/batch|locks(?:/verify|/(\w+)/unlock)?)")
_OBJECT = re.compile(r"/lfs-objects/([0-9a-f]{64})(/verify)?")


def pointer(data: bytes) -> bytes:
    """What git keeps of a file that LFS has."""
    oid = hashlib.sha256(data).hexdigest()
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(data)}\n".encode()
    )


def tracked(files: Mapping[str, bytes], pattern: str = "*.bin") -> dict[str, bytes]:
    """What a repository has whose files of a pattern LFS has: `Content.extra`."""
    rule = f"{pattern} filter=lfs diff=lfs merge=lfs -text\n".encode()
    return {".gitattributes": rule, **{name: pointer(data) for name, data in files.items()}}


@dataclass(frozen=True)
class Allowed:
    """What a token is for."""

    method: str
    oid: str
    until: float


@dataclass
class Lfs:
    """The LFS of a git server's repositories.

    `objects` is the server that has the objects: the same one or another. Tokens go in a header,
    or, with `in_query`, in the address itself, as object stores like it.
    """

    git: Server
    objects: Web
    directory: Path
    in_query: bool = False
    seconds: float = 300.0
    """How long tokens live."""
    tokens: dict[str, Allowed] = field(default_factory=dict[str, Allowed])
    """All that there ever were."""
    locks: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    batches: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """What was asked for."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, data: bytes) -> str:
        """An object that is there; returns its id."""
        oid = hashlib.sha256(data).hexdigest()
        (self.directory / oid).write_bytes(data)
        return oid

    def has(self, oid: str) -> bool:
        """Whether an object is there."""
        return (self.directory / oid).exists()

    def expire(self) -> None:
        """Ends all tokens."""
        with self._lock:
            for token, allowed in self.tokens.items():
                self.tokens[token] = Allowed(allowed.method, allowed.oid, 0.0)

    def serve_api(self, exchange: Exchange) -> bool:
        """As a handler of `web`."""
        found = _API.fullmatch(exchange.asked.path)
        if found is None:
            return False
        name, what, lock = found.groups()
        asked = b"".join(exchange.body())
        exchange.asked.said = asked
        sent: dict[str, Any] = json.loads(asked or b"{}")
        write = what != "locks" and sent.get("operation") != "download"
        if self.git.denied(exchange, name, write=write):
            return True
        if what == "objects/batch":
            self.batches.append(sent)
            reply(exchange, 200, self._batch(sent))
        elif exchange.asked.method == "GET":
            reply(exchange, 200, {"locks": self._locks(name)})
        elif what == "locks/verify":
            reply(exchange, 200, {"ours": self._locks(name), "theirs": []})
        elif lock:
            self._unlock(exchange, lock)
        else:
            self._take(exchange, name, str(sent["path"]))
        return True

    def serve_objects(self, exchange: Exchange) -> bool:
        """As a handler of `web`."""
        found = _OBJECT.fullmatch(exchange.asked.path)
        if found is None:
            return False
        oid, verify = found.groups()
        if not self._allows(exchange, oid):
            exchange.answer(403, body=b"no such token, or not for this, or too old\n")
        elif verify:
            size = json.loads(b"".join(exchange.body()))["size"]
            same = self.has(oid) and (self.directory / oid).stat().st_size == size
            exchange.answer(200 if same else 422)
        elif exchange.asked.method == "PUT":
            self._keep(exchange, oid)
        else:
            self._send(exchange, oid)
        return True

    def _batch(self, sent: dict[str, Any]) -> dict[str, Any]:
        make = self._download if sent["operation"] == "download" else self._upload
        objects = [{"oid": each["oid"], "size": each["size"]} for each in sent["objects"]]
        return {
            "transfer": "basic",
            "hash_algo": "sha256",
            "objects": [each | make(each["oid"]) for each in objects],
        }

    def _download(self, oid: str) -> dict[str, Any]:
        if not self.has(oid):
            return {"error": {"code": 404, "message": "Object does not exist"}}
        return {"actions": {"download": self._action("GET", oid)}}

    def _upload(self, oid: str) -> dict[str, Any]:
        if self.has(oid):
            return {}
        verify = self._action("POST", oid, "/verify")
        return {"actions": {"upload": self._action("PUT", oid), "verify": verify}}

    def _action(self, method: str, oid: str, more: str = "") -> dict[str, Any]:
        token, until = secrets.token_hex(24), time.time() + self.seconds
        with self._lock:
            self.tokens[token] = Allowed(method, oid, until)
        href = f"{self.objects.url}/lfs-objects/{oid}{more}"
        expires = datetime.fromtimestamp(until, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        timed = {"expires_at": expires, "expires_in": int(self.seconds)}
        if self.in_query:
            return {"href": f"{href}?X-Signature={token}", **timed}
        return {"href": href, "header": {"Authorization": f"RemoteAuth {token}"}, **timed}

    def _allows(self, exchange: Exchange, oid: str) -> bool:
        query = parse_qs(urlsplit(exchange.asked.target).query)
        kind, _, token = exchange.asked.header("Authorization").partition(" ")
        token = token if kind == "RemoteAuth" else query.get("X-Signature", [""])[0]
        with self._lock:
            allowed = self.tokens.get(token)
        return (
            allowed is not None
            and (allowed.method, allowed.oid) == (exchange.asked.method, oid)
            and time.time() < allowed.until
        )

    def _keep(self, exchange: Exchange, oid: str) -> None:
        part, sha = self.directory / secrets.token_hex(8), hashlib.sha256()
        with part.open("wb") as file:
            for piece in exchange.body():
                sha.update(piece)
                file.write(piece)
        right = sha.hexdigest() == oid
        part.replace(self.directory / oid) if right else part.unlink()
        exchange.answer(200 if right else 422)

    def _send(self, exchange: Exchange, oid: str) -> None:
        size = (self.directory / oid).stat().st_size
        start = int((re.findall(r"^bytes=(\d+)-", exchange.asked.header("Range")) or [0])[0])
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(size - start),
        }
        if start:
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        exchange.answer(206 if start else 200, headers, _pieces(self.directory / oid, start))

    def _locks(self, name: str) -> list[dict[str, Any]]:
        with self._lock:
            return [lock for lock in self.locks.values() if lock["repository"] == name]

    def _take(self, exchange: Exchange, name: str, path: str) -> None:
        held = next((lock for lock in self._locks(name) if lock["path"] == path), None)
        if held is not None:
            return reply(exchange, 409, {"lock": held, "message": "already created lock"})
        lock_id = secrets.token_hex(8)
        lock = {
            "id": lock_id,
            "path": path,
            "locked_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "owner": {"name": exchange.asked.who},
            "repository": name,
        }
        with self._lock:
            self.locks[lock_id] = lock
        reply(exchange, 201, {"lock": lock})

    def _unlock(self, exchange: Exchange, name: str) -> None:
        with self._lock:
            lock = self.locks.pop(name, None)
        if lock is None:
            return reply(exchange, 404, {"message": "no such lock"})
        reply(exchange, 200, {"lock": lock})


def serve_lfs(
    git: Server, directory: Path, objects: Web | None = None, *, in_query: bool = False
) -> Lfs:
    """Has a git server serve LFS too; objects are on another server, if one is given."""
    directory.mkdir(parents=True, exist_ok=True)
    lfs = Lfs(git, objects or git.web, directory, in_query)
    git.web.handlers.append(lfs.serve_api)
    lfs.objects.handlers.append(lfs.serve_objects)
    return lfs


def reply(exchange: Exchange, status: int, what: dict[str, Any]) -> None:
    """Answers with JSON."""
    exchange.answer(status, {"Content-Type": JSON}, json.dumps(what).encode())


def _pieces(path: Path, start: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while piece := file.read(PIECE):
            yield piece
