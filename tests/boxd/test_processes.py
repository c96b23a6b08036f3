from __future__ import annotations

import random
import shlex
import signal
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from box_mcp.boxd import wire
from box_mcp.boxd.runner import MAX_TEXT
from tests.support.boxd import Client, Failed, LocalBoxd, alive, descriptors_given_back, eventually

if TYPE_CHECKING:
    from typing import Any

MEBI = 1024 * 1024


def recorded(client: Client, name: str) -> dict[str, Any]:
    """What is known of the run `name`."""
    (run,) = (run for run in client.call("processes")["runs"] if run["id"] == name)
    return run


def test_exit_status_and_both_outputs_come_back(client: Client):
    call = client.run("echo out; echo err >&2; exit 7")
    result = call.result()
    assert (result["exit"], result["signal"], result["cause"]) == (7, None, None)
    assert (call.stdout, call.stderr) == (b"out\n", b"err\n")
    assert result["printed"] == 8


def test_a_command_ended_by_a_signal_tells_its_number(client: Client):
    result = client.run("kill -SEGV $$").result()
    assert (result["exit"], result["signal"]) == (None, signal.SIGSEGV)


def test_a_command_runs_in_the_workspace_or_in_its_cwd(client: Client, boxd: LocalBoxd):
    (boxd.workspace / "below").mkdir()
    here, there = client.run("pwd"), client.run("pwd", cwd="/workspace/below")
    here.result()
    there.result()
    assert here.stdout.decode() == f"{boxd.workspace}\n"
    assert there.stdout.decode() == f"{boxd.workspace}/below\n"


def test_a_command_gets_its_variables_over_those_of_its_user(client: Client):
    call = client.run('echo "$A|$TERM|$LC_CTYPE"', env={"A": "b c", "TERM": "x"})
    call.result()
    assert call.stdout == b"b c|x|C.UTF-8\n"


def test_a_command_without_stdin_reads_end_of_file(client: Client):
    call = client.run("cat; echo end")
    assert call.result()["exit"] == 0
    assert call.stdout == b"end\n"


def test_input_larger_than_a_window_arrives_whole(client: Client):
    data = random.Random(1).randbytes(5 * wire.WINDOW + 17)
    call = client.run("sha256sum; echo", stdin=True).send(data).finish()
    assert call.result()["exit"] == 0
    expected = client.run("sha256sum", stdin=True).send(data).finish()
    expected.result()
    assert call.stdout.split()[0] == expected.stdout.split()[0]


def test_input_that_nobody_reads_is_taken_and_thrown_away(client: Client):
    call = client.run("exec <&-; echo closed; read -t 60 < <(sleep 1)", stdin=True)
    call.send(b"x" * 8 * wire.WINDOW).finish()
    assert call.result()["cause"] is None
    assert call.stdout == b"closed\n"


def test_input_to_a_command_that_has_ended_does_no_harm(client: Client):
    call = client.run("true", stdin=True)
    call.send(b"x" * 4 * wire.WINDOW)
    assert call.result()["exit"] == 0
    assert client.run("true").result()["exit"] == 0


def test_the_excerpt_is_the_head_and_the_tail_in_order(client: Client, boxd: LocalBoxd):
    call = client.run("seq 1 50000", head=100, tail=50)
    result = call.result()
    whole = b"".join(b"%d\n" % number for number in range(1, 50001))
    assert call.stdout == whole[:100] + whole[-50:]
    assert call.skipped == len(whole) - 150
    assert result["printed"] == result["logged"] == len(whole)
    assert next(boxd.logs.iterdir()).read_bytes() == whole


def test_output_that_fits_is_given_once_and_whole(client: Client):
    call = client.run("printf %s abcdefghij", head=4, tail=6)
    call.result()
    assert (call.stdout, call.skipped) == (b"abcdefghij", 0)


def test_an_excerpt_of_nothing_counts_everything(client: Client):
    call = client.run("echo hello", head=-5, tail=-5)
    assert call.result()["printed"] == 6
    assert (call.stdout, call.skipped) == (b"", 6)


def test_binary_output_comes_back_byte_by_byte(client: Client):
    call = client.run(r"printf '\000\377\n\r\033[0m\200'")
    call.result()
    assert call.stdout == b"\0\xff\n\r\x1b[0m\x80"


def test_the_two_outputs_keep_their_order_when_time_lies_between(client: Client):
    script = "for n in 1 2 3; do echo o$n; read; echo e$n >&2; read; done"
    name = client.run(script, background=True, yield_after=0).result()["id"]
    for number in range(1, 7):
        eventually(lambda n=number: client.call("output", id=name, limit=1)["printed"] == 3 * n)
        client.open("input", id=name).send(b"\n").finish().result()
    page = client.open("output", id=name, cursor=0, limit=100, wait=15, until="exit")
    page.result()
    assert page.data == b"o1\ne1\no2\ne2\no3\ne3\n"


def test_a_command_that_closes_its_outputs_and_goes_on_is_waited_for(client: Client):
    result = client.run("exec >&- 2>&-; sleep .3; exit 5").result()
    assert result["exit"] == 5
    assert result["seconds"] >= 0.3


TREE = """
echo $$ > main
sh -c 'echo $$ > child; exec sleep 300' &
setsid sh -c 'echo $$ > session; exec sleep 300' &
(setsid sh -c 'echo $$ > daemon; exec sleep 300' > /dev/null 2>&1 < /dev/null &)
sh -c 'trap "" TERM; echo $$ > stubborn; while :; do sleep 300; done' &
setsid sh -c 'trap "" TERM; echo $$ > silent; exec sleep 300' > /dev/null 2>&1 &
sh -c 'echo $$ > stopped; kill -STOP $$' &
"""
MEMBERS = ["main", "child", "session", "daemon", "stubborn", "silent", "stopped"]


def test_the_deadline_ends_the_whole_tree_before_the_answer(client: Client, boxd: LocalBoxd):
    def pids() -> list[int]:
        texts = [path.read_text() for name in MEMBERS if (path := boxd.workspace / name).exists()]
        return [int(text) for text in texts if text.endswith("\n")]

    for timeout in (0.7, 3, 10):  # they begin later where much else is done
        for name in MEMBERS:
            (boxd.workspace / name).unlink(missing_ok=True)
        result = client.run(TREE + "sleep 300", timeout=timeout).result()
        if len(pids()) == len(MEMBERS):
            break
    assert result["cause"] == "timeout"
    assert [alive(pid) for pid in pids()] == [False] * len(MEMBERS)
    assert result["left"] == 0
    eventually(boxd.at_rest)


def test_cancel_ends_the_whole_tree_before_the_answer(client: Client, boxd: LocalBoxd):
    call = client.run(TREE + "wait")
    pids = [boxd.pid_in(name) for name in MEMBERS]
    result = call.cancel().result()
    assert result["cause"] == "cancelled"
    assert [pid for pid in pids if alive(pid)] == []


def test_a_tree_that_obeys_is_ended_without_waiting_for_the_grace(client: Client):
    result = client.run("sleep 300 & (setsid sleep 300 &); wait", timeout=0.2).result()
    assert result["cause"] == "timeout"
    assert result["seconds"] < 1.5


def test_a_cancel_right_behind_its_request_needs_no_grace(client: Client):
    took: list[float] = []
    for _ in range(20):
        began = time.monotonic()
        assert client.run("sleep 300").cancel().result()["seconds"] < 1.5
        took.append(time.monotonic() - began)
    assert statistics.median(took) < 1.5  # a fork in the very moment is left to the grace


# It renews itself faster than it dies, but never grows, and ends with the workspace: the test
# machine has to live.
BOMB = "echo $$ > main; f() { sleep .01; [ -e main ] && f & exit; }; f & f & wait; sleep 300"


def test_a_fork_bomb_is_ended_by_its_deadline(client: Client, boxd: LocalBoxd):
    assert client.run(f"trap '' TERM; {BOMB}", timeout=0.3).result()["cause"] == "timeout"
    eventually(boxd.at_rest)


def test_a_survivor_in_the_background_is_told_and_lives(client: Client, boxd: LocalBoxd):
    result = client.run("sh -c 'echo $$ > survivor; exec sleep 300' & echo started").result()
    assert (result["exit"], result["running"]) == (0, False)
    assert result["left"] == 1
    survivor = boxd.pid_in("survivor")
    assert client.run("true").result()["left"] == 0
    assert alive(survivor)
    assert recorded(client, result["id"])["left"] == 1


def test_a_survivor_outlives_the_deadline_but_no_longer_keeps_the_box_busy(
    client: Client, boxd: LocalBoxd
):
    client.run("sh -c 'echo $$ > survivor; exec sleep 300' &", timeout=0.5).result()
    client.pump_until(lambda: [note["busy"] for note in client.notes] == [True, False])
    assert alive(boxd.pid_in("survivor"))


def test_a_lost_connection_leaves_the_run_alive_for_the_next_one(boxd: LocalBoxd):
    with boxd.connect() as first:
        first.run("mkfifo gate; echo $$ > main; read < gate; exit 3", title="the title")
        main = boxd.pid_in("main")
    assert alive(main)
    with boxd.connect() as second:
        (run,) = second.call("processes")["runs"]
        assert (run["running"], run["command"], run["exit"]) == (True, "the title", None)
        assert second.hello["busy"] is True

        second.run("echo > gate").result()
        eventually(lambda: not recorded(second, run["id"])["running"])
        assert recorded(second, run["id"])["exit"] == 3


def test_yield_after_answers_running_and_the_log_goes_on(client: Client, boxd: LocalBoxd):
    call = client.run(
        "echo early; while [ ! -e go ]; do sleep .01; done; echo late", yield_after=0.3
    )
    result = call.result()
    assert (result["running"], result["exit"]) == (True, None)
    assert call.stdout == b"early\n"
    (boxd.workspace / "go").touch()
    eventually(lambda: not client.call("processes")["runs"][0]["running"])
    (log,) = boxd.logs.glob("*.log")
    assert log.read_text() == "early\nlate\n"


def test_the_newest_line_is_told_while_a_command_runs(client: Client, boxd: LocalBoxd):
    call = client.run("printf 'one\\ntwo\\n\\n'; while [ ! -e go ]; do sleep .01; done")
    client.pump_until(lambda: call.notes)
    assert call.notes == [{"newest": "two", "printed": 9}]
    (boxd.workspace / "go").touch()
    call.result()


@pytest.mark.parametrize(
    "request_",
    [
        {"cwd": "/nowhere"},
        {"cwd": "/file"},
        {"env": {"A": None}},
        {"env": {"A": "b\0c"}},
        {"env": {"A": "x" * 150_000}},
    ],
    ids=lambda request: repr(request)[:40],
)
def test_a_command_that_cannot_start_fails_as_not_started(
    client: Client, boxd: LocalBoxd, request_: dict[str, object]
):
    (boxd.root / "file").touch()
    with pytest.raises(Failed) as caught:
        client.call("run", command="true", timeout=5, **request_)
    assert caught.value.code == "not_started"
    assert client.run("true").result()["exit"] == 0


@pytest.mark.parametrize(
    "request_",
    [
        {"command": None},
        {"command": "a\0b"},
        {"timeout": "x"},
        {"timeout": float("nan")},
        {"yield_after": -1},
        {"head": float("inf")},
        {"env": 7},
    ],
    ids=repr,
)
def test_a_malformed_run_starts_nothing(
    client: Client, boxd: LocalBoxd, request_: dict[str, object]
):
    with pytest.raises(Failed) as caught:
        client.call("run", **{"command": "touch started", **request_})
    assert caught.value.code == "invalid"
    assert client.run("true").result()["exit"] == 0
    assert not (boxd.workspace / "started").exists()
    eventually(boxd.at_rest)


def test_a_spare_killed_while_it_waits_costs_the_next_run_nothing(client: Client, boxd: LocalBoxd):
    for _ in range(10):
        eventually(boxd.at_rest)
        runner, waiting = boxd.spare()
        waiting.kill()
        eventually(lambda runner=runner: not alive(runner.pid))
        assert client.run("exit 4").result()["exit"] == 4
        eventually(boxd.at_rest)
        runner, waiting = boxd.spare()
        runner.kill()
        eventually(lambda waiting=waiting: not alive(waiting.pid))
        assert client.run("exit 4").result()["exit"] == 4
    eventually(boxd.at_rest)


def test_a_spare_that_somebody_stopped_does_not_hold_boxd(client: Client, boxd: LocalBoxd):
    eventually(boxd.at_rest)
    stopped = boxd.spare()
    for process in stopped:
        process.suspend()
    call = client.run(f": {'x' * (MAX_TEXT - 2)}")  # all of it waits unread
    assert client.run("true").result()["exit"] == 0
    for process in stopped:
        process.resume()
    assert call.result()["exit"] == 0
    eventually(boxd.at_rest)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_zygote_that_somebody_ended_or_stopped_is_replaced(
    client: Client, boxd: LocalBoxd, number: signal.Signals
):
    going_on = client.run("sleep 300 & wait $!; exit 3", timeout=300)
    eventually(lambda: len(boxd.descendants()) == 6)  # with the sleep and the next spare
    zygote = boxd.zygote()
    zygote.send_signal(number)
    for expected in (4, 5):  # the first has the spare
        with boxd.connect() as another:
            assert another.run(f"exit {expected}").result()["exit"] == expected
    assert not alive(zygote.pid)
    assert going_on.cancel().result()["cause"] == "cancelled"
    eventually(boxd.at_rest)


def test_a_command_is_run_as_a_shell_runs_its_argument(client: Client):
    shows = "echo $# $-; echo $BASH_EXECUTION_STRING; ls /proc/$$/fd; true"
    call = client.run(shows)
    call.result()
    assert call.stdout.decode() == f"0 hBc\n{shows}\n0\n1\n2\n"
    assert client.run("set -e; false; exit 0").result()["exit"] == 1
    assert client.run("if true").result()["exit"] == 2
    lines = client.run("cat <<'E'\nö \\\nE\nexit 3\n")
    assert lines.result()["exit"] == 3
    assert lines.stdout.decode() == "ö \\\n"


def test_a_spare_waits_where_the_last_command_ran_and_notices_another_directory_there(
    client: Client, boxd: LocalBoxd
):
    def pwd() -> str:
        call = client.run("pwd; cd . && ls", cwd="/workspace/below")
        assert call.result()["exit"] == 0
        eventually(boxd.at_rest)
        return call.stdout.decode()

    here = boxd.workspace / "below"
    client.run("mkdir below").result()
    assert pwd() == pwd() == f"{here}\n"
    assert {waiting.cwd() for waiting in boxd.spare()} == {"/", str(here)}
    client.run("rm -r below; mkdir below; touch below/new").result()
    assert pwd() == f"{here}\nnew\n"


def test_a_visit_takes_the_spare_from_wherever_it_waits_and_leaves_the_next_one_there(
    client: Client, boxd: LocalBoxd
):
    def waits_in() -> Path:
        eventually(boxd.at_rest)
        return Path(boxd.spare()[1].cwd())

    def visited(place: str) -> tuple[int, str]:
        call = client.run("echo $$; pwd", cwd=place, visits=True)
        assert call.result()["exit"] == 0
        pid, where = call.stdout.decode().split("\n", 1)
        return int(pid), where

    usual, odd = boxd.workspace, boxd.workspace / "it's\nodd"
    odd.mkdir()
    (usual / "below").mkdir()
    client.run("true").result()
    assert waits_in() == usual
    waiting = boxd.spare()[1].pid
    assert visited("/workspace/below") == (waiting, f"{usual}/below\n")
    assert waits_in() == usual
    assert visited("/workspace/it's\nodd")[1] == f"{odd}\n"
    assert waits_in() == usual
    with pytest.raises(Failed, match="No such file"):
        client.run("pwd", cwd="/workspace/nowhere", visits=True).result()


def test_a_killed_runner_takes_its_tree_along_and_nobody_elses(client: Client, boxd: LocalBoxd):
    other = client.run("echo $$ > other; sleep 300")
    boxd.pid_in("other")
    call = client.run("echo $$ > main; (setsid sleep 300 &); sleep 300")
    main = boxd.pid_in("main")
    runner = psutil.Process(psutil.Process(main).ppid())
    runner.kill()
    assert call.result()["signal"] == signal.SIGKILL
    eventually(lambda: not alive(main))
    assert alive(boxd.pid_in("other"))
    other.cancel().result()
    eventually(boxd.at_rest)


def test_a_killed_runner_takes_along_what_its_tree_goes_on_to_fork(client: Client, boxd: LocalBoxd):
    call = client.run(BOMB)
    psutil.Process(psutil.Process(boxd.pid_in("main")).ppid()).kill()
    assert call.result()["signal"] == signal.SIGKILL
    eventually(boxd.at_rest)


def test_a_gigabyte_of_output_costs_boxd_less_than_sixteen_mebibytes(
    client: Client, boxd: LocalBoxd
):
    client.run("true").result()
    before = boxd.memory("VmRSS")
    call = client.run("head -c 1000000000 /dev/zero", head=100_000, tail=100_000)
    result = call.result()
    assert result["printed"] == 1_000_000_000
    assert len(call.stdout) == 200_000
    assert result["logged"] == 1_000_000_000
    assert (boxd.logs / "p2.log").stat().st_blocks * 512 <= 65 * MEBI
    assert boxd.memory("VmHWM") - before < 16 * MEBI


def test_single_bytes_cost_boxd_less_than_sixteen_mebibytes(client: Client, boxd: LocalBoxd):
    client.run("true").result()
    before = boxd.memory("VmRSS")
    script = "import os\nfor _ in range(200000): os.write(1, b'x')"
    call = client.run(f"python3 -c {shlex.quote(script)}", head=100_000, tail=100_000)
    assert call.result()["printed"] == 200_000
    assert boxd.memory("VmHWM") - before < 16 * MEBI


def test_a_flood_in_one_run_does_not_delay_another_request(client: Client):
    flood = client.run("cat /dev/zero")
    client.pump_until(lambda: flood.notes)
    took: list[float] = []
    for _ in range(100):
        start = time.perf_counter()
        client.call("stat", path="/")
        took.append(time.perf_counter() - start)
    assert not flood.done
    flood.cancel().result()
    assert statistics.median(took) < 0.05
    assert max(took) < 5


def test_two_hundred_runs_leave_no_descriptors_and_no_processes(client: Client, boxd: LocalBoxd):
    def run_all(count: int) -> None:
        for number in range(count):
            assert client.run("echo x").result()["exit"] == 0
            if number % 10 == 0:
                client.run("cat > /dev/null", stdin=True).send(b"x").cancel().result()
                with pytest.raises(Failed):
                    client.call("run", command="true", cwd="/nowhere")

    run_all(10)
    eventually(boxd.at_rest)
    with descriptors_given_back(boxd.facts):
        run_all(200)
        eventually(boxd.at_rest)
    assert len(client.call("processes")["runs"]) <= 102
    assert len(list(boxd.logs.glob("*.log"))) <= 102
    assert len(list(boxd.logs.glob("*.json"))) <= 102


def test_a_boxd_started_again_keeps_logging_beside_the_logs_of_the_last(boxd: LocalBoxd):
    with boxd.connect() as client:
        client.run("echo first").result()
    boxd.stop()
    boxd.start()
    with boxd.connect() as client:
        log = client.run("echo second").result()["log"]
    assert _text(boxd.logs / log.rsplit("/")[-1]) == "second\n"


def _text(path: Path) -> str:
    return path.read_text()
