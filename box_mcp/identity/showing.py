"""Tokens in words, and as plain values for programs; never their secrets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from box_mcp.identity.tokens import Token
from box_mcp.listing import table

HEAD = ("TOKEN", "PRINCIPAL", "SCOPES", "CREATED", "LAST USED", "GOOD UNTIL")


def in_words(tokens: Sequence[Token], now: float) -> str:
    """A table for people; days are UTC's."""
    rows = [
        (
            *(token.id, token.principal, " ".join(map(str, token.scopes)) or "(none)"),
            *(_day(token.created), _day(token.used) or "never", _end(token, now)),
        )
        for token in tokens
    ]
    return (
        table([HEAD, *rows]) if rows else "There are no tokens: `box-mcp token create` makes one."
    )


def as_json(tokens: Iterable[Token], now: float) -> list[Mapping[str, Any]]:
    """Plain values; days are UTC's, null for what was or will never be."""
    return [
        {
            "id": token.id,
            "principal": token.principal,
            "scopes": [str(scope) for scope in token.scopes],
            "created": _moment(token.created),
            "expires": _moment(token.expires),
            "revoked": _moment(token.revoked),
            "last_used": _day(token.used) or None,
            "good": token.is_good(now),
        }
        for token in tokens
    ]


def made(token: Token) -> str:
    """What whoever made it should know."""
    scopes = ", ".join(map(str, token.scopes))
    until = f"until {_moment(token.expires)}" if token.expires else "until it is revoked"
    return (
        f"Token {token.id} of {token.principal}, for {scopes}, good {until}. Its text is shown "
        f"this once; `box-mcp token revoke {token.id}` ends it."
    )


def _end(token: Token, now: float) -> str:
    if token.revoked is not None:
        return f"revoked {_day(token.revoked)}"
    if token.expires is None:
        return "for ever"
    return f"{'' if token.is_good(now) else 'expired '}{_day(token.expires)}"


def _day(moment: float | None) -> str:
    return "" if moment is None else f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d}"


def _moment(moment: float | None) -> str | None:
    return None if moment is None else f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%dT%H:%M:%SZ}"
