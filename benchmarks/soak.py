"""Many random calls to several servers that are killed at random, held to what they answered.

            ┌─▶ server ─┐                  every few seconds one of the servers is killed,
 workers ───┼─▶ server ─┼──▶ one state     hung up on or interrupted, and another takes its
            └─▶ server ─┘    directory     place; boxes pause within seconds

What must be true is in the ledger: no box and no snapshot is lost whose deletion was not asked
for, none has other words in it than were written there, and errors are of the kinds that there may
be. In the end a new server is asked for all of it, everything is deleted, and nothing is left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from time import monotonic
from typing import Any

import anyio
from anyio import to_thread

from benchmarks import leftovers
from benchmarks.fleet import Fleet, Journal, Server
from benchmarks.ledger import Fate, Ledger
from benchmarks.measure import row
from benchmarks.worker import Scene, Tally, Worker
from box_mcp.settings import Settings

COMMAND = (sys.executable, "-m", "box_mcp", "serve")
SETTINGS = {
    "size": "small",
    "pause_after": 3,
    "stop_after": 4,
    "orphan_after": 15,
    "warm_min": 1,
    "warm_max": 2,
    "max_boxes": 24,
    "max_running": 10,
    "queue_timeout": 15,
}
"""Idleness acts within seconds, and not all boxes can run at once."""

WORKERS = 6  # calls under way at once
REST = (1.0, 5.0)  # s from one server's end to the next
ENDINGS = {"kill -9": 8, "hang up": 1, "SIGINT": 1}
"""How servers end, and how often each beside the others."""
CLEAN_TIMEOUT = 30.0  # s for the last server to find what the dead ones left
POLL = 0.5  # s
ALARMS = ("Traceback", "failed unexpectedly", "was damaged")
"""Words that no server may log."""


@dataclass(frozen=True)
class Summary:
    """A run and what came of it."""

    seed: int
    seconds: float
    servers: int
    ends: Counter[str]
    tally: Tally
    breaches: Sequence[str]

    def table(self) -> str:
        """For a human to read."""
        rows = [row(action, taken) for action, taken in sorted(self.tally.taken.items())]
        lines = [f"{'':18}  {'p50 ms':>9} {'p95 ms':>9} {'n':>6}"]
        lines += [f"{one.name:18}  {one.p50:9.1f} {one.p95:9.1f} {one.n:6}" for one in rows]
        lines += ["", f"servers ended: {_counted(self.ends)}", "", "calls that failed:"]
        lines += [
            f"  {kind} {sum(actions.values())}: {_counted(actions)}"
            for kind, actions in sorted(self.tally.errors.items())
        ]
        if self.breaches:
            lines += ["", f"{len(self.breaches)} BREACHES:", *map("  {}".format, self.breaches)]
        return "\n".join([*lines, "", f"seed {self.seed}, {self.seconds:.0f} s"])

    def report(self) -> dict[str, Any]:
        """For a program to read."""
        rows = [row(action, taken) for action, taken in self.tally.taken.items()]
        return {
            "seed": self.seed,
            "seconds": self.seconds,
            "servers": self.servers,
            "actions": {
                one.name: {"n": one.n, "p50_ms": one.p50, "p95_ms": one.p95} for one in rows
            },
            "ends": dict(self.ends),
            "errors": {kind: dict(actions) for kind, actions in self.tally.errors.items()},
            "breaches": list(self.breaches),
        }


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{what} {number}" for what, number in counts.most_common()) or "none"


async def soak(directory: Path, seed: int, seconds: float, servers: int) -> Summary:
    """Everything that is made is in `directory`, and in the engine, until `leftovers.remove`."""
    journal, tally = Journal(directory / "journal.txt"), Tally()
    ledger = Ledger(partial(journal.note, "BREACH"))
    ends = Counter[str]()
    state = directory / "state"
    owner = Settings(state_dir=state).isolation().owner
    began = monotonic()
    async with Fleet(COMMAND, environment(directory), journal, ledger.breach).open() as fleet:
        scene = Scene(seed, fleet, ledger, tally, journal)
        await fleet.grow(servers)
        async with anyio.create_task_group() as group:
            group.start_soon(end_servers, scene, ends, began + seconds)
            for number in range(WORKERS):
                group.start_soon(Worker(scene, number).run, began + seconds)
        journal.note("soak", "the end begins")
        for server in fleet.servers:
            await end(server, "hang up", ledger)
        last = await fleet.add(warm_max=0)
        await last.ready.wait()
        await examine(scene, Worker(scene, WORKERS, last))
        await gone(lambda: leftovers.in_engine(owner), "in the engine", ledger)
        await end(last, "hang up", ledger)
    for left in leftovers.on_disk(state):
        ledger.breach(f"left on the disk: {left}")
    for line in journal.text().splitlines():
        if any(alarm in line for alarm in ALARMS):
            ledger.breach(f"logged: {line}")
    return Summary(seed, monotonic() - began, servers, ends, tally, ledger.breaches)


def environment(directory: Path) -> dict[str, str]:
    """A server's variables: none of those that this process has for one."""
    config = directory / "config.toml"
    config.touch()
    ours = {f"BOX_MCP_{name.upper()}": str(value) for name, value in SETTINGS.items()}
    ours |= {"BOX_MCP_CONFIG": str(config), "BOX_MCP_STATE_DIR": str(directory / "state")}
    foreign = ("BOX_MCP_", "CLAUDE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return kept | ours


async def end_servers(scene: Scene, ends: Counter[str], until: float) -> None:
    """Ends one server after another, and starts one in the place of each."""
    dice = random.Random(f"{scene.seed} ends")  # noqa: S311 - repeatable
    while True:
        await anyio.sleep(dice.uniform(*REST))
        if monotonic() > until:
            return
        server = dice.choice(scene.fleet.servers)
        (how,) = dice.choices(list(ENDINGS), list(ENDINGS.values()))
        scene.journal.note("soak", f"{how} {server.name}")
        ends[how] += 1
        async with anyio.create_task_group() as group:
            group.start_soon(end, server, how, scene.ledger)
            await scene.fleet.replace(server)


async def end(server: Server, how: str, ledger: Ledger) -> None:
    """Ends a server, which must not take long, nor complain."""
    try:
        match how:
            case "hang up":
                await server.hang_up()
            case "SIGINT":
                await server.interrupt()
            case _:
                return server.kill()
    except TimeoutError:
        ledger.breach(f"{server.name} did not end after {how}")
        return server.kill()
    if server.ended_with:
        ledger.breach(f"{server.name} ended with {server.ended_with} after {how}")


async def examine(scene: Scene, worker: Worker) -> None:
    """All that must be there is there, as it must be, and can be deleted."""
    ledger = scene.ledger
    await worker.list()
    await worker.list_snapshots()
    for order in ledger.orders.values():
        ledger.breach(f"{order} is not settled, though no server lives that it was given")
    for box in [box for box in ledger.boxes.values() if box.fate is not Fate.GONE]:
        await worker.look("read", box)
        await worker.delete(box)
    for snapshot in [one for one in ledger.snapshots.values() if one.fate is not Fate.GONE]:
        await worker.restore(snapshot)
        await worker.delete_snapshot(snapshot)
    for box in [box for box in ledger.boxes.values() if box.fate is not Fate.GONE]:
        await worker.look("read", box)
        await worker.delete(box)
    await worker.list()
    await worker.list_snapshots()
    for box in ledger.boxes.values():
        if box.fate is not Fate.GONE:
            ledger.breach(f"{box.id} can not be deleted")


async def gone(look: Callable[[], Sequence[str]], where: str, ledger: Ledger) -> None:
    """Waits until there is nothing left: a server looks after that by itself."""
    left: Sequence[str] = ()
    with anyio.move_on_after(CLEAN_TIMEOUT):
        while left := await to_thread.run_sync(look):  # noqa: ASYNC110 - the engine tells nobody
            await anyio.sleep(POLL)
    for what in left:
        ledger.breach(f"left {where}: {what}")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks soak", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seconds", type=float, help="instead of minutes")
    parser.add_argument("--servers", type=int, default=4)
    parser.add_argument("--seed", type=int, help="decides what is done; random by default")
    parser.add_argument("--json", type=Path, help="where the figures go, too")
    parser.add_argument("--keep", action="store_true", help="keep the journal of a good run, too")
    options = parser.parse_args(arguments)
    seconds = options.minutes * 60 if options.seconds is None else options.seconds
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    directory = Path(mkdtemp(prefix="box-mcp-soak-"))
    print(
        f"seed {seed}, {seconds:g} s; what happens is told in {directory / 'journal.txt'}",
        flush=True,
    )
    try:
        summary = anyio.run(soak, directory, seed, seconds, options.servers)
    finally:
        leftovers.remove(Settings(state_dir=directory / "state").isolation().owner)
    print(summary.table())
    if options.json is not None:
        options.json.write_text(json.dumps(summary.report(), indent=2) + "\n")
    if summary.breaches:
        sys.exit(1)
    if not options.keep:
        shutil.rmtree(directory)
