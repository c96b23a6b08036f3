"""Paths as tools take and tell them."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_mcp.domain.paths import parse, shown

PATHS = st.binary().filter(lambda raw: b"\0" not in raw).map(lambda raw: os.fsdecode(b"/" + raw))


@given(PATHS)
def test_what_is_shown_of_an_absolute_path_means_that_path(path: str):
    assert parse(shown(path)) == path


@given(PATHS)
def test_what_is_shown_is_one_line_of_text(path: str):
    assert shown(path).isprintable()
    assert shown(path).encode().decode() == shown(path)


@given(st.text().filter(lambda text: text.isprintable() and text and "://" not in text))
def test_a_path_of_plain_text_is_shown_as_it_is(path: str):
    assert parse(path) == shown(path) == path


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("file:///workspace/caf%E9", "/workspace/caf\udce9"),
        ("file://localhost/a%0Ab", "/a\nb"),
        ("file:///a%2fb%25", "/a/b%"),
        ("file:///ä", "/ä"),
        ("a%20b", "a%20b"),
        ("file:/a", "file:/a"),
        ("~/a", "~/a"),
    ],
)
def test_a_path_is_text_or_a_url(text: str, path: str):
    assert parse(text) == path


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        ("a\0b", "NUL"),
        ("file:///a%00b", "NUL"),
        ("file://elsewhere/a", "another machine"),
        ("file://", "another machine"),
    ],
)
def test_what_can_be_no_path_is_refused(text: str, why: str):
    with pytest.raises(ValueError, match=why):
        parse(text)


def test_a_relative_path_of_odd_bytes_is_shown_escaped():
    assert shown("a\nb\udcff") == "a\\nb\\udcff"


def test_an_absolute_path_that_looks_like_a_url_is_no_url():
    assert parse(shown("/file:///a")) == "/file:///a"
