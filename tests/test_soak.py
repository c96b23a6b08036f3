"""Servers that are killed, hung up on and interrupted at random: nothing is lost, nothing left."""

from __future__ import annotations

import secrets
import sys
from typing import TYPE_CHECKING

import pytest
from anyio import to_thread

from benchmarks import leftovers, soak
from benchmarks.fleet import Fleet, Journal
from box_mcp.engines.marks import settle_mark
from box_mcp.settings import Settings
from tests.support.client import until

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = 30.0
KINDS = frozenset({"write", "read", "create", "fork", "freeze", "delete", "snapshot"})


@pytest.mark.timeout(SECONDS + 240)
async def test_nothing_is_lost_and_nothing_left_while_servers_are_killed_at_random(tmp_path: Path):
    summary = await soak.soak(tmp_path, secrets.randbelow(10**6), SECONDS, kinds=KINDS)

    assert not summary.breaches, f"\n{summary}"
    assert summary.ends[soak.KILL] > 0, f"\n{summary}"
    assert summary.tally.taken.keys() >= KINDS, f"\n{summary}"


@pytest.mark.parametrize(
    ("sabotage", "found"),
    [
        ("DockerEngine._delete = lambda self, box: None", "left in the engine: container /box-"),
        ("DockerEngine._stop = DockerEngine._delete", "is lost"),
    ],
)
@pytest.mark.timeout(240)
async def test_a_server_that_forgets_or_loses_boxes_is_found_out(
    sabotage: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(soak, "CLEAN_TIMEOUT", 1)
    lines = ("from box_mcp.engines.docker import DockerEngine", sabotage, "cli.main()")
    command = (sys.executable, "-c", "\n".join(("from box_mcp import cli", *lines)), "serve")

    summaries: list[str] = []
    for seed in range(1, 6):  # on a busy machine, ten seconds may pass without a stop or a delete
        directory = tmp_path / str(seed)
        directory.mkdir()
        summary = await soak.soak(directory, seed, 10, command=command)
        if any(found in breach for breach in summary.breaches):
            return
        summaries.append(str(summary))
    pytest.fail("\n".join(summaries))


async def test_a_second_signal_does_not_cut_short_how_a_server_tidies_up(tmp_path: Path):
    settle_mark(tmp_path / "state")
    owner = Settings(state_dir=tmp_path / "state").isolation().owner
    journal, complaints = Journal(tmp_path / "journal.txt"), list[str]()

    async def spare() -> bool:
        there = await to_thread.run_sync(leftovers.in_engine, owner)
        return any("Up" in one for one in there)

    try:
        env = soak.environment(tmp_path)
        async with Fleet(soak.COMMAND, env, journal, complaints.append).open() as fleet:
            server = await fleet.start()
            await server.ready.wait()
            await until(spare, "a running spare")
            await server.interrupt()
            assert server.ended_with == 0, "\n".join(journal.lines())
    finally:
        leftovers.remove(owner)
    assert complaints == []
