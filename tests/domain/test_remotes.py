from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_mcp.domain.remotes import Remote, Way, parse_remote, ways
from box_mcp.domain.routes import Route, parse_upstream

GITHUB = Route("github", parse_upstream("https://github.com"))
TEAM = Route("team", parse_upstream("https://github.com/team"))
GITLAB = Route("gitlab", parse_upstream("https://git.example.org:8443/lab"))
LOCAL = Route("local", parse_upstream("http://127.0.0.1:8080"))
ROUTES = (GITHUB, TEAM, GITLAB, LOCAL)

parts = st.sampled_from(
    [
        *("https://", "ssh://", "http://", "git@", ":", "/", "[", "]", "@", "#", "?", "-o", "%2e"),
        *("host", "a.git", ".", "..", "::1", "127.0.0.1:3129", "22", "99999", "\\", "\n", " ", "é"),
    ]
)
urls = st.one_of(st.text(), st.lists(parts, max_size=8).map("".join))


@pytest.mark.parametrize(
    ("url", "remote"),
    [
        ("https://github.com/me/it.git", Remote("https", "github.com", 443, "me/it")),
        ("https://GitHub.com/me/it/", Remote("https", "github.com", 443, "me/it")),
        ("HTTPS://github.com:443/me/it", Remote("https", "github.com", 443, "me/it")),
        ("http://git.example.org:8080/it", Remote("http", "git.example.org", 8080, "it")),
        ("https://me:hush@github.com/me/it", Remote("https", "github.com", 443, "me/it")),
        ("ssh://git@github.com/me/it.git", Remote("ssh", "github.com", 22, "me/it")),
        ("ssh://github.com:2222/~me/it", Remote("ssh", "github.com", 2222, "~me/it")),
        ("git+ssh://git@github.com/me/it", Remote("ssh", "github.com", 22, "me/it")),
        ("git@github.com:me/it.git", Remote("ssh", "github.com", 22, "me/it")),
        ("github.com:/me/it", Remote("ssh", "github.com", 22, "me/it")),
        ("git@[github.com:2222]:me/it", Remote("ssh", "github.com", 2222, "me/it")),
        ("git@[2001:db8::1]:it", Remote("ssh", "2001:db8::1", 22, "it")),
        ("ssh://[2001:db8::1]:2222/it", Remote("ssh", "2001:db8::1", 2222, "it")),
        ("http://127.0.0.1:3129/lab/a/b.git", Remote("http", "127.0.0.1", 3129, "lab/a/b")),
    ],
)
def test_an_url_is_taken_as_git_takes_it(url: str, remote: Remote):
    assert parse_remote(url) == remote


@pytest.mark.parametrize(
    "url",
    [
        *("", "it", "../it", "/workspace/it", "./a:b", "file:///workspace/it", "git://host/it"),
        *("ext::sh%20-c", "ext::https://github.com/me/it", "-oProxyCommand=x:it", "ssh://-o/it"),
        *("https://github.com", "https://github.com/", "https://github.com/.git", "git@host:"),
        *("https://github.com/../it", "https://github.com/me//it", "git@host:me/./it"),
        *("https://github.com/me/it?x", "https://github.com/me/it#x", "https://host\\@other/it"),
        *("https://github.com:99999/it", "https://github.com:0/it", "https://[host/it"),
        *("https://github.com/me/it\n", "https://github.com/m e", "https://gith\u00fcb.com/me/it"),
        *("https://github.com/" + "a" * 2048, "host:it\x00", "git@host:it#x", "git@host:it?x"),
    ],
)
def test_what_names_no_server_or_is_in_doubt_is_no_remote(url: str):
    assert parse_remote(url) is None


def test_a_remote_is_shown_without_user_and_password():
    assert (
        str(parse_remote("https://me:hush@github.com:443/me/it.git")) == "https://github.com/me/it"
    )
    assert str(parse_remote("me@[2001:db8::1]:it")) == "ssh://[2001:db8::1]/it"
    assert str(parse_remote("http://git.example.org:8080/it")) == "http://git.example.org:8080/it"


@given(urls)
def test_whatever_a_box_calls_its_remote_is_one_that_can_be_shown_and_read_again_or_none(url: str):
    remote = parse_remote(url)
    if remote is not None and not remote.path.endswith(".git"):
        assert parse_remote(str(remote)) == remote
    assert remote is None or isinstance(ways(remote, ROUTES), tuple)


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("https://github.com/me/it", [Way(GITHUB, "me/it")]),
        ("https://github.com/team/it", [Way(TEAM, "it"), Way(GITHUB, "team/it")]),
        ("https://github.com/team2/it", [Way(GITHUB, "team2/it")]),
        ("git@github.com:team/it.git", [Way(TEAM, "it"), Way(GITHUB, "team/it")]),
        ("ssh://git@git.example.org:2222/lab/a/b/it", [Way(GITLAB, "a/b/it")]),
        ("https://git.example.org:8443/lab/it", [Way(GITLAB, "it")]),
        ("http://127.0.0.1:3129/team/it", [Way(TEAM, "it")]),
        ("http://localhost:3129/gitlab/a/it", [Way(GITLAB, "a/it")]),
        ("http://127.0.0.1:8080/it", [Way(LOCAL, "it")]),
    ],
)
def test_a_remote_goes_by_the_routes_to_its_server_the_closest_first(url: str, found: list[Way]):
    remote = parse_remote(url)
    assert remote is not None
    assert [*ways(remote, ROUTES)] == found


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://github.com/me/it",
            "https://github.com:8443/me/it",
            "https://github.com.evil.org/x",
        ),
        *("https://git.example.org/lab/it", "https://git.example.org:8443/other/it"),
        *("https://git.example.org:8443/lab", "https://git.example.org:8443/labour/it"),
        *(
            "http://127.0.0.1:3129/unknown/it",
            "http://127.0.0.1:3129/team",
            "http://127.0.0.1/team/it",
        ),
    ],
)
def test_what_no_route_leads_to_has_no_way(url: str):
    remote = parse_remote(url)
    assert remote is not None
    assert ways(remote, ROUTES) == ()
