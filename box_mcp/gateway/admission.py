"""Who may come in by an exposed port: decided by the head of a connection's first request; pure.

Any web page that the user has open may send requests to the machine's own ports. Three things keep
boxes apart from it, and from each other:

* Host must be the box's own name below ``localhost``. A page that makes its own name mean 127.0.0.1
  (DNS rebinding) sends that name. No box is served as ``localhost`` itself: all would share its
  cookies with each other, and with what the user runs there.
* What a page of another site sends in the background, browsers mark with Origin, or with
  Sec-Fetch-Site. It is refused, but for pages that the user himself serves on ``localhost``.
* Links lead in, as to any site, but no forms: only GET and HEAD.

Programs on the machine that are no browsers may send what they like, as to any server on it.
Only the first request of a connection is looked at, since all that follows are bytes: browsers
use a connection for one host, and current ones for the pages of one site.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

import h11

HEAD_LIMIT = 64 * 1024  # bytes of a request's head; servers take 8 to 32 KiB

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")
_AUTHORITY = re.compile(r"([a-z0-9.-]+|\[::1\])(?::([0-9]{1,5}))?")
_LOCAL = ("localhost", "127.0.0.1", "[::1]")
"""What the user's own servers are called, and never a box."""


@dataclass(frozen=True)
class Address:
    """Where a port of a box is to be found: `port` on the machine's loopback, as `hosts`."""

    hosts: tuple[str, ...]
    port: int

    @property
    def url(self) -> str:
        """For a browser."""
        return f"http://{self.hosts[0]}:{self.port}/"


@dataclass(frozen=True)
class Answer:
    """What is said instead of the box."""

    status: HTTPStatus
    text: str

    def page(self) -> bytes:
        """As an HTTP response, after which the connection ends."""
        body = f"box_mcp: {self.text}\n".encode()
        head = (
            f"HTTP/1.1 {self.status.value} {self.status.phrase}\r\n"
            "Content-Type: text/plain; charset=utf-8\r\n"
            "X-Content-Type-Options: nosniff\r\n"
            "Cache-Control: no-store\r\n"
            "Connection: close\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


def hosts_of(box: str, name: str | None) -> tuple[str, ...]:
    """The names of a box below localhost: its id, and its name where that can be part of one."""
    labels = [box] + ([name] if name is not None and _LABEL.fullmatch(name) else [])
    return tuple(f"{label}.localhost" for label in labels)


class Doorkeeper:
    """Reads a connection's first request as it comes, up to the end of its head."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._parser = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_LIMIT)
        self.passed = False
        self.answer: Answer | None = None

    @property
    def decided(self) -> bool:
        """Whether it `passed`, or gets an `answer`."""
        return self.passed or self.answer is not None

    def take(self, data: bytes) -> None:
        """Some more of it."""
        self._parser.receive_data(data)
        try:
            event = self._parser.next_event()
        except h11.RemoteProtocolError as error:
            text = "this address takes HTTP/1 requests only, without TLS"
            self.answer = Answer(HTTPStatus(error.error_status_hint), text)
            return
        if isinstance(event, h11.Request):
            headers = {name.decode(): value.decode("latin-1") for name, value in event.headers}
            self.answer = judged(self._address, event.method.decode(), headers)
            self.passed = self.answer is None


def judged(address: Address, method: str, headers: Mapping[str, str]) -> Answer | None:
    """What a request is answered, None if it may pass; names of headers are in lower case."""
    host, port = _host(headers.get("host", ""))
    if host not in address.hosts or port != address.port:
        text = "this address leads to no box"
        if host in _LOCAL:  # as the user types it; who rebinds a name need not know a box's
            text = f"boxes have hosts of their own; this one is at {address.url}"
        return Answer(HTTPStatus.MISDIRECTED_REQUEST, text)
    if _foreign(address, method, headers):
        text = (
            "this request came from a page of another site, and boxes take none from there. "
            "Open the address itself, or call it from a page of the box or of http://localhost"
        )
        return Answer(HTTPStatus.FORBIDDEN, text)
    return None


def _foreign(address: Address, method: str, headers: Mapping[str, str]) -> bool:
    """Whether a page of another site sent it, and it is no link that the user followed."""
    target = headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")
    if target == ("navigate", "document") and method in ("GET", "HEAD"):
        return False
    if (origin := headers.get("origin")) is not None:
        scheme, _, authority = origin.partition("://")
        known = _host(authority)[0] in (*address.hosts, *_LOCAL)
        return scheme not in ("http", "https") or not known
    return headers.get("sec-fetch-site") == "cross-site"


def _host(authority: str) -> tuple[str, int]:
    """Host and port of ``example.org:80``; nothing and 0 for what is none."""
    found = _AUTHORITY.fullmatch(authority.lower())
    return (found[1], int(found[2] or 80)) if found else ("", 0)
