"""Files between the user's machine and a box, whole; and what neither may do to the other."""

from __future__ import annotations

import os
import stat
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
from mcp import Client, StdioServerParameters
from mcp.client import ClientRequestContext
from mcp_types import ListRootsResult, Root
from pydantic import FileUrl

from box_mcp.capabilities.hostsink import STAGING
from tests.support.client import COMMAND, LEGACY, serving, text, until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from contextlib import AbstractAsyncContextManager

    from tests.support.client import Server

SESSION = ("--session", "transfer")

Snapshot = dict[str, tuple[int, bytes]]


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    """The user's project; all beside it must stay as it is."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    project = tmp_path / "project"
    project.mkdir()
    yield project
    assert contents(outside) == {"precious": (0o644, b"precious")}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside", "project"]
    assert not list(tmp_path.rglob(f"{STAGING}*"))


def contents(directory: Path) -> Snapshot:
    """Modes and contents of all there is below a directory; links' are where they point."""
    found: Snapshot = {}
    for path in directory.rglob("*"):
        content = b"" if path.is_dir() else os.fsencode(path.name)
        if path.is_symlink():
            content = os.fsencode(path.readlink())
        elif path.is_file():
            content = path.read_bytes()
        found[str(path.relative_to(directory))] = (stat.S_IMODE(path.lstat().st_mode), content)
    return found


def allowing(env: dict[str, str], project: Path) -> AbstractAsyncContextManager[Server]:
    """A server that Claude Code would have started in `project`."""
    return serving({**env, "CLAUDE_PROJECT_DIR": str(project)}, *SESSION)


async def test_a_tree_goes_there_and_back_as_it_is(shared_env: dict[str, str], project: Path):
    tree = project / "tree"
    (tree / "deep" / "er").mkdir(parents=True)
    (tree / "deep" / "er" / "large").write_bytes(os.urandom(1_000_000))
    (tree / "deep" / "tool").write_text("#!/bin/sh\necho works\n")
    (tree / "deep" / "tool").chmod(0o755)
    (tree / "deep" / "private").write_text("x")
    (tree / "deep" / "private").chmod(0o600)
    (tree / "link").symlink_to("deep/tool")
    (tree / "empty").mkdir()
    for name in (b"caf\xe9", b"line\nbreak", b"x" * 255, b" spaces ", "Ωmega".encode()):
        (tree / os.fsdecode(name)).write_bytes(name)
    os.utime(tree / "deep" / "tool", ns=(10**18, 10**18))
    async with allowing(shared_env, project) as server:
        answer = await server.say("file_upload", host_path="tree", destination="there")
        assert answer.splitlines()[-1].startswith(f"[uploaded {tree} to there · 8 files, ")
        assert "works" in await server.run("there/link && stat -c %U there | grep -x box")
        answer = await server.say("file_download", path="there", host_path="back")
        assert f"to {project}/back · 8 files, 4 directories, 1 link · 1,000,3" in answer
    assert contents(project / "back") == contents(tree)
    assert (project / "back" / "deep" / "tool").stat().st_mtime_ns == 10**18


async def test_single_files_go_where_they_are_told(shared_env: dict[str, str], project: Path):
    (project / "a").write_text("mine")
    (project / "sub").mkdir()
    async with allowing(shared_env, project) as server:
        await server.run("rm -rf a in")
        await server.say("file_upload", host_path="a")
        await server.say("file_upload", host_path=str(project / "a"), destination="in/")
        assert "minemine" in await server.run("cat a in/a")
        assert "exists" in await server.fail("file_upload", host_path="a")
        into = await server.say("file_upload", host_path="a", destination="in", overwrite=True)
        assert " to in/a · 1 file · " in into
        await server.run("echo theirs > a")
        assert "exists" in await server.fail("file_download", path="a")
        await server.say("file_download", path="a", host_path="sub")
        await server.say("file_download", path="/workspace/a", host_path="new/b")
        await server.say("file_download", path="a", overwrite=True)
    assert {path: content for path, (_, content) in contents(project).items()} == {
        "a": b"theirs\n",
        "sub": b"",
        "sub/a": b"theirs\n",
        "new": b"",
        "new/b": b"theirs\n",
    }


async def test_what_git_ignores_stays_where_it_is_both_ways(
    shared_env: dict[str, str], project: Path
):
    for path in ("code", "x.log", "built/x"):
        (project / path).parent.mkdir(exist_ok=True)
        (project / path).write_text("x")
    (project / ".gitignore").write_text("*.log\nbuilt/\n")
    async with allowing(shared_env, project) as server:
        await server.run("rm -rf git")
        await server.say("file_upload", host_path=".", destination="git", gitignore=True)
        await server.run("cd git && git init -q && touch new.log && mkdir built && touch built/y")
        await server.say("file_download", path="git", host_path="back", gitignore=True)
    assert sorted(contents(project / "back")) == [".gitignore", "code"]


PLANTED = [
    ".git/hooks/pre-commit",
    "sub/.git",
    ".GIT/config",
    ".mcp.json",
    ".claude/settings.json",
    ".vscode/tasks.json",
    ".cursor/mcp.json",
    ".bashrc",
    ".zshenv",
    ".profile",
    ".envrc",
    ".gitconfig",
    ".husky/pre-commit",
    "bare/HEAD bare/objects/x bare/refs/x",
    "$'.g\\u200cit/config'",
    "GIT~1/config",
]


async def test_no_planted_file_gets_out_of_a_box(shared_env: dict[str, str], project: Path):
    (project / "mine").write_text("mine")
    before = contents(project)
    async with allowing(shared_env, project) as server:
        for number, planted in enumerate(PLANTED):
            tree = f"planted{number}"
            await server.run(
                f"mkdir {tree} && cd {tree} && echo x > good && for p in {planted}; do "
                'mkdir -p "$(dirname "$p")" && echo x > "$p"; done'
            )
            for overwrite in (False, True):
                answer = await server.fail("file_download", path=tree, overwrite=overwrite)
                assert "nothing of a box is written there" in answer, planted
        await server.run("echo x > innocent")
        for place in (".git/hooks/pre-commit", ".mcp.json", "~/.bashrc", ".claude/"):
            await server.fail("file_download", path="innocent", host_path=place)
    assert contents(project) == before


async def test_no_link_leads_out_in_either_direction(shared_env: dict[str, str], project: Path):
    outside = project.parent / "outside"
    (project / "tree").mkdir()
    (project / "tree" / "out").symlink_to(outside)
    (project / "tree" / "file").symlink_to(outside / "precious")
    (project / "out").symlink_to(outside)
    async with allowing(shared_env, project) as server:
        await server.run("rm -rf links got")
        answer = await server.say("file_upload", host_path="tree", destination="links")
        assert "left out, it is a link that leads out of what is uploaded: file, out" in answer
        for path in ("out/precious", "tree/file", "../outside/precious", str(outside)):
            answer = await server.fail("file_upload", host_path=path)
            assert "outside of the directories" in answer
        for path in ("out/new", "../outside/new", f"{outside}/precious", "tree/../../outside/x"):
            answer = await server.fail(
                "file_download", path="links", host_path=path, overwrite=True
            )
            assert "outside of the directories" in answer
        await server.run(
            f"cd links && ln -s {outside} absolute && ln -s ../../outside up && ln -s here ok"
        )
        answer = await server.say("file_download", path="links", host_path="got")
        assert "1 link · " in answer
        assert "it is a link that leads out of what is transferred: " in answer
        await server.run("rm links/* && mkdir links/out && echo theirs > links/out/precious")
        answer = await server.fail("file_download", path="links", host_path="tree", overwrite=True)
        assert "tree/out is not transferred" in answer
    assert list(contents(project / "got")) == ["ok"]
    assert (project / "tree" / "out").is_symlink()


async def test_credentials_stay_on_the_users_machine(shared_env: dict[str, str], project: Path):
    for path in (".env", "sub/id_ed25519", ".aws/credentials", ".git/config", "code.py"):
        (project / path).parent.mkdir(exist_ok=True)
        (project / path).write_text("secret")
    async with allowing(shared_env, project) as server:
        for path in (".env", "sub/id_ed25519", ".aws", ".aws/credentials", ".git"):
            assert "is not transferred: it holds" in await server.fail(
                "file_upload", host_path=path
            )
        answer = await server.say("file_upload", host_path="./", destination="mine")
        assert "left out, it holds a private key: sub/id_ed25519" in answer
        found = await server.run("find mine -type f; grep -r secret mine -l")
        assert found.splitlines()[1:] == ["mine/code.py", "mine/code.py"]


async def test_what_is_no_file_is_left_out_and_what_is_too_much_refused(
    shared_env: dict[str, str], project: Path
):
    async with allowing(shared_env, project) as server:
        await server.run("mkdir odd && cd odd && mkfifo pipe && echo x > x && chmod 4755 x")
        answer = await server.say("file_download", path="odd")
        assert "left out: pipe: it is a FIFO" in answer
        assert contents(project / "odd") == {"x": (0o755, b"x\n")}
        await server.run("truncate -s 1T odd/bomb")
        assert "disk can spare" in await server.fail("file_download", path="odd", host_path="bomb")
        assert "not_found" not in (missing := await server.fail("file_download", path="nowhere"))
        assert "No such file" in missing
    assert list(contents(project)) == ["odd", "odd/x"]


async def test_a_download_that_is_given_up_leaves_nothing(
    shared_env: dict[str, str], project: Path
):
    async with allowing(shared_env, project) as server:
        await server.run("truncate -s 2G large")

        async def download() -> None:
            await server.call("file_download", path="large")

        async with anyio.create_task_group() as group:
            group.start_soon(download)
            await until(partial(staged, project), "the beginning of a download")
            group.cancel_scope.cancel()
        await until(partial(empty, project), "an empty project")
        assert "exit 0" in await server.run("rm large")


async def staged(project: Path) -> bool:
    return bool(names(project))


async def empty(project: Path) -> bool:
    return not names(project)


def names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


async def test_without_an_allowed_directory_the_tools_say_how_to_allow_one(
    shared_env: dict[str, str], project: Path
):
    async with serving(shared_env, *SESSION) as server:
        for tool, argument in (("file_upload", "host_path"), ("file_download", "path")):
            answer = await server.fail(tool, **{argument: "x"})
            assert "No directory of the user's machine may be touched" in answer
            assert "host_roots" in answer
    env = {**shared_env, "CLAUDE_PROJECT_DIR": str(Path.home())}
    async with serving(env, *SESSION) as server:
        assert "home directory" in await server.fail("file_upload", host_path="x")


async def test_settings_name_directories_and_win_over_the_project(
    shared_env: dict[str, str], project: Path
):
    (project / "a").mkdir()
    (project / "a" / "x").write_text("from a")
    env = {**shared_env, "BOX_MCP_HOST_ROOTS": f'["{project}/a"]'}
    async with allowing(env, project) as server:
        await server.run("rm -f x")
        await server.say("file_upload", host_path="x")
        await server.say("file_download", path="x", host_path="y")
        answer = await server.fail("file_download", path="x", host_path=f"{project}/z")
        assert f"Allowed: {project}/a." in answer
    assert sorted(contents(project)) == ["a", "a/x", "a/y"]


async def test_an_older_clients_own_directories_are_allowed(
    shared_env: dict[str, str], project: Path
):
    (project / "x").write_text("by roots")
    async with rooted(shared_env, "file://elsewhere/x", project.as_uri()) as client:
        await client.call_tool("shell_run", {"command": "rm -f x"})
        done = await client.call_tool("file_upload", {"host_path": "x"})
        assert not done.is_error, text(done)
        assert str(project) in text(done)
    async with rooted(shared_env, Path.home().as_uri(), "file:///") as client:
        refused = await client.call_tool("file_upload", {"host_path": "x"})
        assert "is or contains the home directory" in text(refused)


@asynccontextmanager
async def rooted(env: dict[str, str], *uris: str) -> AsyncGenerator[Client, None]:
    """A client of an older revision that works in these directories."""

    async def list_roots(context: ClientRequestContext) -> ListRootsResult:
        return ListRootsResult(roots=[Root(uri=FileUrl(uri)) for uri in uris])

    program, *arguments = COMMAND
    server = StdioServerParameters(command=program, args=[*arguments, *SESSION], env=env)
    async with Client(server, mode=LEGACY, list_roots_callback=list_roots) as client:
        yield client
