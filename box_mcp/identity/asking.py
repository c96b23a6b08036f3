"""What an issuer is asked: small answers in JSON, in time, over connections that are kept."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

import anyio

from box_mcp.domain.issuers import Untrusted, parse_object
from box_mcp.errors import IdentityUnavailable
from box_mcp.gateway.upstream import Answer, Authorities, Line, Outgoing, Unanswered

TIMEOUT = 5.0  # s for a whole answer: somebody waits for it
MAX_ANSWER = 512 * 1024  # bytes; keys with certificates are some 20,000
MAX_AT_ONCE = 16  # questions; others wait

_HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "box_mcp"}


class Asker:
    """The way to the issuer at `url`; `authorities` (PEM) are believed beside the usual ones."""

    def __init__(self, url: str, authorities: Path | None = None, timeout: float = TIMEOUT) -> None:
        self._url = url
        self._timeout = timeout
        waits = {"connect": timeout, "read": timeout, "write": timeout, "pool": timeout}
        self._line = Line(Authorities(authorities), waits)
        self._turns = anyio.CapacityLimiter(MAX_AT_ONCE)

    async def ask(
        self, url: str, form: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """The status of an answer and, where it is 200, the object in it; `form` is posted.

        Raises IdentityUnavailable.
        """
        sent = _HEADERS | dict(headers or {})
        if form is not None:
            sent["Content-Type"] = "application/x-www-form-urlencoded"
            sent["Content-Length"] = str(len(form))
        outgoing = Outgoing("GET" if form is None else "POST", url, sent, form)
        try:
            with anyio.fail_after(self._timeout):
                async with self._turns:
                    return await self._answer(outgoing)
        except TimeoutError:
            raise self.silent(f"gave no answer within {self._timeout:g} s") from None
        except Unanswered as error:
            raise self.silent(f"gave no answer: {error}") from None

    async def _answer(self, outgoing: Outgoing) -> tuple[int, dict[str, Any]]:
        answer = await self._line.ask(outgoing)
        try:
            body = await _object(answer) if answer.status == HTTPStatus.OK else {}
        except Untrusted as error:
            raise self.silent(f"gave an answer of no use: {error}") from None
        finally:
            await answer.aclose()
        return answer.status, body

    def silent(self, detail: str) -> IdentityUnavailable:
        """The issuer does not tell what it should."""
        return IdentityUnavailable(self._url, detail)

    async def aclose(self) -> None:
        """Ends all that is under way."""
        await self._line.aclose()


async def _object(answer: Answer) -> dict[str, Any]:
    body = await answer.read(MAX_ANSWER)
    if body is None:
        raise Untrusted("it is too long")
    return parse_object(body)
