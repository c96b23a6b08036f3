"""Forges are asked in threads, each time with the secret that a route has then.

It is on its way from the route's source to the forge, and nowhere else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import anyio
from anyio import to_thread

from box_mcp.domain.box import Box
from box_mcp.domain.remotes import Way
from box_mcp.domain.routes import Forge, Route
from box_mcp.errors import BoxError, ForgeRefused
from box_mcp.events import Hook, RouteUsed
from box_mcp.gateway.credentials import Secrets
from box_mcp.gateway.forges.base import Client, Said, called
from box_mcp.gateway.forges.github import GitHub
from box_mcp.gateway.forges.gitlab import GitLab

TIMEOUT = 20.0  # s for what is asked at once; a tool asks twice, and clients give up after 60
THREADS = 8  # that ask at once; the server's other work has its own

T = TypeVar("T")


class Forges:
    """The forges of this server's routes; `hook` hears what they are asked.

    `authorities` is a file (PEM) of those that are believed beside the usual ones.
    """

    def __init__(
        self,
        secrets: Secrets,
        hook: Hook,
        authorities: Path | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        self._secrets = secrets
        self._hook = hook
        self._authorities = authorities
        self._timeout = timeout
        self._threads = anyio.CapacityLimiter(THREADS)

    async def ask(self, box: Box, way: Way, method: str, question: Callable[[Client], T]) -> T:
        """What a forge answers for a box; raises ForgeError and NoCredential.

        `method` is what is asked for, in a word for the record. A caller that is cancelled does not
        wait: it may be done all the same.
        """
        status, refused, begun = 0, "nobody waited for the answer", time.monotonic()
        try:
            answer = await self._asked(way.route, question)
            status, refused = HTTPStatus.OK, ""
        except BoxError as error:
            status = error.status if isinstance(error, ForgeRefused) else HTTPStatus.BAD_GATEWAY
            refused = str(error)
            raise
        finally:
            seconds = round(time.monotonic() - begun, 3)
            owner, name, path = box.principal or "", way.route.name, f"/{called(way)}"
            self._hook(
                RouteUsed(
                    box.id, owner, name, method, path, status, seconds=seconds, refused=refused
                )
            )
        return answer

    async def _asked(self, route: Route, question: Callable[[Client], T]) -> T:
        secret = await self._secrets.of(route)
        try:
            return await self._answer(route, secret.value, question)
        except ForgeRefused as refused:
            if refused.status != HTTPStatus.UNAUTHORIZED:
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
                return await to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._threads)
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
