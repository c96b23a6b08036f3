"""The configuration for git in boxes, as the real git reads it."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from box_mcp.domain.gitconfig import ROUTES, Identity, gitconfig
from box_mcp.domain.routes import Route, parse_upstream
from tests.support.gitserver import ENVIRONMENT

if TYPE_CHECKING:
    from pathlib import Path

ADA = Identity("Ada Lovelace", "ada@example.org")
GITHUB = Route("github", parse_upstream("https://github.com"))
ODD_PORT = Route("odd", parse_upstream("https://git.example.org:8443"))
LOCAL = Route("local", parse_upstream("http://127.0.0.1:8080"))
SIX = Route("six", parse_upstream("https://[2001:db8::7]"))
LAB = Route("lab", parse_upstream("https://example.org/git/lab/"))
TEAM = Route("team", parse_upstream("https://github.com/team"))
MINE = Route("mine", parse_upstream("https://gitlab.com"), repositories=("me/*", "we/app"))
REST = Route("rest", parse_upstream("https://gitlab.com"))
THEIRS = Route("theirs", parse_upstream("https://gitlab.com"), repositories=("*/public", "me/x-*"))

ONE_EACH = (GITHUB, ODD_PORT, LOCAL, SIX, LAB)


def read(folder: Path, text: str, *arguments: str) -> str:
    """What git says whose system-wide configuration is `text`."""
    file = folder / "gitconfig"
    file.write_bytes(text.encode())
    env = {**ENVIRONMENT, "GIT_CONFIG_SYSTEM": str(file), "HOME": str(folder)}
    del env["GIT_CONFIG_NOSYSTEM"]
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, env=env, capture_output=True, check=True).stdout.decode()


def led(folder: Path, routes: tuple[Route, ...], url: str) -> str:
    """The URL that git uses for another, shortened where it is a route's."""
    text = gitconfig(routes)
    found = read(folder, text, "ls-remote", "--get-url", url).removesuffix("\n")
    return found.replace(ROUTES, ">")


@pytest.mark.parametrize(
    ("url", "to"),
    [
        ("https://github.com/me/app.git", ">github/me/app.git"),
        ("https://github.com/me/app", ">github/me/app"),
        ("git@github.com:me/app.git", ">github/me/app.git"),
        ("git@github.com:/me/app.git", ">github/me/app.git"),
        ("ssh://git@github.com/me/app.git", ">github/me/app.git"),
        ("ssh://git@github.com:22/me/app.git", ">github/me/app.git"),
        ("ssh://git@ssh.github.com:443/me/app.git", ">github/me/app.git"),
        ("https://git.example.org:8443/me/app", ">odd/me/app"),
        ("ssh://git@git.example.org:8443/me/app", ">odd/me/app"),
        ("ssh://git@git.example.org/me/app", ">odd/me/app"),
        ("git@git.example.org:me/app", ">odd/me/app"),
        ("http://127.0.0.1:8080/me/app", ">local/me/app"),
        ("git@127.0.0.1:me/app", ">local/me/app"),
        ("https://[2001:db8::7]/me/app", ">six/me/app"),
        ("git@[2001:db8::7]:me/app", ">six/me/app"),
        ("ssh://git@[2001:db8::7]/me/app", ">six/me/app"),
        ("https://example.org/git/lab/me/app", ">lab/me/app"),
        ("git@example.org:git/lab/me/app", ">lab/me/app"),
        ("ssh://git@example.org/git/lab/me/app", ">lab/me/app"),
    ],
)
def test_urls_of_a_routes_server_lead_to_the_route(tmp_path: Path, url: str, to: str):
    assert led(tmp_path, ONE_EACH, url) == to


@pytest.mark.parametrize(
    "url",
    [
        "https://github.com.example.net/me/app",
        "https://git.example.org/me/app",
        "http://127.0.0.1:80801/me/app",
        "https://example.org/git/me/app",
        "https://example.org/git/laboratory/me/app",
        "git@example.org:other/app",
        "me@example.net:app",
        "file:///workspace/app",
        "/workspace/app",
        "http://127.0.0.1:3129/github/me/app",
    ],
)
def test_other_urls_stay_as_they_are(tmp_path: Path, url: str):
    assert led(tmp_path, ONE_EACH, url) == url.replace(ROUTES, ">")


@pytest.mark.parametrize(
    ("url", "to"),
    [
        ("git@github.com:me/app", "https://github.com/me/app"),
        ("ssh://git@gitlab.com/me/app", "https://gitlab.com/me/app"),
        ("ssh://git@altssh.gitlab.com:443/me/app", "https://gitlab.com/me/app"),
        ("git@bitbucket.org:me/app", "https://bitbucket.org/me/app"),
        ("git@codeberg.org:/me/app", "https://codeberg.org/me/app"),
        ("https://github.com/me/app", "https://github.com/me/app"),
    ],
)
def test_forges_without_a_route_are_asked_by_https(tmp_path: Path, url: str, to: str):
    assert led(tmp_path, (), url) == to


@pytest.mark.parametrize(
    ("url", "to"),
    [
        ("https://gitlab.com/me/app", ">mine/me/app"),
        ("git@gitlab.com:me/app", ">mine/me/app"),
        ("https://gitlab.com/we/app.git", ">mine/we/app.git"),
        ("https://gitlab.com/me/x-ray", ">theirs/me/x-ray"),
        ("https://gitlab.com/they/public", ">rest/they/public"),
        ("ssh://git@gitlab.com/they/app", ">rest/they/app"),
        ("https://github.com/team/app", ">team/app"),
        ("git@github.com:team/app", ">team/app"),
        ("https://github.com/me/app", ">github/me/app"),
        ("git@github.com:me/app", ">github/me/app"),
    ],
)
def test_of_several_routes_to_a_server_each_has_its_own_repositories(
    tmp_path: Path, url: str, to: str
):
    assert led(tmp_path, (MINE, REST, THEIRS, TEAM, GITHUB), url) == to
    assert led(tmp_path, (GITHUB, TEAM, THEIRS, MINE, REST), url) == to


def test_a_route_that_is_for_some_repositories_is_asked_for_all_where_it_is_the_only_one(
    tmp_path: Path,
):
    assert led(tmp_path, (MINE,), "https://gitlab.com/they/app") == ">mine/they/app"


def test_what_a_box_says_of_the_user_goes_before_what_the_file_says(tmp_path: Path):
    assert read(tmp_path, gitconfig((), ADA), "config", "user.name") == "Ada Lovelace\n"
    (tmp_path / "mine").write_text("[user]\n\tname = Me\n")
    text = gitconfig((), ADA).replace("/etc/gitconfig", str(tmp_path / "mine"))
    assert read(tmp_path, text, "config", "user.name") == "Me\n"
    assert read(tmp_path, text, "config", "user.email") == "ada@example.org\n"


def test_no_proxy_is_between_git_and_the_routes(tmp_path: Path):
    text = gitconfig(ONE_EACH)
    assert read(tmp_path, text, "config", "--get-urlmatch", "http.proxy", f"{ROUTES}x") == "\n"


WILD = 'a "b" \\ \n\t\b\r\x7f#;[x]\n[core]\n\tsshCommand = x \U0001f600 é='


@settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.text(), st.text())
@example(WILD, "  # ")
@example("\udcff", "\0x\\")
@example("\\", '"')
def test_whatever_a_name_has_in_it_is_nothing_but_that_name(tmp_path: Path, name: str, email: str):
    found = read(tmp_path, gitconfig(ONE_EACH, Identity(name, email)), "config", "--list", "-z")
    pairs = [pair.partition("\n")[::2] for pair in found.removesuffix("\0").split("\0")]
    said = [text.encode(errors="replace").decode().replace("\0", "") for text in (name, email)]
    assert pairs[:2] == [("user.name", said[0]), ("user.email", said[1])]
    plain = read(tmp_path, gitconfig(ONE_EACH), "config", "--list", "-z").removesuffix("\0")
    assert pairs[2:] == [pair.partition("\n")[::2] for pair in plain.split("\0")]


@pytest.mark.parametrize("odd", ['a"b', "a\\", "a b", "[core]", "é"])
def test_odd_settings_of_routes_make_no_other_configuration(tmp_path: Path, odd: str):
    route = Route("odd", parse_upstream(f"https://example.org/{odd}"))
    other = Route("other", route.upstream, repositories=(f"{odd}/*", f"me/{odd}\n[core]\nx=y"))
    found = read(tmp_path, gitconfig((route, other)), "config", "--list", "--name-only")
    assert "core.x" not in found
    assert led(tmp_path, (route,), f"https://example.org/{odd}/me/app") == ">odd/me/app"
