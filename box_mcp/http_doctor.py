"""Is everything there that a server over HTTP needs? As `doctor`, for `box-mcp serve --http`."""

from __future__ import annotations

import stat
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from anyio import to_thread

from box_mcp.domain.issuers import Issuer
from box_mcp.errors import CannotServe, IdentityUnavailable, StoreUnusable
from box_mcp.findings import Finding, failure, ok, warning
from box_mcp.identity.tokens import FILE, Token, Tokens
from box_mcp.settings import HttpSettings, Settings
from box_mcp.surface.http.figures import BY_TOKEN, parse_secluded
from box_mcp.surface.http.listening import (
    Listen,
    demand_name,
    demand_privacy,
    parse_listen,
    tls_context,
)

DAY = 86400.0  # s
ENDS_SOON = 14 * DAY  # s that a certificate is still good for
OTHERS = stat.S_IRGRP | stat.S_IROTH


def shared(settings: Settings) -> bool:
    """Whether settings tell of a server over HTTP."""
    return bool({"http", "oauth"} & settings.model_fields_set)


async def examine_http(settings: Settings) -> AsyncGenerator[Finding, None]:
    """Looks at it where settings tell that there is such a server; does not start it."""
    if not shared(settings):
        return
    http = settings.http
    for finding in listening(http, issuer=settings.oauth is not None):
        yield finding
    if http.tls_certificate is not None:
        for finding in certificate(http.tls_certificate, http.tls_key, time.time()):
            yield finding
    if http.auth == "token":
        yield await own_tokens(settings.state_dir / FILE, others=settings.oauth is not None)
    if settings.oauth is not None:
        yield await issuer(settings.oauth.described(http.url), settings.authorities())


def listening(http: HttpSettings, *, issuer: bool = False) -> Generator[Finding, None, None]:
    """Where clients come to, and whether the server would agree to that."""
    subject = "http"
    try:
        where = parse_listen(http.listen)
        demand_name(http.url, where, issuer=issuer)
        demand_privacy(
            where,
            tokens=http.auth == "token",
            tls=http.tls_certificate is not None,
            proxies=bool(http.trusted_proxies),
        )
        if http.metrics not in {"", BY_TOKEN}:
            parse_secluded(http.metrics)
    except CannotServe as error:
        yield failure(subject, str(error), error.advice)
        return
    yield ok(subject, _words(where, http))
    if http.url and urlsplit(http.url).scheme != "https" and not where.private:
        remedy = "Name the address that clients use, with https, in http.url"
        yield warning(subject, f"clients are told to come to {http.url}, without TLS", remedy)


def _words(where: Listen, http: HttpSettings) -> str:
    how = "by TLS" if http.tls_certificate is not None else "without TLS of its own"
    proxies = ", ".join(map(str, http.trusted_proxies))
    behind = f", behind the proxies {proxies}" if proxies else ""
    whom = "whoever reaches it" if http.auth == "none" else "whoever has a token"
    return f"{where}, {how}{behind}; for {whom}"


def certificate(path: Path, key: Path | None, now: float) -> Generator[Finding, None, None]:
    """Whether a certificate and its key can be used, for how long, and by whom."""
    subject = "certificate"
    try:
        tls_context(path, key)
    except CannotServe as error:
        yield failure(subject, str(error), error.advice)
        return
    left = expiry(path) - now
    until = datetime.fromtimestamp(now + left, UTC).date()
    if left <= 0:
        yield failure(subject, f"{path} has ended on {until}", "Have it renewed")
    elif left < ENDS_SOON:
        remedy = "Have it renewed, and send the server SIGHUP: it reads it anew"
        yield warning(subject, f"{path} ends on {until}", remedy)
    else:
        yield ok(subject, f"{path}, good until {until}")
    secret = key or path
    if secret.stat().st_mode & OTHERS:
        remedy = f"chmod 600 {secret}, for the user that the server runs as"
        yield warning(subject, f"others on this machine can read the key {secret}", remedy)


def expiry(path: Path) -> float:
    """When a certificate (PEM) that can be used ends."""
    from cryptography import x509

    return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc.timestamp()


async def own_tokens(path: Path, *, others: bool) -> Finding:
    """Whether anybody has a token; `others` may, from an issuer."""
    if not await to_thread.run_sync(path.exists):
        return _told(0, others=others)
    tokens = Tokens(path)
    try:
        found: Sequence[Token] = await tokens.list()
    except StoreUnusable as error:
        return failure("tokens", str(error), error.advice)
    finally:
        await tokens.aclose()
    now = time.time()
    return _told(sum(token.is_good(now) for token in found), others=others)


def _told(good: int, *, others: bool) -> Finding:
    if good or others:
        return ok("tokens", f"{good} of our own{', and those of the issuer' if others else ''}")
    return warning("tokens", "there are none: nobody can come in", "box-mcp token create NAME")


async def issuer(told: Issuer, authorities: Path | None) -> Finding:
    """Whether the keys of an issuer can be had; by whom its tokens are judged, else."""
    from box_mcp.identity.asking import Asker
    from box_mcp.identity.oauth import Published

    subject = "oauth"
    if told.introspection:
        return ok(subject, f"{told.url} is asked about each token; not tried here")
    asker = Asker(told.url, authorities)
    try:
        keys = await Published(told, asker).fetch()
    except IdentityUnavailable as error:
        return failure(subject, str(error), error.advice)
    finally:
        await asker.aclose()
    return ok(subject, f"{told.url}, with {len(keys)} keys; tokens for {told.audience or '?'}")
