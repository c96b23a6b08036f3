from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_mcp.domain.uris import file_uri, parse_file_uri, quoted, unquoted

NAMES = st.binary(min_size=1, max_size=255).filter(lambda name: not {0, 47} & set(name))
PATHS = st.lists(NAMES, min_size=1).map(lambda names: b"/" + b"/".join(names))


@given(PATHS)
def test_every_path_has_a_uri_that_leads_back_to_it(raw: bytes):
    path = raw.decode(errors="surrogateescape")
    uri = file_uri("dev", path)
    assert uri.isascii()
    assert uri.isprintable()
    assert not set(uri) & set(' ?#"<>\\^`{|}')
    assert parse_file_uri(uri) == ("dev", path)
    assert unquoted(quoted(path)) == path


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("box://dev/files/workspace/a.txt", "/workspace/a.txt"),
        ("box://dev/files/", "/"),
        ("box://dev/files//workspace/", "/workspace/"),
        ("box://dev/files/a%20b?c#d", "/a b?c#d"),
        ("box://dev/files/ä", "/ä"),
        ("BOX://Dev/files/%E4", "/\udce4"),
    ],
)
def test_what_clients_make_of_the_template_is_understood(uri: str, path: str):
    assert parse_file_uri(uri) == ("dev", path)


@pytest.mark.parametrize(
    "uri",
    [
        *["", "box:", "box://", "box://dev", "box://dev/files", "box:///files/a"],
        *["box://dev/Files/a", "xbox://dev/files/a", "dev/files/a", "file:///a"],
    ],
)
def test_what_is_no_uri_of_a_file_is_refused(uri: str):
    with pytest.raises(ValueError, match="no URI of a file"):
        parse_file_uri(uri)


def test_a_directorys_uri_ends_with_a_slash():
    assert file_uri("dev", "/workspace", directory=True) == "box://dev/files/workspace/"
    assert file_uri("dev", "/workspace/", directory=True) == "box://dev/files/workspace/"
    assert file_uri("dev", "/", directory=True) == "box://dev/files/"
