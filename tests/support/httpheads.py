"""Requests over HTTP that no client makes: what is wrong is in their heads and their framing.

All are harmless where they are taken for what they could mean: they ask of a box that is not there.
"""

from __future__ import annotations

import codecs
import json
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.support.httpmessages import harmless
from tests.support.rawhttp import LEGACY, Head, request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tests.support.rawhttp import Caller


def listed(text: str) -> tuple[bytes, ...]:
    """What stands between bars, with Python's escapes."""
    parts = text.replace("|\n", "|").removesuffix("\n").encode().split(b"|")
    return tuple(codecs.escape_decode(part)[0] for part in parts)  # type: ignore[misc]


TARGETS = listed(r"""/mcp/|/||*|//mcp|/mcp%00|/mcp\x00|/../mcp|/%6dcp|/mcp;a=b|/mcp#here|\\mcp|mcp|
/mcp?access_token=|/m\xffcp|http://evil.example/mcp|https://127.0.0.1/mcp|/healthz/../mcp|/mcp /mcp|
/.well-known/oauth-protected-resource/../../mcp|/metrics|/admin|evil:443|/readyz?x|/readyz/|/READYZ|
/mcp\r|/%2e%2e/%2e%2e/etc/passwd|/mcp%0d%0a|/.well-known/oauth-protected-resource/mcp|/healthz""")
METHODS = listed(r"""GET|HEAD|PUT|DELETE|PATCH|OPTIONS|TRACE|CONNECT|PROPFIND|post||PO ST|P\x00ST|
POST\t|PRI|\xff|POST\r\nX:|@""")
VERSIONS = listed(r"""HTTP/1.0|HTTP/0.9|HTTP/1.2|HTTP/2.0|HTTP/11|http/1.1|XTTP/1.1||HTTP/1.1 |
HTTP/1.1\t|HTTP/|HTTP/1.1.1|HTTP/-1.1|HTTP/1.1 HTTP/1.1""")
ENDS = listed(r"""\n|\r|\n\r|\r\r\n|\r\n\r\n|\x00\r\n|\x0b\r\n|\xe2\x80\xa8""")
WORDS = listed(r"""| |\t|,|;|null|*|0|-1|1e9|\xff\xfe|\x00|\x7f|a, b|"|'|\xc3\xa9|=?base64?!!!?=|
=?base64?/w==?=|\x1b[31m|%00|{}|<script>|${x}|../..|x\r\n y|\x0b|\xc2\x85|a\rb|a\nb""")
VALUES: Mapping[bytes, Sequence[bytes]] = {
    b"Host": listed(r"""evil.example|127.0.0.1.evil.example|user@127.0.0.1|[::1|[::1]x|::1|
127.0.0.1:99999999|127.0.0.1:x|127.0.0.1:|127.0.0.1, evil.example|0x7f000001|2130706433|localhost.|
localhost:1 x|127.0.0.1/mcp|[::ffff:7f00:1]"""),
    b"Origin": listed("http://evil.example|http://127.0.0.1.evil.example|file://|http://"),
    b"Authorization": (
        *listed(r"""Bearer|Bearer |Bearer x|Basic eDp4|Bearer bxm_aaaaaaaa_|Token x|Bearer \xff|
Bearer bxm_aaaaaaaa_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA|Bearer bxm_' OR 1=1 --|Bearer a b|
Bearer eyJhbGciOiJub25lIn0.e30.|Digest x|Bearer=x"""),
        b"Bearer " + b"A" * 60_000,
    ),
    b"MCP-Protocol-Version": listed(r"""2024-11-05|2025-03-26|2025-11-25|2027-01-01|1|2026-07-28x|
2026-07-28, 2025-11-25| 2026-07-28 |DRAFT-2026-v1"""),
    b"Mcp-Session-Id": (b"0" * 32, b"x" * 5000),
    b"Mcp-Method": listed("tools/list|TOOLS/CALL|initialize|tools/call, tools/list"),
    b"Mcp-Name": listed("shell_run|box_delete"),
    b"Mcp-Param-Box": (b"box-11111111",),
    b"Accept": listed("text/html|application/json|text/event-stream|*/*;q=0|application/*"),
    b"Content-Type": listed(r"""text/plain|application/json; charset=utf-16|application/xml|
multipart/form-data; boundary=x|application/jsonp|application/x-www-form-urlencoded"""),
    b"Content-Length": (
        *listed(r"""+5|0x10|5, 5|5, 6|9999999999999999999|1_0|5 5|\xd9\xa5|0005|99999999999|1.0"""),
        b"9" * 5000,
    ),
    b"Transfer-Encoding": listed(r"""chunked|Chunked|chunked, chunked|gzip, chunked|identity|gzip|
xchunked|chunked, identity|chunked\x0b|chunked;x=1|\x00chunked|chunk"""),
    b"Content-Encoding": listed("gzip|br|deflate, gzip"),
    b"Connection": listed("close|Authorization|keep-alive, close|upgrade|Host, close"),
    b"Upgrade": listed("websocket|h2c|TLS/1.0|HTTP/2.0"),
    b"Expect": listed("100-continue|200-ok"),
    b"X-Forwarded-For": listed("127.0.0.1|1.2.3.4, 127.0.0.1"),
    b"Forwarded": (b"for=127.0.0.1;host=localhost",),
    b"X-HTTP-Method-Override": (b"DELETE",),
    b"Last-Event-ID": (b"1", b"x" * 5000),
    b"Cookie": (b"a=b; " * 1000,),
    b"Range": (b"bytes=0-0",),
    b"Trailer": (b"Authorization",),
    b"traceparent": (b"00-" + b"f" * 32 + b"-" + b"f" * 16 + b"-01",),
}
LINES = (
    *listed(r"""nocolon|:|: x|X y: z| X: y|X\x00: y|X: y\x00z|X:\xff|\x00|X: a\r\n\tb|\xff\xff: x|
(x): y|Host : 127.0.0.1|Content-Length : 5|Transfer-Encoding : chunked|X: a\nY: b"""),
    *(b"X: " + b"y" * 70_000, b"X" * 70_000 + b": y"),
    b"\r\n".join(b"X-%d: y" % number for number in range(500)),
)
CHUNKS = (
    *listed(r"""0\r\n\r\n|5\r\nhello\r\n0\r\n\r\n|0x5\r\nhello\r\n0\r\n\r\n|+5\r\nhello\r\n0\r\n\r\n|
-1\r\n\r\n| 5\r\nhello\r\n0\r\n\r\n|5 \r\nhello\r\n0\r\n\r\n|
5;a=b\r\nhello\r\n0\r\n\r\n|\r\n0\r\n\r\n|
5;\x00\r\nhello\r\n0\r\n\r\n|fffffffffffffffff\r\n|ffffffffffffffff\r\n|ffffffff\r\nx|G\r\n|\x00\r\n|
5\nhello\n0\n\n|5\r\nhelloX0\r\n\r\n|5\r\nhello world\r\n0\r\n\r\n|0\r\nHost: evil.example\r\n\r\n|
0;\r\n\r\n|000000000000000000005\r\nhello\r\n0\r\n\r\n|0\r\nContent-Length: 5\r\n\r\n"""),
    *(b"5;" + b"x" * 70_000 + b"\r\nhello\r\n0\r\n\r\n", b"0\r\nX: " + b"y" * 70_000 + b"\r\n\r\n"),
    *(b"1" * 5000 + b"\r\n", b"1\r\n{\r\n" * 50 + b"0\r\n\r\n"),
)


@dataclass
class Draft:
    """A request that is being spoilt."""

    head: Head
    body: bytes
    parts: dict[str, bytes] = field(default_factory=dict[str, bytes])
    lines: list[bytes] = field(default_factory=list[bytes])

    def request(self) -> bytes:
        made = request(self.head, self.body, **self.parts)
        first, _, rest = made.partition(b"\r\n")
        return b"\r\n".join((first, *self.lines, rest))

    def set(self, name: bytes, value: bytes) -> None:
        """Gives a header another value, or adds it."""
        self.head = [pair for pair in self.head if pair[0].lower() != name.lower()]
        self.head.append((name, value))


def part(name: str, values: Sequence[bytes]) -> Callable[[Draft, random.Random], None]:
    """Sets a part of the request's first line, or what all lines end with."""

    def spoil(draft: Draft, dice: random.Random) -> None:
        draft.parts[name] = dice.choice(values)

    return spoil


def some_value(draft: Draft, dice: random.Random) -> None:
    name = dice.choice(list(VALUES))
    draft.set(name, dice.choice(VALUES[name]))


def some_word(draft: Draft, dice: random.Random) -> None:
    draft.set(dice.choice(list(VALUES)), dice.choice(WORDS))


def some_line(draft: Draft, dice: random.Random) -> None:
    draft.lines.append(dice.choice(LINES))


def twice(draft: Draft, dice: random.Random) -> None:
    name = dice.choice(list(VALUES))
    draft.head.append((name, dice.choice(VALUES[name])))


def one_less(draft: Draft, dice: random.Random) -> None:
    draft.head.pop(dice.randrange(len(draft.head)))


def chunks(draft: Draft, dice: random.Random) -> None:
    draft.set(b"Transfer-Encoding", b"chunked")
    if dice.random() < 0.7:
        draft.head = [pair for pair in draft.head if pair[0] != b"Content-Length"]
    draft.body = dice.choice(CHUNKS)


def noisy_body(draft: Draft, dice: random.Random) -> None:
    draft.body = noise(dice, draft.body)


WRONGS: Sequence[Callable[[Draft, random.Random], None]] = (
    *(part("target", TARGETS), part("method", METHODS), part("version", VERSIONS)),
    *(part("end", ENDS), some_value, some_value, some_word, some_line, twice, one_less, chunks),
    noisy_body,
)


def spoilt_heads(caller: Caller, seed: int) -> Iterator[bytes]:
    """Requests without end, each with one to three things wrong in its head or its framing.

    None comes twice.
    """
    dice, known = random.Random(seed), set[int]()
    while True:
        made = draft(caller, dice)
        for _ in range(dice.choice((1, 1, 1, 2, 3))):
            dice.choice(WRONGS)(made, dice)
        spoilt = made.request()
        if hash(spoilt) not in known:
            known.add(hash(spoilt))
            yield spoilt


def noisy_heads(caller: Caller, seed: int) -> Iterator[bytes]:
    """Requests without end that are well but for some bytes of their heads."""
    dice = random.Random(seed)
    while True:
        head, _, body = draft(caller, dice).request().partition(b"\r\n\r\n")
        yield noise(dice, head) + b"\r\n\r\n" + body


def draft(caller: Caller, dice: random.Random) -> Draft:
    """A request that is well, of either era."""
    message = harmless()
    body = json.dumps(message).encode()
    head = caller.head(message) if dice.random() < 0.7 else caller.head(message, LEGACY)
    return Draft([*head, (b"Content-Length", b"%d" % len(body))], body)


def noise(dice: random.Random, data: bytes) -> bytes:
    """The bytes, some of which are flipped, gone, doubled or new."""
    made = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(made) or 1)
        kind: Any = dice.randrange(4)
        if kind == 0 and made:
            made[at] ^= 1 << dice.randrange(8)
        elif kind == 1:
            del made[at : at + dice.randint(1, 8)]
        elif kind == 2:
            made[at:at] = made[at : at + dice.randint(1, 30)]
        else:
            made[at:at] = dice.randbytes(dice.randint(1, 8))
    return bytes(made)
