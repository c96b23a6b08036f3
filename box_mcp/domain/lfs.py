"""LFS: what git-lfs asks in batches, and what boxes are told of a server's answers; pure.

A batch's answer says for each object where and with which headers it is moved. Those headers, and
often the address itself, are secrets: they stay on the host, and the box gets an address of its
route instead. See https://github.com/git-lfs/git-lfs/tree/main/docs/api.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import urljoin, urlsplit

from box_mcp.domain.network import Host, parse_host
from box_mcp.domain.routes import Access, Forbidden, Upstream, parse_upstream
from box_mcp.errors import InvalidArgument

MAX_BATCH = 1024 * 1024  # bytes of what is asked; git-lfs asks for 100 objects at once
MAX_REPLY = 8 * 1024 * 1024  # bytes of an answer; an object's addresses can take some KiB
MAX_OBJECTS = 1000
MAX_WORDS = 1000  # characters of what a server says of an object
MAX_URL = 8192  # characters
MAX_HEADERS = 16384  # characters of one action's
USUALLY_FOR = 3600.0  # s that an action is good for, where the server does not say
NO_LONGER_FOR = 24 * 3600.0  # s that it is kept, whatever the server says

METHODS = {"download": {"download": "GET"}, "upload": {"upload": "PUT", "verify": "POST"}}
ACCESS = {"download": Access.READ, "upload": Access.WRITE}
"""What operations lead to, and what they take."""

NOT_SENT = frozenset(
    (
        *("host", "content-length", "transfer-encoding", "te", "trailer", "expect", "upgrade"),
        *("connection", "keep-alive", "proxy-authorization", "proxy-connection", "cookie", "range"),
    )
)
"""Headers that are not the server's to choose."""

_OID = re.compile("[0-9a-f]{64}")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_VALUE = re.compile(r"[ -~]*")
_ADDRESS = re.compile("[!-~]+")


class Nonsense(Exception):
    """A server says of LFS what nobody understands."""


@dataclass(frozen=True)
class Batch:
    """What a box asks: `access` is what that takes, `body` what the server is asked."""

    access: Access
    operation: str
    body: bytes


@dataclass(frozen=True)
class Action:
    """How one object is moved, until a time. `signed` tells that it needs no other credential."""

    method: str
    access: Access
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    signed: bool
    until: float


@dataclass(frozen=True)
class Place:
    """Where an address leads: to a route's upstream itself (`own`), or anywhere else."""

    url: str = field(repr=False)
    scheme: str
    host: Host
    port: int
    own: bool


def parse_batch(body: bytes) -> Batch:
    """What a box asks, written anew; raises Forbidden for anything unusual."""
    try:
        asked = json.loads(body)
        operation = str(asked["operation"])
        objects = [{"oid": _oid(one), "size": _size(one)} for one in asked["objects"]]
        ref = {"ref": {"name": str(asked["ref"]["name"])}} if asked.get("ref") else {}
        access = ACCESS[operation]
        usual = asked.get("hash_algo", "sha256") == "sha256" and len(objects) <= MAX_OBJECTS
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Forbidden("that is no batch of git-lfs") from None
    if not usual:
        raise Forbidden(f"batches are of SHA-256, and of at most {MAX_OBJECTS:,} objects")
    told = {"operation": operation, "transfers": ["basic"], **ref, "objects": objects}
    return Batch(access, operation, json.dumps(told | {"hash_algo": "sha256"}).encode())


def rewritten(batch: Batch, reply: bytes, now: float, keep: Callable[[Action], str]) -> bytes:
    """A server's answer as the box gets it; `keep` returns the address that stands for an action.

    Raises Nonsense.
    """
    translation = _Translation(batch, now, keep)
    try:
        answer = json.loads(reply)
        as_asked = answer.get("transfer", "basic") == "basic"
        as_asked = as_asked and len(answer["objects"]) <= MAX_OBJECTS
        objects = [translation.object(said) for said in answer["objects"] if as_asked]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise Nonsense from None
    if not as_asked:
        raise Nonsense
    return json.dumps({"transfer": "basic", "objects": objects, "hash_algo": "sha256"}).encode()


def place(upstream: Upstream, address: str, base: str = "") -> Place:
    """Where an address leads, relative to `base` in redirects; raises Nonsense."""
    if len(address) > MAX_URL or not _ADDRESS.fullmatch(address):
        raise Nonsense
    try:
        url, _, _ = urljoin(base, address).partition("#")
        parts = urlsplit(url)
        there = parse_upstream(f"{parts.scheme}://{parts.netloc}")
    except (ValueError, InvalidArgument):
        raise Nonsense from None
    if (host := parse_host(there.host)) is None:
        raise Nonsense
    return Place(url, there.scheme, host, there.port, there.origin == upstream.origin)


class _Translation:
    """Of the answer to a batch."""

    def __init__(self, batch: Batch, now: float, keep: Callable[[Action], str]) -> None:
        self._batch = batch
        self._now = now
        self._keep = keep

    def object(self, said: dict[str, Any]) -> dict[str, Any]:
        """What a box is told of one object, without a need for passwords."""
        told: dict[str, Any] = {"oid": _oid(said), "size": _size(said), "authenticated": True}
        if error := said.get("error"):
            words = str(error.get("message", ""))[:MAX_WORDS]
            return {**told, "error": {"code": int(error["code"]), "message": words}}
        actions: dict[str, Any] = said.get("actions") or {}
        signed = said.get("authenticated") is True
        methods = METHODS[self._batch.operation].items()
        kept = {
            name: self._action(method, actions[name], signed)
            for name, method in methods
            if name in actions
        }
        return {**told, "actions": kept}

    def _action(self, method: str, said: dict[str, Any], signed: bool) -> dict[str, Any]:
        headers = _headers(said.get("header") or {})
        seconds = _seconds(said, self._now)
        signed = signed or "authorization" in {name.lower() for name in headers}
        until = self._now + seconds
        action = Action(method, self._batch.access, str(said["href"]), headers, signed, until)
        return {"href": self._keep(action), "expires_in": int(seconds)}


def _headers(said: dict[str, Any]) -> dict[str, str]:
    found = {str(name): str(value) for name, value in said.items()}
    if sum(len(name) + len(value) for name, value in found.items()) > MAX_HEADERS:
        raise ValueError("headers without end")
    if not all(_HEADER.fullmatch(name) and _VALUE.fullmatch(found[name]) for name in found):
        raise ValueError("headers that are none")
    return {name: value for name, value in found.items() if name.lower() not in NOT_SENT}


def _seconds(said: dict[str, Any], now: float) -> float:
    """How long an action is good for."""
    if seconds := said.get("expires_in"):
        return max(0.0, min(float(seconds), NO_LONGER_FOR))
    if at := said.get("expires_at"):
        until = datetime.fromisoformat(str(at)).timestamp()
        # Go's time that is none is long ago.
        return min(until - now, NO_LONGER_FOR) if until > now else USUALLY_FOR
    return USUALLY_FOR


def _oid(said: dict[str, Any]) -> str:
    if not _OID.fullmatch(said["oid"]):
        raise ValueError("an object without a proper id")
    return said["oid"]


def _size(said: dict[str, Any]) -> int:
    if type(said["size"]) is not int or not 0 <= said["size"] < 2**63:
        raise ValueError("an object without a proper size")
    return said["size"]
