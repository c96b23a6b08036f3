"""Connections to programs in the box, and from them. The programs here are sockets of the tests."""

from __future__ import annotations

import hashlib
import os
import select
import socket
import struct
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from box_mcp.boxd import tunnels, wire
from tests.support.boxd import PATIENCE, START, Call, Client, Failed, LocalBoxd, eventually

if TYPE_CHECKING:
    from collections.abc import Generator

LOOPBACK = "127.0.0.1"
MANY = os.urandom(8 * 1024 * 1024)
STILL = 0.3  # s in which boxd would have read more
RESET_AT_CLOSE = struct.pack("ii", 1, 0)


class HastyBoxd(LocalBoxd):
    """One that waits for nobody for long."""

    def start(self) -> None:
        hurry = "TAKE_WITHIN = t.CONNECT_WITHIN = t.KEEP_PORT = 0.3"
        self._start = START.replace("from boxd", f"import boxd.tunnels as t; t.{hurry}; from boxd")
        super().start()


@contextmanager
def program(host: str = LOOPBACK, *, backlog: int = 200) -> Generator[socket.socket, None, None]:
    """A program that listens in the box."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family, backlog=backlog) as listener:
        listener.settimeout(PATIENCE)
        yield listener


def port_of(listener: socket.socket) -> int:
    return listener.getsockname()[1]


def free_port() -> int:
    with program() as listener:
        return port_of(listener)


def told(client: Client, call: Call, note: dict[str, object]) -> None:
    """Waits until this is what boxd says."""
    client.pump_until(lambda: note in call.notes or call.done)
    assert note in call.notes, call.failure


def connected(client: Client, listener: socket.socket) -> tuple[Call, socket.socket]:
    """A tunnel to a program, and the program's end."""
    call = client.open("connect", port=port_of(listener))
    told(client, call, {"connected": True})
    there, _ = listener.accept()
    there.settimeout(PATIENCE)
    return call, there


def offered(client: Client, port: int, files: dict[str, str] | None = None, **env: str) -> Call:
    """An offer that holds."""
    call = client.open("listen", port=port, env=env, files=files)
    told(client, call, {"listening": True})
    return call


def dialled(port: int, host: str = LOOPBACK) -> socket.socket:
    """A program's connection to a port of boxd's."""
    return socket.create_connection((host, port), timeout=PATIENCE)


def announced(client: Client, offer: Call, count: int = 1) -> list[int]:
    """The tokens of all connections that an offer was told of, so many in all."""

    def tokens() -> list[int]:
        return [note["accepted"] for note in offer.notes if "accepted" in note]

    client.pump_until(lambda: len(tokens()) >= count)
    return tokens()


def taken(client: Client, offer: Call, number: int = 0) -> Call:
    """The stream of an announced connection."""
    token = announced(client, offer, number + 1)[number]
    return client.open("accept", token=token)


def heard_out(connection: socket.socket) -> bytes:
    """All that comes up to the end."""
    data = bytearray()
    while piece := connection.recv(1 << 20):
        data += piece
    return bytes(data)


@contextmanager
def beside(function: object, *arguments: object) -> Generator[None, None, None]:
    """Something blocking that goes on meanwhile, and is over afterwards."""
    assert callable(function)
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    yield
    thread.join(PATIENCE)
    assert not thread.is_alive()


def read(client: Client, name: str) -> str:
    """The file that a variable names, as a new command reads it."""
    run = client.run(f'[ "${name}" ] && cat -- "${name}" || echo unset')
    run.result()
    return run.stdout.decode().strip()


def environment(client: Client, name: str, **request: object) -> str:
    """A variable as a new command has it."""
    run = client.run(f'echo "${{{name}-unset}}"', **request)
    run.result()
    return run.stdout.decode().strip()


def test_what_one_end_sends_arrives_at_the_other(client: Client):
    with program() as listener:
        call, there = connected(client, listener)
        with there:
            call.send(b"ping")
            assert there.recv(100) == b"ping"
            there.sendall(b"pong")
            client.pump_until(lambda: call.data == b"pong")
            assert not call.done


def test_megabytes_pass_both_ways_at_once_and_are_what_was_sent(client: Client):
    heard: list[bytes] = []

    def talk(there: socket.socket) -> None:
        with beside(lambda: heard.append(heard_out(there))):
            there.sendall(MANY)
            there.shutdown(socket.SHUT_WR)

    port = free_port()
    offer = offered(client, port)
    with program() as listener, dialled(port) as caller:
        outward, there = connected(client, listener)
        for call, end in ((outward, there), (taken(client, offer), caller)):
            with end, beside(talk, end):
                call.send(MANY).finish()
                assert call.result() == {}
            assert hashlib.sha256(call.data).digest() == hashlib.sha256(MANY).digest()
            assert heard.pop() == MANY


def test_each_direction_ends_by_itself(client: Client):
    with program() as listener:
        call, there = connected(client, listener)
        with there:
            call.send(b"question").finish()
            assert heard_out(there) == b"question"
            there.sendall(b"answer")
            client.pump_until(lambda: call.data == b"answer")
            assert call.notes == [{"connected": True}]
            there.shutdown(socket.SHUT_WR)
            assert call.result() == {}
            assert call.notes[1:] == [{"eof": True}]

        call, there = connected(client, listener)
        with there:
            there.sendall(b"all")
            there.shutdown(socket.SHUT_WR)
            told(client, call, {"eof": True})
            call.send(b"and").send(b" more").finish()
            assert heard_out(there) == b"and more"
            assert call.result() == {}


def test_a_port_on_which_nothing_listens_is_refused(client: Client):
    for port, code in ((free_port(), "not_listening"), (0, "invalid"), (70_000, "invalid")):
        with pytest.raises(Failed) as failed:
            client.call("connect", port=port)
        assert failed.value.code == code


def test_programs_are_found_at_every_address_of_the_box(client: Client):
    hosts = [tunnels.OWN_NAME, *(host for _, host in tunnels.own_addresses())]
    with suppress(OSError), program("::1"):
        hosts.append("::1")
    for host in hosts:
        with program(host) as listener:
            call, there = connected(client, listener)
            with there:
                assert call.send(b"x").notes
                assert there.recv(10) == b"x"


def test_a_program_that_accepts_nothing_is_given_up_and_delays_nobody():
    with (
        HastyBoxd() as boxd,
        boxd.connect() as client,
        program(backlog=0) as listener,
        ExitStack() as fillers,
    ):
        for _ in range(4):
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex((LOOPBACK, port_of(listener)))
        stuck = client.open("connect", port=port_of(listener))
        client.call("stat", path="/")
        assert not stuck.done
        with pytest.raises(Failed) as failed:
            stuck.result()
        assert failed.value.code == "too_slow"
        with pytest.raises(Failed) as failed:
            client.open("connect", port=port_of(listener)).cancel().result()
        assert failed.value.code == "cancelled"


def test_a_tunnel_that_is_given_up_is_a_connection_reset(client: Client):
    with program() as listener:
        call, there = connected(client, listener)
        with there:
            call.send(b"half").cancel()
            with pytest.raises(Failed, match="cancelled"):
                call.result()
            with pytest.raises(ConnectionResetError):
                heard_out(there)


def test_what_was_sent_before_the_end_arrives_though_the_tunnel_is_given_up_then(client: Client):
    with program() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        call, there = connected(client, listener)
        with there:
            data = b"x" * wire.WINDOW
            call.send(data).finish().cancel()
            client.call("stat", path="/")
            there.sendall(b"what nobody reads any more")
            assert heard_out(there) == data


def test_a_program_whose_server_goes_away_sees_a_reset(boxd: LocalBoxd):
    port = free_port()
    client = boxd.connect()
    offer = offered(client, port)
    with program() as listener, dialled(port) as caller:
        taken(client, offer).send(b"x")
        assert caller.recv(10) == b"x"
        _, there = connected(client, listener)
        client.close()
        with there:
            for end in (caller, there):
                with pytest.raises(ConnectionResetError):
                    heard_out(end)


def test_a_connection_that_breaks_fails_its_stream(client: Client):
    with program() as listener:
        call, there = connected(client, listener)
        there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
        there.close()
        with pytest.raises(Failed) as failed:
            call.result()
        assert failed.value.code == "reset"


def test_a_program_that_closes_early_is_heard_first_and_then_told_as_reset(client: Client):
    with program() as listener:
        call, there = connected(client, listener)
        there.sendall(b"413 too much")
        there.shutdown(socket.SHUT_WR)
        told(client, call, {"eof": True})
        there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
        there.close()
        with pytest.raises(Failed) as failed:
            call.send(MANY).finish().result()
        assert failed.value.code == "reset"
        assert call.data == b"413 too much"


def test_a_program_that_does_not_read_holds_a_window_of_data_and_delays_nobody(client: Client):
    with program() as listener:
        slow, there = connected(client, listener)
        with there:
            sent = 0
            while slow.room or sent < wire.WINDOW:  # until neither kernel nor boxd take more
                piece = min(slow.room, wire.CHUNK)
                slow.send(MANY[sent : sent + piece])
                sent += piece
                client.call("stat", path="/")
            quick, other = connected(client, listener)
            with other:
                quick.send(b"x")
                assert other.recv(10) == b"x"
            slow.finish()
            assert heard_out(there) == MANY[:sent]


def test_boxd_reads_no_more_from_a_program_than_the_server_takes(boxd: LocalBoxd, client: Client):
    with program() as listener:
        call, there = connected(client, listener)
        with there:
            there.setblocking(False)
            sent, before = 0, boxd.memory("VmRSS")
            while select.select([], [there], [], STILL)[1]:
                sent += there.send(MANY[: wire.CHUNK])
                assert sent < 8 * len(MANY), "somebody takes it all"
            assert boxd.memory("VmRSS") - before < 4 * 1024 * 1024
            client.pump_until(lambda: len(call.data) == sent)


def test_connections_to_a_port_are_announced_and_taken(client: Client):
    port = free_port()
    offer = offered(client, port)
    with dialled(port) as one, dialled(port) as other:
        one.sendall(b"one")
        other.sendall(b"other")
        tokens = announced(client, offer, 2)
        assert len(set(tokens)) == 2
        for token, said in zip(tokens, (b"one", b"other"), strict=True):
            call = client.open("accept", token=token)
            client.pump_until(lambda call=call, said=said: call.data == said)


def test_a_connection_is_taken_once_and_by_whom_was_asked(boxd: LocalBoxd, client: Client):
    port = free_port()
    offer = offered(client, port)
    with dialled(port) as caller, boxd.connect() as stranger:
        (token,) = announced(client, offer)
        with pytest.raises(Failed, match="gone, or another server has it"):
            stranger.call("accept", token=token)
        call = client.open("accept", token=token)
        with pytest.raises(Failed, match="gone, or another server has it"):
            client.call("accept", token=token)
        call.send(b"x")
        assert caller.recv(10) == b"x"
        for junk in (token + 1000, -1, "x", None):
            with pytest.raises(Failed):
                client.call("accept", token=junk)


def test_a_port_that_a_program_has_is_told_as_in_use_until_it_is_free(client: Client):
    with program() as listener:
        port = port_of(listener)
        with pytest.raises(Failed, match="another program in the box listens") as failed:
            client.call("listen", port=port)
        assert failed.value.code == "in_use"
    offered(client, port)
    with suppress(OSError), program("::1") as listener, pytest.raises(Failed) as failed:
        client.call("listen", port=port_of(listener))
    assert failed.value.code == "in_use"


def test_a_port_that_is_for_root_is_denied(client: Client):
    with open("/proc/sys/net/ipv4/ip_unprivileged_port_start", encoding="ascii") as file:  # noqa: PTH123
        first = int(file.read())
    assert first > 1, "here all ports are for everybody"
    with pytest.raises(Failed) as failed:
        client.call("listen", port=first - 1)
    assert failed.value.code == "denied"


def test_the_newest_offer_is_asked_first_and_those_before_when_it_goes(boxd: LocalBoxd):
    port = free_port()
    with boxd.connect() as old, boxd.connect() as new:
        older, newer = offered(old, port), offered(new, port)
        with dialled(port) as first:
            taken(new, newer).send(b"new")
            assert first.recv(10) == b"new"
        newer.cancel()
        new.pump_until(lambda: newer.done)
        with dialled(port) as second:
            taken(old, older).send(b"old")
            assert second.recv(10) == b"old"


def test_a_connection_that_its_server_leaves_behind_is_given_to_the_next(boxd: LocalBoxd):
    port = free_port()
    new = boxd.connect()
    with boxd.connect() as old:
        older, newer = offered(old, port), offered(new, port)
        with dialled(port) as caller:
            announced(new, newer)
            began = time.monotonic()
            new.close()
            taken(old, older).send(b"old")
            assert caller.recv(10) == b"old"
            assert time.monotonic() - began < tunnels.TAKE_WITHIN / 2


def test_a_server_that_takes_nothing_is_passed_over_for_the_next_and_may_be_late():
    port = free_port()
    with HastyBoxd() as boxd, boxd.connect() as old, boxd.connect() as new:
        older, newer = offered(old, port), offered(new, port)
        with dialled(port) as caller:
            (token,) = announced(new, newer)
            announced(old, older)
            new.open("accept", token=token).send(b"late")
            assert caller.recv(10) == b"late"
        with dialled(port) as caller:
            announced(old, older, 2)
            assert b"503 Service Unavailable" in heard_out(caller)


def test_where_no_server_is_left_programs_are_told_so_in_words(boxd: LocalBoxd):
    port = free_port()
    with boxd.connect() as client:
        offer = offered(client, port)
        waiting = dialled(port)
        announced(client, offer)
        offer.cancel()
        for caller in (waiting, dialled(port)):
            caller.sendall(b"GET http://example.org/ HTTP/1.1\r\nHost: example.org\r\n\r\n")
            with caller:
                head, _, text = heard_out(caller).decode().partition("\r\n\r\n")
            assert head.startswith("HTTP/1.1 503 Service Unavailable\r\n")
            assert f"Content-Length: {len(text)}\r\n" in head
            assert f"127.0.0.1:{port} leads to box_mcp" in text
            assert "no server serves it now" in text
        again = offered(client, port)
        with dialled(port) as caller:
            taken(client, again).send(b"back")
            assert caller.recv(10) == b"back"


def test_a_port_that_nobody_offers_is_free_some_time_later():
    port = free_port()
    with HastyBoxd() as boxd, boxd.connect() as client:
        offered(client, port).cancel()

        def refused() -> bool:
            with socket.socket() as caller:
                return caller.connect_ex((LOOPBACK, port)) != 0

        eventually(refused)
        offered(client, port)
        assert not refused()


def test_a_hundred_connections_at_once_all_get_their_own_answer(client: Client):
    port = free_port()
    offer = offered(client, port)
    with ExitStack() as stack, program() as listener:
        callers = [stack.enter_context(dialled(port)) for _ in range(50)]
        tokens = announced(client, offer, 50)
        pairs = [
            (client.open("accept", token=token), caller)
            for token, caller in zip(tokens, callers, strict=True)
        ]
        pairs += [connected(client, listener) for _ in range(50)]
        for number, (call, end) in enumerate(pairs):
            end.sendall(b"%d" % number)
            call.send(b"-%d" % number).finish()
        for number, (call, end) in enumerate(pairs):
            with end:
                assert heard_out(end) == b"-%d" % number
            assert call.result() == {}
            assert call.data == b"%d" % number


def test_a_server_is_not_flooded_with_connections_and_gets_them_all_in_the_end(client: Client):
    port, crowd = free_port(), tunnels.MAX_WAITING + 20
    offer = offered(client, port)
    with ExitStack() as stack:
        callers = [stack.enter_context(dialled(port)) for _ in range(crowd)]
        tokens = announced(client, offer, tunnels.MAX_WAITING)
        client.call("stat", path="/")
        assert len(announced(client, offer)) == tunnels.MAX_WAITING
        for number in range(crowd):
            tokens = announced(client, offer, number + 1)
            client.open("accept", token=tokens[number]).send(b"x").finish().cancel()
        assert {heard_out(caller) for caller in callers} == {b"x"}


def test_so_many_connections_to_programs_are_open_at_once_and_those_that_ended_do_not_count(
    client: Client,
):
    with program() as listener, ExitStack() as stack:
        for number in range(tunnels.MAX_CONNECTED + 10):
            call, there = connected(client, listener)
            if number % 3 == 0:
                call.cancel()
            elif number % 3 == 1:
                there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
            else:
                call.finish()
            there.close()
            client.pump_until(lambda call=call: call.done)
        pairs = [connected(client, listener) for _ in range(tunnels.MAX_CONNECTED)]
        for _, there in pairs:
            stack.enter_context(there)
        with pytest.raises(Failed, match="are open") as failed:
            client.call("connect", port=port_of(listener))
        assert failed.value.code == "too_many"
        pairs[0][0].cancel()
        stack.enter_context(connected(client, listener)[1])


def test_so_many_connections_of_programs_are_open_at_once_and_the_next_waits_for_an_end(
    client: Client,
):
    port = free_port()
    offer = offered(client, port)
    with ExitStack() as stack:
        calls: list[Call] = []
        for number in range(tunnels.MAX_ACCEPTED):
            stack.enter_context(dialled(port))
            calls.append(taken(client, offer, number))
        stack.enter_context(dialled(port))
        client.call("stat", path="/")
        assert len(announced(client, offer)) == tunnels.MAX_ACCEPTED
        calls[0].cancel()
        assert len(announced(client, offer, tunnels.MAX_ACCEPTED + 1)) == tunnels.MAX_ACCEPTED + 1


def test_commands_have_the_variables_of_offers_as_long_as_these_hold(client: Client):
    assert environment(client, "A_PROXY") == "unset"
    usual = environment(client, "TERM")
    offer = offered(client, free_port(), A_PROXY="http://127.0.0.1:1/", TERM="odd")
    assert environment(client, "A_PROXY") == "http://127.0.0.1:1/"
    assert environment(client, "A_PROXY") == "http://127.0.0.1:1/"  # by the next spare
    assert environment(client, "A_PROXY", env={"A_PROXY": "own"}) == "own"
    assert environment(client, "TERM") == "odd"
    offer.cancel()
    assert environment(client, "A_PROXY") == "unset"
    assert environment(client, "TERM") == usual != "odd"
    for junk in ({"": "x"}, {"A=B": "x"}, {"A": "\0"}):
        with pytest.raises(Failed):
            client.call("listen", port=free_port(), env=junk)


def test_of_several_offers_the_newest_for_each_port_gives_its_variables(boxd: LocalBoxd):
    one, other = free_port(), free_port()
    with boxd.connect() as old, boxd.connect() as client:
        offered(old, one, A="old", B="old")
        offered(old, other, C="other", A="other")
        newest = offered(client, one, A="new")
        assert [environment(client, name) for name in "ABC"] == ["new", "unset", "other"]
        newest.cancel()
        assert [environment(client, name) for name in "ABC"] == ["other", "old", "other"]
        old.close()
        eventually(lambda: environment(client, "A") == "unset", "the offers went with their server")


def test_a_session_takes_variables_over_and_loses_them_again(client: Client):
    assert environment(client, "A", session="s") == "unset"
    usual = environment(client, "LC_CTYPE")
    offer = offered(client, free_port(), A="it's", LC_CTYPE="POSIX")
    assert environment(client, "A", session="s") == "it's"
    assert environment(client, "LC_CTYPE", session="s") == "POSIX"
    client.run("A=mine; readonly LC_CTYPE", session="s").result()
    assert environment(client, "A", session="s") == "mine"
    offer.cancel()
    assert environment(client, "A", session="s") == "unset"
    assert environment(client, "LC_CTYPE", session="s") == "POSIX"
    assert environment(client, "LC_CTYPE", session="t") == usual != "POSIX"


def test_a_file_of_an_offer_is_read_by_commands_and_outlives_it_for_those_that_run(client: Client):
    assert read(client, "A_FILE") == "unset"
    offer = offered(client, free_port(), {"A_FILE": "öne\n"})
    assert read(client, "A_FILE") == "öne"
    path = Path(environment(client, "A_FILE"))
    assert (path.read_text(), path.stat().st_mode) == ("öne\n", 0o100644)
    offer.cancel()
    assert environment(client, "A_FILE") == "unset"
    assert path.read_text() == "öne\n"


def test_a_file_goes_with_the_port_that_it_was_offered_with():
    with HastyBoxd() as boxd, boxd.connect() as client:
        other = offered(client, free_port(), {"B_FILE": "b"})
        offer = offered(client, free_port(), {"A_FILE": "a"})
        path = Path(environment(client, "A_FILE"))
        offer.cancel()
        eventually(lambda: not path.exists(), "the file goes")
        assert [file.name for file in path.parent.iterdir()] == ["B_FILE"]
        assert not other.done


def test_of_several_offers_the_newest_gives_the_file_and_the_spare_shell_stays(boxd: LocalBoxd):
    port, other = free_port(), free_port()
    with boxd.connect() as old, boxd.connect() as client:
        offered(old, port, {"A_FILE": "old", "B_FILE": "b"})
        client.run("true").result()
        eventually(boxd.at_rest)
        spare = boxd.spare()
        newest = offered(client, port, {"A_FILE": "new", "B_FILE": "b"})
        eventually(boxd.at_rest)
        assert boxd.spare() == spare
        assert [read(client, "A_FILE"), read(client, "B_FILE")] == ["new", "b"]
        unrelated = offered(client, other, {"B_FILE": "of another port"})
        assert [read(client, "A_FILE"), read(client, "B_FILE")] == ["new", "of another port"]
        newest.cancel()
        unrelated.cancel()
        assert [read(client, "A_FILE"), read(client, "B_FILE")] == ["old", "b"]
        old.close()
        eventually(lambda: environment(client, "A_FILE") == "unset", "the old one's server went")


def test_a_file_is_never_half_of_one(client: Client):
    path, one, other = "", "a" * 60_000, "b" * 60_000
    port = free_port()
    offered(client, port, {"A_FILE": one})
    path = environment(client, "A_FILE")
    seen: set[str] = set()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            seen.add(Path(path).read_text())

    with beside(look):
        for text in [other, one] * 20:
            offered(client, port, {"A_FILE": text})
        over.set()
    assert seen <= {one, other}


def test_an_offer_whose_file_can_not_be_written_is_refused_and_the_one_before_goes_on(
    boxd: LocalBoxd, client: Client
):
    port = free_port()
    offered(client, port, {"A_FILE": "old"}, A="old")
    directory = Path(environment(client, "A_FILE")).parent
    (directory / "B_FILE").mkdir()
    with pytest.raises(Failed, match="can't write into"):
        client.call("listen", port=port, env={"A": "new"}, files={"B_FILE": "x"})
    assert [read(client, "A_FILE"), environment(client, "B_FILE")] == ["old", "unset"]
    assert environment(client, "A") == "old"


@pytest.mark.parametrize(
    "files",
    [
        {"": "x"},
        {"a": "x"},
        {"../A": "x"},
        {"A/B": "x"},
        {".A": "x"},
        {"A\n": "x"},
        {"A" * 65: "x"},
        {"A": 1},
        {"A": None},
        {"A": "\udcff"},
        {"A": "x" * 128 * 1024 + "x"},
        {f"A{number}": "" for number in range(9)},
        ["A"],
        "A",
    ],
    ids=lambda files: ascii(files)[:20],
)
def test_anything_else_than_a_few_short_texts_is_refused(client: Client, files: object):
    port = free_port()
    with pytest.raises(Failed, match="malformed"):
        client.call("listen", port=port, files=files)
    with pytest.raises(ConnectionRefusedError):
        dialled(port)


def test_nothing_is_left_of_tunnels_however_they_ended(boxd: LocalBoxd):
    facts = psutil.Process(boxd.process.pid)
    with boxd.connect() as client, program() as listener:
        client.run("true").result()
        eventually(boxd.at_rest)
        before = facts.num_fds()
        port = free_port()
        offer = offered(client, port)
        for number in range(12):
            call, there = connected(client, listener)
            with dialled(port) as caller, there:
                inward = taken(client, offer, number)
                for stream in (call, inward)[: number % 3]:
                    stream.send(b"x").finish()
                if number % 2:
                    there.shutdown(socket.SHUT_WR)
                    caller.sendall(b"x")
            for stream in (call, inward)[: number % 4]:
                stream.cancel()
        with pytest.raises(Failed):
            client.call("connect", port=free_port())
        with boxd.connect() as other:
            for _ in range(5):
                connected(other, listener)[1].close()
        eventually(lambda: facts.num_fds() <= before + 24, "most descriptors are closed")
        client.close()
    with boxd.connect() as client:
        client.run("true").result()
        eventually(boxd.at_rest)
        eventually(lambda: facts.num_fds() <= before + 2, "but for the port that is kept, all are")
