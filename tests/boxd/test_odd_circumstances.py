"""Commands and logs under odd circumstances: what must not be lost, hang, or harm others."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from signal import SIGCONT, SIGSTOP
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.support.boxd import (
    PATIENCE,
    Client,
    Disconnected,
    Failed,
    LocalBoxd,
    alive,
    eventually,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

GRIN = "\U0001f600"  # twelve bytes as JSON


@pytest.fixture
def own_boxd() -> Iterator[LocalBoxd]:
    """One that a test may kill, or find dead."""
    boxd = LocalBoxd()
    yield boxd
    family = boxd.descendants()
    boxd.process.kill()
    boxd.process.wait()
    end(family)


def end(family: list[psutil.Process]) -> None:
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()


def restart(boxd: LocalBoxd) -> None:
    family = boxd.descendants()
    boxd.process.kill()
    boxd.process.wait()
    end(family)
    boxd.start()


def printed(client: Client, name: str) -> int:
    """How many bytes the command `name` has printed."""
    return client.call("output", id=name, limit=1)["printed"]


def test_a_boxd_whose_last_server_left_during_a_short_command_ends_by_itself():
    with LocalBoxd(orphan_after=0.5) as boxd:
        with boxd.connect() as client:
            client.open("run", command="sleep 0.03")
            time.sleep(0.005)  # it runs, and is over before anybody is told
        boxd.process.wait(PATIENCE)


def test_a_log_that_was_cut_off_does_not_hang_a_search_in_it(own_boxd: LocalBoxd):
    with own_boxd.connect() as client:
        record = client.run("yes | head -c 10000; sleep 300", yield_after=0).result()
        eventually(lambda: printed(client, record["id"]) == 10_000)
        os.truncate(record["log"], 8000)
        page = client.open("output", id=record["id"], cursor=0, limit=99, wait=0.1, pattern="no")
        assert page.result()["matched"] is False
        assert client.run("true").result()["exit"] == 0


def test_how_a_command_ended_is_known_after_a_crash_though_it_left_a_daemon(own_boxd: LocalBoxd):
    with own_boxd.connect() as client:
        record = client.run("sleep 0.2; sleep 300 & exit 3").result()
        assert (record["exit"], record["left"]) == (3, 1)
        written = own_boxd.logs / f"{record['id']}.json"
        eventually(lambda: written.exists() and not json.loads(written.read_bytes())["running"])
    restart(own_boxd)
    with own_boxd.connect() as client:
        (past,) = client.call("processes")["runs"]
    assert past["exit"] == 3


def test_what_a_log_has_dropped_is_known_after_a_crash(own_boxd: LocalBoxd):
    with own_boxd.connect() as client:
        script = "yes | head -c 80000000; echo > done; sleep 300"
        name = client.run(script, background=True, yield_after=0.1).result()["id"]
        eventually((own_boxd.workspace / "done").exists)
        eventually(lambda: printed(client, name) == 80_000_000)
    restart(own_boxd)
    with own_boxd.connect() as client:
        page = client.open("output", id=name, cursor=33 * 2**20, limit=1000)
        assert page.result()["dropped"] > 0
        assert set(page.data) == set(b"y\n")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p\u00b2.json", "{}"),
        ("p5.json", "[" * 60_000),
        ("p5.json", '{"id": "p5", "running": false, "left": 0, "printed": 1, "logged": 1e999}'),
        (
            "p5.json",
            '{"id": "p5", "running": false, "left": 0, "printed": 1, "logged": 1, "dropped": 0}',
        ),
    ],
    ids=["no number", "deep", "infinite", "no command"],
)
def test_a_record_that_somebody_wrote_into_the_box_does_not_stop_its_boxd(
    own_boxd: LocalBoxd, name: str, content: str
):
    own_boxd.connect().close()
    own_boxd.process.kill()
    own_boxd.process.wait()
    (own_boxd.logs / name).write_text(content)
    own_boxd.start()
    try:
        with own_boxd.connect() as client:
            assert client.call("processes")["runs"] == []
    except Disconnected:
        pytest.fail("boxd ended")


def test_a_list_of_many_long_commands_fits_into_a_frame(client: Client):
    for _ in range(100):
        client.run(":", title=GRIN * 200).result()
    listed = client.call("processes")
    assert listed["total"] == 100
    assert listed["runs"]


@pytest.mark.parametrize(
    ("script", "size"),
    [
        ("head -c 60000 /dev/zero; echo; head -c 150000 /dev/zero | tr '\\0' x", 210_001),
        ("head -c 90000 /dev/zero; echo; head -c 50000 /dev/zero", 140_001),
    ],
)
def test_the_newest_output_is_the_newest_though_it_has_no_line_breaks(
    client: Client, script: str, size: int
):
    name = client.run(f"{script}; printf newest; sleep 300", yield_after=0).result()["id"]
    eventually(lambda: printed(client, name) == size + len("newest"))
    page = client.open("output", id=name, limit=100_000)
    assert page.result()["end"] == size + len("newest")
    assert page.data.endswith(b"newest")
    client.call("end", id=name)


def test_an_answer_that_came_before_the_wait_began_ends_in_quiet_too(client: Client):
    name = client.run("cat", background=True, yield_after=0.1).result()["id"]
    before = client.open("input", id=name).send(b"hi\n").finish().result()["printed"]
    client.call("output", id=name, cursor=before, limit=100, wait=15)
    began = time.monotonic()
    client.call("output", id=name, cursor=before, limit=100, wait=15, until="quiet")
    assert time.monotonic() - began < 10
    client.call("end", id=name)


def test_input_that_is_still_on_its_way_when_a_call_returns_ends_all_the_same(client: Client):
    call = client.run("cat", stdin=True, yield_after=0.1).send(b"all of it\n")
    name = call.result()["id"]
    call.finish()
    page = client.open("output", id=name, limit=100, wait=15, until="exit")
    running = page.result()["running"]
    client.call("end", id=name)
    assert not running


def test_a_terminal_that_was_closed_by_its_command_is_not_resized_in_place_of_another(
    client: Client, boxd: LocalBoxd
):
    script = "exec <&- >&- 2>&-; echo $$ > pid; sleep 300"
    closed = client.run(script, terminal=[24, 80], yield_after=0).result()["id"]
    boxd.pid_in("pid")
    other = client.run("read; stty size; sleep 300", terminal=[24, 80], quiet=0.5).result()["id"]
    with pytest.raises(Failed):
        client.open("input", id=closed, terminal=[10, 11]).finish().result()
    client.open("input", id=other).send(b"\n").finish().result()
    page = client.open("output", id=other, cursor=0, limit=100, wait=15, pattern="[0-9]+ [0-9]+")
    page.result()
    for name in (closed, other):
        client.call("end", id=name)
    assert b"24 80" in page.data


def test_a_session_whose_bash_was_just_killed_begins_anew(client: Client, boxd: LocalBoxd):
    client.run("sleep 300 & echo $$ > pid", session="main").result()
    pid = boxd.pid_in("pid")
    boxd.process.send_signal(SIGSTOP)
    eventually(lambda: boxd.facts.status() == psutil.STATUS_STOPPED)
    call = client.run("echo on", session="main", timeout=PATIENCE)
    os.kill(pid, 9)
    eventually(lambda: not alive(pid))
    boxd.process.send_signal(SIGCONT)
    record = call.result()
    for run in client.call("processes")["runs"]:
        client.call("end", id=run["id"])
    assert (record["exit"], record["fresh"]) == (0, True)


@pytest.mark.parametrize("name", ["printf", "read", "eval"])
def test_a_function_of_the_users_does_not_break_their_session(client: Client, name: str):
    client.run(f"{name}() {{ :; }}", session="main", timeout=PATIENCE / 2).result()
    call = client.run("(exit 4)", session="main", timeout=PATIENCE / 2)
    record = call.result()
    assert (record["exit"], record["cause"], record["fresh"]) == (4, None, False)


@pytest.mark.parametrize("request_", [{"cwd": "a\0b", "moves": True}, {"env": {"A": "b\0c"}}])
def test_a_nul_in_what_comes_with_a_sessions_command_is_refused(
    client: Client, request_: dict[str, object]
):
    client.run("true", session="main").result()
    with pytest.raises(Failed):
        client.run("true", session="main", timeout=1, **request_).result()


def test_a_running_command_is_not_listed_as_left_by_itself(client: Client):
    name = client.run("sleep 300", yield_after=0.3).result()["id"]
    (run,) = client.call("processes")["runs"]
    client.call("end", id=name)
    assert (run["running"], run["left"]) == (True, 0)


def test_who_waits_for_output_that_no_log_takes_is_not_answered_at_once(
    client: Client, boxd: LocalBoxd
):
    (boxd.logs / "p1.log").mkdir()  # as on a full disk
    name = client.run("echo lost; sleep 300", yield_after=0.3).result()["id"]
    began = time.monotonic()
    client.call("output", id=name, cursor=0, limit=100, wait=0.5)
    client.call("end", id=name)
    assert time.monotonic() - began > 0.4
