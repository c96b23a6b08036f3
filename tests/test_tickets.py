from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import anyio
import pytest

from box_mcp import tickets as locks
from box_mcp.tickets import Presence, Ticket, Tickets

OTHER = """
import sys
from pathlib import Path
from box_mcp import tickets
from box_mcp.tickets import Presence, Tickets
directory = Path(sys.argv[1])
tickets.WINDOWS = sys.argv[2] == "windows"
ticket = Tickets(directory).ticket("it")
presence = Presence(directory / "servers")
for line in sys.stdin:
    print(eval(line), flush=True)
"""


class Other:
    """Another process, which does with its ticket what it is told to."""

    def __init__(self, directory: Path, system: str) -> None:
        command = [sys.executable, "-c", OTHER, str(directory), system]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def __call__(self, words: str) -> str:
        stdin, stdout = self._pipe(self.process.stdin), self._pipe(self.process.stdout)
        stdin.write(words + "\n")
        stdin.flush()
        return stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self._pipe(self.process.stdin).close()
        self._pipe(self.process.stdout).close()

    def _pipe(self, pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


@pytest.fixture(params=["unix", "windows"], autouse=True)
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whose way it is done in: that of Windows works with flock(2), too."""
    monkeypatch.setattr(locks, "WINDOWS", request.param == "windows")
    return request.param


@pytest.fixture
def ticket(tmp_path: Path) -> Any:
    ticket = Tickets(tmp_path).ticket("it")
    yield ticket
    ticket.close()


@pytest.fixture
def other(tmp_path: Path, system: str) -> Any:
    other = Other(tmp_path, system)
    yield other
    if other.process.poll() is None:
        other.kill()


def test_what_is_shared_can_be_shared_but_not_taken(ticket: Ticket, other: Other):
    assert ticket.share()
    assert other("ticket.share()") == "True"
    assert other("ticket.take()") == "False"
    assert not ticket.take()
    assert repr(ticket) == "<Ticket it shared>"


def test_what_is_taken_is_its_holders_alone(ticket: Ticket, other: Other):
    assert other("ticket.take()") == "True"
    assert not ticket.take()
    assert not ticket.share()
    assert other("ticket.release()") == "None"
    assert ticket.take()
    assert repr(ticket) == "<Ticket it taken>"


def test_who_shares_alone_can_take_and_who_took_can_share(ticket: Ticket, other: Other):
    assert ticket.share()
    assert ticket.take()
    assert other("ticket.share()") == "False"
    assert ticket.share()
    assert other("ticket.share()") == "True"


def test_who_could_not_take_shares_still(ticket: Ticket, other: Other):
    assert ticket.share()
    assert other("ticket.share()") == "True"
    assert not ticket.take()
    assert other("ticket.release()") == "None"
    assert other("ticket.take()") == "False"


def test_asking_twice_is_fine(ticket: Ticket):
    assert ticket.share()
    assert ticket.share()
    assert ticket.take()
    assert ticket.take()
    ticket.release()
    ticket.release()
    assert repr(ticket) == "<Ticket it free>"


@pytest.mark.parametrize("held", ["share", "take"])
def test_what_a_killed_process_held_is_free(ticket: Ticket, other: Other, held: str):
    assert other(f"ticket.{held}()") == "True"
    assert not ticket.take()
    other.kill()
    assert ticket.take()


def test_changes_and_uses_are_seen_by_others(ticket: Ticket, other: Other):
    assert (ticket.generation(), ticket.used()) == (0, 0.0)
    assert ticket.bump() == 1
    assert ticket.bump() == 2
    ticket.touch(1234.5)
    ticket.touch(1000.0)
    assert other("(ticket.generation(), ticket.used())") == "(2, 1234.5)"


def test_who_knew_a_deleted_box_sees_that_it_was_changed(ticket: Ticket, other: Other):
    assert other("(ticket.take(), ticket.bump())") == "(True, 1)"
    assert ticket.generation() == 1
    assert other("(ticket.bump(), ticket.discard())") == "(2, None)"
    assert ticket.generation() == 2


def test_a_discarded_ticket_is_made_anew(ticket: Ticket, other: Other):
    assert ticket.generation() == 0
    assert other("(ticket.take(), ticket.bump(), ticket.discard())") == "(True, 1, None)"
    assert ticket.take()
    assert ticket.generation() == 0, "the file of another box"
    assert other("ticket.share()") == "False"


def test_a_closed_ticket_opens_again(ticket: Ticket):
    assert ticket.take()
    ticket.bump()
    ticket.close()
    assert repr(ticket) == "<Ticket it free>"
    assert ticket.generation() == 1


def test_a_server_is_alone_until_another_comes_and_after_it_went(tmp_path: Path, other: Other):
    with Presence(tmp_path / "servers") as presence:
        assert presence.alone()
        assert other("presence.__enter__() is presence") == "True"
        assert not presence.alone()
        assert other("presence.alone()") == "False"
        assert other("presence.__exit__(None, None, None)") == "None"
        assert presence.alone()


def test_a_killed_server_is_not_counted_and_its_file_goes(tmp_path: Path, other: Other):
    with Presence(tmp_path / "servers") as presence:
        assert other("presence.__enter__() is presence") == "True"
        other.kill()
        assert len(list((tmp_path / "servers").glob("*.lock"))) == 2
        assert presence.alone()
        assert len(list((tmp_path / "servers").glob("*.lock"))) == 1
    assert list((tmp_path / "servers").iterdir()) == []


def test_nobody_there_is_alone(tmp_path: Path):
    assert Presence(tmp_path / "servers").alone()


async def test_who_gives_up_waiting_to_be_alone_leaves_the_lock_to_its_holder(tmp_path: Path):
    tickets = Tickets(tmp_path)
    async with tickets.alone_with("it"):
        for _ in range(2):
            entered = False
            with anyio.move_on_after(0.05):
                async with tickets.alone_with("it"):
                    entered = True
            assert not entered
    async with tickets.alone_with("it"):
        pass
    assert tickets.names() == set()
