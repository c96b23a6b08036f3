"""Commands that mean no good, through the real server; what they cost is printed (`-rP`)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import pytest

from tests.support.client import Server, boxd_memory, container_state, serving, until

SESSION = ("--session", "shared")
MIB = 1024 * 1024
SERVER_GROWTH = 150 * MIB  # ten mebibytes of control characters are sixty as JSON
SERVER_TOTAL = 250 * MIB
BOXD_PEAK = 60 * MIB
LARGE = 10 * 1024 * 1024


@asynccontextmanager
async def measured(env: dict[str, str], what: str) -> AsyncGenerator[Server, None]:
    """A server with the session's box; afterwards, what the block has cost both of memory."""
    async with serving(env, *SESSION) as server:
        box = await server.hostname()
        before = peak_of(server.process.pid)
        yield server
        after, boxd = peak_of(server.process.pid), boxd_memory(await server.hostname())
        grown = after - before
        print(  # noqa: T201 - `pytest -rP` shows it
            f"{what}: server's peak {mib(after)} MiB, {mib(grown)} more than before; "
            f"boxd's peak {mib(boxd['VmHWM'])} MiB, {mib(boxd['VmRSS'])} MiB afterwards"
        )
        assert await server.hostname() == box
        assert grown < SERVER_GROWTH
        assert after < SERVER_TOTAL
        assert boxd["VmHWM"] < BOXD_PEAK


def peak_of(pid: int) -> int:
    """The most memory that a process ever had, in bytes."""
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(peak) * 1024


def mib(size: int) -> str:
    return f"{size / MIB:.1f}"


@pytest.mark.parametrize(
    "command",
    ["head -c 1G /dev/zero | tr '\\0' x", "yes 'a line of output' | head -c 1G"],
    ids=["one line", "many lines"],
)
async def test_a_gigabyte_of_output_is_cut_to_its_ends(shared_env: dict[str, str], command: str):
    async with measured(shared_env, "1 GiB of output") as server:
        answer = await server.run(command)
        assert len(answer) < 13_000
        found = re.search(
            r'\[\.\.\. 1,073,729,824 bytes left out: process_output\(id="(p\d+)", cursor=6000\) '
            r"reads on from here; all of it but [\d,]+ bytes from its middle is in /var/log/"
            r"box_mcp/p\d+\.log\* \.\.\.\]",
            answer,
        )
        assert found is not None
        held = await server.run(f"du -cm /var/log/box_mcp/{found[1]}.log* | tail -1 | cut -f1")
        assert int(held.split()[-1]) <= 66
        newest = await server.say("process_output", id=found[1], cursor=1_073_741_824 - 100)
        assert "bytes 1,073,741,724-1,073,741,824 of 1,073,741,824" in newest


async def test_a_flood_without_end_ends_at_its_timeout(shared_env: dict[str, str]):
    async with measured(shared_env, "endless output") as server:
        assert "timed out" in await server.run("yes", timeout=2)
        assert (await server.run("echo fine")).endswith("fine\n")


async def test_a_command_that_never_ends_ends_at_its_timeout(shared_env: dict[str, str]):
    async with measured(shared_env, "endless silence") as server:
        assert "timed out" in await server.run("while :; do :; done", timeout=1)


async def test_a_command_that_ignores_sigterm_is_killed(shared_env: dict[str, str]):
    async with measured(shared_env, "SIGTERM ignored") as server:
        answer = await server.run("trap '' TERM INT HUP; echo $$ > deaf; sleep 300", timeout=1.5)
        assert "timed out: its whole process tree was ended (killed by SIGKILL)" in answer
        assert not await server.lives(await server.pid_in("deaf"))


@pytest.mark.parametrize("end", ["timeout", "cancel"])
async def test_a_fork_bomb_is_ended_and_the_next_command_works(
    shared_env: dict[str, str], end: str
):
    bomb = "echo $$ > bomb; f() { f | f & }; f; sleep 300"
    async with measured(shared_env, f"a fork bomb, ended by {end}") as server:
        await server.run("rm -f bomb")
        if end == "timeout":
            answer = await server.run(bomb, timeout=2)
            assert "timed out" in answer
        else:
            async with anyio.create_task_group() as group:
                group.start_soon(partial(server.run, bomb))
                await anyio.sleep(2)  # the bomb leaves nothing that could be looked for
                group.cancel_scope.cancel()

        async def few() -> bool:
            result = await server.call("shell_run", command="ls -d /proc/[0-9]* | wc -l")
            words = str(result.content[0]).split("\\n")
            return not result.is_error and any(w.isdigit() and int(w) < 30 for w in words)

        await until(few, "an orderly process table")
        assert container_state(await server.hostname()) == "running"


async def test_a_command_that_closes_its_outputs_runs_on_to_its_end(shared_env: dict[str, str]):
    async with measured(shared_env, "outputs closed") as server:
        answer = await server.run("echo before; exec >&- 2>&-; sleep 0.5; touch closed; exit 3")
        header, output = answer.split("\n", 1)
        assert header.startswith("[exit 3 ")
        assert output == "before\n"
        assert (await server.run("ls closed")).endswith("]\nclosed\n")


async def test_all_byte_values_come_back_as_text_and_stay_as_they_are_in_files(
    shared_env: dict[str, str],
):
    every = bytes(range(256))
    async with measured(shared_env, "all byte values") as server:
        script = "python3 -c 'import sys; sys.stdout.buffer.write(bytes(range(256)))' | tee bytes"
        header, output = (await server.run(script, raw=True)).split("\n", 1)
        assert header.startswith("[exit 0")
        assert output == every.decode(errors="replace")
        assert ' !"#$%' in await server.run(script)
        digest = hashlib.sha256(every).hexdigest()
        assert (await server.run("sha256sum < bytes")).split()[-2] == digest
        assert "binary, begins with 00 01" in await server.say("file_read", path="bytes")


async def test_names_and_times_that_no_calendar_or_terminal_takes_are_listed(
    shared_env: dict[str, str],
):
    async with measured(shared_env, "odd names and times") as server:
        await server.run(
            "d=/dev/shm/odd; mkdir $d; touch -d @99999999999999 $d/far; touch $d/$'two\\nlines'"
            " $d/$'\\xff' $d/$'\\e[31mred'"
        )
        header, *entries = (await server.say("file_list", path="/dev/shm/odd")).splitlines()
        assert header == "[/dev/shm/odd · 4 entries]"
        assert [entry.split(" ")[-1] for entry in entries] == [
            "file:///dev/shm/odd/%1B%5B31mred",
            "far",
            "file:///dev/shm/odd/two%0Alines",
            "file:///dev/shm/odd/%FF",
        ]


@pytest.mark.parametrize("character", ["x", "é", "\x01"], ids=["ascii", "accents", "controls"])
async def test_a_command_of_ten_megabytes_runs(shared_env: dict[str, str], character: str):
    count = LARGE // len(character.encode())
    async with measured(shared_env, f"a 10 MiB command of {character!r}") as server:
        answer = await server.run(f": '{character * count}'; echo done")
        assert answer.endswith("]\ndone\n")
        for size in (21_000, 65_000, 131_000):  # about where a command travels in another way
            assert (await server.run(f": '{character * size}'; echo done")).endswith("]\ndone\n")
        assert (await server.run("ls -a /tmp")).count(".command-") == 0


async def test_ten_megabytes_of_input_arrive_whole(shared_env: dict[str, str]):
    content = "0123456789abcde\n" * (LARGE // 16)
    digest = hashlib.sha256(content.encode()).hexdigest()
    async with measured(shared_env, "10 MiB of stdin") as server:
        assert digest in await server.run("sha256sum", stdin=content)
        assert (await server.run("head -1", stdin=content)).endswith("]\n0123456789abcde\n")
        assert "timed out" in await server.run("sleep 300", stdin=content, timeout=0.5)


async def test_a_command_that_prints_before_it_reads_its_input_gets_both(
    shared_env: dict[str, str],
):
    async with measured(shared_env, "10 MiB through a command") as server:
        answer = await server.run("head -c 1M /dev/zero; wc -c", stdin="x" * LARGE)
        assert answer.endswith(f"{LARGE}\n")


async def test_a_file_of_ten_megabytes_is_written_and_read_in_parts(shared_env: dict[str, str]):
    content = "0123456789abcde\n" * (LARGE // 16)
    async with measured(shared_env, "a 10 MiB file") as server:
        written = await server.say("file_write", path="large", content=content)
        assert f" large · {LARGE:,} bytes · " in written
        part = await server.say("file_read", path="large", first_line=600_001)
        assert part.startswith(f"[large · {LARGE:,} bytes · ")
        assert " · lines 600001-600750 · more: first_line=600751]" in part
        assert len(part) < 13_000


async def test_a_variable_list_that_is_too_long_is_refused_with_a_way_out(
    shared_env: dict[str, str],
):
    async with measured(shared_env, "10 MiB of variables") as server:
        said = await server.fail("shell_run", command="true", env={"A": "\x01" * 60_000})
        assert "'env' is over 65,536 bytes: write a file and source it" in said
        assert "'env' is over" in await server.fail(
            "shell_run", command="true", env={"A": "x" * LARGE}
        )
        said = await server.fail("file_read", path="x" * LARGE)
        assert "'path' is longer than 4,096 bytes" in said
