"""What whole files cost: read, written, edited, searched, and moved in and out.

file_read, file_write, file_edit   server-filesystem, the reference server, in the same box
resources/read                     the SDK's echo of as much
file_search                        rg with the same flags, timed in the box
file_upload, file_download         docker cp
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle
from pathlib import Path

import anyio

from benchmarks import cgroups
from benchmarks.bench import Bench, bench, box_in
from benchmarks.calls import ECHO, KIB, commands_environment
from benchmarks.direct import Direct, Stopwatch, engine_client
from benchmarks.measure import (
    MS,
    Figure,
    Found,
    Goal,
    Operation,
    interleaved,
    seconds_of,
    table,
    timed,
    write,
)
from benchmarks.thin import ThinClient

RESULTS = Path(__file__).with_name("results") / "files.json"
REFERENCE = "@modelcontextprotocol/server-filesystem@2026.8.31"
REFERENCE_PLACE = "/tmp/reference"  # noqa: S108 - in a box that is the bench's own
REFERENCE_MAIN = "node_modules/@modelcontextprotocol/server-filesystem/dist/index.js"
WORKSPACE = "/workspace"
WARMUP = 3  # rounds that do not count
LARGE_ROUNDS = 50  # at most
SEARCH_ROUNDS = 30  # at most
BIG_ROUNDS, MANY_ROUNDS = 5, 3  # at most; each moves everything four times
MIB = 1024**2
BOUND = 64  # MiB that moving may take in memory
LARGE = KIB * 1024
EDITED = 1_000_000  # bytes
FIRST, SECOND = "    answer = first_choice(21, 2)", "    answer = second_choice(6, 7)"
OURS, THEIRS = "edited.txt", "edited-too.txt"
PER_DIRECTORY = 50  # files

READ, WRITE, ECHOED = "file_read 1 KiB", "file_write 1 KiB", "SDK echo"
ECHO_BESIDE = "SDK echo, beside searches"
READ_REFERENCE = "read_text_file 1 KiB, server-filesystem"
WRITE_REFERENCE = "write_file 1 KiB, server-filesystem"
READ_LARGE, READ_RESOURCE = "file_read 1 MiB", "resources/read 1 MiB"
ECHO_LARGE = "SDK echo of 1 MiB"
READ_LARGE_REFERENCE = "read_text_file 1 MiB, server-filesystem"
EDIT = "file_edit in 1 MB"
EDIT_REFERENCE = "edit_file in 1 MB, server-filesystem"
SMALL = (READ, WRITE, ECHOED, READ_REFERENCE, WRITE_REFERENCE)
LARGER = (READ_LARGE, READ_RESOURCE, ECHO_LARGE, READ_LARGE_REFERENCE, EDIT, EDIT_REFERENCE)
RARE, COMMON, EVERYWHERE = "rare_needle", "common_needle", "needle_everywhere"
RARE_FILES, COMMON_SHARE = 5, 16  # how many have the one, and of how many one has the other
RG_FLAGS = (
    *("--no-config", "--color=never", "--no-heading", "--with-filename", "--line-number", "--null"),
    *("--no-messages", "--no-require-git", "--no-ignore-global", "--no-ignore-exclude"),
    *("--no-ignore-dot", "--no-context-separator", "-s", "--max-columns=2000"),
    *("--max-columns-preview", "--context=0"),
)
"""As boxd.ripgrep has them."""
SERVER_GREW, BOXD_GREW = "peak growth of the server, moving", "peak growth of boxd, moving"
PARTS = ("single", "search", "big", "many")

MAKE_TREE = f"""\
import os, random, sys
dice = random.Random(1)
words = ["".join(dice.choices("etaoinshrdlucmfw", k=dice.randint(2, 9))) for _ in range(3000)]
def line():
    return " " * dice.choice((0, 4, 4, 8)) + " = ".join(
        "_".join(dice.choices(words, k=dice.randint(1, 4))) + dice.choice(("", "()", "[0]", ","))
        for _ in range(dice.randint(1, 3))
    )
lines = [line() for _ in range(20000)]
files = int(sys.argv[1])
for number in range(files):
    part, rest = divmod(number, 40)
    directory = f"tree/{{words[part % 12]}}/{{words[part % 97]}}/{{part}}"
    if not rest:
        os.makedirs(directory)
    body = dice.choices(lines, k=dice.randint(10, 150))
    body[3] += " {EVERYWHERE}"
    if number % {COMMON_SHARE} == 0:
        body[5] += " {COMMON}"
    if number % (files // {RARE_FILES}) == 0:
        body[7] += " {RARE}"
    kind = dice.choice(("py", "py", "ts", "c", "h", "md", "json"))
    with open(f"{{directory}}/{{words[number % 3000]}}_{{rest}}.{{kind}}", "w") as file:
        file.write("\\n".join(body) + "\\n")
"""


@dataclass(frozen=True)
class Amounts:
    """How much of everything; `big` is in MiB, `tree` and `files` are numbers of files."""

    rounds: int = 200
    tree: int = 50_000
    big: int = 1024
    files: int = 20_000

    def matches(self) -> dict[str, int]:
        """What is searched for, and how many lines have it."""
        common = -(-self.tree // COMMON_SHARE)
        return {RARE: RARE_FILES, COMMON: common, EVERYWHERE: self.tree}

    def moved(self, part: str) -> str:
        return f"{self.big} MiB" if part == "big" else f"{self.files} small files"


def searching(word: str) -> tuple[str, str]:
    """The names of the rows of a word."""
    return f"file_search {word}", f"rg {word}"


def moving(what: str) -> tuple[str, str, str, str]:
    """The names of the rows of something moved: up, down, and both by the engine's client."""
    return (
        f"file_upload, {what}",
        f"file_download, {what}",
        f"docker cp up, {what}",
        f"docker cp down, {what}",
    )


async def measure_single(bench: Bench, rounds: int, found: Found) -> None:
    """Calls for one file, in turns with the same calls to the reference server."""
    with ExitStack() as stack:
        client = stack.enter_context(bench.thin(pause_after="off"))
        echo = stack.enter_context(bench.thin(ECHO))
        box = box_in(client.call("shell_run", command="true"))
        reference = stack.enter_context(reference_server(bench, client, box))
        client.call("file_write", path="small.txt", content=KIB)
        client.call("file_write", path="large.txt", content=LARGE)
        for name in (OURS, THEIRS):
            client.call("file_write", path=name, content=source_text(EDITED))
        small = {
            READ: partial(client.call, "file_read", path="small.txt"),
            WRITE: partial(client.call, "file_write", path="written.txt", content=KIB),
            ECHOED: partial(echo.call, "echo", text="true"),
            READ_REFERENCE: partial(reference.call, "read_text_file", path=below("small.txt")),
            WRITE_REFERENCE: partial(
                reference.call, "write_file", path=below("written-too.txt"), content=KIB
            ),
        }
        larger = {
            READ_LARGE: partial(read_large, client, "large.txt"),
            READ_RESOURCE: partial(read_resource, client, box, "large.txt"),
            ECHO_LARGE: partial(echo.call, "repeat", text=KIB, times=1024),
            READ_LARGE_REFERENCE: partial(
                reference.call, "read_text_file", path=below("large.txt")
            ),
            EDIT: editing(partial(edit, client)),
            EDIT_REFERENCE: editing(partial(edit_by_reference, reference)),
        }
        rows = await interleaved(operations(small), rounds, WARMUP)
        rows += await interleaved(operations(larger), min(rounds, LARGE_ROUNDS), WARMUP)
    p50 = {row.name: row.p50 for row in rows}
    found.rows += rows
    found.goals += [
        Goal(f"{READ} - {ECHOED}", p50[READ] - p50[ECHOED], 1, "ms"),
        Goal(f"{WRITE} - {ECHOED}", p50[WRITE] - p50[ECHOED], 1, "ms"),
        Goal("file_write / write_file of server-filesystem", p50[WRITE] / p50[WRITE_REFERENCE], 1),
        *(Goal(name, p50[name], 12, "ms") for name in (READ_LARGE, READ_RESOURCE)),
        Goal(EDIT, p50[EDIT], 10, "ms"),
    ]


def reference_server(bench: Bench, client: ThinClient, box: str) -> ThinClient:
    """The reference server for files in the client's box, run as its commands are."""
    quiet = "--no-audit --no-fund --no-package-lock --ignore-scripts --loglevel=error"
    install = f"npm install --prefix {REFERENCE_PLACE} {quiet} {REFERENCE}"
    client.call("shell_run", command=f"set -e; {install}")
    user = commands_environment(client)["USER"]
    run = [engine_client(), "exec", "--interactive", "--user", user, box]
    return bench.thin([*run, "node", f"{REFERENCE_PLACE}/{REFERENCE_MAIN}", WORKSPACE])


def below(name: str) -> str:
    """The whole path of a file in the workspace."""
    return f"{WORKSPACE}/{name}"


def source_text(size: int) -> str:
    """Lines like a program's, all different but for the one in the middle."""
    half = "".join(
        f"    value_{n:06} = compute(value_{n - 1:06}, {n})\n" for n in range(size // 100)
    )
    return f"{half}{FIRST}\n{half}"


def read_large(client: ThinClient, name: str) -> None:
    said = client.call("file_read", path=name, length=len(LARGE), max_output=2 * len(LARGE))
    if not said.endswith(LARGE):
        raise RuntimeError(f"{name} came in part")


def read_resource(client: ThinClient, box: str, name: str) -> None:
    found = client.request("resources/read", {"uri": f"box://{box}/files{below(name)}"})
    if found["contents"][0]["text"] != LARGE:
        raise RuntimeError(f"{name} came in part")


def edit(client: ThinClient, old: str, new: str) -> None:
    client.call("file_edit", path=OURS, edits=[{"old": old, "new": new}])


def edit_by_reference(reference: ThinClient, old: str, new: str) -> None:
    edits = [{"oldText": old, "newText": new}]
    reference.call("edit_file", path=below(THEIRS), edits=edits)


def editing(edit: Callable[[str, str], object]) -> Callable[[], object]:
    """Edits to and fro, so that there is always something to be done."""
    turns = cycle([(FIRST, SECOND), (SECOND, FIRST)])
    return lambda: edit(*next(turns))


def operations(calls: Mapping[str, Callable[[], object]]) -> dict[str, Operation]:
    return {name: timed(call) for name, call in calls.items()}


async def measure_search(bench: Bench, amounts: Amounts, found: Found) -> None:
    """A word in a tree of many files, in turns with rg itself."""
    with bench.thin(pause_after="off") as client, bench.thin(ECHO) as echo, ExitStack() as stack:
        make = f"python3 - {amounts.tree}"
        box = box_in(client.call("shell_run", command=make, stdin=MAKE_TREE))
        stopwatch = Direct(box).stopwatch(commands_environment(client))
        stack.callback(stopwatch.close)
        calls: dict[str, Operation] = {ECHO_BESIDE: timed(partial(echo.call, "echo", text="true"))}
        for word, lines in amounts.matches().items():
            ours, theirs = searching(word)
            calls[ours] = timed(partial(search, client, word))
            calls[theirs] = by_itself(stopwatch, word, lines)
        rows = await interleaved(calls, min(amounts.rounds, SEARCH_ROUNDS), WARMUP)
    p50 = {row.name: row.p50 for row in rows}
    found.rows += rows
    for ours, theirs in map(searching, amounts.matches()):
        found.goals.append(Goal(f"{ours} / rg", p50[ours] / p50[theirs], 1.2))


def search(client: ThinClient, word: str) -> None:
    said = client.call("file_search", pattern=word, path="tree")
    if f" {word}" not in said:
        raise RuntimeError(f"{word} was not found: {said[:200]}")


def by_itself(stopwatch: Stopwatch, word: str, lines: int) -> Operation:
    """What rg takes in the box, its output taken in."""

    async def operation() -> float:
        seconds, printed = stopwatch.run(["rg", *RG_FLAGS, "-e", word, "--", below("tree")])
        if printed != lines:
            raise RuntimeError(f"rg printed {printed} lines with {word}, not {lines}")
        return seconds

    return operation


async def measure_moves(bench: Bench, amounts: Amounts, part: str, found: Found) -> None:
    """The same files up and down by ours and by the engine's client."""
    home = bench.directory / part
    home.mkdir()
    source, target = home / "source", home / "target"
    content = make_large(source, amounts.big) if part == "big" else make_many(source, amounts.files)
    with bench.thin(pause_after="off", host_roots=json.dumps([str(home)])) as client:
        box = box_in(client.call("shell_run", command="true"))
        boxd = bench.engine.first_process(box)
        direct = Direct(box)
        upload = partial(client.call, "file_upload", host_path=str(source))
        upload(destination="sent")

        def up(move: Callable[[], object]) -> Operation:
            async def operation() -> float:
                direct.output(["rm", "-rf", below("came")])
                os.sync()  # each begins with nothing else to be written
                seconds = seconds_of(move)
                check(content_in_box(direct, below("came")), content)
                return seconds

            return operation

        def down(move: Callable[[], object]) -> Operation:
            async def operation() -> float:
                remove(target)
                os.sync()
                seconds = seconds_of(move)
                check(content_at(target), content)
                return seconds

            return operation

        what = amounts.moved(part)
        ours_up, ours_down, theirs_up, theirs_down = names = moving(what)
        server_growth, boxd_growth = cgroups.growth_of(client.pid), cgroups.growth_of(boxd)
        rows = await interleaved(
            {
                ours_up: up(partial(upload, destination="came")),
                theirs_up: up(partial(direct.copy_in, source, below("came"))),
                ours_down: down(
                    partial(client.call, "file_download", path="sent", host_path=str(target))
                ),
                theirs_down: down(partial(direct.copy_out, below("sent"), target)),
            },
            min(amounts.rounds, BIG_ROUNDS if part == "big" else MANY_ROUNDS),
        )
        found.goals.append(Goal(f"{SERVER_GREW}, {what}", server_growth() / MIB, BOUND, "MiB"))
        found.figures.append(Figure(f"{BOXD_GREW}, {what}", boxd_growth() / MIB, "MiB"))
    p50 = {row.name: row.p50 for row in rows}
    found.rows += rows
    found.figures += [
        Figure(name, content.bytes / MIB / p50[name] * MS, "MiB/s")
        if part == "big"
        else Figure(name, content.files / p50[name] * MS, "files/s")
        for name in names
    ]
    for ours, theirs in ((ours_up, theirs_up), (ours_down, theirs_down)):
        ratio = p50[theirs] / p50[ours]
        if part == "big" or ours == ours_up:
            found.goals.append(Goal(f"{theirs} / {ours}", ratio, 1, "x", at_least=True))
        else:
            found.figures.append(Figure(f"{theirs} / {ours}", ratio, "x"))


@dataclass(frozen=True)
class Content:
    """How many regular files, and bytes in them."""

    files: int
    bytes: int


def make_large(source: Path, size: int) -> Content:
    """One file of so many MiB that can't be compressed."""
    with source.open("wb") as file:
        for _ in range(size):
            file.write(os.urandom(MIB))
    return Content(1, size * MIB)


def make_many(source: Path, count: int) -> Content:
    """So many files of about 1 KiB, in directories in directories."""
    dice, total = random.Random(1), 0  # noqa: S311 - the same sizes in every run
    for number in range(count):
        part, rest = divmod(number, PER_DIRECTORY)
        directory = source / f"part-{part % 20}" / f"part-{part}"
        if not rest:
            directory.mkdir(parents=True)
        total += (directory / f"file-{number}.bin").write_bytes(os.urandom(dice.randint(512, 1536)))
    return Content(count, total)


def content_at(path: Path) -> Content:
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return Content(len(files), sum(one.stat().st_size for one in files))


def content_in_box(direct: Direct, path: str) -> Content:
    sizes = direct.output(["find", path, "-type", "f", "-printf", "%s\n"]).split()
    return Content(len(sizes), sum(map(int, sizes)))


def check(found: Content, wanted: Content) -> None:
    if found != wanted:
        raise RuntimeError(f"{found} came, not {wanted}")


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


async def run(amounts: Amounts, parts: Sequence[str], path: Path) -> None:
    found = Found()
    with bench() as made:
        facts = {**made.facts(), **asdict(amounts)}
        if "single" in parts:
            await measure_single(made, amounts.rounds, found)
        if "search" in parts:
            await measure_search(made, amounts, found)
        for part in ("big", "many"):
            if part in parts:
                await measure_moves(made, amounts, part, found)
    print(table(found.rows, found.goals, found.figures))
    write(path, facts, found.rows, found.goals, found.figures)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks files", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    whole = Amounts()
    add = parser.add_argument
    add("--rounds", type=int, default=whole.rounds, help="of each, at most")
    add("--tree", type=int, default=whole.tree, help="files that are searched")
    add("--big", type=int, default=whole.big, help="MiB of the one file that is moved")
    add("--files", type=int, default=whole.files, help="small ones that are moved")
    add("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")
    add("--json", type=Path, default=RESULTS, help="where the figures go")
    given = parser.parse_args(arguments)
    amounts = Amounts(given.rounds, given.tree, given.big, given.files)
    anyio.run(run, amounts, given.only, given.json)
