"""Real git in a real box, over routes to a real server, whose password nothing in the box has."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from secrets import token_hex
from typing import TYPE_CHECKING

import anyio
import pytest

from box_mcp.domain.box import Box
from box_mcp.domain.gitconfig import Identity
from box_mcp.domain.names import LOCAL, BoxId
from box_mcp.domain.network import Mode, Network, Surroundings
from box_mcp.domain.routes import Access
from box_mcp.engines.docker import DockerEngine
from box_mcp.gateway.proxying import Proxies
from box_mcp.gateway.routes import Routes
from tests.support.engines import SPEC, Workshop, channel_to, run, said, workshop
from tests.support.gitserver import TOKEN, Content, Server, serving_git
from tests.support.lfsserver import Lfs, serve_lfs
from tests.support.routes import route
from tests.support.webserver import Trouble

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from box_mcp.channel import Channel
    from box_mcp.domain.routes import Route
    from box_mcp.engines.base import Engine

pytestmark = pytest.mark.anyio

ADA = Identity("Ada Lovelace", "ada@example.org")
APP = Content(commits=60)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving_git(tmp_path_factory.mktemp("git")) as server:
        server.add("me/app.git", APP)
        yield server


@pytest.fixture(scope="module")
def lfs(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Lfs:
    return serve_lfs(server, tmp_path_factory.mktemp("lfs"))


@pytest.fixture(scope="module")
async def shop() -> AsyncGenerator[Workshop, None]:
    async with workshop(DockerEngine()) as shop:
        await shop.running(network=Network(Mode.NONE))
        yield shop


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """What routes are given from."""
    monkeypatch.setenv("SECRET", TOKEN)


@dataclass
class Inside:
    """A box whose routes are served."""

    channel: Channel
    url: str
    """The server's own, which the box can't reach."""

    async def git(self, arguments: str, folder: str = ".") -> str:
        """What git prints that succeeds."""
        return await said(self.channel, f"git -C {folder} {arguments} 2>&1")

    async def refused(self, command: str) -> str:
        """What a command prints that fails."""
        ran = await run(self.channel, f"timeout 15 {command} 2>&1")
        assert ran.record.exit not in (0, 124), ran.output
        return ran.output

    async def sh(self, script: str) -> str:
        """What a script prints that succeeds."""
        return await said(self.channel, f"set -e; {script}")

    async def clone(self, what: str = "me/app.git", options: str = "", by: str = "") -> str:
        """A new clone; returns where it is."""
        folder = await self.sh("mktemp -d -p /workspace")
        await self.git(f"clone -q {options} {by or f'{self.url}/'}{what} {folder}")
        return folder

    async def commit(self, folder: str, script: str = "date +%N > work.txt") -> str:
        """A commit of what a script does; returns its id."""
        done = f"{script}; git add -A; git commit -qm Work; git rev-parse HEAD"
        return await self.sh(f"cd {folder}; {done}")


@asynccontextmanager
async def serving(
    engine: Engine, box: BoxId, url: str, *routes: Route, mode: Mode = Mode.NONE
) -> AsyncGenerator[Inside, None]:
    """One server's connection to a box."""
    known = routes or (route("forge", url),)
    state = Box(box, replace(SPEC, network=Network(mode)), created=1.0, principal=LOCAL)

    async def ada() -> Identity:
        return ADA

    async with channel_to(engine, box) as channel, anyio.create_task_group() as group:
        await group.start(Proxies(Surroundings()).attend, channel, lambda: state)
        await group.start(Routes(known, lambda _: None, ada).attend, channel, lambda: state)
        yield Inside(channel, url)
        group.cancel_scope.cancel()


@pytest.fixture
async def inside(shop: Workshop, server: Server) -> AsyncGenerator[Inside, None]:
    async with serving(shop.engine, shop.made[0], server.url) as inside:
        yield inside


def head(server: Server, branch: str = "main", of: str = "me/app.git") -> str:
    """The commit of a branch at the server."""
    return server.git(of, "rev-parse", f"refs/heads/{branch}")


async def test_a_repository_is_cloned_with_all_that_it_has(inside: Inside, server: Server):
    folder = await inside.clone()
    assert await inside.git("rev-parse HEAD", folder) == head(server)
    assert await inside.git("rev-list --count HEAD", folder) == str(APP.commits)
    assert (await inside.git("tag", folder)).split() == list(APP.tags)
    assert await inside.git("config remote.origin.url", folder) == f"{inside.url}/me/app.git"
    assert f"{head(server)}\trefs/heads/main" in await inside.git(
        f"ls-remote {inside.url}/me/app.git"
    )


@pytest.mark.parametrize("form", ["git@127.0.0.1:me/app.git", "ssh://git@127.0.0.1/me/app.git"])
async def test_remotes_by_ssh_are_asked_by_the_route(inside: Inside, server: Server, form: str):
    assert f"{head(server)}\trefs/heads/main" in await inside.git(f"ls-remote {form}")


async def test_work_is_pushed_and_fetched_elsewhere(inside: Inside, server: Server):
    one, other = await inside.clone(), await inside.clone()
    made = await inside.commit(one)
    await inside.git("tag v9", one)
    await inside.git("push -q origin HEAD:refs/heads/work v9", one)
    assert head(server, "work") == made
    await inside.git("fetch -q --tags", other)
    assert await inside.git("rev-parse origin/work v9", other) == f"{made}\n{made}"
    assert await inside.git("log -1 --format='%an <%ae>' origin/work", other) == (
        "Ada Lovelace <ada@example.org>"
    )
    await inside.git("commit -q --amend -m Better", one)
    assert "rejected" in await inside.refused(f"git -C {one} push origin HEAD:work")
    await inside.git("push -q --force-with-lease origin HEAD:work", one)
    assert head(server, "work") == await inside.git("rev-parse HEAD", one) != made
    await inside.git("commit -q --amend -m Best", one)
    await inside.git("push -q --force origin HEAD:work", one)
    assert head(server, "work") == await inside.git("rev-parse HEAD", one)
    await inside.git("push -q origin :work :v9", one)
    assert "work" not in server.git("me/app.git", "branch", "--list")


async def test_a_push_larger_than_git_keeps_in_memory_arrives(inside: Inside, server: Server):
    folder = await inside.clone()
    made = await inside.commit(folder, "head -c 3000000 /dev/urandom > big.bin")
    server.web.forget()
    await inside.git("push -q origin HEAD:big", folder)
    assert head(server, "big") == made
    pushes = [one for one in server.web.asked if one.path.endswith("/git-receive-pack")]
    assert pushes[-1].header("Transfer-Encoding") == "chunked"
    assert pushes[-1].received > 3_000_000


async def test_shallow_clones_are_deepened(inside: Inside):
    folder = await inside.clone(options="--depth 1")
    count = "rev-list --count HEAD"
    assert await inside.git(count, folder) == "1"
    assert await inside.git("branch -r", folder) == "origin/HEAD -> origin/main\n  origin/main"
    await inside.git("fetch -q --deepen 5", folder)
    assert await inside.git(count, folder) == "6"
    await inside.git("fetch -q --unshallow", folder)
    assert await inside.git(count, folder) == str(APP.commits)


async def test_what_a_partial_clone_lacks_is_fetched_when_it_is_needed(inside: Inside):
    folder = await inside.clone(options="--filter=blob:none --no-checkout --single-branch -b old")
    missing = "rev-list --objects --all --missing=print | grep -c '^?'"
    before = int(await inside.git(missing, folder))
    await inside.git("checkout -q old", folder)
    assert 0 < int(await inside.git(missing, folder)) < before
    assert await inside.sh(f"cat {folder}/work.txt") == "work on old"


async def test_submodules_come_along_however_they_are_named(inside: Inside, server: Server):
    for name in ("whole", "one", "two", "three"):
        server.add(f"team/{name}.git", Content(commits=2))
    folder = await inside.clone("team/whole.git")
    for name, url in {
        "one": f"{inside.url}/team/one.git",
        "two": "../two.git",
        "three": "git@127.0.0.1:team/three.git",
    }.items():
        await inside.git(f"submodule --quiet add {url} {name}", folder)
    await inside.commit(folder, "true")
    await inside.git("push -q", folder)
    again = await inside.clone("team/whole.git", "--recurse-submodules")
    files = await inside.sh(f"cd {again}; ls */README.md; git config -f .gitmodules --list")
    assert files.startswith("one/README.md\nthree/README.md\ntwo/README.md")
    assert "3129" not in files


async def test_an_interrupted_fetch_is_told_and_succeeds_the_next_time(
    inside: Inside, server: Server
):
    server.add("me/big.git", Content(commits=2, big=3_000_000))
    folder = await inside.sh("mktemp -d -p /workspace; ")
    await inside.git(f"init -q -b main {folder}")
    await inside.git(f"remote add origin {inside.url}/me/big.git", folder)
    trouble = server.web.fail(Trouble("POST /me/big.git/git-upload-pack", after=1_000_000))
    assert "RPC failed" in await inside.refused(f"git -C {folder} fetch origin")
    assert trouble.met.is_set()
    await inside.git("pull -q origin main", folder)
    assert await inside.git("fsck", folder) == ""
    assert await inside.git("rev-parse HEAD", folder) == head(server, of="me/big.git")


async def test_what_a_route_does_not_allow_git_says_in_its_words(
    inside: Inside, shop: Workshop, server: Server
):
    folder = await inside.clone()
    await inside.commit(folder)
    box = shop.made[0]
    narrow = route("narrow", server.url, access=Access.READ, repositories=("me/*",))
    async with serving(shop.engine, box, server.url, narrow) as reading:
        said = await reading.refused(f"git -C {folder} push origin HEAD:refs/heads/no")
        assert "remote: box_mcp: the route 'narrow' is for reading only" in said
        said = await reading.refused(f"git -C {folder} push {server.url}/they/app.git HEAD")
        assert "remote: box_mcp: the route 'narrow' leads to me/* only, not to they/app" in said
        said = await reading.refused(f"git ls-remote {server.url}/they/open.git")
        port = server.url.rpartition(":")[2]
        assert f"Failed to connect to 127.0.0.1 port {port}" in said  # git goes there by itself


async def test_a_wrong_credential_is_told_without_a_question(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SECRET", "wrong")
    said = await inside.refused(f"script -qec 'git ls-remote {inside.url}/me/app.git' /dev/null")
    assert "remote: box_mcp: the credential of the route 'forge' was not accepted by" in said
    assert "Username" not in said
    assert "wrong" not in said
    monkeypatch.delenv("SECRET")
    assert "remote: box_mcp: " in await inside.refused(f"git ls-remote {inside.url}/me/app.git")


@pytest.mark.parametrize("mode", Mode)
async def test_routes_serve_boxes_of_every_network(shop: Workshop, server: Server, mode: Mode):
    box = shop.made[0]
    await shop.engine.attach(box, attached=mode is Mode.FULL)
    try:
        async with serving(shop.engine, box, server.url, mode=mode) as inside:
            assert head(server) in await inside.git(f"ls-remote {inside.url}/me/app.git")
            assert head(server) in await inside.sh(f"sudo git ls-remote {inside.url}/me/app.git")
    finally:
        await shop.engine.attach(box, attached=False)


async def test_routes_serve_a_box_without_sudo(shop: Workshop, server: Server):
    box = await shop.running(network=Network(Mode.NONE), sudo=False)
    async with serving(shop.engine, box, server.url) as inside:
        assert head(server) in await inside.git(f"ls-remote {inside.url}/me/app.git")
        assert await inside.sh("stat -c '%U %a' $GIT_CONFIG_SYSTEM") == "box 644"


async def test_of_two_servers_the_older_goes_on_when_the_newer_leaves(
    shop: Workshop, server: Server
):
    box, look = shop.made[0], f"ls-remote {server.url}/me/app.git main"
    async with serving(shop.engine, box, server.url, route("old", server.url)) as older:
        folder = await older.clone()
        async with serving(shop.engine, box, server.url, route("new", server.url)):
            assert head(server) in await older.git(look)
            shown = await older.git("config --show-origin --get-regexp 'url.*new.*'", folder)
            assert "GIT_CONFIG_SYSTEM" in shown
        await older.git("fetch -q", folder)
    async with serving(shop.engine, box, server.url) as again:
        await again.git("fetch -q", folder)


async def test_a_command_that_outlives_its_server_hears_that_there_is_none(
    shop: Workshop, server: Server
):
    box = shop.made[0]
    async with serving(shop.engine, box, server.url) as inside:
        wait = "until [ -e /tmp/go ]; do sleep 0.05; done"
        look = f"git ls-remote {server.url}/me/app.git"
        script = f"({wait}; {look}) > /workspace/late 2>&1; touch /workspace/over"
        await inside.sh(f"nohup sh -c '{script}' > /dev/null 2>&1 &")
    async with channel_to(shop.engine, box) as channel:
        await said(channel, "touch /tmp/go; until [ -e /workspace/over ]; do sleep 0.05; done")
        told = await said(channel, "cat /workspace/late")
    assert "remote: 127.0.0.1:3129 leads to box_mcp on the user's machine" in told


@pytest.fixture
async def media(inside: Inside, server: Server, lfs: Lfs) -> str:
    """A clone of a repository of its own, whose last commit has two files for LFS."""
    name = f"media/{token_hex(4)}.git"
    server.add(name, Content(commits=1, tags=()))
    folder = await inside.clone(name)
    make = "; ".join(f"head -c {size} /dev/urandom > {size}.bin" for size in (10, 2_000_000))
    await inside.commit(folder, f"git lfs track '*.bin'; {make}")
    return folder


async def cloned(inside: Inside, folder: str, by: str = "") -> str:
    """A new clone of a clone's origin; returns where it is."""
    origin = await inside.git("config remote.origin.url", folder)
    return await inside.clone(origin.removeprefix(f"{inside.url}/"), by=by)


async def sums(inside: Inside, folder: str) -> str:
    """Of the files that LFS has."""
    return await inside.sh(f"cd {folder}; sha256sum *.bin")


@pytest.mark.parametrize("in_query", [False, True])
async def test_objects_of_lfs_are_pushed_and_fetched_and_their_tokens_never_seen(
    inside: Inside, lfs: Lfs, media: str, in_query: bool
):
    lfs.in_query = in_query
    await inside.git("push -q", media)
    assert all(lfs.has(line.split()[0]) for line in (await sums(inside, media)).splitlines())
    again = await cloned(inside, media)
    assert await sums(inside, again) == await sums(inside, media)
    tokens = "\\n".join([*lfs.tokens, TOKEN])
    search = (
        f"printf '{tokens}' > /tmp/tokens; grep -rasFf /tmp/tokens {again} {media} /var/log/box_mcp"
    )
    assert len(lfs.tokens) >= 6
    assert await inside.refused(f"sh -c '{search}'") == ""


async def test_objects_of_remotes_by_ssh_are_moved_by_the_route(
    inside: Inside, lfs: Lfs, media: str
):
    await inside.git("push -q", media)
    again = await cloned(inside, media, by="git@127.0.0.1:")
    assert await sums(inside, again) == await sums(inside, media)
    await inside.commit(again, "echo more > more.bin")
    await inside.git("push -q", again)
    assert len(lfs.batches[-1]["objects"]) == 1
    await inside.git("pull -q", media)
    assert await sums(inside, again) == await sums(inside, media)


async def test_a_download_that_breaks_off_goes_on_where_it_was(
    inside: Inside, server: Server, lfs: Lfs, media: str
):
    await inside.git("push -q", media)
    server.web.forget()
    server.web.fail(Trouble("GET /lfs-objects/", after=1_000_000))
    assert await sums(inside, await cloned(inside, media)) == await sums(inside, media)
    ranges = [one.header("Range") for one in server.web.asked if one.status == 206]
    assert re.fullmatch(r"bytes=\d{4,}-\d+", ranges[0])


@pytest.mark.parametrize("status", [403, 404, 410])
async def test_addresses_of_objects_that_are_over_are_asked_for_anew(
    inside: Inside, server: Server, lfs: Lfs, media: str, status: int
):
    lfs.batches.clear()
    server.web.fail(Trouble("PUT /lfs-objects/", status=status, times=2))
    await inside.git("push -q", media)
    assert len(lfs.batches) > 1
    lfs.batches.clear()
    server.web.fail(Trouble("GET /lfs-objects/", status=status))
    assert await sums(inside, await cloned(inside, media)) == await sums(inside, media)
    assert len(lfs.batches) > 1


async def test_files_are_locked_and_unlocked(inside: Inside, lfs: Lfs, media: str):
    await inside.git("push -q", media)
    await inside.git("lfs lock 10.bin", media)
    assert "10.bin" in await inside.git("lfs locks", media)
    assert [lock["path"] for lock in lfs.locks.values()] == ["10.bin"]
    await inside.git("lfs unlock 10.bin", media)
    assert not lfs.locks


async def test_a_route_for_reading_takes_no_objects_and_locks(
    inside: Inside, shop: Workshop, server: Server, lfs: Lfs, media: str
):
    reads = route("reads", server.url, access=Access.READ)
    async with serving(shop.engine, shop.made[0], server.url, reads) as reading:
        for command in ("lfs push origin main", "lfs lock 10.bin"):
            said = await reading.refused(f"git -C {media} {command}")
            assert "box_mcp: the route 'reads' is for reading only" in said
    assert not lfs.locks
