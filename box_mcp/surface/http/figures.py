"""Metrics over HTTP: as a page for tokens that are for it, or alone at an address of their own."""

from __future__ import annotations

import socket
from collections.abc import Callable
from ipaddress import ip_address

from starlette.types import Receive, Scope, Send

from box_mcp.errors import CannotServe
from box_mcp.surface.http import heads
from box_mcp.surface.http.answers import Refused, Said
from box_mcp.surface.http.heads import Names
from box_mcp.surface.http.listening import Listen, parse_listen

PATH = "/metrics"
BY_TOKEN = "token"  # noqa: S105  # the setting's word for the page


class Figures:
    """An ASGI app that answers with what `text` returns, of the type `kind`, to any who ask.

    It goes by `names` only: else a page in a browser could ask by a name that it has led here.
    """

    def __init__(self, text: Callable[[], bytes], kind: str, names: Names | None = None) -> None:
        self._text = text
        self._kind = kind.encode()
        self._names = names or Names()

    async def page(self) -> Said:
        """The figures as they are now."""
        return Said(200, self._text(), self._kind)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """As ASGI has it."""
        if scope["type"] != "http":
            return
        try:
            self._look_at_name(scope)
        except Refused as refused:
            return await refused.answer().send(send)
        answer = Refused(405, "method", "Only GET is answered here").answer()
        if scope["method"] in ("GET", "HEAD"):
            here = scope["path"] == PATH
            answer = await self.page() if here else Said(404, f"See {PATH}\n".encode())
        await answer.send(send)

    def _look_at_name(self, scope: Scope) -> None:
        host = heads.host_of(heads.only(scope["headers"]).get(b"host", b""))
        local = scope.get("server") or ("", None)
        if not self._names.has(host, local[0]):
            words = "Metrics do not go by that name; the setting http.hosts lists this server's"
            raise Refused(421, "another's name", words)


def parse_secluded(text: str) -> Listen:
    """An address that strangers do not reach; raises CannotServe for any other."""
    listen = parse_listen(text)
    if listen.path is None and not all(map(_is_secluded, _addresses(listen.host))):
        advice = (
            "Name an address of the loopback or of a private network in http.metrics, or set it "
            f'to "{BY_TOKEN}" to have them at {PATH} of the server itself'
        )
        raise CannotServe(f"Metrics are for nobody at {listen}, which is public", advice)
    return listen


def _addresses(host: str) -> list[str]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        words = f"The address {host!r} of http.metrics is unknown: {error}"
        raise CannotServe(words, "Give an address of this machine") from None
    return [str(address[0]) for *_, address in found]


def _is_secluded(address: str) -> bool:
    known = ip_address(address.partition("%")[0])
    return known.is_private and not known.is_unspecified
