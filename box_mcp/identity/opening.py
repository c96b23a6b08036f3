"""An identity, made from values of the settings."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from box_mcp.domain.issuers import Issuer
from box_mcp.errors import first_error
from box_mcp.gateway.credentials import Secrets
from box_mcp.identity.tokens import Tokens
from box_mcp.identity.verifying import Identity, ProtectedResource, Verifier


@asynccontextmanager
async def identity(
    tokens: Path,
    issuer: Issuer | None = None,
    authorities: Path | None = None,
    *,
    resource: str = "",
) -> AsyncGenerator[Identity, None]:
    """Who is behind requests, by the file of `tokens` and an issuer; closed at the end.

    `resource` is the URL that clients know this server by. `authorities` is a file (PEM) of those
    that are believed beside the usual ones. The issuer is not spoken to before there is need.
    Raises StoreUnusable.
    """
    own = Tokens(tokens)
    try:
        await own.ready()
        if issuer is None:
            yield Identity([own])
            return
        told = ProtectedResource(resource, issuer.url, issuer.requested)
        async with _believing(issuer, authorities) as theirs:
            yield Identity([own, theirs], told)
    finally:
        with anyio.CancelScope(shield=True):
            await own.aclose()


@asynccontextmanager
async def _believing(issuer: Issuer, authorities: Path | None) -> AsyncGenerator[Verifier, None]:
    """The verifier of an issuer's tokens; what it needs takes a while to import."""
    from box_mcp.identity.asking import Asker
    from box_mcp.identity.keys import Keys
    from box_mcp.identity.oauth import Introspection, OAuth, Published, Signatures

    asker = Asker(issuer.url, authorities)
    try:
        async with anyio.create_task_group() as group:
            if issuer.introspection:
                source = Introspection(issuer, asker, Secrets())
            else:
                source = Signatures(Keys(issuer.url, Published(issuer, asker).fetch, group))
            yield OAuth(issuer, source)
            group.cancel_scope.cancel()
    except BaseExceptionGroup as errors:
        raise first_error(errors) from None
    finally:
        await asker.aclose()
