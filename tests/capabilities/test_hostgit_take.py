"""What the user does with a box's branch: looks at it, and merges it wholly or not at all."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from box_mcp.capabilities.hostgit import run
from box_mcp.capabilities.hostgit.take import coming, difference, merge
from box_mcp.errors import HostFailed, InvalidArgument, RepositoryRefused
from tests.support.commands import box_mcp
from tests.support.usergit import commit, contents, git, refs, repository_at

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's, with settings of git's."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    (home / ".gitconfig").write_text("[user]\n name = A User\n email = user@example.com\n")
    return home


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A repository with one branch that came out of a box, and a commit of the user's since."""
    mine = repository_at(tmp_path / "app")
    came_home(mine, "src/new.py", "one\n")
    commit(mine, "since")
    return mine


def came_home(mine: Path, name: str, text: str = "from a box\n") -> None:
    """A commit on box/fix."""
    git(mine, "checkout", "-q", "-B", "box/fix")
    commit(mine, name, text)
    git(mine, "checkout", "-q", "main")


async def merged(mine: Path, name: str = "fix"):
    return await merge(mine, name, (await coming(mine, name)).commit)


async def refusal(mine: Path, name: str = "fix") -> str:
    """Why nothing is merged; and nothing is."""
    before = as_it_is(mine)
    with pytest.raises(RepositoryRefused) as refused:
        await merged(mine, name)
    assert as_it_is(mine) == before
    return refused.value.explain()


def as_it_is(mine: Path) -> object:
    """All that a user sees of a repository."""
    files = {path: it for path, it in contents(mine).items() if not path.startswith(".git")}
    return files, refs(mine), git(mine, "status", "-sb"), (mine / ".git" / "HEAD").read_text()


async def test_a_branch_is_shown_as_what_it_did_itself(mine: Path):
    before = contents(mine)
    shown = await difference(mine, "fix", stat=False)
    assert "+one\n" in shown.text
    assert "since" not in shown.text
    assert shown.branch == "box/fix"
    assert "src/new.py | 1 +" in (await difference(mine, "box/fix", stat=True)).text
    assert contents(mine) == before


async def test_a_branch_is_merged_into_the_one_that_is_checked_out(mine: Path):
    await merged(mine)
    assert (mine / "src" / "new.py").read_text() == "one\n"
    assert git(mine, "log", "-1", "--format=%s by %an") == "Merge branch 'box/fix' by A User"
    assert git(mine, "status", "--porcelain") == ""
    assert "main has all of box/fix already" in await refusal(mine)
    assert (await difference(mine, "fix", stat=False)).text == ""


async def test_what_can_not_be_merged_is_told_and_left_as_it_is(mine: Path):
    assert "it has no branch box/nope. Nothing in it was changed. From boxes it has: fix" in (
        await refusal(mine, "nope")
    )
    (mine / "README").write_text("dirty\n")
    assert "it has uncommitted changes (README)" in await refusal(mine)
    git(mine, "checkout", "-q", "README")
    (mine / "src").mkdir()
    (mine / "src" / "new.py").write_text("the user's own, not in git\n")
    assert "untracked working tree files would be overwritten" in await refusal(mine)
    (mine / "src" / "new.py").unlink()
    git(mine, "checkout", "-q", "--detach")
    assert "no branch is checked out" in await refusal(mine)
    git(mine, "checkout", "-q", "box/fix")
    assert "box/fix itself is checked out" in await refusal(mine)
    with pytest.raises(InvalidArgument):
        await difference(mine, "--output=x", stat=True)
    with pytest.raises(HostFailed, match="not a git repository"):
        await difference(mine.parent, "fix", stat=True)


async def test_where_both_sides_changed_the_same_the_user_has_the_choice(mine: Path):
    came_home(mine, "README", "theirs\n")
    commit(mine, "README", "ours\n")
    told = await refusal(mine)
    assert "both sides changed the same in README" in told
    assert "`git merge box/fix`" in told


async def test_a_branch_that_was_changed_after_the_look_is_not_merged(mine: Path):
    seen = await coming(mine, "fix")
    came_home(mine, "later")
    with pytest.raises(RepositoryRefused, match="changed meanwhile"):
        await merge(mine, "fix", seen.commit)


async def test_no_name_out_of_a_box_controls_the_users_terminal(mine: Path):
    name = "\x9b31m\u202e"
    came_home(mine, name)
    (mine / name).write_text("the user's own\n")
    assert "\\x9b31m\\u202e" in await refusal(mine)


async def test_a_difference_that_nobody_can_read_is_not_kept_in_memory(
    mine: Path, monkeypatch: pytest.MonkeyPatch
):
    came_home(mine, "long", "all work and no play\n" * 3_000_000)
    monkeypatch.setattr(run, "MAX_SAID", 1024**2)
    tracemalloc.start()
    try:
        with pytest.raises(HostFailed, match="printed more than anybody reads"):
            await difference(mine, "fix", stat=False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * 1024**2


async def test_nothing_that_a_branch_brings_is_run_by_its_merge(mine: Path, tmp_path: Path):
    canary = tmp_path / "ran"
    program = f"touch {canary}; cat"
    git(mine, "config", "core.hooksPath", "hooks")
    git(mine, "config", "core.fsmonitor", f"touch {canary};")
    for key in ("filter.x.smudge", "filter.x.clean", "merge.x.driver", "diff.x.textconv"):
        git(mine, "config", key, program)
    git(mine, "config", "filter.x.required", "true")
    git(mine, "config", "diff.external", program)
    git(mine, "checkout", "-q", "-B", "box/fix", "main")
    (mine / "hooks").mkdir()
    for name in ("post-merge", "post-checkout", "pre-merge-commit", "commit-msg", "post-commit"):
        (mine / "hooks" / name).write_text(f"#!/bin/sh\ntouch {canary}\n")
        (mine / "hooks" / name).chmod(0o755)
    (mine / ".gitattributes").write_text("* diff=x\n*.x filter=x merge=x\n")
    (mine / "a.x").write_text("a\n")
    git(mine, "-c", "core.hooksPath=/nowhere", "-c", "core.fsmonitor=", "add", ".")
    git(mine, "-c", "core.hooksPath=/nowhere", "-c", "core.fsmonitor=", "commit", "-qm", "Bad")
    git(mine, "-c", "core.hooksPath=/nowhere", "-c", "core.fsmonitor=", "checkout", "-q", "main")
    commit(mine, "ours")
    canary.unlink()
    await difference(mine, "fix", stat=False)
    done = await merged(mine)
    assert done.unfiltered == ["a.x"]
    assert (mine / "hooks" / "post-merge").exists()
    assert not canary.exists()


async def test_a_program_that_can_not_be_put_out_of_use_is_not_risked(mine: Path, tmp_path: Path):
    for key in ("filter.a=b.smudge", "merge.a=b.driver"):
        git(mine, "config", key, f"touch {tmp_path}/ran")
        with pytest.raises(HostFailed, match="can't be put out of use"):
            await coming(mine, "fix")
        git(mine, "config", "--unset", key)
    await merged(mine)


def test_the_command_asks_before_it_brings_what_acts_unasked(mine: Path, home: Path):
    came_home(mine, ".vscode/tasks.json", "\x1b[31m{}\n")
    env = {**os.environ, "HOME": str(home)}
    shown = box_mcp("diff", "fix", "--repo", str(mine), env=env)
    assert "+\\x1b[31m{}" in shown.stdout
    assert ".vscode/tasks.json: editors run what it says" in shown.stderr
    box_mcp("merge", "fix", "--repo", str(mine), code=1, stdin="n\n", env=env)
    assert not (mine / ".vscode").exists()
    box_mcp("merge", "fix", "--repo", str(mine), stdin="y\n", env=env)
    assert (mine / ".vscode").exists()
    again = box_mcp("merge", "fix", "--repo", str(mine), code=1, env=env).stderr
    assert again.startswith(f"Error: {mine} was left as it is: main has all of box/fix already.")
