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
import os
import random
import re
import secrets
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
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
from benchmarks.ledger import Fate, Kept, Ledger
from benchmarks.measure import row
from benchmarks.worker import Scene, Tally, Worker
from box_mcp.domain.plan import SURPLUS_AFTER
from box_mcp.engines.marks import settle_mark
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

SERVERS = 4
WORKERS = 6  # calls under way at once
REST = (1.0, 5.0)  # s from one server's end to the next
KILL, HANG_UP, INTERRUPT = "kill -9", "hang up", "SIGINT"
ENDINGS = {KILL: 8, HANG_UP: 1, INTERRUPT: 1}
"""How servers end, and how often each beside the others."""
CLEAN_TIMEOUT = SURPLUS_AFTER + 30.0  # s for the last server to remove what the dead ones left
POLL = 0.5  # s
ALARMS = ("Traceback", "failed unexpectedly", "was damaged")
"""Words that no server may log."""
NAMED = re.compile(r"box-[a-z0-9]{8}|snapshot-\d+|\bs\d+\b")
STORY, TAIL = 25, 15  # lines of the journal that are shown for each breach's box, and its last


@dataclass(frozen=True)
class Summary:
    """A run and what came of it."""

    seed: int
    seconds: float
    ends: Counter[str]
    tally: Tally
    breaches: Sequence[str]
    journal: Sequence[str]

    def __str__(self) -> str:
        rows = [row(action, taken) for action, taken in sorted(self.tally.taken.items())]
        lines = [f"{'':18}  {'p50 ms':>9} {'p95 ms':>9} {'n':>6}"]
        lines += [f"{one.name:18}  {one.p50:9.1f} {one.p95:9.1f} {one.n:6}" for one in rows]
        lines += [f"{'all':42}{sum(one.n for one in rows):6}", "", "calls that failed:"]
        lines += [
            f"  {kind} {sum(actions.values())}: {_counted(actions)}"
            for kind, actions in sorted(self.tally.errors.items())
        ]
        lines += ["", f"servers ended: {_counted(self.ends)}"]
        if self.breaches:
            lines += ["", f"{len(self.breaches)} BREACHES:", *map("  {}".format, self.breaches)]
            lines += self._stories()
        return "\n".join([*lines, "", f"seed {self.seed}, {self.seconds:.0f} s"])

    def _stories(self) -> Iterable[str]:
        """What the journal tells of those that the breaches name, and its end."""
        for name in dict.fromkeys(name for one in self.breaches for name in NAMED.findall(one)):
            yield f"\n{name} in the journal:"
            about = re.compile(rf"\b{name}\b")
            yield from [line[:300] for line in self.journal if about.search(line)][-STORY:]
        yield "\nthe journal's end:"
        yield from self.journal[-TAIL:]


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{what} {number}" for what, number in counts.most_common()) or "none"


async def soak(
    directory: Path,
    seed: int,
    seconds: float,
    servers: int = SERVERS,
    command: Sequence[str] = COMMAND,
    kinds: frozenset[str] = frozenset(),
) -> Summary:
    """One run; all that it makes is in `directory` and in the engine, which it clears at its end.

    `command` starts a server. The run goes on for what is missing of `kinds` of calls, within
    reason: dice may leave out one for long.
    """
    journal, tally = Journal(directory / "journal.txt"), Tally()
    ledger = Ledger(partial(journal.note, "BREACH"))
    ends = Counter[str]()
    state = directory / "state"
    settle_mark(state)  # else the first server might, and it be another than is looked for
    owner = Settings(state_dir=state).isolation().owner
    began = monotonic()
    try:
        async with Fleet(command, environment(directory), journal, ledger.breach).open() as fleet:
            scene = Scene(seed, fleet, ledger, tally, journal)
            await work(scene, servers, ends, began + seconds, kinds)
            last = await fleet.start(warm_max=0)
            await last.ready.wait()
            await examine(scene, Worker(scene, WORKERS, last))
            await gone(lambda: leftovers.in_engine(owner), ledger)
            await end(last, HANG_UP, ledger)
    finally:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(leftovers.remove, owner)
    for left in leftovers.on_disk(state):
        ledger.breach(f"left on the disk: {left}")
    lines = journal.lines()
    for line in [line for line in lines if any(alarm in line for alarm in ALARMS)]:
        ledger.breach(f"logged: {line}")
    return Summary(seed, monotonic() - began, ends, tally, ledger.breaches, lines)


def environment(directory: Path) -> Mapping[str, str]:
    """A server's variables: none of those that this process has for one."""
    config = directory / "config.toml"
    config.touch()
    ours = {f"BOX_MCP_{name.upper()}": str(value) for name, value in SETTINGS.items()}
    ours |= {"BOX_MCP_CONFIG": str(config), "BOX_MCP_STATE_DIR": str(directory / "state")}
    foreign = ("BOX_MCP_", "CLAUDE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return kept | ours


async def work(
    scene: Scene, servers: int, ends: Counter[str], until: float, kinds: frozenset[str]
) -> None:
    """All that is done at random; no server lives afterwards."""
    for _ in range(servers):
        await scene.fleet.start()
    async with anyio.create_task_group() as group:
        group.start_soon(end_servers, scene, ends, until)
        for number in range(WORKERS):
            group.start_soon(Worker(scene, number).run, until, kinds)
    scene.journal.note("soak", "the end begins")
    for server in list(scene.fleet.servers):
        await end(server, HANG_UP, scene.ledger)


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
        scene.fleet.servers.remove(server)
        async with anyio.create_task_group() as group:
            group.start_soon(end, server, how, scene.ledger)
            await scene.fleet.start()


async def end(server: Server, how: str, ledger: Ledger) -> None:
    """Ends a server, which must not take long, nor complain once it runs."""
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
    if server.ended_with and server.ready.is_set():
        ledger.breach(f"{server.name} ended with {server.ended_with} after {how}")


async def examine(scene: Scene, worker: Worker) -> None:
    """All that must be there is there, as it must be, and can be deleted."""
    ledger = scene.ledger

    async def boxes() -> None:
        await each(ledger.boxes, partial(worker.look, "read"))
        await each(ledger.boxes, worker.delete)

    await worker.list()
    await worker.list_snapshots()
    await boxes()
    await each(ledger.snapshots, worker.restore)
    await each(ledger.snapshots, worker.delete_snapshot)
    await boxes()
    await worker.list()
    await worker.list_snapshots()
    for one in [*ledger.boxes.values(), *ledger.snapshots.values()]:
        if one.fate is not Fate.GONE and not one.may_come:
            ledger.breach(f"{one.key} can not be deleted")


async def each(kept: Mapping[str, Kept], do: Callable[[Kept], Coroutine[Any, Any, None]]) -> None:
    """Does it to all that may be there, side by side."""
    async with anyio.create_task_group() as group:
        for one in [one for one in kept.values() if one.fate is not Fate.GONE]:
            group.start_soon(do, one)


async def gone(look: Callable[[], Sequence[str]], ledger: Ledger) -> None:
    """Waits until nothing is left in the engine: a server looks after that by itself."""
    left: Sequence[str] = ()
    with anyio.move_on_after(CLEAN_TIMEOUT):
        while left := await to_thread.run_sync(look):  # noqa: ASYNC110 - the engine tells nobody
            await anyio.sleep(POLL)
    for what in left:
        ledger.breach(f"left in the engine: {what}")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks soak", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--servers", type=int, default=SERVERS)
    parser.add_argument("--seed", type=int, help="decides what is done; random by default")
    parser.add_argument("--keep", action="store_true", help="keep the journal of a good run, too")
    options = parser.parse_args(arguments)
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    directory = Path(mkdtemp(prefix="box-mcp-soak-"))
    journal = directory / "journal.txt"
    print(f"seed {seed}, {options.minutes:g} min; what happens is told in {journal}", flush=True)
    summary = anyio.run(soak, directory, seed, options.minutes * 60, options.servers)
    print(summary)
    if summary.breaches:
        sys.exit(1)
    if not options.keep:
        shutil.rmtree(directory)
