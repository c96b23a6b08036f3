"""Who is calling, and what that lets them do: principals, scopes, grants.

A scope is written as OAuth wants it: ``boxes`` is everything, ``boxes:files`` one group of tools,
``boxes:read`` whatever changes nothing, ``boxes:files:read`` both. ``boxes:metrics`` is for no
tool, and no part of everything: it shows how the server does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256

from box_mcp.domain.names import LOCAL, Principal
from box_mcp.errors import InvalidArgument

ROOT = "boxes"
READ = "read"
METRICS = "metrics"

_PRINCIPAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@:+-]{0,99}")
_HASHED = "sha256:"


class Group(StrEnum):
    """The groups that tools come in."""

    LIFECYCLE = "lifecycle"
    SHELL = "shell"
    FILES = "files"
    GIT = "git"
    AGENT = "agent"
    NETWORK = "network"


@dataclass(frozen=True)
class Scope:
    """What a token is for: one group or all (None), and whether it only reads; or metrics alone."""

    group: Group | None = None
    reads: bool = False
    metrics: bool = False

    def __str__(self) -> str:
        if self.metrics:
            return f"{ROOT}:{METRICS}"
        parts = (ROOT, *filter(None, (self.group, READ if self.reads else "")))
        return ":".join(parts)

    def covers(self, group: Group, *, reads: bool) -> bool:
        """Whether it lets one use a tool of `group` that does, or does not, only read."""
        return not self.metrics and self.group in (None, group) and (reads or not self.reads)


EVERYTHING = Scope()


def parse_scope(text: str) -> Scope:
    """`text` as a scope; raises InvalidArgument."""
    root, *rest = text.split(":")
    if root == ROOT and rest == [METRICS]:
        return Scope(reads=True, metrics=True)
    reads = bool(rest) and rest[-1] == READ
    groups = rest[:-1] if reads else rest
    if root != ROOT or len(groups) > 1 or not set(groups) <= set(Group):
        forms = f"{ROOT}, {ROOT}:{READ}, {ROOT}:GROUP, {ROOT}:GROUP:{READ}, {ROOT}:{METRICS}"
        detail = f"is none of {forms}, with GROUP one of {', '.join(Group)}: {text[:80]!r}"
        raise InvalidArgument("scope", detail)
    return Scope(Group(groups[0]) if groups else None, reads)


def parse_principal(text: str) -> Principal:
    """`text` as who somebody is; raises InvalidArgument."""
    if _PRINCIPAL.fullmatch(text) is None:
        detail = "is not 1-100 letters, digits and any of _.@:+-, a letter or digit first"
        raise InvalidArgument("principal", detail)
    return Principal(text)


def foreign(origin: str, subject: str) -> Principal:
    """Whom `origin`, a word for an issuer, knows as `subject`: never anybody of another's."""
    text = f"{origin}:{subject}"
    if _PRINCIPAL.fullmatch(text) is not None and not subject.startswith(_HASHED):
        return Principal(text)
    digest = sha256(subject.encode(errors="surrogatepass")).hexdigest()
    return Principal(f"{origin}:{_HASHED}{digest}")


@dataclass(frozen=True)
class Grant:
    """What a request may do, and in whose name.

    `token` names the token for logs, and is no secret; `expires` is in seconds since the epoch.
    """

    principal: Principal
    scopes: tuple[Scope, ...] = (EVERYTHING,)
    token: str = ""
    expires: float | None = None

    def allows(self, group: Group, *, reads: bool) -> bool:
        """Whether it covers a tool of `group` that does, or does not, only read."""
        return any(scope.covers(group, reads=reads) for scope in self.scopes)

    @property
    def sees_metrics(self) -> bool:
        """Whether it shows how the server does."""
        return any(scope.metrics for scope in self.scopes)

    @property
    def only_reads(self) -> bool:
        """Whether nothing may be changed by it."""
        return all(scope.reads for scope in self.scopes)


OWN = Grant(LOCAL)
"""Of whoever started the server."""


def known_scopes(texts: Iterable[str]) -> tuple[Scope, ...]:
    """Those of `texts` that are ours, each once; a token is for nothing by any other."""
    known: dict[Scope, None] = {}
    for text in texts:
        with suppress(InvalidArgument):
            known[parse_scope(text)] = None
    return tuple(known)
