from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_mcp.domain.media import as_text, media_type

PNG = b"\x89PNG\r\n\x1a\n\x00"


@pytest.mark.parametrize(
    ("name", "content", "media"),
    [
        ("a.md", b"# x", "text/markdown"),
        ("a.py", b"x", "text/x-python"),
        ("a.json", b"{}", "application/json"),
        ("a.svg", b"<svg/>", "image/svg+xml"),
        ("a.yaml", b"a: b", "application/yaml"),
        ("a.toml", b"a = 1", "application/toml"),
        ("a.ts", b"let x", "text/plain"),
        ("Makefile", b"all:", "text/plain"),
        ("a.png", b"no picture", "text/plain"),
        ("a.png", PNG, "image/png"),
        ("a.txt", PNG, "image/png"),
        ("a", b"\xff\xd8\xff\xe0\x00", "image/jpeg"),
        ("a.tar.gz", b"\x1f\x8b\x08\x00", "application/gzip"),
        ("a.txt", b"caf\xe9", "application/octet-stream"),
        ("a", b"\x00", "application/octet-stream"),
    ],
)
def test_the_name_tells_the_type_unless_the_content_is_of_another(
    name: str, content: bytes, media: str
):
    assert media_type(name, content, text=as_text(content) is not None) == media


@given(st.text(), st.binary())
def test_any_file_has_a_type(name: str, content: bytes):
    text = as_text(content) is not None
    media = media_type(name.replace("/", ""), content, text=text)
    assert media.count("/") == 1
    assert text or not media.startswith("text/")


def test_text_is_utf_8_without_nul():
    assert as_text("hë\n".encode()) == "hë\n"
    assert as_text(b"") == ""
    assert as_text(b"a\0b") is None
    assert as_text(b"\xff") is None
