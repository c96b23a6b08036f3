"""An identity, made from values of the settings."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from box_mcp.domain.issuers import Issuer
from box_mcp.identity.tokens import Tokens
from box_mcp.identity.verifying import Identity, ProtectedResource


@asynccontextmanager
async def identity(
    tokens: Path,
    issuer: Issuer | None = None,
    *,
    resource: str = "",
) -> AsyncGenerator[Identity, None]:
    """Who is behind requests, by the file of `tokens` and an issuer; closed at the end.

    `resource` is the URL that clients know this server by. The issuer is not spoken to before
    there is need.
    """
    told = issuer and ProtectedResource(resource, issuer.url)
    own = Tokens(tokens)
    try:
        await own.ready()
        yield Identity([own], told)
    finally:
        await own.aclose()
