"""What callers may call revisions, branches, remotes and sources."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from box_mcp.domain.refs import (
    directory_of,
    parse_branch,
    parse_remote,
    parse_revision,
    parse_source,
)
from box_mcp.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable

PARSERS = [parse_revision, parse_branch, parse_remote, parse_source]


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize(
    "text",
    ["", "-", "--upload-pack=touch x", "-x", "a\nb", "a\0b", "\x1b[2J", "\udce9", "x" * 1025],
)
def test_nothing_is_an_option_nor_has_control_characters(
    parse: Callable[[str, str], str], text: str
):
    with pytest.raises(InvalidArgument) as refused:
        parse("ref", text)
    assert "'ref'" in str(refused.value)


@pytest.mark.parametrize(
    "text", ["main", "HEAD~2", "v1..v2", "a...b", "@{u}", ":/fix it", "^x", "ä"]
)
def test_a_revision_is_whatever_git_may_take_for_one(text: str):
    assert parse_revision("ref", text) == text


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=8))
@example("a.lock/b")
@example("@")
def test_a_branch_is_called_as_git_lets_it_be_called_but_never_like_something_else(text: str):
    check = ["git", "check-ref-format", f"refs/heads/{text}"]
    allowed = subprocess.run(check, capture_output=True, check=False).returncode == 0
    try:
        parse_branch("branch", text)
    except InvalidArgument:
        assert not allowed or text.startswith("-") or text in ("@", "HEAD")
    else:
        assert allowed


@pytest.mark.parametrize("text", ["ext::sh -c id", "fd::3", "foo+bar::x"])
def test_transports_that_are_programs_are_refused(text: str):
    for parse in (parse_remote, parse_source):
        with pytest.raises(InvalidArgument, match="programs"):
            parse("url", text)


@pytest.mark.parametrize(
    ("source", "directory"),
    [
        ("https://example.org/a/b.git", "b"),
        ("https://example.org/a/b/", "b"),
        ("git@example.org:b.git", "b"),
        ("git@[::1]:a/b", "b"),
        ("/workspace/up.git", "up"),
        ("/workspace/up/.git", "up"),
        ("../up", "up"),
    ],
)
def test_what_is_cloned_gets_the_directory_that_git_would_give_it(source: str, directory: str):
    assert directory_of(parse_source("url", source)) == directory


def test_a_url_with_a_password_is_refused_since_it_would_stay_in_the_box():
    with pytest.raises(InvalidArgument, match="password") as refused:
        parse_source("url", "https://me:ghp_x@example.org/a")
    assert "ghp_x" not in refused.value.explain()
    assert parse_source("url", "ssh://git@example.org/a")
    with pytest.raises(InvalidArgument, match="no URL"):
        parse_source("url", "http://[::1")
