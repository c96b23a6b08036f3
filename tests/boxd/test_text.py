"""What a file's first bytes tell, and lines that are folded; pure functions."""

from __future__ import annotations

import codecs

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from box_mcp.boxd.text import HEAD, Folder, Look, last_lines, transcoded

PIECES = st.lists(st.text(st.sampled_from("aä€😀\n")).map(str.encode), max_size=8)


def look(head: bytes, *, whole: bool = True) -> Look:
    return Look(head, whole=whole)


@pytest.mark.parametrize(
    ("head", "encoding"),
    [
        (b"", "utf-8"),
        (b"plain\n", "utf-8"),
        ("ä€😀".encode(), "utf-8"),
        (codecs.BOM_UTF8 + b"x", "utf-8"),
        (codecs.BOM_UTF16_LE + "ä\n".encode("utf-16-le"), "utf-16-le"),
        (codecs.BOM_UTF16_BE + "ä\n".encode("utf-16-be"), "utf-16-be"),
        ("„Müll“ €".encode("cp1252"), "cp1252"),
        (b"\xe4 \x81", "latin-1"),
        (b"a\0b", None),
        (codecs.BOM_UTF32_LE + "x".encode("utf-32-le"), None),
        (b"\x7fELF\x02\x01\x01\x00", None),
    ],
)
def test_an_encoding_is_recognised(head: bytes, encoding: str | None):
    assert look(head).encoding == encoding


@pytest.mark.parametrize(
    ("head", "media"),
    [
        (b"\x89PNG\r\n\x1a\n...", "image/png"),
        (b"\xff\xd8\xff\xe0..JFIF", "image/jpeg"),
        (b"GIF89a...", "image/gif"),
        (b"GIF87a...", "image/gif"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "image/webp"),
        (b"%PDF-1.7\n", "application/pdf"),
        (b"RIFF\x10\0\0\0WAVE", None),
        (b"PNG", None),
    ],
)
def test_pictures_and_documents_are_known_by_their_first_bytes(head: bytes, media: str | None):
    found = look(head)
    assert found.media == media
    if media:
        assert found.encoding is None


def test_a_character_cut_at_the_edge_of_what_was_read_is_no_error():
    head = (b"x" * HEAD + "€".encode())[2 : HEAD + 2]
    assert look(head, whole=False).encoding == "utf-8"
    assert look(head, whole=True).encoding == "cp1252"


@pytest.mark.parametrize(
    ("text", "crlf"),
    [("a\r\nb\r\n", True), ("a\r\nb\n", False), ("a\r\nb\r\nc\n", True), ("a\rb", False)],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_line_ends_are_what_most_lines_have(text: str, crlf: bool, encoding: str):
    assert look(text.encode(encoding)).crlf == crlf


@given(st.text(st.sampled_from("aäß\n")), st.integers(1, 5))
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "cp1252"])
def test_text_in_pieces_of_any_size_is_transcoded_whole(encoding: str, text: str, size: int):
    data = text.encode(encoding)
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    assert b"".join(transcoded(pieces, encoding)).decode() == text
    utf8 = [piece.encode() for piece in text]
    assert b"".join(transcoded(utf8, "utf-8", encoding)) == data


def folded(line: str, fold: int, offset: int) -> str:
    """What a line becomes, told in another way than `Folder` does it."""
    if len(line.encode()) <= fold:
        return line
    head = line.encode()[:fold].decode(errors="ignore")
    size = len(head.encode())
    left_out = len(line.encode()) - size
    return f"{head} [... {left_out} bytes left out from offset {offset + size} ...]"


@given(PIECES, st.integers(1, 12))
@example(["€€".encode()], 4)
def test_lines_of_any_length_in_pieces_of_any_size_are_folded_alike(pieces: list[bytes], fold: int):
    folder = Folder(fold, 0)
    given = [folder.feed(piece) for piece in pieces]
    assert all(lines.endswith(b"\n") for lines in given if lines)
    text = b"".join(pieces).decode()
    expected: list[str] = []
    offset = 0
    for line in text.split("\n"):
        expected.append(folded(line, fold, offset))
        offset += len(line.encode()) + 1
    assert (b"".join(given) + folder.finish()).decode() == "\n".join(expected)


def test_a_folded_line_takes_no_memory_however_long_it_is():
    folder = Folder(10, None)
    assert all(folder.feed(b"x" * HEAD) == b"" for _ in range(100))
    assert folder.feed(b"y\nend\n") == b"x" * 10 + b" [... %d bytes left out ...]\nend\n" % (
        100 * HEAD + 1 - 10
    )


@given(st.text(st.sampled_from("ab\n")), st.integers(1, 5))
def test_the_last_lines_are_those_that_a_split_ends_with(text: str, count: int):
    expected = "".join(text.splitlines(keepends=True)[-count:])
    assert last_lines(text.encode(), count).decode() == expected
