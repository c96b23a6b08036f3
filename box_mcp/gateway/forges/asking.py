"""Forges are asked in threads, each time with the secret that a route has then.

It is on its way from the route's source to the forge, and nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import anyio
from anyio import to_thread

from box_mcp.domain.routes import Forge, Route
from box_mcp.errors import ForgeRefused
from box_mcp.gateway.credentials import Secrets
from box_mcp.gateway.forges.base import Client, Said
from box_mcp.gateway.forges.github import GitHub
from box_mcp.gateway.forges.gitlab import GitLab

TIMEOUT = 20.0  # s for what is asked at once; a tool asks twice, and clients give up after 60
UNAUTHORIZED = 401  # HTTP: another secret may do

T = TypeVar("T")


class Forges:
    """The forges of this server's routes.

    `authorities` is a file (PEM) of those that are believed beside the usual ones.
    """

    def __init__(
        self, secrets: Secrets, authorities: Path | None = None, timeout: float = TIMEOUT
    ) -> None:
        self._secrets = secrets
        self._authorities = authorities
        self._timeout = timeout

    async def ask(self, route: Route, question: Callable[[Client], T]) -> T:
        """What a route's forge answers; raises ForgeError and NoCredential.

        A caller that is cancelled does not wait: what was asked for may be done all the same.
        """
        secret = await self._secrets.of(route)
        try:
            return await self._answer(route, secret.value, question)
        except ForgeRefused as refused:
            if refused.status != UNAUTHORIZED:
                raise
            fresh = await self._secrets.of(route, but=secret)
            if fresh == secret:
                raise
        return await self._answer(route, fresh.value, question)

    async def _answer(self, route: Route, secret: str, question: Callable[[Client], T]) -> T:
        def work() -> T:
            try:
                with (
                    _trusted(self._authorities) as verify,
                    _client(route, secret, verify) as client,
                ):
                    return question(client)
            except OSError as error:
                said = Said(None, f"the authorities to believe can't be read: {error.strerror}")
                raise said.error(route, secret, "answer") from None

        try:
            with anyio.fail_after(self._timeout):
                return await to_thread.run_sync(work, abandon_on_cancel=True)
        except TimeoutError:
            slow = Said(None, f"it was not done within {self._timeout:g} s")
            raise slow.error(route, secret, "answer") from None


@contextmanager
def _trusted(bundle: Path | None) -> Generator[bool | str, None, None]:
    """The authorities to believe, as requests takes them: one file with all."""
    if bundle is None:
        yield True
        return
    from certifi import where

    usual = Path(os.environ.get("REQUESTS_CA_BUNDLE") or where())
    with TemporaryDirectory() as scratch:
        both = Path(scratch) / "authorities.pem"
        both.write_bytes(usual.read_bytes() + b"\n" + bundle.read_bytes())
        yield str(both)


def _client(route: Route, secret: str, verify: bool | str) -> AbstractContextManager[Client]:
    kind = GitLab if route.forge is Forge.GITLAB else GitHub
    return kind(route, secret, verify)
