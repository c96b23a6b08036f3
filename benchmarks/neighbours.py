"""What a box feels of a neighbour that takes all it can get, and what that neighbour still answers.

calls to a quiet box, with nothing else going on, and while in another box runs a:
fork bomb · memory hog · disk filler · inode filler · flood of output · flood of boxd's log · burner
"""

from __future__ import annotations

import argparse
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import sleep

import anyio

from benchmarks.bench import Bench, bench
from benchmarks.measure import (
    Batch,
    Figure,
    Found,
    Goal,
    percentile,
    row,
    table,
    write,
)
from benchmarks.shell import TRUE, batch_of, begin, make_boxes
from benchmarks.thin import Call, ThinClient

RESULTS = Path(__file__).with_name("results") / "neighbours.json"
ATTACKS: Mapping[str, str] = {
    "fork bomb": "bash -c 'bomb() { bomb | bomb & }; bomb; sleep infinity'",
    "memory hog": "while true; do python3 -c 'x = []\nwhile True: x.append(bytes(2**24))'; done",
    "disk filler": "while true; do dd if=/dev/zero of=filler bs=1M count=512 conv=fsync; done",
    "inode filler": (
        "python3 -c 'import os, itertools\nfor n in itertools.count(): "
        'open(f"i{n % 50000}", "w").close(); n % 50000 or os.sync()\''
    ),
    "flood of output": "yes",
    "flood of boxd's log": "sudo sh -c 'yes > /proc/1/fd/1'",
    "burner": "for n in $(seq 64); do (while true; do :; done) & done; wait",
}
ALONE = "shell_run true, no neighbour"
BEFORE = 1.0  # s for an attack to unfold
LIMIT = 2.0


def beside(attack: str) -> str:
    """The name of a row."""
    return f"shell_run true, {attack} next door"


@contextmanager
def under(client: ThinClient, command: str, thread: str) -> Generator[None, None, None]:
    """While `command` runs in the box of a conversation, which is made anew after it.

    Some of these can be ended by nothing else in time.
    """
    begin(client, command, thread)
    sleep(BEFORE)
    try:
        yield
    finally:
        client.call("box_pause", thread, depth="stopped")
        client.call("shell_run", thread, command="rm -rf filler i[0-9]*")


def measure(bench: Bench, attacks: Sequence[str], rounds: int, calls: int, found: Found) -> None:
    with bench.thin(size="small") as client:
        victim, villain = make_boxes(client, "neighbours", 2)

        def quiet() -> Batch:
            return batch_of(client, [Call("shell_run", victim, TRUE)] * calls, 1)

        def attacked(attack: str) -> Batch:
            with under(client, ATTACKS[attack], villain):
                return quiet()

        pairs = {attack: [(quiet(), attacked(attack)) for _ in range(rounds)] for attack in attacks}
    alone = [one for done in pairs.values() for batch, _ in done for one in batch.each]
    found.rows.append(row(ALONE, alone))
    for attack, done in pairs.items():
        name = beside(attack)
        found.rows.append(row(name, [one for _, batch in done for one in batch.each]))
        found.goals.append(Goal(f"{name} / alone, p50", ratio(done, 0.5), LIMIT))
        found.figures.append(Figure(f"{name} / alone, p95", ratio(done, 0.95), "x"))


def ratio(done: Sequence[tuple[Batch, Batch]], share: float) -> float:
    """How much slower the second of each pair was: both of one pair met the same circumstances."""
    return median(
        percentile(attacked.each, share) / percentile(quiet.each, share) for quiet, attacked in done
    )


async def run(attacks: Sequence[str], rounds: int, calls: int, path: Path) -> None:
    found = Found()
    with bench() as made:
        measure(made, attacks, rounds, calls, found)
        facts = {**made.facts(), "rounds": rounds, "calls": calls}
    print(table(found.rows, found.goals, found.figures))
    write(path, facts, found.rows, found.goals, found.figures)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks neighbours", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--rounds", type=int, default=4, help="of many calls")
    add("--calls", type=int, default=100, help="in a round")
    add("--only", nargs="+", choices=list(ATTACKS), default=list(ATTACKS), help="attacks")
    add("--json", type=Path, default=RESULTS, help="where the figures go")
    given = parser.parse_args(arguments)
    anyio.run(run, given.only, given.rounds, given.calls, given.json)
