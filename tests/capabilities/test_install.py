"""Harnesses brought into a box that has none, by the real npm from its real registry."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import anyio
import pytest

from box_mcp.capabilities.harnesses.install import install
from box_mcp.capabilities.harnesses.known import KNOWN
from box_mcp.capabilities.shell import RunRecord, Shell
from box_mcp.channel import Channel
from box_mcp.engines.docker import DockerEngine
from box_mcp.errors import HarnessMissing
from box_mcp.settings import Settings
from tests.support.engines import MEBI, Workshop, channel_to, said, workshop

PACKAGE = "@esbuild/linux-{arch}@{version}"
"""A program of one platform, published as those of harnesses are, in 4 MB."""

VERSION = "0.25.0"
MEMORY = 1024 * MEBI
NPM_TAKES = 100.0
"""Seconds, on a busy machine; two otherwise."""


@pytest.fixture(scope="module")
async def shop() -> AsyncGenerator[Workshop, None]:
    """With one running box that has a network, and one that has none."""
    async with workshop(DockerEngine()) as shop:
        await shop.running(memory=MEMORY)
        await shop.engine.attach(await shop.running(memory=MEMORY), attached=False)
        yield shop


@pytest.fixture
async def online(shop: Workshop) -> AsyncGenerator[Channel, None]:
    """Into a box in which nothing is installed yet."""
    async with channel_to(shop.engine, shop.made[0], NPM_TAKES) as channel:
        await said(channel, "rm -rf ~/.local")
        yield channel


@pytest.fixture
async def offline(shop: Workshop) -> AsyncGenerator[Channel, None]:
    """The same, without a network."""
    async with channel_to(shop.engine, shop.made[1]) as channel:
        await said(channel, "rm -rf ~/.local")
        yield channel


async def fail(
    channel: Channel, program: str = "esbuild", package: str = PACKAGE, version: str = VERSION
) -> HarnessMissing:
    with pytest.raises(HarnessMissing) as failed:
        await install(Shell(channel), program, package, version)
    assert await said(channel, "ls -d ~/.local/lib/agents/.new-* 2>/dev/null; true") == ""
    assert failed.value.survived == "Nothing was started; the box is fine"
    return failed.value


async def test_a_program_that_is_not_there_is_installed_and_it_is_told_how_that_goes(
    online: Channel,
):
    await said(online, "mkdir -p ~/.local/lib/agents/.new-left-by-one-that-was-killed")
    heard: list[str] = []

    async def hear(line: str, _printed: int) -> None:
        heard.append(line)

    await install(Shell(online), "esbuild", PACKAGE, VERSION, hear)
    assert await said(online, "esbuild --version; ls -A ~/.local/lib/agents ~/.local/bin") == (
        f"{VERSION}\n/home/box/.local/bin:\nesbuild\n\n"
        f"/home/box/.local/lib/agents:\n.lock\nesbuild-{VERSION}"
    )
    assert heard
    assert {line.partition(": ")[0] for line in heard} == {f"installs esbuild {VERSION}"}


async def test_two_that_install_at_once_do_the_work_once(online: Channel):
    before = await installations(online)
    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(install, Shell(online), "esbuild", PACKAGE, VERSION)
    assert await said(online, "esbuild --version") == VERSION
    known = {run.id for run in before}
    printed = [run.printed for run in await installations(online) if run.id not in known]
    assert len([size for size in printed if size > 0]) == 1


async def test_who_goes_away_finds_it_installed_later(online: Channel):
    async def hear(_line: str, _printed: int) -> None:
        scope.cancel()

    with anyio.CancelScope() as scope:
        await install(Shell(online), "esbuild", PACKAGE, VERSION, hear)
    assert scope.cancelled_caught
    await install(Shell(online), "esbuild", PACKAGE, VERSION)
    assert await said(online, "esbuild --version") == VERSION


async def test_who_does_not_wait_is_told_and_the_next_one_looks_on(online: Channel):
    before = len(await installations(online))
    with pytest.raises(HarnessMissing, match="it is being installed") as failed:
        await install(Shell(online), "esbuild", PACKAGE, VERSION, until=0)
    assert "Repeat the call" in failed.value.advice
    await install(Shell(online), "esbuild", PACKAGE, VERSION)
    assert await said(online, "esbuild --version") == VERSION
    assert len(await installations(online)) == before + 1


async def test_a_disk_that_is_too_small_is_told(online: Channel):
    await said(online, "mkdir -p ~/.local/lib /dev/shm/a; ln -s /dev/shm/a ~/.local/lib/agents")
    await said(online, "head -c 5M /dev/zero > /dev/shm/full; cat /dev/zero > /dev/shm/all; true")
    await said(online, "rm /dev/shm/full")
    error = await fail(online)
    assert "esbuild: it could not be installed: " in str(error)
    assert error.advice.startswith("Delete what the box needs no more")
    await said(online, "rm -r /dev/shm/a /dev/shm/all")


async def test_the_packages_of_harnesses_are_there(online: Channel):
    versions = Settings().versions()
    packages = [
        harness.package.format(arch=arch, version=versions[name])
        for name, harness in KNOWN.items()
        for arch in ("x64", "arm64")
    ]
    views = " & ".join(f"npm view {package} name" for package in packages)
    names = [package.rpartition("@")[0] for package in packages]
    outcome = await Shell(online).run(
        f"{views} & wait", timeout=NPM_TAKES, yield_after=NPM_TAKES, max_output=4000
    )
    assert sorted(outcome.head.decode().split()) == sorted(names)


async def test_what_npm_says_is_told_without_its_noise(online: Channel):
    error = await fail(online, version="99.0.0")
    assert "could not be installed: code ETARGET notarget No matching version" in str(error)
    assert "complete log" not in str(error)
    assert "`network_policy`" in error.advice


async def test_without_a_network_it_is_told_soon_what_to_do(offline: Channel):
    error = await fail(offline)
    assert str(error).endswith("it could not be installed: the box has no network")
    assert "`network_policy`" in error.advice


async def test_without_npm_it_is_told_that_there_is_none(offline: Channel):
    await said(offline, "sudo mv /usr/bin/npm /usr/bin/other")
    error = await fail(offline)
    assert str(error).endswith("has no esbuild: it could not be installed: the image has no npm")
    assert "box-mcp image build" in error.advice
    await said(offline, "sudo mv /usr/bin/other /usr/bin/npm")


async def test_what_no_package_is_known_of_is_just_missing(offline: Channel):
    error = await fail(offline, "own-agent", "")
    assert str(error).endswith("has no own-agent: it is not installed")


async def installations(channel: Channel) -> list[RunRecord]:
    """Those that the box knows of."""
    runs = (await Shell(channel).processes()).runs
    return [run for run in runs if run.command.startswith("installs ")]
