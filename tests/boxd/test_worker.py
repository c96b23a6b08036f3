"""Workers, as a server sees them: tasks of our own in a boxd of our own."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from box_mcp.boxd import slices, wire, worker
from box_mcp.boxd.connection import Refusal, Stream
from box_mcp.boxd.deadline import clear_up_in_peace
from box_mcp.boxd.main import Daemon
from box_mcp.boxd.slices import Job
from box_mcp.boxd.worker import MAX_WORD, MAX_WORKERS, Terminated, Work
from tests.support.boxd import (
    NOBODY,
    Call,
    Client,
    Failed,
    alive,
    descriptors_given_back,
    eventually,
    listens,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from box_mcp.boxd.connection import Connection
    from box_mcp.boxd.slices import Slices

    Tell = Callable[[dict[str, Any]], None]

FLOOD = 20 * 1024 * 1024
LONG = 300.0


def write_all(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


def echo(_tell: Tell) -> dict[str, Any]:
    size = 0
    while data := os.read(0, 65536):
        size += len(data)
        write_all(data)
    return {"size": size}


def flood(_tell: Tell) -> dict[str, Any]:
    write_all(b"x" * FLOOD)
    return {"size": FLOOD}


def talk(tell: Tell) -> dict[str, Any]:
    for number in range(5):
        tell({"number": number})
    write_all(b"all")
    tell({"number": "last"})
    os.close(1)
    return {"said": 6}


def shout(_tell: Tell) -> dict[str, Any]:
    return {"text": "x" * 3 * MAX_WORD}


def rest(tell: Tell) -> dict[str, Any]:
    """Reads nothing, and has a child."""
    if os.fork() == 0:
        tell({"pids": [os.getppid(), os.getpid()]})
    time.sleep(LONG)
    return {}


def cling(tell: Tell) -> dict[str, Any]:
    """Does not end when it is told to."""
    tell({"pids": [os.getpid()]})
    while True:
        try:
            time.sleep(LONG)
        except Terminated:
            continue


def tidy(tell: Tell) -> dict[str, Any]:
    """Clears up when it is told to end."""
    name = Path(os.environ["NOTES"], "temporary")
    try:
        name.touch()
        tell({"pids": [os.getpid()]})
        time.sleep(LONG)
    finally:
        name.unlink()
    return {}


def tidy_in_peace(tell: Tell) -> dict[str, Any]:
    """Clears up, which takes a while, when it is told to end."""
    name = Path(os.environ["NOTES"], "temporary")
    name.touch()
    clear_up_in_peace()
    tell({"pids": [os.getpid()]})
    signal.sigtimedwait([signal.SIGTERM], LONG)
    name.unlink()
    return {}


def close_input(tell: Tell) -> dict[str, Any]:
    os.close(0)
    tell({"closed": True})
    signal.sigtimedwait([signal.SIGUSR1], 0.2)
    return {"done": True}


def deafen(tell: Tell) -> dict[str, Any]:
    """Reads nothing any more, and goes on."""
    os.close(0)
    tell({"pids": [os.getpid()]})
    time.sleep(LONG)
    return {}


def leave_child(tell: Tell) -> dict[str, Any]:
    """Ends with much in the pipe, and something that it started."""
    write_all(b"x" * (wire.WINDOW + 1))
    child = os.fork()
    if child == 0:
        os.close(1)
        os.close(worker.ANSWER_FD)
        time.sleep(LONG)
    tell({"pids": [child]})
    return {"done": True}


def refuse(_tell: Tell) -> dict[str, Any]:
    write_all(b"so far")
    raise Refusal("exists", "it is there")


def fail(_tell: Tell) -> dict[str, Any]:
    os.open("/nonexistent/file", os.O_RDONLY)
    return {}


def break_down(_tell: Tell) -> dict[str, Any]:
    raise ZeroDivisionError("a bug")


def die(_tell: Tell) -> dict[str, Any]:
    write_all(b"so far")
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def look(_tell: Tell) -> dict[str, Any]:
    fds = [int(name) for name in os.listdir("/proc/self/fd")]  # noqa: PTH208 - names, not paths
    return {"user": os.getuid(), "leader": os.getpid() == os.getpgid(0), "fds": sorted(fds)}


def without_end() -> Slices:
    while True:
        yield b""


TASKS = {
    task.__name__: task
    for task in (
        *(echo, flood, talk, shout, rest, cling, tidy, tidy_in_peace, close_input),
        *(deafen, leave_child),
        *(refuse, fail, break_down, die, look),
    )
}


class Workshop(Daemon):
    """A boxd whose only requests are tasks of this module."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            {
                "root": str(folder),
                "socket": str(folder / "boxd.sock"),
                "users": [str(NOBODY)],
                "log_dir": str(folder / "log"),
                "orphan_after": 60,
            }
        )

    def _open(self, connection: Connection, number: int, request: dict[str, Any]) -> Stream:
        if request["op"] == "slices":
            job = Job(connection, number, self._loop, self._user, without_end())
            job.on_credit()
            return job
        return Work(connection, number, self._loop, self._user, TASKS[request["op"]])


@dataclass(frozen=True)
class Shop:
    """A running workshop; `notes` is a directory that its workers may write to."""

    process: psutil.Process
    socket: Path
    notes: Path

    def connect(self) -> Client:
        return Client(self.socket)

    def at_rest(self) -> bool:
        """True when there are a zygote, a runner and its shell, which every boxd has."""
        return len(self.process.children(recursive=True)) <= 3


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        notes = folder / "notes"
        notes.mkdir()
        notes.chmod(0o777)
        os.environ["NOTES"] = str(notes)
        pid = os.fork()
        if pid == 0:
            try:
                worker.END_GRACE = 1.0
                slices.DEADLINE = 0.2
                Workshop(folder).serve()
            finally:
                os._exit(0)
        eventually(lambda: listens(folder / "boxd.sock"))
        yield Shop(psutil.Process(pid), folder / "boxd.sock", notes)
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)


@pytest.fixture
def client(shop: Shop) -> Iterator[Client]:
    with shop.connect() as client:
        yield client
    eventually(shop.at_rest, "all workers have ended")


def pids(client: Client, call: Call) -> list[int]:
    client.pump_until(lambda: call.notes)
    return call.notes[0]["pids"]


def failure(call: Call) -> tuple[str, str]:
    with pytest.raises(Failed) as caught:
        call.result()
    return caught.value.code, str(caught.value)


def test_what_a_worker_reads_and_writes_goes_through_whole(client: Client):
    data = os.urandom(1024) * 5000
    call = client.open("echo").send(data).finish()
    assert call.result() == {"size": len(data)}
    assert call.data == data


def test_output_larger_than_all_pipes_comes_whole(client: Client):
    call = client.open("flood")
    assert call.result() == {"size": FLOOD}
    assert sum(len(piece) for _, piece in call.pieces) == FLOOD


def test_a_server_that_grants_no_credit_holds_the_worker_up_and_nobody_else(
    client: Client, monkeypatch: pytest.MonkeyPatch
):
    greedy = client.open("flood")
    monkeypatch.setattr(greedy, "_may_receive", Miser())
    client.pump_until(lambda: len(greedy.data) == wire.WINDOW)
    assert client.call("look")["leader"] is True
    assert len(greedy.data) == wire.WINDOW
    assert not greedy.done
    client.send(wire.pack_credit(greedy.number, wire.WINDOW))
    client.pump_until(lambda: len(greedy.data) == 2 * wire.WINDOW)
    assert failure(greedy.cancel())[0] == "cancelled"


def test_a_worker_that_reads_nothing_is_sent_no_more_than_its_pipe_and_the_window_hold(
    client: Client,
):
    call = client.open("rest")
    first, child = pids(client, call)
    sent = 0
    while call.room >= wire.CHUNK:
        call.send(b"x" * wire.CHUNK)
        sent += wire.CHUNK
        client.call("look")  # by now boxd has given credit for what the pipe took
    assert wire.WINDOW <= sent <= 2 * 1024 * 1024
    assert failure(call.cancel())[0] == "cancelled"
    eventually(lambda: not alive(first) and not alive(child))


def test_what_is_sent_to_a_worker_that_has_closed_its_input_is_dropped(client: Client):
    call = client.open("close_input")
    client.pump_until(lambda: call.notes)
    call.send(b"x" * 3 * wire.WINDOW).finish()
    assert call.result() == {"done": True}


def test_what_is_sent_behind_a_closed_input_reaches_nobody_else(client: Client):
    deaf = [client.open("deafen") for _ in range(2)]
    for call in deaf:
        pids(client, call)
        call.send(b"x")  # boxd learns that it is closed
    client.call("look")
    other = client.open("echo")  # whose pipes take the numbers that are free now
    for call in deaf:
        call.send(b"y" * 100)
    assert other.send(b"z").finish().result() == {"size": 1}
    for call in deaf:
        assert failure(call.cancel())[0] == "cancelled"


def test_what_a_worker_leaves_behind_ends_with_it_though_nobody_reads_its_output(
    client: Client, monkeypatch: pytest.MonkeyPatch
):
    call = client.open("leave_child")
    monkeypatch.setattr(call, "_may_receive", Miser())
    (child,) = pids(client, call)
    client.pump_until(lambda: len(call.data) == wire.WINDOW)
    eventually(lambda: not alive(child))
    client.send(wire.pack_credit(call.number, wire.WINDOW))
    assert call.result() == {"done": True}


def test_more_workers_than_a_box_can_take_are_refused(shop: Shop, client: Client):
    calls = [client.open("rest") for _ in range(MAX_WORKERS)]
    for call in calls:
        pids(client, call)
    code, words = failure(client.open("look"))
    assert (code, words) == ("busy", f"{MAX_WORKERS} searches, copies and transfers are under way")
    for call in calls:
        assert failure(call.cancel())[0] == "cancelled"
    eventually(shop.at_rest, "all workers have ended")
    assert client.call("look")


def test_notes_come_in_order_and_the_result_behind_all_output(client: Client):
    call = client.open("talk")
    assert call.result() == {"said": 6}
    assert [note["number"] for note in call.notes] == [0, 1, 2, 3, 4, "last"]
    assert call.data == b"all"


@pytest.mark.parametrize(
    ("task", "code", "words"),
    [
        ("refuse", "exists", "it is there"),
        ("fail", "not_found", "No such file or directory: /nonexistent/file"),
        ("break_down", "failed", "boxd failed: ZeroDivisionError('a bug')"),
        ("die", "failed", "the process that worked on it was killed"),
        ("shout", "failed", "the process that worked on it was killed"),
    ],
)
def test_a_task_that_fails_is_told(client: Client, task: str, code: str, words: str):
    call = client.open(task)
    assert failure(call) == (code, words)
    assert call.data in {b"", b"so far"}


def test_a_worker_is_the_user_in_a_group_of_its_own_with_four_descriptors(client: Client):
    seen = client.call("look")
    assert seen["user"] == (NOBODY if os.geteuid() == 0 else os.geteuid())
    assert seen["leader"] is True
    assert seen["fds"][:4] == [0, 1, 2, 3]
    assert len(seen["fds"]) == 5  # and the one that lists them


@pytest.mark.parametrize("task", ["rest", "cling"])
@pytest.mark.parametrize("leave", ["cancel", "disconnect"])
def test_a_worker_that_nobody_waits_for_ends_with_its_children(
    shop: Shop, client: Client, task: str, leave: str
):
    with shop.connect() as other:
        call = other.open(task)
        found = pids(other, call)
        assert all(alive(pid) for pid in found)
        if leave == "cancel":
            assert failure(call.cancel())[0] == "cancelled"
    eventually(lambda: not any(alive(pid) for pid in found))
    assert client.call("look")["leader"] is True


@pytest.mark.parametrize("task", ["tidy", "tidy_in_peace"])
def test_a_worker_that_is_given_up_can_clear_up(shop: Shop, client: Client, task: str):
    call = client.open(task)
    pids(client, call)
    assert list(shop.notes.iterdir())
    assert failure(call.cancel())[0] == "cancelled"
    eventually(lambda: not list(shop.notes.iterdir()))


def test_what_is_done_in_slices_has_its_time_too(client: Client):
    assert failure(client.open("slices")) == ("too_slow", "it was not done within 0.2 s")
    assert client.call("look")


def test_workers_leave_no_descriptors(shop: Shop, client: Client):
    client.call("look")
    with descriptors_given_back(shop.process):
        for task in ("look", "talk", "refuse", "die", "shout"):
            for call in [client.open(task) for _ in range(5)]:
                client.pump_until(lambda call=call: call.done)
        for _ in range(5):
            failure(client.open("rest").cancel())
            failure(client.open("flood").cancel())
        eventually(shop.at_rest)


class Miser(wire.Window):
    """Grants nothing."""

    def spend(self, size: int) -> None:
        """Takes what comes."""

    def consumed(self, size: int) -> int:
        return 0
