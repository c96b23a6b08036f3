from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.boxd import Client, Failed, LocalBoxd, descriptors_given_back, eventually

if TYPE_CHECKING:
    from tests.support.boxd import Call

SIZE = [24, 80]


def started(client: Client, script: str, **request: Any) -> str:
    """The id of a command that runs on a terminal."""
    return client.run(script, terminal=SIZE, yield_after=0, **request).result()["id"]


def typed(client: Client, name: str, data: bytes, **request: Any) -> dict[str, Any]:
    """What `input` answers."""
    return client.open("input", id=name, **request).send(data).finish().result()


def waited(client: Client, name: str, **request: Any) -> Call:
    """A page of output that was waited for."""
    call = client.open("output", id=name, **{"limit": 10_000, "wait": 15, **request})
    call.result()
    return call


def test_a_command_on_a_terminal_has_it_as_its_own_and_knows_its_size(client: Client):
    script = "tty; stty size; echo $TERM; test -t 0 -a -t 1 -a -t 2 && echo all; ps -o tty= $$"
    call = client.run(script, terminal=[33, 111])
    record = call.result()
    lines = call.stdout.decode().splitlines()
    assert record["terminal"] == [33, 111]
    assert lines[0].startswith("/dev/pts/")
    assert lines[1:4] == ["33 111", "xterm-256color", "all"]
    assert lines[4] == lines[0].removeprefix("/dev/")
    assert call.stderr == b""


def test_without_a_terminal_there_is_none(client: Client):
    call = client.run("test -t 1 || echo none; echo x > /dev/tty")
    assert call.result()["terminal"] is None
    assert call.stdout == b"none\n"


def test_what_is_typed_reaches_the_program_and_its_answer_comes_back(client: Client):
    name = started(client, 'read -p "name? " x; echo "hello $x"')
    waited(client, name, cursor=0, pattern=r"name\?")
    typed(client, name, b"you\n")
    page = waited(client, name, cursor=0, until="exit")
    assert page.data == b"name? you\r\nhello you\r\n"
    assert page.result()["exit"] == 0


def test_a_call_returns_when_its_command_is_quiet_and_not_while_it_prints(client: Client):
    script = "for i in 1 2 3 4 5 6; do echo $i; sleep 0.2; done; read x; echo $x"
    call = client.run(script, terminal=SIZE, quiet=1)
    assert call.result()["running"] is True
    assert call.stdout.split() == [b"1", b"2", b"3", b"4", b"5", b"6"]
    typed(client, call.result()["id"], b"on\n")
    assert waited(client, call.result()["id"], until="exit").result()["exit"] == 0
    silent = client.run("sleep 300", terminal=SIZE, quiet=0.1).result()
    assert silent["running"] is True
    client.call("end", id=silent["id"])


def test_ctrl_c_interrupts_and_the_end_of_input_is_a_key(client: Client):
    name = started(client, "trap 'echo interrupted' INT; cat; echo done")
    typed(client, name, b"echoed\n")
    waited(client, name, cursor=0, pattern="echoed\r\nechoed")
    typed(client, name, b"\x03")
    page = waited(client, name, cursor=0, until="exit")
    assert b"interrupted" in page.data
    other = started(client, "cat; echo done")
    typed(client, other, b"line\n", end=True)
    assert waited(client, other, cursor=0, until="exit").data.endswith(b"done\r\n")


def test_a_resized_terminal_tells_its_program(client: Client):
    name = started(client, "trap 'stty size' WINCH; echo set; while :; do sleep 0.05; done")
    waited(client, name, cursor=0, pattern="set")
    assert typed(client, name, b"", terminal=[50, 132])["terminal"] == [50, 132]
    assert b"50 132" in waited(client, name, cursor=0, pattern="50 132").data
    client.call("end", id=name)


def test_a_terminals_owner_is_who_runs_the_command(client: Client):
    call = client.run("stat -c %u $(tty); id -u; echo by name > $(tty)", terminal=SIZE)
    call.result()
    owner, me, by_name = call.stdout.decode().splitlines()
    assert owner == me
    assert by_name == "by name"


def test_a_terminal_that_hangs_up_ends_who_does_not_ignore_it(client: Client, boxd: LocalBoxd):
    name = started(client, "sleep 300 & echo $! > job; exit 0")
    job = boxd.pid_in("job")
    page = waited(client, name, cursor=0, until="exit")
    assert page.result()["exit"] == 0
    client.call("end", id=name)
    eventually(boxd.at_rest, f"{job} is gone")


def test_output_and_descriptors_of_terminals_are_given_back(client: Client, boxd: LocalBoxd):
    def turn() -> None:
        for _ in range(5):
            call = client.run("seq 1000", terminal=SIZE)
            assert call.result()["exit"] == 0
            assert call.stdout.count(b"\r\n") == 1000

    turn()
    eventually(boxd.at_rest)
    with descriptors_given_back(boxd.facts):
        for _ in range(4):
            turn()
        eventually(boxd.at_rest)


def test_a_terminal_of_no_size_or_a_nonsense_one_starts_nothing(client: Client):
    for size in (["a", 1], [1], 7, [1, 2, 3]):
        with pytest.raises(Failed) as caught:
            client.run("true", terminal=size).result()
        assert caught.value.code == "invalid"
    assert client.run("stty size", terminal=[0, 10**9]).result()["terminal"] == [1, 1000]
