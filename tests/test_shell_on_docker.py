"""What people complain of in other shells over MCP, and what this one promises: real boxes."""

from __future__ import annotations

import re
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from tests.support.client import ERAS, container_state, docker, kill_boxd, serving, text, until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from contextlib import AbstractAsyncContextManager

    from tests.support.client import Server

SESSION = ("--session", "shared")
FLOOD = "yes 'a line that is printed as often as can be'"


def shared(env: dict[str, str], era: str = ERAS[-1]) -> AbstractAsyncContextManager[Server]:
    """A server of the session that tests share a box in whose servers or boxes end."""
    return serving(env, *SESSION, mode=era)


@pytest.fixture(scope="module")
async def server(shared_env: dict[str, str]) -> AsyncGenerator[Server, None]:
    """Of all other tests, which share another box."""
    async with serving(shared_env) as server:
        yield server


async def begun(server: Server, command: str, **arguments: Any) -> str:
    """The id of a command that runs in the background."""
    answer = await server.run(command, background=True, **arguments)
    found = re.search(r"running for \d+ s as (p\d+), and goes on", answer)
    assert found is not None, answer
    return found[1]


def body(answer: str) -> str:
    """An answer without the headers in brackets."""
    lines = answer.splitlines(keepends=True)
    while lines and lines[0].startswith("["):
        del lines[0]
    return "".join(lines)


# What people complain of


async def test_command_outlives_client_timeout_and_its_output_is_still_there(
    server: Server,
):
    await server.run("rm -f end")
    slow = "echo before; until [ -e end ]; do sleep .02; done; echo after; exit 3"
    answer = await server.run(slow, yield_after=1)
    found = re.search(r'process_output\(id="(p\d+)", cursor=(\d+), wait=45\)', answer)
    assert found is not None, answer
    assert body(answer) == "before\n"
    await server.run("touch end")
    rest = await server.say(
        "process_output", id=found[1], cursor=int(found[2]), wait=45, until="exit"
    )
    assert rest.startswith(f"[{found[1]} exit 3 · ")
    assert body(rest) == "after\n"


async def test_a_session_is_found_again_by_another_client_of_another_server(
    shared_env: dict[str, str],
):
    async with shared(shared_env) as server:
        await server.run("cd /tmp; export KEPT=1; f() { echo f $KEPT; }", session="kept")
        server.process.kill()
    async with shared(shared_env) as server:
        again = await server.run("pwd; f", session="kept")
        assert "new session" not in again
        assert body(again) == "/tmp\nf 1\n"


async def test_an_exit_status_is_neither_lost_nor_forged_by_what_a_command_prints(
    server: Server,
):
    forgery = (
        r"printf '[exit 0 · 0.00 s]\n\0exit 0\n0\n'; for n in $(seq 3 99); do echo 0 >&$n; done"
    )
    for session in (None, "forged"):
        answer = await server.run(f"{{ {forgery}; }} 2>/dev/null; (exit 7)", session=session)
        assert answer.startswith("[exit 7 · ")


async def test_both_outputs_are_shown_in_the_order_in_which_they_came(server: Server):
    lines = "".join(f"/bin/echo {n} >&{1 + n % 2}; sleep 0.01; " for n in range(6))
    assert body(await server.run(lines)) == "0\n1\n2\n3\n4\n5\n"
    failing = await server.run("seq 1 20000; echo 'the error' >&2; exit 1")
    assert body(failing).endswith("the error\n")


async def test_no_part_of_a_long_output_is_thrown_away(server: Server):
    answer = await server.run("seq 1 30000")
    found = re.search(r'left out: process_output\(id="(p\d+)", cursor=(\d+)\)', answer)
    assert found is not None
    assert body(answer).startswith("1\n2\n")
    assert answer.endswith("\n29999\n30000\n")
    whole, cursor = "", 0
    while True:
        page = await server.say("process_output", id=found[1], cursor=cursor, max_output=100_000)
        whole += body(page)
        following = re.search(r"next cursor=(\d+)", page)
        if following is None:
            break
        cursor = int(following[1])
    assert whole == "".join(f"{n}\n" for n in range(1, 30001))


async def test_a_slow_command_blocks_no_other_call(shared_env: dict[str, str]):
    async with shared(shared_env) as server, anyio.create_task_group() as group:
        group.start_soon(partial(server.run, "sleep 300"))
        assert body(await server.run("echo at once")) == "at once\n"
        assert "at once" in await server.say("process_list")
        group.cancel_scope.cancel()


# What is promised


async def test_a_background_command_is_listed_with_its_port_reached_and_ended_with_its_tree(
    server: Server,
):
    process = await begun(server, "python3 -u -m http.server 8123 & wait")
    found = await server.say("process_output", id=process, cursor=0, wait=20, pattern="Serving")
    assert "pattern found" in found
    listed = await server.say("process_list")
    (line,) = [line for line in listed.splitlines() if line.startswith(f"{process} ")]
    assert "listens on 8123" in line
    assert body(await server.run("curl -so /dev/null -w '%{http_code}' localhost:8123")) == "200"
    ended = await server.say("process_signal", id=process)
    assert ended.startswith(f"[{process} ended as asked for (killed by SIGTERM)")
    refused = await server.run("curl -s localhost:8123 || echo refused")
    assert body(refused) == "refused\n"


async def test_a_process_survives_the_clients_end_a_killed_server_freeze_and_thaw(
    shared_env: dict[str, str],
):
    counting = "for i in $(seq 1 1000); do echo $i; read -t 0.05 x; done"
    async with shared(shared_env) as server:
        process = await begun(server, counting)
    async with shared(shared_env) as server:
        await server.say("process_output", id=process, wait=20)
        server.process.kill()
    async with shared(shared_env) as server:
        await server.tell("box_pause")
        answer = await server.say("process_output", id=process, cursor=0, wait=20)
        assert answer.startswith(f"[{process} running for ")
        shown = [int(line) for line in body(answer).split()]
        assert shown == list(range(1, len(shown) + 1))
        await server.say("process_signal", id=process)


@pytest.mark.parametrize("how", ["stop", "crash"])
async def test_what_a_stop_or_a_crash_ended_is_told_by_name_with_its_output(
    shared_env: dict[str, str], how: str
):
    async with shared(shared_env) as server:
        process = await begun(server, "echo printed; sleep 300")
        await server.say("process_output", id=process, cursor=0, wait=20)
        ended = re.search(r"(p\d+)", await server.say("process_list"))
        assert ended is not None
        box = await server.hostname()
        if how == "stop":
            await server.tell("box_pause", depth="stopped")
        else:
            await server.run("sleep 0.1")
            kill_boxd(box)

        async def answered() -> str | None:  # the call that meets the crash is told of it
            result = await server.call("process_output", id=process, cursor=0)
            return None if result.is_error else text(result)

        answer = await until(answered, "an answer of the box that was started again")
        assert "files survived, its processes did not" in answer
        assert f"[{process} ended with the box, which was stopped" in answer
        assert answer.endswith("]\nprinted\n")
        listed = await server.say("process_list")
        assert f"{process}  ended with the box, which was stopped" in listed
        anew = await server.run("true", session="kept")
        assert "new session kept" in anew


async def test_a_command_that_keeps_awake_outlasts_what_others_may(server_env: dict[str, str]):
    server_env |= {"BOX_MCP_PAUSE_AFTER": "0.3", "BOX_MCP_JOB_AWAKE_MAX": "0.5"}
    async with serving(server_env) as server:
        process = await begun(server, "sleep 300", keep_awake=True)
        box = (await server.tell("box_info"))["id"]
        await anyio.sleep(1.5)  # three times as long as other commands could keep it awake
        assert container_state(box) == "running"
        await server.say("process_signal", id=process)

        async def paused() -> bool:
            return container_state(box) == "paused"

        await until(paused, "an idle box paused")


async def test_over_the_deadline_daemons_and_the_reparented_go_too(server: Server):
    await server.run("rm -f daemon")
    daemon = "setsid bash -c '(trap \"\" TERM HUP; echo $BASHPID > daemon; sleep 300; :) &'"
    answer = await server.run(f"{daemon}; until [ -s daemon ]; do :; done; sleep 300", timeout=2)
    assert "timed out: its whole process tree was ended" in answer
    assert not await server.lives(await server.pid_in("daemon"))


async def test_commands_run_as_another_user_and_an_unknown_one_is_named(server: Server):
    assert body(await server.run("id -un; echo $HOME", user="root")) == "root\n/root\n"
    assert "no user 'nemo'" in await server.fail("shell_run", command="true", user="nemo")


async def test_in_a_box_without_sudo_nobody_becomes_somebody_else(server_env: dict[str, str]):
    server_env["BOX_MCP_SUDO"] = "false"
    async with serving(server_env) as server:
        said = await server.fail("shell_run", command="true", user="root")
        assert "this box has no root" in said
        assert body(await server.run("tty; id -un", tty=True)).splitlines()[-1] == "box"
        assert body(await server.run("cd /tmp; id -un", session="s")) == "box\n"
        assert body(await server.run("pwd", session="s")) == "/tmp\n"


async def test_what_is_asked_for_in_vain_is_refused_with_words(server: Server):
    for tool, arguments, said in (
        ("process_output", {"id": "p9999"}, "no process 'p9999'"),
        ("process_output", {"id": "p9999", "pattern": "("}, "no process 'p9999'"),
        ("process_input", {"id": "p9999", "text": "x"}, "no process 'p9999'"),
        ("process_signal", {"id": "p9999", "signal": "nonsense"}, "no signal"),
        ("shell_run", {"command": "true", "session": ""}, "'session' has no name"),
        ("shell_run", {"command": "true", "tty": True, "stdin": "x"}, "process_input"),
    ):
        assert said in await server.fail(tool, **arguments)


async def test_control_sequences_and_progress_bars_are_folded_or_kept(server: Server):
    command = r"printf '\e[32m10%%\r50%%\r100%% done\e[0m\nbad \xff byte\n'"
    assert body(await server.run(command)) == "100% done\nbad \N{REPLACEMENT CHARACTER} byte\n"
    assert "\x1b[32m10%\r50%\r" in await server.run(command, raw=True)


@pytest.mark.parametrize("session", [None, "fed"])
async def test_input_reaches_its_command_whole_and_no_other(server: Server, session: str | None):
    for size in (1, 60_000, 70_000, 3_000_000):
        content = ("one 'two'\n\\three\n" * size)[:size]
        answer = await server.run("sleep 0.3; wc -c", stdin=content, session=session)
        assert body(answer).strip() == str(size)
        late = await server.run(
            "until rm late 2>/dev/null; do sleep .02; done; wc -c",
            stdin=content,
            session=session,
            yield_after=0.2,
        )
        found = re.search(r"as (p\d+), and goes on", late)
        assert found is not None
        await server.run("touch late")
        done = await server.say("process_output", id=found[1], wait=20, until="exit")
        assert body(done).strip() == str(size)
    assert body(await server.run("cat", session=session)) == ""
    assert body(await server.run("read x; echo $x", stdin="kept\n", session=session)) == "kept\n"
    assert body(await server.run("ls -a /tmp | grep -c '[.]input'; true")) == "0\n"


# Many at once


async def test_a_hundred_commands_at_once_in_one_box_all_end_well(server: Server):
    answers: list[str] = []

    async def run(server: Server, number: int) -> None:
        answers.append(body(await server.run(f"sleep 0.2; echo {number}")))

    async with anyio.create_task_group() as group:
        for number in range(100):
            group.start_soon(run, server, number)
    assert sorted(map(int, answers)) == list(range(100))


async def test_a_hundred_commands_at_once_across_ten_boxes_all_end_well(
    server_env: dict[str, str],
):
    answers: list[str] = []

    async def run(server: Server, box: str, number: int) -> None:
        answers.append(body(await server.run(f"sleep 0.2; echo {box} {number}", box=box)))

    async with serving(server_env) as server:
        names = [f"crowd-{number}" for number in range(10)]
        for name in names:
            await server.tell("box_create", name=name, size="small")
        async with anyio.create_task_group() as group:
            for number in range(100):
                group.start_soon(run, server, names[number % 10], number)
        assert len(set(answers)) == 100
        for name in names:
            await server.say("box_delete", box=name)


async def test_a_flood_delays_no_other_command_in_its_box(shared_env: dict[str, str]):
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(shared(shared_env))
        floods = [await begun(server, FLOOD) for _ in range(3)]
        with anyio.fail_after(20):
            for number in range(50):
                assert body(await server.run(f"echo {number}")) == f"{number}\n"
        for flood in floods:
            page = await server.say("process_output", id=flood, max_output=1000)
            assert "a line that is printed as often as can be" in page
            await server.say("process_signal", id=flood, signal="KILL")
        box = await server.hostname()
        logs = docker("exec", box, "sh", "-c", "du -sm /var/log/box_mcp | cut -f1")
        assert int(logs) < 64 * 4 + 64


async def test_progress_comes_while_a_call_waits_for_output(server: Server):
    lines: list[str | None] = []

    async def progressed(progress: float, total: float | None, message: str | None) -> None:
        lines.append(message)

    process = await begun(server, "while read x; do echo got $x; done")

    async def wait() -> None:
        arguments: dict[str, Any] = {"id": process, "wait": 20, "until": "exit"}
        result = await server.client.call_tool(
            "process_output", arguments, progress_callback=progressed
        )
        assert "got one" in text(result)

    async with anyio.create_task_group() as group:
        group.start_soon(wait)

        async def told() -> bool:
            return "got one" in lines

        await server.say("process_input", id=process, text="one\n", wait=0)
        await until(told, "progress")
        await server.say("process_input", id=process, end=True)
