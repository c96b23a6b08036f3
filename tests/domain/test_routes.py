from __future__ import annotations

import posixpath
from dataclasses import replace
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_mcp.domain.routes import (
    MAX_PATH,
    Access,
    Asked,
    Forbidden,
    Forge,
    Kind,
    Route,
    api_of,
    judge,
    parse_route_name,
    parse_upstream,
    redirected,
)
from box_mcp.errors import InvalidArgument

BASE = parse_upstream("https://git.example/base")
WRITE = Route("work", BASE, repositories=("me/*", "team/app"), access=Access.WRITE)
READ = replace(WRITE, access=Access.READ)
FETCH_REFS = "info/refs?service=git-upload-pack"
PUSH_REFS = "info/refs?service=git-receive-pack"

ASKED = {
    f"GET /me/app.git/{FETCH_REFS}": (Kind.DISCOVER, Access.READ),
    f"GET /me/app.git/{PUSH_REFS}": (Kind.DISCOVER, Access.WRITE),
    "POST /me/app.git/git-upload-pack": (Kind.FETCH, Access.READ),
    "POST /me/app.git/git-receive-pack": (Kind.PUSH, Access.WRITE),
    "POST /me/app.git/info/lfs/objects/batch": (Kind.LFS_BATCH, Access.READ),
    "GET /me/app.git/info/lfs/locks": (Kind.LFS_LOCKS, Access.READ),
    "POST /me/app.git/info/lfs/locks": (Kind.LFS_LOCKS, Access.WRITE),
    "POST /me/app.git/info/lfs/locks/verify": (Kind.LFS_LOCKS, Access.WRITE),
    "POST /me/app.git/info/lfs/locks/some-id-7/unlock": (Kind.LFS_LOCKS, Access.WRITE),
}
"""All that git and git-lfs ask, and what it takes."""


def ask(route: Route, request: str) -> Asked:
    method, _, target = request.partition(" ")
    return judge(route, method, target)


@pytest.mark.parametrize("request_", ASKED)
def test_what_git_asks_is_known_and_asked_of_the_upstream_as_it_is(request_: str):
    kind, access = ASKED[request_]
    asked = ask(WRITE, request_)
    target = "/base" + request_.partition(" ")[2]
    assert asked == Asked(kind, "me/app", target, access)


@pytest.mark.parametrize("request_", ASKED)
def test_a_route_for_reading_refuses_what_writes_and_says_so(request_: str):
    if ASKED[request_][1] is Access.READ:
        assert ask(READ, request_) == ask(WRITE, request_)
    else:
        with pytest.raises(Forbidden, match="the route 'work' is for reading only"):
            ask(READ, request_)


@pytest.mark.parametrize(
    ("path", "repository"),
    [
        ("/me/app.git", "me/app"),
        ("/me/app", "me/app"),
        ("/me/app.wiki.git", "me/app.wiki"),
        ("/me/group/sub/app.git", "me/group/sub/app"),
        ("/team/app.git", "team/app"),
        ("/me/~a+b_c-d.e", "me/~a+b_c-d.e"),
        ("/me/.github", "me/.github"),
        ("/me/.github.git", "me/.github"),
        ("/me/git-upload-pack", "me/git-upload-pack"),
        ("/me/info/refs", "me/info/refs"),
    ],
)
def test_a_repository_is_called_as_in_the_patterns(path: str, repository: str):
    asked = judge(WRITE, "GET", f"{path}/{FETCH_REFS}")
    assert (asked.repository, asked.direct) == (repository, False)
    assert asked.target == f"/base{path}/{FETCH_REFS}"


@pytest.mark.parametrize(
    "path", ["/you/app.git", "/team/app2", "/team/app.git.git", "/ME/app", "/me"]
)
def test_fetching_what_a_route_does_not_cover_goes_without_it(path: str):
    assert judge(WRITE, "GET", f"{path}/{FETCH_REFS}").direct
    assert judge(READ, "POST", f"{path}/info/lfs/objects/batch").direct


@pytest.mark.parametrize(
    "request_",
    [
        f"GET /you/app/{PUSH_REFS}",
        "POST /you/app/git-upload-pack",
        "POST /you/app/git-receive-pack",
        "GET /you/app/info/lfs/locks",
        "POST /you/app/info/lfs/locks",
    ],
)
@pytest.mark.parametrize("route", [READ, WRITE])
def test_nothing_else_of_it_is_allowed_and_the_rule_is_named(route: Route, request_: str):
    with pytest.raises(Forbidden, match=r"'work' leads to me/\*, team/app only, not to you/app"):
        ask(route, request_)


@pytest.mark.parametrize(
    "path",
    [
        "/me/../you/app",
        "/me/./app",
        "/me/.git",
        "/me/.git/app",
        "/me/..git",
        "/me//app",
        "//me/app",
        "me/app",
        "/me/app/",
        "/me/%2e%2e/you",
        "/me/app%2f",
        "/me/%61pp",
        "/me/app%00",
        "/me/app\0",
        "/me/app\n",
        "/me\\app",
        "/me/app;x=1",
        "/me/app:8080",
        "/me/@app",
        "/me/app#",
        "/me/app ",
        "/me/appä",
        "/me/\u2025/app",
        "/.lfs/me",
        "",
        "/" + "/".join("abcdefghijk"),
        "/me/" + "a" * MAX_PATH,
    ],
)
def test_a_path_that_could_mean_another_one_is_refused(path: str):
    for asked in (f"GET {path}/{FETCH_REFS}", f"POST {path}/git-upload-pack"):
        with pytest.raises(Forbidden):
            ask(WRITE, asked)


@pytest.mark.parametrize(
    "request_",
    [
        "GET /me/app/info/refs",
        "GET /me/app/info/refs?service=git-upload-pack&service=git-receive-pack",
        "GET /me/app/info/refs?service=git-upload-pack&x=1",
        "GET /me/app/info/refs?service=git-upload-pack?",
        "GET /me/app/info/refs?service=git-upload-archive",
        "GET /me/app/info/refs?service=",
        "POST /me/app/git-receive-pack?service=git-upload-pack",
        "POST /me/app/git-upload-pack?x",
        f"POST /me/app/{FETCH_REFS}",
        f"HEAD /me/app/{FETCH_REFS}",
        f"get /me/app/{FETCH_REFS}",
        "GET /me/app/git-receive-pack",
        "PUT /me/app/git-receive-pack",
        "GET /me/app/HEAD",
        "GET /me/app/objects/info/packs",
        "GET /me/app/objects/pack/pack-00.idx",
        "POST /me/app/git-upload-archive",
        "GET /me/app/info/lfs/objects/batch",
        "DELETE /me/app/info/lfs/locks",
        "GET /me/app/info/lfs/locks?token=1",
        "POST /me/app/info/lfs/locks/a/b/unlock",
        "POST /me/app/info/lfs/locks/../unlock",
        "POST /me/app/info/lfs/locks?x=1",
        "GET /api/v3/user",
        "POST /api/graphql",
        "GET /me/app/settings",
        "GET /",
    ],
)
def test_what_git_does_not_ask_is_refused(request_: str):
    with pytest.raises(Forbidden, match=r"git-lfs (may )?ask"):
        ask(WRITE, request_)


def test_service_may_be_written_with_escapes_and_is_asked_plainly():
    asked = judge(WRITE, "GET", "/me/app/info/refs?service=git%2dupload%2Dpack")
    assert asked.target == f"/base/me/app/{FETCH_REFS}"


def test_questions_about_locks_keep_their_words():
    query = "path=a%20b%26id%3D1&refspec=refs%2Fheads%2Fmain&limit=5"
    asked = judge(READ, "GET", f"/me/app/info/lfs/locks?{query}")
    assert asked.target == (
        "/base/me/app/info/lfs/locks?path=a+b%26id%3D1&refspec=refs%2Fheads%2Fmain&limit=5"
    )


words = st.sampled_from(
    [
        *("me", "you", "team", "app", "app.git", "..", ".", "", "%2e%2e", "%2f", "\\", "//", ";a"),
        *(".git", ".github", "..."),
        *("info", "refs", "git-upload-pack", "git-receive-pack", "lfs", "objects", "batch", "?"),
        *("?service=git-upload-pack", "?service=git-receive-pack", "&", "#", "\0", "@", ":", "~"),
    ]
)


@given(
    parts=st.lists(st.one_of(words, st.text(max_size=4)), max_size=9),
    end=st.sampled_from([f"/{FETCH_REFS}", "/git-receive-pack", "/info/lfs/objects/batch", ""]),
    method=st.sampled_from(["GET", "POST", "PUT"]),
)
def test_whatever_is_allowed_means_the_same_to_every_reader(
    parts: list[str], end: str, method: str
):
    try:
        asked = judge(WRITE, method, "/" + "/".join(parts) + end)
    except Forbidden:
        return
    url = urlsplit(f"https://git.example{asked.target}")
    assert url.netloc == "git.example"
    assert posixpath.normpath(unquote(url.path)) == url.path
    assert url.path.startswith(f"/base/{asked.repository}")
    assert asked.direct is not (
        asked.repository == "team/app" or asked.repository.startswith("me/")
    )


@pytest.mark.parametrize(
    ("location", "place"),
    [
        (f"https://git.example/base/me/new.git/{FETCH_REFS}", f"/work/me/new.git/{FETCH_REFS}"),
        (f"https://git.example:443/base/you/x/{FETCH_REFS}", f"/work/you/x/{FETCH_REFS}"),
        (f"/base/me/new/{FETCH_REFS}", f"/work/me/new/{FETCH_REFS}"),
        (f"//git.example/base/me/new/{FETCH_REFS}", f"/work/me/new/{FETCH_REFS}"),
    ],
)
def test_an_upstream_that_moved_a_repository_leads_to_the_same_route(location: str, place: str):
    asked = judge(WRITE, "GET", f"/me/app/{FETCH_REFS}")
    assert redirected(WRITE, asked, location) == place


@pytest.mark.parametrize(
    "location",
    [
        f"https://evil.example/base/me/app/{FETCH_REFS}",
        f"https://git.example.evil.example/base/me/app/{FETCH_REFS}",
        f"https://git.example@evil.example/base/me/app/{FETCH_REFS}",
        f"https://u:p@git.example/base/me/app/{FETCH_REFS}",
        f"http://git.example/base/me/app/{FETCH_REFS}",
        f"https://git.example:8443/base/me/app/{FETCH_REFS}",
        f"https://git.example/me/app/{FETCH_REFS}",
        f"https://git.example/basement/me/app/{FETCH_REFS}",
        f"https://git.example/base/../me/app/{FETCH_REFS}",
        f"https://git.example/base/me/app/{PUSH_REFS}",
        "https://git.example/base/me/app/git-upload-pack",
        "https://git.example/base/users/sign_in",
        "https://git.example/base/me/app/info/refs",
        "https://[/",
        "https://git.example:x/",
        f"/base/me/app/{FETCH_REFS}",
        "",
    ],
)
def test_one_that_leads_elsewhere_is_not_followed(location: str):
    asked = judge(WRITE, "GET", f"/me/app/{FETCH_REFS}")
    assert redirected(WRITE, asked, location) is None


def test_only_the_first_question_is_ever_asked_elsewhere():
    asked = judge(WRITE, "POST", "/me/app/git-upload-pack")
    for location in ("/base/me/new/git-upload-pack", f"/base/me/new/{FETCH_REFS}"):
        assert redirected(WRITE, asked, location) is None


@pytest.mark.parametrize(
    ("text", "origin", "path"),
    [
        ("https://GitHub.com", "https://github.com", ""),
        ("https://git.example:443/", "https://git.example", ""),
        ("http://127.0.0.1:8080/git/", "http://127.0.0.1:8080", "/git"),
        ("https://[::1]/a/b", "https://[::1]", "/a/b"),
    ],
)
def test_an_upstream_is_an_origin_and_a_path(text: str, origin: str, path: str):
    upstream = parse_upstream(text)
    assert (upstream.origin, upstream.path, str(upstream)) == (origin, path, origin + path)


@pytest.mark.parametrize(
    "text",
    [
        *("", "github.com", "ssh://git@github.com", "https://", "https://u@h", "https://u:p@h"),
        *("https://h?x", "https://h#x", "https://h:99999", "https://[::1"),
    ],
)
def test_an_upstream_has_no_more_than_that(text: str):
    with pytest.raises(InvalidArgument):
        parse_upstream(text)


def test_a_route_serves_the_principals_that_match():
    route = replace(READ, principals=("local", "team-*"))
    assert [route.serves(name) for name in ("local", "team-a", "team", "other")] == [
        *(True, True),
        *(False, False),
    ]


@pytest.mark.parametrize("name", ["", "A", "-a", "a/b", "a.b", "a" * 33, ".lfs", "a\n"])
def test_a_route_is_called_by_a_plain_word(name: str):
    assert parse_route_name("a-1_b") == "a-1_b"
    with pytest.raises(InvalidArgument):
        parse_route_name(name)


def test_where_a_forge_has_its_api():
    assert api_of(Forge.GITHUB, parse_upstream("https://github.com")) == "https://api.github.com"
    own = parse_upstream("https://git.example/x")
    assert api_of(None, own) == ""
