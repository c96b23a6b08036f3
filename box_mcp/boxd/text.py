"""What a file's first bytes tell of it, and its text as whole lines of a bounded length. No I/O."""

from __future__ import annotations

import codecs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

HEAD = 64 * 1024  # bytes that a file is judged by

_BOMS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
MEDIA = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
    b"%PDF-": "application/pdf",
}


def guessed(text: bytes, *, whole: bool) -> str:
    """The encoding that a text seems to have, of which this is the beginning, unless `whole`."""
    try:
        codecs.utf_8_decode(text, "strict", whole)
    except UnicodeDecodeError:
        pass
    else:
        return "utf-8"
    try:
        text.decode("cp1252")
    except UnicodeDecodeError:
        return "latin-1"
    return "cp1252"


class Look:
    """What a file seems to be.

    `encoding` is ``utf-8``, ``utf-16-le``, ``utf-16-be``, ``cp1252`` or ``latin-1``, and None for
    a file that is no text; `bom` are the bytes before the text; `crlf` tells how most lines end.
    """

    __slots__ = ("bom", "crlf", "encoding", "media")

    def __init__(self, head: bytes, *, whole: bool) -> None:
        self.media = _media(head)
        utf_32 = head.startswith(codecs.BOM_UTF32_LE)  # begins as UTF-16's does
        self.bom = next((bom for bom in _BOMS if head.startswith(bom) and not utf_32), b"")
        self.encoding = None if self.media else _encoding(self.bom, head, whole)
        text = head
        if self.encoding and self.encoding.startswith("utf-16"):
            text = head.decode(self.encoding, "replace").encode()
        self.crlf = bool(self.encoding) and 2 * text.count(b"\r\n") > text.count(b"\n")


def transcoded(
    pieces: Iterable[bytes], source: str, target: str = "utf-8", errors: str = "replace"
) -> Generator[bytes, None, None]:
    """The text in `pieces` in another encoding."""
    if source == target:
        yield from pieces
        return
    decoder = codecs.getincrementaldecoder(source)(errors)
    for piece in pieces:
        yield decoder.decode(piece).encode(target)
    yield decoder.decode(b"", final=True).encode(target)


class Folder:
    """Takes UTF-8 text in pieces of any size and gives whole lines back, the long ones folded.

    A line of more than `fold` bytes keeps its beginning, and tells behind it how many bytes were
    left out and, when `offset` (where in its file the text begins) is given, at which offset.
    """

    def __init__(self, fold: int, offset: int | None) -> None:
        self._fold = fold
        self._offset = offset  # of what is held
        self._held = b""  # the beginning of an unfinished line
        self._left_out: int | None = None  # bytes of a long line; None while in no such line
        self._cut_at: int | None = None  # offset of the first of them

    def feed(self, data: bytes) -> bytes:
        """The lines that `data` completes."""
        lines: list[bytes] = []
        start = 0
        if self._left_out is None:
            data = self._held + data
        while True:
            if self._left_out is not None:
                end = data.find(b"\n", start)
                self._left_out += (end if end >= 0 else len(data)) - start
                if end < 0:
                    break
                lines.append(self.finish() + b"\n")
                self._left_out = None
                start = end + 1
            # The last line break within reach: all lines before it are short enough.
            end = data.rfind(b"\n", start, start + self._fold + 1)
            if end >= 0:
                lines.append(data[start : end + 1])
                start = end + 1
            elif len(data) - start > self._fold:
                end = _character_start(data, start + self._fold)
                self._held, self._left_out = data[start:end], 0
                self._cut_at = None if self._offset is None else self._offset + end
                start = end
            else:
                self._held = data[start:]
                break
        if self._offset is not None:
            self._offset += len(data) if self._left_out is not None else start
        return b"".join(lines)

    def finish(self) -> bytes:
        """The last line, where no line break ends it."""
        if self._left_out is None:
            return self._held
        place = "" if self._cut_at is None else f" from offset {self._cut_at}"
        return self._held + f" [... {self._left_out} bytes left out{place} ...]".encode()


def last_lines(text: bytes, count: int) -> bytes:
    """The last `count` lines of a text."""
    breaks = count + text.endswith(b"\n")
    before, *lines = text.rsplit(b"\n", breaks)
    return text[len(before) + 1 :] if len(lines) == breaks else text


def _character_start(data: bytes, position: int) -> int:
    """`position`, or where the UTF-8 character begins that it is inside of."""
    for start in range(position, max(position - 4, -1), -1):
        if data[start] & 0xC0 != 0x80:
            return start
    return position


def _media(head: bytes) -> str | None:
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "image/webp"
    return next((media for magic, media in MEDIA.items() if head.startswith(magic)), None)


def _encoding(bom: bytes, head: bytes, whole: bool) -> str | None:
    if bom:
        return _BOMS[bom]
    return None if b"\0" in head else guessed(head, whole=whole)
