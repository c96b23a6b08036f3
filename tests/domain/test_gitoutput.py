"""What git prints for programs: read from git itself, and from who pretends to be git."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_mcp.capabilities.git import DIFF, GIT, LOOKS, PLACE, STATE
from box_mcp.domain.gitoutput import (
    BODY_FIELD,
    LOG_FIELDS,
    Change,
    Numbers,
    Pushed,
    Summary,
    parse_committed,
    parse_log,
    parse_numbers,
    parse_pushed,
    parse_status,
    take_summary,
)
from tests.support.gitserver import ENVIRONMENT, git

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STATUS = f"{LOOKS}; {PLACE}; {STATE}; exec {GIT} status --porcelain=v2 --branch --show-stash -z"
LOG = f"exec {GIT} log -z --date=format:%Y --numstat --format='{LOG_FIELDS}{BODY_FIELD}'"
SHELLS = ("bash", "dash")
ODD = [b"caf\xe9", b"new\nline", b"1 .M N... x", b"\x01", b"- - x", b"tab\tbed", b" "]
LETTER = "x\n" * 20


def said(command: str, where: Path, shell: str = "bash") -> bytes:
    """What a command prints."""
    done = subprocess.run(
        [shell, "-c", command], cwd=where, env=ENVIRONMENT, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """With one commit of a file, whose branch has no upstream."""
    git("init", "--quiet", "--initial-branch=main", str(tmp_path))
    (tmp_path / "file").write_text(LETTER)
    git("add", ".", cwd=tmp_path)
    git("commit", "--quiet", "-m", "One", cwd=tmp_path)
    return tmp_path


def plant(where: Path, names: list[bytes]) -> None:
    for name in names:
        with open(bytes(where) + b"/" + name, "wb") as file:  # noqa: PTH123 - no text
            file.write(name * 20)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_status_is_read_whatever_files_are_called(repository: Path, shell: str):
    plant(repository, ODD)
    status = parse_status(said(STATUS, repository, shell))
    assert sorted(change.path for change in status.untracked) == sorted(ODD)
    assert not status.clean
    git("add", ".", cwd=repository)
    (repository / "file").rename(repository / "moved")
    git("add", "--all", cwd=repository)
    (repository / "moved").write_text("y")
    inside = repository / "inside"
    inside.mkdir()
    status = parse_status(said(STATUS, inside, shell))
    assert status.root == bytes(repository)
    assert Change("R", b"moved", b"file") in status.staged
    assert {Change("A", name) for name in ODD} < set(status.staged)
    assert status.unstaged == [Change("M", b"moved")]
    assert (status.branch, status.upstream, status.state) == ("main", None, "")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_status_tells_what_the_repository_is_in_the_middle_of(repository: Path, shell: str):
    def state() -> str:
        return parse_status(said(STATUS, repository, shell)).state

    git("checkout", "--quiet", "-b", "a/topic", cwd=repository)
    (repository / "file").write_text("topic")
    git("commit", "--quiet", "-am", "Topic", cwd=repository)
    git("checkout", "--quiet", "main", cwd=repository)
    (repository / "file").write_text("main")
    git("commit", "--quiet", "-am", "Main", cwd=repository)
    for command, words in [
        ("merge a/topic", "merging"),
        ("cherry-pick a/topic", "cherry-picking"),
        ("revert --no-edit HEAD~1", "reverting"),
    ]:
        said(f"git {command} || :", repository)
        assert state() == words
        status = parse_status(said(STATUS, repository, shell))
        assert [change.path for change in status.conflicts] == [b"file"]
        said(f"git {command.split()[0]} --abort", repository)
    said("git checkout -q a/topic; git rebase main || :", repository)
    assert state() == "rebasing a/topic 1/1"
    said("git rebase --abort; git format-patch -1 --stdout main > p; git am p || :", repository)
    assert state() == "applying patches"
    said("git am --abort; git bisect start", repository)
    assert state() == "bisecting"


def test_ahead_behind_and_stashes_are_told_and_where_there_is_no_commit(repository: Path):
    git("branch", "up", cwd=repository)
    git("branch", "--set-upstream-to=up", cwd=repository)
    git("commit", "--quiet", "--allow-empty", "-m", "Two", cwd=repository)
    (repository / "file").write_text("y")
    git("stash", cwd=repository)
    status = parse_status(said(STATUS, repository))
    assert (status.upstream, status.ahead, status.behind, status.stashed) == ("up", 1, 0, 1)
    assert status.clean
    git("checkout", "--quiet", "--orphan", "new", cwd=repository)
    git("rm", "--quiet", "-r", "--cached", ".", cwd=repository)
    fresh = parse_status(said(STATUS, repository))
    assert (fresh.branch, fresh.commit) == ("new", None)


def test_a_log_is_read_whatever_files_and_people_are_called(repository: Path):
    plant(repository, ODD)
    git("add", ".", cwd=repository)
    git("commit", "-q", "-m", "Two\n\nBody\n\nmore", cwd=repository, GIT_AUTHOR_NAME="a\x01b")
    git("mv", "file", "moved", cwd=repository)
    git("commit", "--quiet", "-m", "Three", cwd=repository)
    output = said(LOG, repository)
    three, two, one = parse_log(output, body=True, whole=True)
    assert three.files == [Numbers(0, 0, b"moved", b"file")]
    assert {found.path for found in two.files} == set(ODD)
    assert (two.subject, two.body, two.refs) == ("Two", "Body\n\nmore\n", "")
    assert (one.subject, one.date, one.author, one.body) == ("One", "2023", "Ada", "")
    assert three.refs == "HEAD -> main"
    whole = [three, two, one]
    for end in range(len(output)):
        part = parse_log(output[:end], body=True, whole=False)
        for commit, found in zip(whole, part, strict=False):
            assert found.name == commit.name
            assert found.files == commit.files[: len(found.files)]


def test_of_a_commit_that_is_all_that_came_a_part_is_read(repository: Path):
    output = said(LOG, repository)
    (found,) = parse_log(output[: output.index(b"One") + 2], body=False, whole=False)
    assert found.subject == "On"


def test_numbers_are_read_in_pages(repository: Path):
    plant(repository, ODD)
    (repository / "binary").write_bytes(b"\0" * 100)
    git("mv", "file", "moved", cwd=repository)
    git("add", ".", cwd=repository)
    diff = f"exec {GIT} {DIFF} --numstat -z --shortstat --cached"
    summary, output = take_summary(said(diff, repository))
    assert summary == Summary(len(ODD) + 2, sum(1 + 20 * name.count(b"\n") for name in ODD), 0)
    whole, used = parse_numbers(output)
    assert used == len(output)
    assert Numbers(None, None, b"binary") in whole
    assert Numbers(0, 0, b"moved", b"file") in whole
    assert {found.path for found in whole} == {*ODD, b"binary", b"moved"}
    for end in range(len(output)):
        found, used = parse_numbers(output[:end])
        assert found + parse_numbers(output[used:])[0] == whole


def test_what_was_committed_is_told_on_branches_and_off_them(repository: Path):
    def commit(*words: str) -> tuple[str | None, str]:
        command = ["git", "commit", "--allow-empty", "-m", "Two] [x abcdef1] y", *words]
        done = subprocess.run(
            command, cwd=repository, env=ENVIRONMENT, capture_output=True, check=True
        )
        return parse_committed(done.stdout)

    assert commit() == ("main", git("rev-parse", "--short", "HEAD", cwd=repository))
    git("checkout", "--quiet", "--detach", cwd=repository)
    assert commit("--amend") == (None, git("rev-parse", "--short", "HEAD", cwd=repository))
    git("checkout", "--quiet", "--orphan", "a/new", cwd=repository)
    assert commit()[0] == "a/new"


def test_what_was_pushed_is_told(repository: Path, tmp_path: Path):
    remote = tmp_path / "remote.git"
    git("init", "--quiet", "--bare", str(remote))
    push = f"git push --porcelain {remote} main:main"
    assert parse_pushed(said(push, repository)) == [Pushed("*", "refs/heads/main", "[new branch]")]
    assert [one.flag for one in parse_pushed(said(push, repository))] == ["="]
    git("commit", "--quiet", "--amend", "-m", "Other", cwd=repository)
    (rejected,) = parse_pushed(said(f"{push} || :", repository))
    assert (rejected.flag, rejected.summary) == ("!", "[rejected] (non-fast-forward)")


GARBAGE = st.lists(
    st.sampled_from(
        [b"# branch.ab", b"# stash x", b"1 ", b"1 MM ", b"2 R. ", b"u ", b"? x", b"\x01"]
    )
    | st.sampled_from([b"1\t2\tx", b"-\t-\t", b"\n1\t1\t", b"", b"[main abc"])
    | st.binary(max_size=30)
).map(b"\0".join)


def read_log(output: bytes) -> object:
    return parse_log(output, body=True, whole=True)


def read_cut_log(output: bytes) -> object:
    return parse_log(output, body=False, whole=False)


@pytest.mark.parametrize(
    "parse",
    [parse_status, parse_numbers, read_log, read_cut_log, parse_committed, parse_pushed],
)
@given(GARBAGE)
def test_who_pretends_to_be_git_gets_nothing_but_a_value_error(
    parse: Callable[[bytes], object], output: bytes
):
    with suppress(ValueError):
        parse(output)
