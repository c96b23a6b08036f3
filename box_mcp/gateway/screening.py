"""What a client sends through a tunnel to a name must be meant for that name.

Many names share an address, and a server there does what the name in the greeting (TLS) or in the
request (HTTP) stands for: of all that is allowed to one name, another one could be reached. What
is said inside of TLS nobody sees; what is neither TLS nor HTTP passes.
"""

from __future__ import annotations

import re

import anyio

from box_mcp.domain.network import parse_host
from box_mcp.gateway.hello import Broken, More, Name, read_hello
from box_mcp.gateway.inlet import Inlet
from box_mcp.gateway.relay import CHUNK

MAX_LINE = 16 * 1024  # bytes of a first line, as long as it can be a request of HTTP
MAX_TOLD = 100  # characters of another name

_BLANK = b" \t\r\n\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0"  # what any server skips, or takes for a space
_SPACE = rb"[%b]" % _BLANK
_UNFINISHED = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]*(" + _SPACE + rb".*)?", re.DOTALL)
_LIKELY = re.compile(rb"[A-Z]{3,}" + _SPACE)
_REQUEST = re.compile(rb"(?i)" + _SPACE + rb"HTTP/[0-9]")
_TLS = b"\x16"


class Screened:
    """A client whose first bytes are looked at before they are received.

    When they are not right, `complaint` says why and the stream breaks. It breaks too when the
    client speaks HTTP, where each request needs a look: then nothing of it was taken.
    """

    def __init__(self, client: Inlet, name: str) -> None:
        self.complaint = ""
        self.speaks_http = False
        self._client = client
        self._name = name
        self._taken = bytearray()
        self._passed = False

    @property
    def speaks_tls(self) -> bool:
        """Whether it began as if it did, and nothing of it was taken."""
        return self._client.buffer.startswith(_TLS)

    async def receive(self, max_bytes: int = CHUNK) -> bytes:
        """Some bytes; raises anyio.EndOfStream at the end."""
        if not self._passed:
            await self._screen()
        if self.complaint or self.speaks_http:
            raise anyio.BrokenResourceError
        data = await self._client.receive(max_bytes)
        if not self._passed:
            self._taken += data
        return data

    async def send(self, item: bytes) -> None:
        """Sends all of `item`."""
        await self._client.send(item)

    async def send_eof(self) -> None:
        """Nothing more will be sent."""
        await self._client.send_eof()

    async def _screen(self) -> None:
        """Waits until what came may pass, or must not."""
        size = 1
        while size:
            while len(self._client.buffer) < size:
                if not await self._client.more():
                    return  # too little for a server to answer
            size = self._tls() if self.speaks_tls and not self._taken else self._http()

    def _tls(self) -> int:
        """How many bytes must have come before it can be told; 0 when it is."""
        try:
            found = read_hello(self._client.buffer)
        except Broken:
            self.complaint = "its TLS begins with no proper greeting"
            return 0
        if isinstance(found, More):
            return found.size
        if isinstance(found, Name) and parse_host(found.text) != self._name:
            meant = f"is meant for {found.text[:MAX_TOLD]!r}"
            self.complaint = f"its TLS {meant if found.text else 'does not name the host (SNI)'}"
        self._passed = True
        return 0

    def _http(self) -> int:
        """As `_tls`. What only might become a request passes, but for the end of its line."""
        said = self._taken + self._client.buffer
        line, complete, _ = said.lstrip(_BLANK).partition(b"\n")
        if _REQUEST.search(line):
            self.speaks_http = not self._taken
            self.complaint = "its HTTP comes in pieces" if self._taken else ""
        elif complete or not _UNFINISHED.fullmatch(line):
            self._passed = True
        elif len(said) > MAX_LINE:
            self.complaint = "its first line does not end"
        elif _LIKELY.match(line):
            return len(self._client.buffer) + 1
        return 0
