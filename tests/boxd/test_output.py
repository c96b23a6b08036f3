from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from box_mcp.boxd import history, output
from box_mcp.boxd.follow import PAGE_LIMIT, SEARCHED, whole_characters
from tests.support.boxd import Client, Failed, LocalBoxd, alive, eventually

if TYPE_CHECKING:
    from tests.support.boxd import Call

MEBI = 1024 * 1024


def background(client: Client, script: str, **request: Any) -> str:
    """The id of a command that goes on behind its call."""
    return client.run(script, background=True, yield_after=0, **request).result()["id"]


def page(client: Client, name: str, **request: Any) -> Call:
    """A page of what a command printed."""
    call = client.open("output", id=name, **{"limit": 1000, "wait": 15, **request})
    call.result()
    return call


# Pages


def test_pages_from_cursor_to_cursor_are_the_whole_output(client: Client):
    expected = client.run("seq 1 5000; echo -n end", head=0, tail=0)
    name = expected.result()["id"]
    whole, cursor = b"", 0
    while True:
        part = page(client, name, cursor=cursor, limit=997)
        assert part.result()["start"] == cursor
        whole += part.data
        cursor = part.result()["end"]
        if not part.data:
            break
        assert part.data.endswith((b"\n", b"end"))
    assert whole == b"".join(b"%d\n" % n for n in range(1, 5001)) + b"end"


def test_without_a_cursor_the_newest_bytes_come(client: Client):
    name = client.run("seq 1 1000").result()["id"]
    newest = page(client, name, limit=12)
    assert newest.data == b"98\n999\n1000\n"
    assert newest.result()["end"] == newest.result()["printed"]


def test_a_page_ends_with_a_whole_line_or_a_whole_character(client: Client):
    name = client.run("echo ab; echo cd; printf 'efghijk'").result()["id"]
    assert page(client, name, cursor=0, limit=5).data == b"ab\n"
    assert page(client, name, cursor=6, limit=5).data == b"efghi"
    euro = "€".encode()
    assert whole_characters(b"a" + euro[:1]) == b"a"
    assert whole_characters(b"a" + euro[:2]) == b"a"
    assert whole_characters(b"a" + euro) == b"a" + euro
    assert whole_characters(b"\xff" * 5) == b"\xff" * 4
    assert whole_characters(b"") == b""


def test_no_page_is_larger_than_a_window_takes(client: Client):
    name = client.run("head -c 1000000 /dev/zero", head=0, tail=0).result()["id"]
    assert len(page(client, name, cursor=0, limit=10**9).data) == PAGE_LIMIT


def test_the_output_of_a_process_that_is_not_known_is_refused(client: Client):
    for name in ("p99", "../../etc/passwd", "", 7):
        with pytest.raises(Failed) as caught:
            page(client, name)  # pyright: ignore[reportArgumentType]
        assert caught.value.code == "not_found"


# Waiting


def test_waiting_for_output_ends_when_it_comes(client: Client, boxd: LocalBoxd):
    client.run("mkfifo gate").result()
    name = background(client, "read x < gate; echo $x; sleep 300")
    call = client.open("output", id=name, limit=1000, wait=15)
    client.run("echo news > gate").result()
    assert call.result()["running"] is True
    assert call.data == b"news\n"
    client.call("end", id=name)


def test_waiting_for_a_pattern_passes_over_what_does_not_match(client: Client):
    name = background(client, "echo no; sleep 0.1; echo -n 'Listening on '; echo 8123; sleep 300")
    found = page(client, name, cursor=0, pattern=r"Listening on (\d+)")
    assert (found.result()["matched"], found.result()["running"]) == (True, True)
    assert found.data.startswith(b"no\nListening on 8")
    client.call("end", id=name)


def test_a_pattern_without_a_cursor_is_found_in_what_was_printed_before(client: Client):
    name = background(client, "echo ready; echo more; sleep 300")
    page(client, name, cursor=0, pattern="more")
    found = page(client, name, pattern="ready")
    assert (found.result()["matched"], found.result()["running"]) == (True, True)
    assert b"ready" in found.data
    client.call("end", id=name)


def test_a_prompt_without_a_line_end_is_found(client: Client):
    name = background(client, "printf 'Password: '; read x")
    assert page(client, name, pattern="Password: $", cursor=0).data == b"Password: "
    client.call("end", id=name)


def test_a_pattern_that_does_not_come_is_told_when_the_command_ends(client: Client):
    name = background(client, "echo other")
    missed = page(client, name, cursor=0, pattern="never")
    assert (missed.result()["matched"], missed.result()["running"]) == (False, False)
    assert missed.data == b"other\n"


def test_a_match_far_behind_the_cursor_is_on_the_page(client: Client):
    name = client.run("seq 1 20000; echo here; seq 1 10", head=0, tail=0).result()["id"]
    found = page(client, name, cursor=0, pattern="here", limit=100)
    assert found.data.endswith(b"20000\nhere")
    assert found.result()["start"] > 0


def test_a_match_across_two_reads_is_found(client: Client, boxd: LocalBoxd):
    script = "printf 'List'; echo > half; until [ -e go ]; do sleep .01; done; printf ening; read x"
    name = background(client, script)
    eventually((boxd.workspace / "half").exists)
    call = client.open("output", id=name, cursor=0, limit=100, wait=15, pattern="Listening")
    client.run("touch go").result()
    assert call.result()["matched"] is True
    client.call("end", id=name)


def test_of_a_flood_only_the_newest_part_is_searched(client: Client):
    size = SEARCHED + 4 * MEBI
    script = f"echo early; head -c {size} /dev/zero | tr '\\0' x; echo late"
    name = client.run(script, head=0, tail=0).result()["id"]
    assert page(client, name, cursor=0, pattern="early", wait=0).result()["matched"] is False
    assert page(client, name, cursor=0, pattern="late", wait=0).result()["matched"] is True


@pytest.mark.parametrize("pattern", ["(", "*", "a{5,2}", "\\"])
def test_a_pattern_that_is_none_is_refused_with_what_is_wrong(client: Client, pattern: str):
    name = client.run("echo x").result()["id"]
    with pytest.raises(Failed, match="no regular expression"):
        page(client, name, pattern=pattern)


def test_a_pattern_that_backtracks_for_ever_is_given_up_and_boxd_goes_on(client: Client):
    name = client.run("printf 'a%.0s' $(seq 1 4000); echo b").result()["id"]
    with pytest.raises(Failed, match="takes too long"):
        page(client, name, cursor=0, pattern="(a+)+c")
    assert client.run("echo on").result()["exit"] == 0


def test_a_pattern_that_backtracks_for_ever_on_later_output_harms_nothing_else(client: Client):
    name = background(client, "sleep 0.2; printf 'a%.0s' $(seq 1 4000); echo b; sleep 300")
    with pytest.raises(Failed, match="takes too long"):
        page(client, name, cursor=0, pattern="(a+)+c")
    assert page(client, name, wait=0).data.endswith(b"ab\n")
    client.call("end", id=name)


def test_waiting_until_quiet_takes_all_of_an_answer(client: Client):
    name = background(client, "while read x; do echo $x 1; sleep 0.02; echo $x 2; done")
    before = client.open("input", id=name).send(b"a\n").finish().result()["printed"]
    answer = page(client, name, cursor=before, until="quiet")
    assert answer.data == b"a 1\na 2\n"
    client.call("end", id=name)


def test_waiting_for_the_exit_is_not_ended_by_output(client: Client):
    name = background(client, "echo one; sleep 0.2; echo two; exit 3")
    ended = page(client, name, cursor=0, until="exit")
    assert (ended.data, ended.result()["exit"]) == (b"one\ntwo\n", 3)


def test_a_wait_is_over_when_its_time_is(client: Client):
    name = background(client, "sleep 300")
    assert page(client, name, wait=0.2).result()["running"] is True
    client.call("end", id=name)


def test_many_may_wait_for_one_process_and_who_gives_up_changes_nothing(client: Client):
    client.run("mkfifo gate").result()
    name = background(client, "read x < gate; echo $x")
    waiting = [client.open("output", id=name, cursor=0, limit=99, wait=15) for _ in range(5)]
    with pytest.raises(Failed):
        client.open("output", id=name, cursor=0, limit=99, wait=15).cancel().result()
    client.run("echo go > gate").result()
    assert [call.result() and call.data for call in waiting] == [b"go\n"] * 5


def test_the_newest_line_is_told_to_who_waits(client: Client):
    name = background(client, "read x; printf 'one\\ntwo\\n'; sleep 300")
    call = client.open("output", id=name, limit=99, wait=15, until="exit")
    client.open("input", id=name).send(b"\n").finish().result()
    client.pump_until(lambda: call.notes)
    assert call.notes == [{"newest": "two", "printed": 8}]
    client.call("end", id=name)
    assert call.result()["cause"] == "ended"


# Input


def test_a_background_command_takes_input_until_it_is_ended(client: Client):
    name = background(client, "cat")
    client.open("input", id=name).send(b"one\n").finish().result()
    page(client, name, cursor=0, pattern="one")
    client.open("input", id=name, end=True).send(b"two\n").finish().result()
    done = page(client, name, cursor=0, until="exit")
    assert (done.data, done.result()["exit"]) == (b"one\ntwo\n", 0)


def test_input_for_who_takes_none_is_refused_with_words(client: Client):
    ended = client.run("true").result()["id"]
    with pytest.raises(Failed) as caught:
        client.open("input", id=ended).send(b"x").finish().result()
    assert caught.value.code == "ended"
    deaf = client.run("sleep 300", yield_after=0).result()["id"]
    with pytest.raises(Failed) as caught:
        client.open("input", id=deaf).send(b"x").finish().result()
    assert caught.value.code == "no_input"
    client.call("end", id=deaf)


def test_input_that_is_not_read_is_refused_before_it_fills_boxd(client: Client, boxd: LocalBoxd):
    name = background(client, "sleep 300")
    with pytest.raises(Failed, match="does not read"):  # noqa: PT012 - after some of them
        for _ in range(20):
            client.open("input", id=name).send(b"x" * 200_000).finish().result()
    assert boxd.memory("VmRSS") < 40 * MEBI
    client.call("end", id=name)


# Signals


def test_a_signal_goes_to_the_whole_tree_or_to_one_of_it(client: Client, boxd: LocalBoxd):
    name = background(client, "setsid sleep 300 & echo $! > one; sleep 301; echo survived")
    one = boxd.pid_in("one")
    eventually(lambda: len(client.call("processes")["runs"][0]["members"]) == 3)
    assert client.call("signal", id=name, signal=15, pid=one) == {"signalled": [one]}
    eventually(lambda: not alive(one))
    assert client.call("output", id=name, limit=9)["running"] is True
    told = client.call("signal", id=name, signal=9)["signalled"]
    assert len(told) == 2
    assert page(client, name, until="exit").result()["signal"] == 9


def test_a_process_of_another_tree_is_not_signalled(client: Client, boxd: LocalBoxd):
    mine, other = background(client, "sleep 300"), background(client, "echo $$ > o; sleep 300")
    with pytest.raises(Failed) as caught:
        client.call("signal", id=mine, signal=9, pid=boxd.pid_in("o"))
    assert caught.value.code == "not_found"
    for wrong in (0, 65, -9):
        with pytest.raises(Failed):
            client.call("signal", id=mine, signal=wrong)
    for name in (mine, other):
        client.call("end", id=name)


def test_ending_a_process_takes_along_what_daemonised_and_what_is_deaf(
    client: Client, boxd: LocalBoxd
):
    deaf = "trap '' TERM HUP; echo $$ > deaf; while :; do sleep 1; done"
    name = background(client, f"setsid bash -c {json.dumps(deaf)} & disown; sleep 300")
    pid = boxd.pid_in("deaf")
    record = client.call("end", id=name)
    assert (record["cause"], record["running"], record["left"]) == ("ended", False, 0)
    assert not alive(pid)
    assert client.call("end", id=name)["running"] is False


# Lists


def test_the_list_has_what_runs_first_with_its_memory_cpu_and_ports(client: Client):
    serve = (
        "import socket, sys; s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); "
        "sum(range(10**7)); print(s.getsockname()[1], flush=True); sys.stdin.read()"
    )
    name = background(client, f'python3 -c "{serve}"')
    port = int(page(client, name, cursor=0, pattern=r"\d+\n").data)
    ended = client.run("true", title="the other").result()["id"]
    answer = client.call("processes")
    first, second = answer["runs"]
    assert (first["id"], first["running"], first["ports"]) == (name, True, [port])
    assert first["memory"] > MEBI
    assert first["cpu"] > 0
    assert "python3" in [one["name"] for one in first["members"]]
    assert (second["id"], second["command"], second["ports"]) == (ended, "the other", [])
    client.call("end", id=name)


def test_a_hundred_running_and_a_hundred_ended_commands_fit_into_one_answer(client: Client):
    for _ in range(110):
        client.run("true", title="x" * 5000).result()
    names = [background(client, "sleep 300", title="x" * 5000) for _ in range(60)]
    answer = client.call("processes")
    assert len(answer["runs"]) == 100
    assert {run["id"] for run in answer["runs"][:60]} == set(names)
    for name in names:
        client.call("signal", id=name, signal=9)


# Logs


def test_of_a_log_beyond_its_limit_the_first_and_the_newest_bytes_stay_where_they_were(
    client: Client, boxd: LocalBoxd
):
    lines = 12_000_000  # of 10 bytes
    call = client.run(f"seq 1000000000 {1000000000 + lines - 1} | tr -d '\\n' | fold -w 9")
    result = call.result()
    name = result["id"]
    files = list(boxd.logs.glob(f"{name}.log*"))
    held = sum(file.stat().st_size for file in files)
    assert held == result["printed"] - result["dropped"] <= 64 * MEBI
    assert held == sum(file.stat().st_blocks for file in files) * 512 // MEBI * MEBI + held % MEBI
    assert result["log"] == f"{boxd.logs}/{name}.log*"

    def line(offset: int) -> bytes:  # of nine digits and a line break, though the numbers have ten
        digits = offset // 10 * 9
        text = "".join(str(1000000000 + n) for n in range(digits // 10, digits // 10 + 3))
        return text[digits % 10 :][:9].encode() + b"\n"

    for offset in (0, output.LOG_HEAD // 10 * 10 - 10, result["printed"] // 10 * 10 - 1000):
        kept = page(client, name, cursor=offset, limit=10)
        assert (kept.result()["start"], kept.data) == (offset, line(offset))
    first = output.LOG_HEAD + result["dropped"]
    across = page(client, name, cursor=first + output.SEGMENT - 5, limit=30)
    assert len(across.data) > 5
    dropped = page(client, name, cursor=output.LOG_HEAD + MEBI, limit=100)
    assert dropped.result()["start"] == first
    assert len(page(client, name, cursor=output.LOG_HEAD - 50, limit=100).data) <= 50


def test_a_process_is_known_by_its_record_and_output_after_boxd_was_started_again():
    with LocalBoxd() as boxd:
        with boxd.connect() as client:
            ended = client.run("echo kept; exit 5").result()["id"]
            running = background(client, "echo begun; sleep 300")
            page(client, running, cursor=0, pattern="begun")
            eventually((boxd.logs / f"{ended}.json").exists)
            eventually((boxd.logs / f"{running}.json").exists)
        boxd.process.kill()
        boxd.process.wait()
        for member in boxd.descendants():
            member.kill()
        boxd.start()
        with boxd.connect() as client:
            old = page(client, ended, cursor=0)
            assert (old.data, old.result()["exit"], old.result()["running"]) == (
                b"kept\n",
                5,
                False,
            )
            cut = page(client, running, cursor=0, until="exit")
            assert cut.data == b"begun\n"
            assert (cut.result()["cause"], cut.result()["running"]) == ("box_stopped", False)
            fresh = client.run("true").result()["id"]
            assert fresh not in (ended, running)
            assert int(fresh[1:]) > history.RESERVED
            listed = {run["id"] for run in client.call("processes")["runs"]}
            assert {ended, running, fresh} <= listed


@pytest.mark.parametrize("junk", [b"", b"[]", b"{}", b'{"id": 7}', b"\xff", b"null", b"9" * 9])
def test_a_record_that_somebody_spoilt_is_passed_over(junk: bytes):
    with LocalBoxd() as boxd:
        with boxd.connect() as client:
            name = client.run("echo x").result()["id"]
            eventually((boxd.logs / f"{name}.json").exists)
        boxd.process.terminate()
        boxd.process.wait()
        for file in (boxd.logs / f"{name}.json", boxd.logs / "count", boxd.logs / "p7.json"):
            file.write_bytes(junk)
        boxd.start()
        with boxd.connect() as client:
            assert client.run("echo y").result()["exit"] == 0


def test_the_oldest_logs_go_when_all_together_are_too_large(
    client: Client, boxd: LocalBoxd, monkeypatch: pytest.MonkeyPatch
):
    names = [
        client.run("head -c 70000000 /dev/zero", head=0, tail=0).result()["id"] for _ in range(9)
    ]
    client.run("true").result()
    eventually(lambda: not (boxd.logs / f"{names[0]}.log").exists())
    assert (boxd.logs / f"{names[-1]}.log").exists()
    with pytest.raises(Failed):
        page(client, names[0])
