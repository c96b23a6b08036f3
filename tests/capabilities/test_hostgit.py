"""The user's own repository, into a box and home again: real git at both ends, no engine."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import stat
import threading
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from box_mcp.capabilities.hostgit import carrying
from box_mcp.capabilities.hostgit import proof as proofs
from box_mcp.capabilities.hostgit.box import parcel_path
from box_mcp.capabilities.hostgit.carrying import HostGit, leashed, workspace
from box_mcp.capabilities.hostgit.pack import origin_for_a_box
from box_mcp.capabilities.hostgit.run import guarded
from box_mcp.capabilities.hostroots import HostRoots
from box_mcp.capabilities.shell import Shell
from box_mcp.capabilities.transfer import Transfers
from box_mcp.channel import open_channel
from box_mcp.domain.box import Box, BoxSpec, State
from box_mcp.domain.names import LOCAL, BoxId, BoxName, Principal
from box_mcp.errors import (
    BoxBroken,
    GitFailed,
    HostFailed,
    HostForbidden,
    InvalidArgument,
    RepositoryRefused,
)
from tests.support.boxd import LocalBoxd, local_boxd
from tests.support.lines import Line
from tests.support.usergit import commit, contents, git, refs, repository_at

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from box_mcp.capabilities.hostgit.going import Going, Home
    from box_mcp.capabilities.hostgit.run import Leash
    from box_mcp.capabilities.shell import Outcome

pytestmark = pytest.mark.anyio

BOX = BoxId("box-aaaaaaaa")
STRANGER = Principal("stranger")
SERVERS_OWN = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY")


@pytest.fixture(scope="module")
def boxd() -> Iterator[LocalBoxd]:
    """A box; its ``/tmp`` is this machine's, since its commands see that."""
    for boxd in local_boxd():
        (boxd.root / "tmp").symlink_to("/tmp")
        yield boxd


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's, with settings of git's; the server's own environment would mislead git."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    (home / ".gitconfig").write_text("[user]\n name = A User\n email = user@example.com\n")
    for name in SERVERS_OWN:
        monkeypatch.setenv(name, str(tmp_path / "nowhere"))
    return home


@pytest.fixture
def root(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The one directory that tools may touch; nothing of a call is left behind in the end."""
    root = tmp_path / "projects"
    root.mkdir()
    parcels: list[str] = []

    def noted() -> str:
        parcels.append(parcel_path())
        return parcels[-1]

    monkeypatch.setattr(carrying, "parcel_path", noted)
    yield root
    assert not list((tmp_path / "state" / "git").glob("*"))
    assert not [path for path in parcels if os.path.lexists(path)]


@pytest.fixture
def mine(root: Path) -> Path:
    """A repository of the user's."""
    return repository_at(root / "app")


class Bench:
    """One box, with what can be done between it and the user's machine."""

    def __init__(self, git: HostGit) -> None:
        self.git = git

    async def clone(self, text: str, path: str, **options: Any) -> Going:
        going, outcome = await self.git.clone(
            text, path, **options, yield_after=20, on_output=unheard
        )
        assert outcome.record.exit == 0
        return going

    async def push(self, path: str, branch: str = "", *, force: bool = False) -> Home:
        _, home = await self.git.push(path, branch, force=force)
        return home

    async def refusal(self, path: str, branch: str = "", *, force: bool = False) -> str:
        with pytest.raises(RepositoryRefused) as refused:
            await self.push(path, branch, force=force)
        return refused.value.explain()

    async def run(self, command: str) -> str:
        outcome = await self.git.shell.run(command, timeout=20, yield_after=20, max_output=9000)
        said = (outcome.head + outcome.tail).decode(errors="surrogateescape")
        assert outcome.record.exit == 0, said
        return said.strip()

    async def commit(self, path: str, name: str) -> str:
        who = "git -c user.name=agent -c user.email=agent@example.com"
        await self.run(
            f"cd {path} && echo {name} >> {name} && git add . && {who} commit -qm 'Add {name}'"
        )
        return await self.run(f"cd {path} && git rev-parse HEAD")


def give_away(directory: Path) -> None:
    for path in (directory, *directory.rglob("*")):
        os.chown(path, 12345, 12345)


async def unheard(*_: object) -> None:
    pass


@asynccontextmanager
async def bench(
    boxd: LocalBoxd, root: Path, name: str | None = "fix", principal: Principal = LOCAL
) -> AsyncGenerator[Bench, None]:
    ours, theirs = socket.socketpair()
    with theirs, socket.socket(socket.AF_UNIX) as link:
        link.connect(str(boxd.socket))
        socket.send_fds(link, [b"-"], [theirs.fileno()] * 2)
    line = Line(*await asyncio.open_unix_connection(sock=ours))
    owned = BoxName(name) if name else None
    box = Box(BOX, BoxSpec("image", 1, 1), 0.0, State.RUNNING, principal, owned)
    with anyio.fail_after(30):
        channel = await open_channel(BOX, line)
        async with anyio.create_task_group() as group:
            group.start_soon(channel.receive_forever)
            shell, transfers = Shell(channel), Transfers(channel)
            state = root.parent / "state"
            roots = HostRoots((root,))
            try:
                yield Bench(
                    HostGit(roots, state, principal, box, shell, transfers, unheard, unheard)
                )
            finally:
                await channel.aclose()


# Into the box


async def test_history_branches_and_tags_come_along_and_nothing_is_written_to_the_users(
    boxd: LocalBoxd, root: Path, mine: Path
):
    first = git(mine, "rev-parse", "HEAD")
    git(mine, "tag", "-am", "One", "v1")
    git(mine, "branch", "other", "main")
    second = commit(mine, "second")
    git(mine, "pack-refs", "--all")
    git(mine, "remote", "add", "origin", "https://user:secret@git.example.com/me/app.git")
    git(mine, "update-ref", "refs/remotes/origin/main", first)
    git(mine, "branch", "-q", "--set-upstream-to=origin/main", "main")
    before = contents(mine)
    async with bench(boxd, root) as box:
        going = await box.clone("app", "whole")
        assert contents(mine) == before
        assert (going.branch, going.commit, going.upstream) == ("main", second, "origin/main")
        told = await box.run("cd whole && git for-each-ref --format='%(refname) %(objectname)'")
        assert dict(line.split() for line in told.splitlines()) == {
            "refs/heads/main": second,
            "refs/remotes/host/main": second,
            "refs/remotes/host/other": first,
            "refs/remotes/origin/main": first,
            "refs/tags/v1": git(mine, "rev-parse", "v1"),
        }
        told = await box.run("cd whole && git status -sb && git remote -v && cat README second")
        assert told.startswith("## main...origin/main [ahead 1]\n")
        assert "origin\thttps://git.example.com/me/app.git (push)\n" in told
        assert f"host\thost:{mine} (fetch)\n" in told
        assert "secret" not in await box.run("cat whole/.git/config")
        assert not await box.run("ls whole/.git/FETCH_HEAD 2>/dev/null; :")


async def test_a_branch_a_tag_or_a_commit_on_no_branch_is_checked_out(
    boxd: LocalBoxd, root: Path, mine: Path
):
    first = git(mine, "rev-parse", "HEAD")
    git(mine, "tag", "-am", "One", "v1")
    git(mine, "branch", "feature/x")
    commit(mine, "second")
    git(mine, "checkout", "-q", "--detach")
    loose = commit(mine, "loose")
    async with bench(boxd, root) as box:
        for number, (branch, wanted) in enumerate(
            {"feature/x": ("feature/x", first), "v1": (first,), "": (loose,)}.items()
        ):
            await box.clone(str(mine), f"out{number}", branch=branch)
            at = await box.run(f"cd out{number} && git branch --show-current; git rev-parse HEAD")
            assert tuple(at.split()) == wanted
        with pytest.raises(InvalidArgument, match="it has feature/x, main"):
            await box.clone(str(mine), "none", branch="nope")


async def test_an_empty_repository_becomes_one(boxd: LocalBoxd, root: Path):
    (root / "new").mkdir()
    git(root / "new", "init", "-qb", "trunk")
    async with bench(boxd, root) as box:
        await box.clone("new", "empty")
        assert await box.run("cd empty && git symbolic-ref HEAD") == "refs/heads/trunk"
        (root / "new" / "file").write_text("x")
        await box.clone("new", "almost", uncommitted=True)
        assert await box.run("cd almost && git ls-tree --name-only uncommitted") == "file"
        tip = await box.commit("empty", "work")
        await box.push("empty")
    assert refs(root / "new") == {"refs/heads/box/fix": tip}


async def test_bare_shallow_and_sha256_repositories_go_there_and_the_work_comes_home(
    boxd: LocalBoxd, root: Path, mine: Path
):
    for number in range(3):
        commit(mine, str(number))
    git(root, "clone", "-q", "--bare", "app", "bare.git")
    git(root, "clone", "-q", "--depth=2", f"file://{mine}", "shallow")
    repository_at(root / "long", "--object-format=sha256")
    async with bench(boxd, root) as box:
        for name, count in (("bare.git", 4), ("shallow", 2), ("long", 1)):
            going = await box.clone(name, "")
            where = name.removesuffix(".git")
            assert going.shallow == (name == "shallow")
            assert await box.run(f"cd {where} && git rev-list --count HEAD") == str(count)
            tip = await box.commit(where, "work")
            assert (await box.push(where)).tip == tip
            assert refs(root / name)["refs/heads/box/fix"] == tip
            git(root / name, "fsck", "--strict")


async def test_paths_may_be_called_anything(boxd: LocalBoxd, root: Path):
    names = ["-quote \"'$(x)", "Ωmega", "#line\nbreak"]
    async with bench(boxd, root) as box:
        for number, name in enumerate(names):
            repository_at(root / name)
            await box.clone(str(root / name), f"odd{number}")
            tip = await box.commit(f"odd{number}", "work")
            await box.push(f"odd{number}")
            assert refs(root / name)["refs/heads/box/fix"] == tip


async def test_what_is_there_in_the_box_is_not_touched(boxd: LocalBoxd, root: Path, mine: Path):
    async with bench(boxd, root) as box:
        await box.run("mkdir full void && echo x > full/x && ln -s nowhere dangling")
        await box.clone("app", "void")
        for path in ("full", "dangling", "full/x"):
            with pytest.raises(GitFailed, match="there is something at"):
                await box.clone("app", path)
        assert await box.run("ls -A full && readlink dangling") == "x\nnowhere"


# What may be read of the user's machine


async def test_a_worktree_or_submodule_counts_where_its_data_is(
    boxd: LocalBoxd, root: Path, mine: Path, tmp_path: Path
):
    git(mine, "worktree", "add", "-q", "-b", "beside", str(root / "tree"))
    outside = repository_at(tmp_path / "outside")
    git(outside, "worktree", "add", "-q", "-b", "leaves", str(root / "leaves"))
    (root / "file").mkdir()
    (root / "file" / ".git").write_text(f"gitdir: {outside}/.git\n")
    (root / "link").mkdir()
    (root / "link" / ".git").symlink_to(outside / ".git")
    repository_at(root / "common")
    (root / "common" / ".git" / "commondir").write_text(f"{outside}/.git\n")
    repository_at(root / "objects")
    shutil.rmtree(root / "objects" / ".git" / "objects")
    (root / "objects" / ".git" / "objects").symlink_to(outside / ".git" / "objects")
    git(root, "clone", "-q", "--shared", str(outside), "borrows")
    git(root, "clone", "-q", "--shared", "app", "borrows-here")
    git(root, "clone", "-q", "--shared", "borrows", "borrows-twice")
    async with bench(boxd, root) as box:
        assert (await box.clone("tree", "tree")).branch == "beside"
        tip = await box.commit("tree", "work")
        await box.push("tree")
        assert refs(mine)["refs/heads/box/fix"] == tip
        await box.clone("borrows-here", "borrows-here")
        for name in ("leaves", "file", "link", "common", "objects", "borrows", "borrows-twice"):
            with pytest.raises(HostForbidden, match="outside of the directories"):
                await box.clone(name, "refused")


async def test_what_is_no_repository_is_told_so(boxd: LocalBoxd, root: Path, mine: Path):
    (root / "plain").mkdir()
    (mine / "deep").mkdir()
    (root / "broken").mkdir()
    (root / "broken" / ".git").write_text("nonsense\n")
    async with bench(boxd, root) as box:
        with pytest.raises(InvalidArgument, match=r"'url' is .*no git repository"):
            await box.clone("plain", "x")
        with pytest.raises(InvalidArgument, match=f"a directory of the repository {mine}"):
            await box.clone("app/deep", "x")
        with pytest.raises(HostFailed, match="says nothing that git understands"):
            await box.clone("broken", "x")
        with pytest.raises(HostForbidden):
            await box.clone("app/.git", "x")
        with pytest.raises(HostForbidden):
            await box.clone(str(root.parent), "x")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
async def test_a_repository_of_another_user_is_explained(boxd: LocalBoxd, root: Path, mine: Path):
    give_away(mine)
    async with bench(boxd, root) as box:
        with pytest.raises(HostFailed) as failed:
            await box.clone("app", "x")
        assert "git config --global --add safe.directory" in failed.value.explain()
        git_config = root.parent / "home" / ".gitconfig"
        git_config.write_text(f"[safe]\n directory = {mine}\n")
        await box.clone("app", "trusted")


async def test_a_partial_clone_is_explained_and_fetches_nothing(
    boxd: LocalBoxd, root: Path, mine: Path
):
    commit(mine, "README", "changed")
    git(mine, "config", "uploadpack.allowFilter", "true")
    git(root, "clone", "-q", "--filter=blob:none", f"file://{mine}", "partial")
    before = contents(root / "partial")
    async with bench(boxd, root) as box:
        with pytest.raises(HostFailed) as failed:
            await box.clone("partial", "x")
    assert "partial clone" in failed.value.explain()
    assert contents(root / "partial") == before


URLS = {
    "https://user:token@git.example.com/me/app.git": "https://git.example.com/me/app.git",
    "https://token@git.example.com:8443/me/app?private_token=x#y": "https://git.example.com:8443/me/app",
    "ssh://git@git.example.com:22/me/app": "ssh://git@git.example.com:22/me/app",
    "ssh://git:secret@git.example.com/me/app": "ssh://git.example.com/me/app",
    "git@git.example.com:me/app.git": "git@git.example.com:me/app.git",
    "/srv/git/app.git": "",
    "../app": "",
    "C:/repositories/app": "",
    "file:///srv/git/app": "",
    "ext::sh -c x": "",
    "helper::https://x": "",
    "-oProxyCommand=x:y": "",
    "https://": "",
    "": "",
}


@pytest.mark.parametrize("url", URLS)
def test_a_box_hears_of_an_origin_without_what_logs_in(url: str):
    assert origin_for_a_box(url) == URLS[url]


# What is not committed


async def test_what_is_not_committed_is_one_commit_on_a_side_branch(
    boxd: LocalBoxd, root: Path, mine: Path
):
    for name in ("changed", "staged", "gone", "tracked.key", "binary"):
        commit(mine, name, "old\n")
    (mine / ".gitignore").write_text("*.log\n")
    (mine / ".gitattributes").write_text("*.big filter=lfs\n*.txt text eol=crlf\n")
    git(mine, "config", "filter.lfs.clean", f"touch {root}/ran; cat")
    git(mine, "config", "filter.lfs.required", "true")
    git(mine, "config", "core.fsmonitor", f"touch {root}/ran;")
    git(mine, "branch", "uncommitted")
    for name in ("changed", "staged", "tracked.key"):
        (mine / name).write_text("new\n")
    (mine / "gone").unlink()
    (mine / "added" / "deep").mkdir(parents=True)
    (mine / "added" / "deep" / "file").write_text("new\n")
    (mine / "windows.txt").write_bytes(b"one\r\ntwo\r\n")
    (mine / "tool").write_text("#!/bin/sh\n")
    (mine / "tool").chmod(0o755)
    (mine / "link").symlink_to("/etc/passwd")
    for name in (".env", "id_rsa", "noise.log", "movie.big"):
        (mine / name).write_text("not for a box\n")
    git(mine, "add", "staged", "id_rsa", "-f")
    repository_at(mine / "nested")
    before = contents(root)
    async with bench(boxd, root) as box:
        going = await box.clone("app", "changes", uncommitted=True)
        assert contents(root) == before
        assert going.side == "uncommitted-2"
        told = await box.run("cd changes && git diff --name-status main uncommitted-2")
        assert {line[2:]: line[0] for line in told.splitlines()} == {
            ".gitattributes": "A",
            ".gitignore": "A",
            "added/deep/file": "A",
            "changed": "M",
            "gone": "D",
            "link": "A",
            "staged": "M",
            "tool": "A",
            "windows.txt": "A",
        }
        seen = await box.run(
            "cd changes && git log -1 --format='%an %ae %P' uncommitted-2 && git rev-parse main && "
            "git ls-tree uncommitted-2 tool link && git status --short && "
            "git cat-file -s uncommitted-2:windows.txt"
        )
        assert seen.startswith(f"A User user@example.com {going.commit}\n{going.commit}\n120000")
        assert "100755" in seen
        assert seen.endswith("\n8")
    left_out = "\n".join(going.left_out.lines())
    assert "it holds a private key: id_rsa, tracked.key" in left_out
    assert "it holds variables that are often secret: .env" in left_out
    assert "git's filter lfs has to be run on it, which is not done here: movie.big" in left_out
    assert "it is a repository of its own: nested/" in left_out


async def test_where_all_is_committed_there_is_no_side_branch(
    boxd: LocalBoxd, root: Path, mine: Path
):
    (mine / "README").touch()
    (mine / ".env").write_text("x")
    async with bench(boxd, root) as box:
        going = await box.clone("app", "clean", uncommitted=True)
        assert going.side == ""
        assert len(going.left_out) == 1


async def test_files_that_became_something_else_go_as_what_they_are(
    boxd: LocalBoxd, root: Path, mine: Path
):
    for name in ("dir/file", "file", "pipe", "crlf"):
        commit(mine, name)
    git(mine, "config", "core.autocrlf", "input")
    git(mine, "config", "core.safecrlf", "true")
    (mine / "crlf").write_bytes(b"one\r\n")
    (mine / "dir").rename(root / "moved")
    (mine / "dir").symlink_to(root / "moved")
    for name in ("file", "pipe"):
        (mine / name).unlink()
    (mine / "file").mkdir()
    (mine / "file" / "inside").write_text("x\n")
    os.mkfifo(mine / "pipe")
    async with bench(boxd, root) as box:
        going = await box.clone("app", "became", uncommitted=True)
        told = await box.run("cd became && git ls-tree -r uncommitted")
        assert [line.split()[0] + " " + line.split()[3] for line in told.splitlines()] == [
            "100644 README",
            "100644 crlf",
            "120000 dir",
            "100644 file/inside",
            "100644 pipe",
        ]
        assert await box.run("cd became && git cat-file -s uncommitted:crlf") == "4"
    assert going.left_out.lines() == ["left out, it is neither file nor directory: pipe"]


async def test_a_merge_in_conflict_goes_as_it_stands(boxd: LocalBoxd, root: Path, mine: Path):
    git(mine, "checkout", "-qb", "side")
    commit(mine, "README", "theirs\n")
    git(mine, "checkout", "-q", "main")
    commit(mine, "README", "ours\n")
    git(mine, "merge", "-q", "side", code=1)
    before = contents(mine)
    async with bench(boxd, root) as box:
        await box.clone("app", "conflict", uncommitted=True)
        assert "<<<<<<<" in await box.run("cd conflict && git show uncommitted:README")
    assert contents(mine) == before


# Home


async def test_work_comes_home_as_one_branch_and_nothing_else_changes(
    boxd: LocalBoxd, root: Path, mine: Path
):
    (mine / "README").write_text("being edited\n")
    before = contents(mine)
    async with bench(boxd, root) as box:
        await box.clone("app", "work")
        await box.run("cd work && git checkout -qb feature && git tag mine")
        first = await box.commit("work", "one")
        assert (await box.push("work")).branch == "box/fix"
        assert "box/fix" in await box.run("cd work && git branch -r --points-at HEAD")
        again = await box.push("work")
        assert (again.before, again.tip) == (first, first)
        second = await box.commit("work", "two")
        assert (await box.push("work", "feature")).before == first
    assert refs(mine) == {
        "refs/heads/main": git(mine, "rev-parse", "main"),
        "refs/heads/box/fix": second,
    }
    git(mine, "fsck", "--strict")
    after = contents(mine)
    new = {path for path in after if after[path] != before.get(path)}
    places = (".git/objects", ".git/refs/heads", ".git/logs/refs/heads")
    assert not [path for path in new if path != ".git" and not path.startswith(places)]
    assert before.keys() <= after.keys()


async def test_two_boxes_and_two_branches_of_one_have_their_own_names(
    boxd: LocalBoxd, root: Path, mine: Path
):
    tips: dict[str, str] = {}
    names = {"one": "box/one", None: f"box/{BOX}", "a.lock": f"box/{BOX}", "dots..": f"box/{BOX}"}
    for number, (name, branch) in enumerate(names.items()):
        async with bench(boxd, root, name) as box:
            await box.clone("app", f"own{number}")
            await box.run(f"cd own{number} && git checkout -qb topic{number}")
            tip = await box.commit(f"own{number}", f"n{number}")
            if name in ("one", None):
                tips[branch] = tip
                assert (await box.push(f"own{number}")).branch == branch
            else:
                assert branch in await box.refusal(f"own{number}")
            if name == "one":
                await box.run(f"cd own{number} && git checkout -q main && git checkout -qb x/y")
                tips["box/one+x/y"] = await box.commit(f"own{number}", "y")
                assert (await box.push(f"own{number}")).branch == "box/one+x/y"
                assert (await box.push(f"own{number}", "topic0")).branch == "box/one"
                await box.run(f"cd own{number} && git branch -qm topic0 renamed")
                assert (await box.push(f"own{number}", "renamed")).branch == "box/one"
    assert {name: tip for name, tip in refs(mine).items() if "/box/" in name} == {
        f"refs/heads/{name}": tip for name, tip in tips.items()
    }


async def test_nothing_is_rewritten_without_force_nor_what_the_box_has_not_seen(
    boxd: LocalBoxd, root: Path, mine: Path
):
    async with bench(boxd, root) as box:
        await box.clone("app", "rewrite")
        old = await box.commit("rewrite", "one")
        await box.push("rewrite")
        await box.run("cd rewrite && git reset -q --hard host/main")
        new = await box.commit("rewrite", "other")
        assert "force=true replaces it" in await box.refusal("rewrite")
        assert refs(mine)["refs/heads/box/fix"] == old
        replaced = await box.push("rewrite", force=True)
        assert (replaced.before, replaced.tip, replaced.rewritten) == (old, new, True)
        git(mine, "checkout", "-q", "box/fix")
        mended = commit(mine, "by the user")
        git(mine, "checkout", "-q", "main")
        await box.run("cd rewrite && git reset -q --hard host/main")
        await box.commit("rewrite", "third")
        assert "has never seen" in await box.refusal("rewrite", force=True)
        assert refs(mine)["refs/heads/box/fix"] == mended


async def test_a_branch_that_is_checked_out_anywhere_is_never_touched(
    boxd: LocalBoxd, root: Path, mine: Path, tmp_path: Path
):
    async with bench(boxd, root) as box:
        await box.clone("app", "away")
        await box.commit("away", "one")
        await box.push("away")
        git(mine, "worktree", "add", "-q", str(tmp_path / "elsewhere"), "box/fix")
        before = contents(root), contents(tmp_path / "elsewhere")
        await box.commit("away", "two")
        for force in (False, True):
            assert f"checked out in {tmp_path}/elsewhere" in await box.refusal("away", force=force)
        assert (contents(root), contents(tmp_path / "elsewhere")) == before


async def test_work_on_what_the_user_has_deleted_meanwhile_comes_home_whole(
    boxd: LocalBoxd, root: Path, mine: Path
):
    git(mine, "checkout", "-qb", "topic")
    git(mine, "commit", "-q", "--allow-empty", "-m", "long " * 5000)
    async with bench(boxd, root) as box:
        await box.clone("app", "orphan")
        tip = await box.commit("orphan", "work")
        git(mine, "checkout", "-q", "main")
        git(mine, "branch", "-qD", "topic")
        git(mine, "-c", "gc.reflogExpire=now", "gc", "-q", "--prune=now")
        git(mine, "reflog", "expire", "--expire=now", "--all")
        git(mine, "gc", "-q", "--prune=now")
        assert (await box.push("orphan")).tip == tip
    git(mine, "fsck", "--strict")


async def test_only_what_came_from_a_repository_goes_home_to_it(
    boxd: LocalBoxd, root: Path, mine: Path, tmp_path: Path
):
    other = repository_at(root / "other")
    outside = repository_at(tmp_path / "outside")
    key = proofs.key_in(tmp_path / "state")
    lies = {
        "no remote": "git remote remove host",
        "another path": f"git config remote.host.url host:{other}",
        "no proof": "git config --unset remote.host.proof",
        "a wrong proof": f"git config remote.host.proof {'0' * 64}",
        "another server": "git config remote.host.url https://git.example.com/x",
        "a way round": f"git config remote.host.url host:{root}/other/../app",
    }
    before = contents(root), contents(outside)
    async with bench(boxd, root) as box:
        for number, lie in enumerate(lies.values()):
            await box.clone("app", f"lie{number}")
            await box.commit(f"lie{number}", "work")
            await box.run(f"cd lie{number} && {lie}")
            assert "did not come from there" in await box.refusal(f"lie{number}")
        await box.clone("app", "leads")
        proof = proofs.proof_of(key, LOCAL, outside)
        await box.run(
            f"cd leads && git config remote.host.url host:{outside} && "
            f"git config remote.host.proof {proof}"
        )
        with pytest.raises(HostForbidden, match="outside of the directories"):
            await box.push("leads")
    async with bench(boxd, root, principal=STRANGER) as box:
        assert "did not come from there" in await box.refusal("leads")
    assert (contents(root), contents(outside)) == before


class Lying(Shell):
    """A box whose git prints what it likes."""

    def __init__(self, honest: Shell, said: str) -> None:
        self._honest = honest
        self._said = said

    async def run(self, command: str, **options: Any) -> Outcome:
        outcome = await self._honest.run("true", **options)
        return replace(outcome, head=self._said.encode(errors="surrogateescape"))


LIES = {
    "nothing": "",
    "another's name": "home box/other\n",
    "the user's branch": "home main\n",
    "a way out": "home box/fix+../../main\nbranch ../../main\n",
    "an option": "branch --all\nhome box/fix+--all\n",
    "what no disk takes": "branch a:b\nhome box/fix+a:b\n",
    "a name that git takes and a disk may not": "branch café\nhome box/fix+café\n",
    "less than nothing": "new -1\n",
    "too many": f"new {'9' * 5000}\n",
    "no number": "new \u0663\n",
    "odd bytes": "url host:\udcff\nproof \udcff\n",
    "a proof of nothing": "url host:\n",
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_lying_box_brings_nothing_home(boxd: LocalBoxd, root: Path, mine: Path, lie: str):
    before = contents(mine)
    rest = f"url host:{mine}\nproof {'0' * 64}\nbranch main\nhome box/fix\nseen \ntip {'1' * 40}\n"
    async with bench(boxd, root) as box:
        shell = Lying(box.git.shell, LIES[lie] + (rest + "new 0\n" if LIES[lie] else ""))
        with pytest.raises((BoxBroken, InvalidArgument, RepositoryRefused)):
            await replace(box.git, shell=shell).push("x")
    assert contents(mine) == before


async def test_more_than_is_taken_does_not_come_home(
    boxd: LocalBoxd, root: Path, mine: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(carrying, "MAX_HOME", 300)
    before = contents(mine)
    async with bench(boxd, root) as box:
        await box.clone("app", "much")
        await box.run("cd much && head -c 1000 /dev/urandom > noise")
        await box.commit("much", "work")
        with pytest.raises(HostForbidden, match="what is new in the box is more than"):
            await box.push("much")
    assert contents(mine) == before


async def test_what_stands_in_the_way_at_home_is_told(boxd: LocalBoxd, root: Path, mine: Path):
    git(mine, "branch", "box")
    async with bench(boxd, root) as box:
        with pytest.raises(GitFailed, match="no directory"):
            await box.push("nowhere")
        with pytest.raises(GitFailed, match="is no git repository"):
            await box.push("/usr")
        await box.clone("app", "way")
        await box.commit("way", "one")
        assert "It has a branch `box`" in await box.refusal("way")
        with pytest.raises(GitFailed, match="there is no branch nope"):
            await box.push("way", "nope")
        await box.run("cd way && git checkout -q --detach")
        with pytest.raises(GitFailed, match="no branch is checked out"):
            await box.push("way")


# What is never run


async def test_no_program_of_the_users_settings_is_run_for_a_repository(
    boxd: LocalBoxd, root: Path, mine: Path, home: Path
):
    canary = root / "ran"
    run = f"touch {canary};"
    for name in ("pre-commit", "post-checkout", "reference-transaction", "post-index-change"):
        hook = mine / ".git" / "hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\n{run}")
        hook.chmod(0o755)
    (mine / ".gitattributes").write_text("* filter=x diff=x\n")
    for key in (
        *("core.fsmonitor", "core.alternateRefsCommand", "core.sshCommand", "core.editor"),
        *("core.gitProxy", "core.askPass", "core.pager", "diff.external", "diff.x.textconv"),
        *("filter.x.clean", "filter.x.smudge", "filter.x.process", "credential.helper"),
        *("gpg.program", "remote.origin.uploadpack", "sequence.editor"),
    ):
        git(mine, "config", key, f"{run} false")
    git(mine, "config", "commit.gpgSign", "true")
    (home / ".gitconfig").write_text(f"[core]\n hooksPath = {mine}/.git/hooks\n")
    (mine / "README").write_text("changed\n")
    async with bench(boxd, root) as box:
        await box.clone("app", "quiet", uncommitted=True)
        await box.commit("quiet", "work")
        await box.push("quiet")
    assert not canary.exists()


async def test_who_is_cancelled_leaves_no_git_behind(home: Path, tmp_path: Path):
    endless = tmp_path / "endless"
    os.mkfifo(endless)
    writer = -1

    def work(leash: Leash) -> None:
        guarded(leash, tmp_path, tmp_path / "no").run("hash-object", str(endless))

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(leashed, "x", work)
            writer = await anyio.to_thread.run_sync(os.open, endless, os.O_WRONLY)  # git reads now
            group.cancel_scope.cancel()
        with pytest.raises(BrokenPipeError):
            os.write(writer, b"nobody reads")
    os.close(writer)


async def test_who_is_cancelled_while_a_bundle_travels_leaves_nothing_at_either_end(
    boxd: LocalBoxd, root: Path, mine: Path
):
    async with bench(boxd, root) as box:
        await box.clone("app", "there")
        await box.commit("there", "work")
        before = contents(mine)
        for act in ("clone", "push"):
            with anyio.CancelScope() as scope:

                async def give_up(*_: object, scope: anyio.CancelScope = scope) -> None:
                    scope.cancel()
                    await anyio.lowlevel.checkpoint()

                hasty = Bench(replace(box.git, on_progress=give_up))
                await (hasty.clone("app", "never") if act == "clone" else hasty.push("there"))
            assert scope.cancelled_caught
        assert await box.run("ls -d never 2>/dev/null; :") == ""
    assert contents(mine) == before


async def test_without_git_the_user_is_told_what_is_missing(
    root: Path, boxd: LocalBoxd, mine: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("git.Git.GIT_PYTHON_GIT_EXECUTABLE", "no-such-git")
    async with bench(boxd, root) as box:
        with pytest.raises(HostFailed) as failed:
            await box.clone("app", "x")
    assert "install git" in failed.value.explain()


async def test_what_a_killed_server_left_is_removed_after_a_day(tmp_path: Path):
    old, new = tmp_path / "git" / "old", tmp_path / "git" / "new"
    for path in (old, new):
        path.mkdir(parents=True)
    os.utime(old, (0, 0))
    async with workspace(tmp_path) as directory:
        assert sorted((tmp_path / "git").iterdir()) == sorted([directory, new])
    assert list((tmp_path / "git").iterdir()) == [new]


# Proofs


def test_all_servers_have_one_key_that_only_the_user_reads(tmp_path: Path):
    state = tmp_path / "state"
    keys: list[bytes] = []
    gate = threading.Barrier(8)

    def ask() -> None:
        gate.wait()
        keys.append(proofs.key_in(state))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 8
    assert len(set(keys)) == 1
    assert [path.name for path in state.iterdir()] == [proofs.KEY_NAME]
    assert stat.S_IMODE((state / proofs.KEY_NAME).stat().st_mode) == 0o600


def test_a_proof_is_for_one_principal_and_one_path(tmp_path: Path):
    key, path = b"k" * 32, Path("/projects/app")
    proof = proofs.proof_of(key, LOCAL, path)
    assert proofs.is_proof(proof, key, LOCAL, path)
    assert not proofs.is_proof(proof, key, STRANGER, path)
    assert not proofs.is_proof(proof, key, LOCAL, Path("/projects/app2"))
    assert not proofs.is_proof(proof, b"x" * 32, LOCAL, path)
    assert not proofs.is_proof("\u00e9\udcff", key, LOCAL, path)
