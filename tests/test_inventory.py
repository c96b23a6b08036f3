"""`box-mcp boxes` and `box-mcp prune`: what is shown, what goes, and what is never touched."""

from __future__ import annotations

import os
import signal
import sqlite3
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from box_mcp.domain.box import Box, BoxSpec, State, Terms
from box_mcp.domain.names import LOCAL, BoxId, mint_id
from box_mcp.domain.plan import Policy
from box_mcp.domain.snapshots import Snapshot
from box_mcp.engines.docker import DockerEngine
from box_mcp.engines.isolation import LABEL, OWNER_LABEL
from box_mcp.inventory import GONE, outlook
from box_mcp.listing import size
from box_mcp.settings import Settings
from tests.support.client import container_state, docker, serving, until
from tests.support.commands import box_mcp, boxes, forget, made_box
from tests.support.engines import IMAGE, MEBI

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

STRANGE = f"inventory-{token_hex(4)}"
"""Marks what these tests make without any label of box_mcp."""


@pytest.fixture
def env(server_env: dict[str, str]) -> Generator[dict[str, str], None, None]:
    """A server's variables; all that bears its mark, or this module's, is removed in the end."""
    yield server_env
    for mark in (f"{OWNER_LABEL}={owner_of(server_env)}", STRANGE):
        for kind, remove in (
            ("ps -aq", "rm -fv"),
            ("network ls -q", "network rm"),
            ("volume ls -q", "volume rm"),
            ("images -q", "rmi -f"),
        ):
            found = docker(*kind.split(), "--filter", f"label={mark}").split()
            if found:
                docker(*remove.split(), *dict.fromkeys(found), check=False)


def owner_of(env: Mapping[str, str]) -> str:
    """The mark of what servers of this state directory make."""
    return Settings(state_dir=Path(env["BOX_MCP_STATE_DIR"])).isolation().owner


def labels(env: Mapping[str, str], box: str) -> list[str]:
    """Arguments that label something as a box's."""
    return ["--label", f"{LABEL}={box}", "--label", f"{OWNER_LABEL}={owner_of(env)}"]


def exists(kind: str, name: str) -> bool:
    """Whether the engine has it."""
    return docker(kind, "inspect", "-f", "there", name, check=False) == "there"


async def fork_image(env: Mapping[str, str], box: str) -> str:
    """The image of a fork whose boxes never came to be, or are gone."""
    engine = DockerEngine(Settings(state_dir=Path(env["BOX_MCP_STATE_DIR"])).isolation())
    try:
        spec = BoxSpec(IMAGE, cpus=1, memory=256 * MEBI)
        about = Snapshot(LOCAL, None, BoxId(box), spec, 1.0)
        return (await engine.save(BoxId(box), None, about.labels())).image
    finally:
        await engine.aclose()


def everything(env: Mapping[str, str]) -> list[object]:
    """All that servers of this state directory have written, and what the engine has of theirs."""
    state = Path(env["BOX_MCP_STATE_DIR"])
    mark = f"label={OWNER_LABEL}={owner_of(env)}"
    with closing(sqlite3.connect(state / "state.db")) as database:
        rows = database.execute("SELECT * FROM boxes ORDER BY id").fetchall()
        rows += database.execute("SELECT * FROM sessions ORDER BY box").fetchall()
    return [
        rows,
        {path: path.read_bytes() for path in state.glob("*/*") if path.parent.name != "servers"},
        docker("ps", "-a", "--format", "{{.ID}} {{.State}}", "--filter", mark),
        docker("network", "ls", "-q", "--filter", mark),
    ]


# boxes


async def test_boxes_shows_each_with_what_it_holds_and_what_comes_next(env: dict[str, str]):
    async with serving(env) as server:
        await server.tell("box_create", name="busy")
        await server.run("head -c 30000000 /dev/zero > file", box="busy")
        await server.tell("box_create", name="cold")
        await server.tell("box_pause", box="cold")
        await server.tell("box_create", name="off")
        await server.tell("box_pause", box="off", depth="stopped")
        await server.tell("snapshot_create", name="kept", box="busy")
        before, said = everything(env), boxes(env)
        async with anyio.create_task_group() as group:
            group.start_soon(partial(server.call, "shell_run", command="sleep 60", box="busy"))

            async def in_use() -> bool:
                return named(boxes(env), "busy")["in_use"]

            await until(in_use, "a call holds the box")
            said = boxes(env)
            group.cancel_scope.cancel()
        assert everything(env)[2:] == before[2:]
    busy, cold, off = (named(said, name) for name in ("busy", "cold", "off"))
    assert [one["depth"] for one in (busy, cold, off)] == [None, "frozen", "stopped"]
    assert busy["next"] == "in use"
    assert (cold["next"], off["next"]) == ("stop", "delete")
    assert cold["next_at"] < off["next_at"]
    assert busy["disk"] > 30_000_000 > cold["disk"] > 0
    assert busy["memory"] > MEBI < cold["memory"]
    assert off["memory"] == 0
    assert {one["principal"] for one in said["boxes"]} == {"local"}
    (snapshot,) = said["snapshots"]
    assert (snapshot["name"], snapshot["origin"]) == ("kept", busy["id"])
    assert snapshot["size"] > snapshot["added"] > 30_000_000
    assert said["servers"] == 1
    shown = box_mcp("boxes", env=env).stdout
    for words in ("busy", "SNAPSHOT", "kept", "stops by itself when idle: no server runs", "MiB"):
        assert words in shown


def named(said: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in said["boxes"] if one["name"] == name)


async def test_boxes_changes_nothing(env: dict[str, str]):
    box = made_box(env)
    before = everything(env)
    assert [one["id"] for one in boxes(env)["boxes"]] == [box]
    box_mcp("boxes", env=env)
    box_mcp("prune", "--dry-run", env=env)
    assert everything(env) == before


async def test_boxes_shows_the_spare_of_a_server_that_was_killed(env: dict[str, str]):
    env["BOX_MCP_WARM_MAX"] = "1"
    async with serving(env) as server:

        async def spare() -> bool:
            return any(one["spare"] and one["memory"] for one in boxes(env)["boxes"])

        await until(spare, "a spare is made")
        assert "(spare)" in box_mcp("boxes", env=env).stdout
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
        assert [one["spare"] for one in boxes(env)["boxes"]] == [True]


async def test_boxes_without_the_store_come_from_their_records_and_without_the_engine_from_it(
    env: dict[str, str], tmp_path: Path
):
    box = made_box(env)
    state = Path(env["BOX_MCP_STATE_DIR"])
    dead = {**env, "DOCKER_HOST": f"unix://{tmp_path}/nobody.sock"}
    said = boxes(dead, code=1)
    assert [(one["id"], one["memory"]) for one in said["boxes"]] == [(box, None)]
    assert "Start Docker" in said["troubles"][0]
    told = box_mcp("boxes", code=1, env=dead)
    assert box in told.stdout
    assert "Error: No container engine answers" in told.stderr
    assert "Start Docker" in box_mcp("prune", "--yes", code=1, env=dead).stderr

    (state / "state.db").unlink()
    said = boxes(env)
    assert [(one["id"], one["state"]) for one in said["boxes"]] == [(box, "running")]
    assert "boxes are shown from their records" in said["notes"][0]
    assert not (state / "state.db").exists()

    (state / "state.db").mkdir()
    said = boxes(env, code=1)
    assert (said["boxes"], said["leftovers"]) == ([], [])
    assert "can't be used" in said["troubles"][0]
    assert "can't be used" in box_mcp("prune", "--yes", code=1, env=env).stderr
    assert container_state(box) == "running"
    (state / "state.db").rmdir()


async def test_a_box_whose_container_was_removed_is_shown_as_lost(env: dict[str, str]):
    box, other = made_box(env), made_box(env)
    docker("rm", "-f", box)
    said = {one["id"]: one for one in boxes(env)["boxes"]}
    assert (said[box]["state"], said[box]["next"]) == ("lost", "its container is gone")
    assert said[other]["state"] == "running"
    box_mcp("prune", "--yes", env=env)
    assert [one["id"] for one in boxes(env)["boxes"]] == [other]
    assert not exists("network", f"{box}-net")


# prune


async def test_prune_removes_an_orphan_of_each_kind_and_tells_what_was_freed(env: dict[str, str]):
    mine, orphan = made_box(env), made_box(env)
    image = await fork_image(env, mine)
    forget(orphan, env)
    box = mint_id()
    docker("network", "create", *labels(env, box), f"{box}-net")
    docker("volume", "create", *labels(env, box), f"{box}-data")
    said = box_mcp("prune", env=env, code=1).stdout
    for word in (orphan, "nobody's, up", f"{box}-net", f"{box}-data", image[7:19]):
        assert word in said
    assert mine not in said
    assert "Nothing was deleted" in box_mcp("prune", env=env, stdin="n\n").stdout
    assert exists("container", orphan)
    said = box_mcp("prune", env=env, stdin="y\n").stdout
    assert "Deleted 6, which frees" in said
    assert "of disk and" in said
    for kind, name in (
        ("container", orphan),
        ("network", f"{orphan}-net"),
        ("network", f"{box}-net"),
        ("volume", f"{box}-data"),
        ("image", image),
    ):
        assert not exists(kind, name), name
    assert container_state(mine) == "running"
    assert exists("network", f"{mine}-net")
    assert "There is nothing to delete" in box_mcp("prune", "--yes", env=env).stdout


async def test_prune_touches_nothing_that_was_not_made_by_box_mcp(env: dict[str, str]):
    """Nor what people made of a box, which bears its labels: images inherit them."""
    box = made_box(env)
    image = await fork_image(env, box)
    docker("tag", image, f"{STRANGE}:fork")
    docker("commit", box, f"{STRANGE}:of-a-box")
    docker("create", "--name", f"{STRANGE}-1", f"{STRANGE}:of-a-box")
    orphan = mint_id()
    mark = ["--label", STRANGE]
    docker("network", "create", *labels(env, orphan), f"{orphan}-net")
    docker("create", *mark, "--name", orphan, "--entrypoint", "true", IMAGE)
    docker("network", "create", *mark, f"{STRANGE}-net")
    docker("volume", "create", *mark, f"{STRANGE}-data")
    try:
        docker("rm", "-f", box)
        box_mcp("prune", "--yes", env=env)
        assert not exists("network", f"{orphan}-net")
        for kind, name in (
            ("container", orphan),
            ("container", f"{STRANGE}-1"),
            ("network", f"{STRANGE}-net"),
            ("volume", f"{STRANGE}-data"),
            ("image", f"{STRANGE}:of-a-box"),
            ("image", f"{STRANGE}:fork"),
        ):
            assert exists(kind, name), name
    finally:
        docker("rm", "-f", orphan, f"{STRANGE}-1", check=False)
        docker("rmi", f"{STRANGE}:of-a-box", f"{STRANGE}:fork", check=False)


async def test_what_people_named_of_a_boxs_images_outlives_servers_and_boxes(env: dict[str, str]):
    async with serving(env) as server:
        await server.tell("box_create", name="it")
        (fork,) = (await server.tell("box_fork", box="it"))["boxes"]
        docker("tag", docker("inspect", "-f", "{{.Image}}", fork["id"]), f"{STRANGE}:fork")
        docker("commit", fork["id"], f"{STRANGE}:of-a-fork")
        made = (await server.tell("box_create", image=f"{STRANGE}:of-a-fork"))["id"]
        assert (await server.tell("snapshot_list"))["snapshots"] == []
        for box in (fork["id"], made):
            await server.say("box_delete", box=box)
    try:
        box_mcp("prune", "--yes", env=env)
        assert exists("image", f"{STRANGE}:fork")
        assert exists("image", f"{STRANGE}:of-a-fork")
    finally:
        docker("rmi", f"{STRANGE}:of-a-fork", f"{STRANGE}:fork", check=False)


async def test_prune_leaves_what_a_live_server_holds_though_its_record_is_gone(
    env: dict[str, str],
):
    env["BOX_MCP_WARM_MAX"] = "1"
    async with serving(env) as server:
        box = (await server.tell("box_create"))["id"]

        async def stocked() -> bool:
            networks = docker("network", "ls", "-q", "--filter", f"label={LABEL}").split()
            return len(networks) >= 3

        await until(stocked, "networks are made ahead")
        forget(box, env)
        said = box_mcp("prune", "--yes", env=env).stdout
        assert f"container {box} stays: something is connected to it" in said
        assert f"network {box}-net stays: its box has a container" in said
        assert "Deleted 0." in said
        assert container_state(box) == "running"
        async with anyio.create_task_group() as group:
            group.start_soon(partial(server.call, "shell_run", command="sleep 60", box=box))

            async def left_alone() -> bool:
                return "nothing to delete" in box_mcp("prune", "--yes", env=env).stdout

            await until(left_alone, "a call holds the ticket")
            group.cancel_scope.cancel()


async def test_boxes_and_prune_are_about_one_state_directory_and_others_when_they_are_named(
    env: dict[str, str], tmp_path: Path
):
    theirs = made_box(env)
    forget(theirs, env)
    other = {**env, "BOX_MCP_STATE_DIR": str(tmp_path / "other")}
    said = boxes(other)
    assert (said["boxes"], said["leftovers"]) == ([], [])
    assert said["other_owners"][owner_of(env)] == 1
    said = box_mcp("prune", "--yes", env=other).stdout
    assert f"1 of {owner_of(env)}" in said
    assert "There is nothing to delete" in said
    assert exists("container", theirs)
    assert not (tmp_path / "other").exists()
    directory = env["BOX_MCP_STATE_DIR"]
    assert theirs in box_mcp("boxes", "--json", "--state-dir", directory, env=other).stdout
    box_mcp("prune", "--yes", "--state-dir", directory, env=other)
    assert not exists("container", theirs)


async def test_prune_doubts_that_all_boxes_are_gone_at_once(env: dict[str, str]):
    """As they seem to be when another engine is asked than the one that has them."""
    box = made_box(env)
    docker("rm", "-f", box)
    said = box_mcp("prune", "--yes", env=env).stdout
    assert "This engine has none of the boxes that are remembered here" in said
    assert "There is nothing to delete" in said
    assert [one["id"] for one in boxes(env)["boxes"]] == [box]


async def test_prune_removes_what_a_killed_server_had_frozen(env: dict[str, str]):
    """Its connection was frozen, too, and looks as if it were still in use."""
    async with serving(env) as server:
        box = (await server.tell("box_create"))["id"]
        await server.tell("box_pause", box=box)
        forget(box, env)
        assert "something is connected to it" in box_mcp("prune", "--yes", env=env).stdout
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
    assert container_state(box) == "paused"
    box_mcp("prune", "--yes", env=env)
    assert not exists("container", box)


# what comes next, and what things hold

POLICY = Policy(pause_after=10, stop_after=100, delete_after=1000)
A_BOX = Box(
    mint_id(),
    BoxSpec(IMAGE, cpus=1, memory=256 * MEBI),
    created=0,
    state=State.RUNNING,
    principal=LOCAL,
    used=50,
    since=1,
)


@pytest.mark.parametrize(
    ("changes", "now", "attended", "expected"),
    [
        ({}, 55, True, ("freeze", 60)),
        ({}, 65, True, ("freeze when its commands end", None)),
        ({}, 55, False, ("stops by itself when idle: no server runs", None)),
        ({"terms": Terms(keep_awake=True)}, 99, True, ("kept awake", None)),
        ({"terms": Terms(ttl=5)}, 51, True, ("delete", 55)),
        ({"principal": None}, 55, True, ("waits for a caller", None)),
        ({"state": State.FROZEN}, 55, True, ("stop", 150)),
        ({"state": State.FROZEN}, 155, True, ("stop soon", None)),
        ({"state": State.FROZEN}, 55, False, ("stop by the next server", None)),
        ({"state": State.STOPPED}, 55, False, ("delete", 1050)),
        ({"state": State.STOPPED}, 1055, False, ("delete by the next server", None)),
        ({"state": State.LOST, "reason": "its container is gone"}, 55, True, (GONE, None)),
    ],
)
def test_what_comes_next_is_what_servers_will_do_if_there_are_any(
    changes: dict[str, Any], now: float, attended: bool, expected: tuple[str, float | None]
):
    assert outlook(replace(A_BOX, **changes), POLICY, now, attended=attended) == expected


def test_a_box_that_no_step_leads_on_stays():
    stopped = replace(A_BOX, state=State.STOPPED)
    assert outlook(stopped, replace(POLICY, delete_after=None), 55, attended=True)[0] == "stays"


@pytest.mark.parametrize(
    ("count", "said"),
    [(None, "-"), (0, "0 KiB"), (1535, "1 KiB"), (3 * MEBI // 2, "1.5 MiB"), (5 << 40, "5.0 TiB")],
)
def test_sizes_are_told_in_units_that_people_read(count: int | None, said: str):
    assert size(count) == said
