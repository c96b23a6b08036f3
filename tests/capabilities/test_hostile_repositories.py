"""Repositories on the user's machine that a stranger wrote: in a project, or an archive."""

from __future__ import annotations

from pathlib import Path

import pytest

from box_mcp.capabilities.hostgit import run
from box_mcp.capabilities.hostgit.find import Repository, find_repository
from box_mcp.capabilities.hostgit.going import BUNDLE, Said
from box_mcp.capabilities.hostgit.receive import receive
from box_mcp.capabilities.hostgit.run import Leash
from box_mcp.capabilities.hostroots import HostRoots
from box_mcp.errors import HostForbidden
from tests.support.usergit import commit, git, refs, repository_at

SECRET = "machine git.example login me password correct-horse\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The one directory that tools may touch."""
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "projects").mkdir()
    return tmp_path / "projects"


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """Another repository of the user's, elsewhere."""
    private = repository_at(tmp_path / "private")
    git(private, "pack-refs", "--all")
    git(private, "repack", "-adq")
    return private / ".git"


@pytest.fixture
def planted(root: Path) -> Path:
    """A directory of a project, of files such as any project may have."""
    planted = root / "project" / "tests" / "data"
    (planted / "objects" / "info").mkdir(parents=True)
    (planted / "refs").mkdir()
    (planted / "logs" / "refs").mkdir(parents=True)
    (planted / "HEAD").write_text("ref: refs/heads/main\n")
    (planted / "config").write_text("[core]\n\tbare = true\n")
    return planted


def found(root: Path, path: Path) -> Repository:
    return find_repository(HostRoots((root,)), str(path))


@pytest.mark.parametrize(
    "link",
    [
        *("objects/pack", "objects/12", "packed-refs", "refs/heads", "refs/heads/main", "shallow"),
        *("HEAD", "config", "config.worktree", "index", "info", "worktrees", "logs/refs/heads"),
    ],
)
def test_no_link_in_a_repository_leads_to_what_may_not_be_touched(
    root: Path, private: Path, planted: Path, link: str
):
    assert found(root, planted).git_dir == planted
    (planted / link).unlink(missing_ok=True)
    (planted / link).parent.mkdir(exist_ok=True)
    (planted / link).symlink_to(private / link)
    with pytest.raises(HostForbidden, match="outside of the directories"):
        found(root, planted)


def test_links_of_a_repository_are_followed_through_links(root: Path, private: Path, planted: Path):
    (root / "aside").mkdir()
    (planted / "refs" / "heads").symlink_to(root / "aside")
    (root / "aside" / "again").symlink_to(root / "aside")
    assert found(root, planted).common == planted
    (root / "aside" / "main").symlink_to(private / "packed-refs")
    with pytest.raises(HostForbidden, match="outside of the directories"):
        found(root, planted)


def test_no_link_in_borrowed_objects_does_either(root: Path, private: Path, planted: Path):
    lender = repository_at(root / "lender") / ".git" / "objects"
    (planted / "objects" / "info" / "alternates").write_text(f"{lender}\n{root}/gone\n")
    assert found(root, planted).objects == planted / "objects"
    (lender / "ff").symlink_to(private / "objects" / "pack")
    with pytest.raises(HostForbidden, match="outside of the directories"):
        found(root, planted)


def test_what_is_not_looked_at_may_be_anywhere(root: Path, private: Path):
    mine = repository_at(root / "app")
    (mine / ".git" / "lfs").symlink_to(private)
    assert found(root, mine).checkout == mine


def brought(root: Path, mine: Path) -> str:
    """A commit that a box has made, which is in the scratch directory now."""
    box = root.parent / "box"
    git(root, "clone", "-q", str(mine), str(box))
    tip = commit(box, "work")
    scratch = root.parent / "scratch"
    scratch.mkdir()
    git(box, "bundle", "create", "-q", str(scratch / BUNDLE), "main", "--not", "origin/main")
    return tip


def taken(root: Path, mine: Path, tip: str, seen: str = "") -> None:
    said = Said("", "", "main", "box/fix", seen, tip, 1)
    receive(Leash(), found(root, mine), root.parent / "scratch", said, force=True)
    assert refs(mine)["refs/heads/box/fix"] == tip


def test_no_file_is_told_that_settings_take_for_a_list(root: Path):
    mine = repository_at(root / "app")
    tip = brought(root, mine)
    git(mine, "config", "fetch.fsck.skipList", str(root.parent / "secret"))
    taken(root, mine, tip)


def test_no_program_is_run_that_is_to_fetch_what_is_missing(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delitem(run.ENVIRONMENT, "GIT_NO_LAZY_FETCH")  # which older ones do not know
    mine = repository_at(root / "app")
    commit(mine, "more")
    tip = brought(root, mine)
    git(mine, "checkout", "-q", "--orphan", "other")
    other = commit(mine, "other")
    git(mine, "branch", "box/fix")
    missing = git(mine, "rev-parse", "main~1")
    ran = root.parent / "ran"
    git(mine, "config", "core.repositoryFormatVersion", "1")
    git(mine, "config", "extensions.partialClone", "x")
    git(mine, "config", "remote.x.promisor", "true")
    git(mine, "config", "remote.x.url", str(mine))
    git(mine, "config", "remote.x.uploadPack", f"touch {ran}; false")
    (mine / ".git" / "objects" / missing[:2] / missing[2:]).unlink()
    taken(root, mine, tip, other)
    assert not ran.exists()
