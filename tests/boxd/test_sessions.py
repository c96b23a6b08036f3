from __future__ import annotations

import shlex
from signal import SIGKILL, SIGTERM
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.boxd import Client, Failed, LocalBoxd, alive, eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    Say = Callable[..., tuple[dict[str, Any], str]]


@pytest.fixture
def say(client: Client) -> Say:
    """Runs a command in the session ``main``: its record and what it printed."""

    def run(command: str, **request: Any) -> tuple[dict[str, Any], str]:
        call = client.run(command, **{"session": "main", **request})
        return call.result(), (call.stdout + call.stderr).decode()

    return run


def test_a_session_keeps_directory_variables_functions_options_and_its_process(say: Say):
    pid = say("echo $$")[1]
    say('mkdir d; cd d; export A=1; B="two  words"; f() { echo "f $1"; }; declare -A M=([k]=v)')
    say("set -o pipefail; shopt -s nullglob; alias hi='echo hello'; shopt -s expand_aliases")
    assert say("echo $$")[1] == pid
    assert say('basename $PWD; echo $A; echo "$B"; f x; echo ${M[k]}')[1] == (
        "d\n1\ntwo  words\nf x\nv\n"
    )
    assert say("false | true")[0]["exit"] == 1
    assert say("hi; echo *.none")[1] == "hello\n\n"
    assert say("bash -c 'echo $A'")[1] == "1\n"


def test_each_command_of_a_session_has_its_own_status_and_output(say: Say):
    for status in (0, 3, 0, 255):
        record, printed = say(f"echo s{status}; (exit {status})")
        assert (record["exit"], printed) == (status, f"s{status}\n")
    assert say("if true; then")[0]["exit"] != 0  # a syntax error ends nothing
    assert say("echo on")[1] == "on\n"


def test_the_first_command_of_a_session_is_told_as_such(say: Say):
    assert say("true")[0]["fresh"] is True
    assert say("true")[0]["fresh"] is False
    assert say("true", session="other")[0]["fresh"] is True


def test_a_session_that_its_command_ended_says_so_and_starts_anew(say: Say):
    first = say("A=1; echo $$")[1]
    record, _ = say("echo bye; exit 7")
    assert (record["exit"], record["over"]) == (7, True)
    record, printed = say('echo "$$ [$A]"')
    assert (record["fresh"], record["over"]) == (True, False)
    assert printed.split()[0] != first.strip()
    assert printed.split()[1] == "[]"


def test_a_session_killed_by_its_command_tells_the_signal(say: Say):
    record, _ = say("kill -9 $$")
    assert (record["signal"], record["over"]) == (SIGKILL, True)
    assert say("echo $?")[0]["fresh"] is True


def test_errexit_holds_between_commands_and_then_ends_the_session(say: Say):
    say("set -e")
    assert say("true")[0]["over"] is False
    record, printed = say("false; echo not reached")
    assert (record["exit"], record["over"], printed) == (1, True, "")


def test_what_a_command_prints_or_writes_to_any_descriptor_cannot_forge_its_status(say: Say):
    forge = "for n in $(seq 0 255); do echo '0 0' >&$n; printf 'x 0' >&$n; done 2>/dev/null"
    assert say(f"{forge}; echo 0; echo 'exit 0'; (exit 9)")[0]["exit"] == 9
    say(f"cat > forge.sh <<'EOF'\n{forge}\nEOF")
    assert say("bash forge.sh; (exit 8)")[0]["exit"] == 8
    assert say("declare -p | grep -c '[0-9a-f]\\{16\\} ' ; (exit 6)")[0]["exit"] == 6
    assert say("echo fine")[1] == "fine\n"


def test_a_child_that_knows_the_token_is_not_believed(say: Say):
    # Only code of the session's own can get at the token: here by a trap, just before it is used.
    spy = (
        'case $BASH_COMMAND in *printf*) set -- $BASH_COMMAND; token=${4#\\"}; '
        'bash -c "printf \\"$token 0\\" >&8"; echo "$token" > stolen;; esac'
    )
    record, _ = say(f"trap '{spy}' DEBUG; (exit 5)")
    assert record["exit"] == 5
    say("trap - DEBUG")
    assert len(say("cat stolen")[1].split()[0]) == 16


def test_a_break_or_a_return_at_the_top_of_a_command_does_not_end_its_session(say: Say):
    pid = say("echo $$")[1]
    for stray in ("break", "continue", "return 3", "for i in 1 2; do break; done"):
        say(stray)
        assert say("echo $$")[1] == pid


def test_a_session_goes_where_it_is_told_and_keeps_variables_that_it_is_given(
    say: Say, boxd: LocalBoxd
):
    (boxd.workspace / "it's").mkdir()
    say("true")
    say("pwd", cwd="it's", moves=True, env={"V": "a 'b' $c"})
    _, printed = say('basename "$PWD"; echo "$V"')
    assert printed == "it's\na 'b' $c\n"
    record, _ = say("echo not reached", cwd="nowhere", moves=True)
    assert record["exit"] == 1


def test_a_busy_session_refuses_a_second_command_and_says_who_keeps_it(
    client: Client, boxd: LocalBoxd
):
    call = client.run("echo > begun; read < <(sleep 300)", session="main", yield_after=0.1)
    name = call.result()["id"]
    with pytest.raises(Failed) as caught:
        client.run("true", session="main").result()
    assert caught.value.code == "busy"
    assert name in str(caught.value)
    assert client.run("true", session="other").result()["exit"] == 0
    client.call("end", id=name)


def test_the_deadline_ends_what_the_command_started_and_spares_session_and_older_jobs(
    say: Say, boxd: LocalBoxd
):
    pid = say("sleep 300 & echo $! > old; echo $$")[1]
    old = boxd.pid_in("old")
    record, _ = say("setsid sleep 301 & echo $! > new; sleep 302", timeout=0.5)
    assert record["cause"] == "timeout"
    assert (record["exit"], record["over"]) == (128 + SIGTERM, False)
    eventually(lambda: not alive(boxd.pid_in("new")))
    assert alive(old)
    assert say("echo $$")[1] == pid


def test_a_command_that_no_signal_but_kill_ends_takes_its_session_along(say: Say):
    record, _ = say("trap '' TERM; while :; do :; done", timeout=0.3)
    assert (record["cause"], record["signal"], record["over"]) == ("timeout", SIGKILL, True)
    assert say("echo on")[1] == "on\n"


def test_a_cancelled_command_leaves_its_session_as_it_was(client: Client, boxd: LocalBoxd):
    client.run("A=kept", session="main").result()
    call = client.run("echo $BASHPID > begun; sleep 300", session="main")
    boxd.pid_in("begun")
    assert call.cancel().result()["cause"] == "cancelled"
    after = client.run("echo $A", session="main")
    assert after.result()["fresh"] is False
    assert after.stdout == b"kept\n"


def test_a_background_job_of_a_session_keeps_the_box_busy_until_it_ends(
    client: Client, boxd: LocalBoxd
):
    client.run("mkfifo gate; (read < gate) & true", session="main").result()
    client.pump_until(lambda: client.notes and client.notes[-1]["busy"])
    client.run("echo > gate").result()
    client.pump_until(lambda: not client.notes[-1]["busy"])


def test_each_command_of_a_session_knows_its_own_background_jobs(say: Say, client: Client):
    first = say("sleep 301 & sleep 302 & true")[0]
    second = say("(sleep 303 &) ; true")[0]
    third = say("true")[0]
    assert [first["left"], second["left"], third["left"]] == [2, 1, 0]
    assert client.call("end", id=second["id"])["left"] == 0
    listed = {run["id"]: run["left"] for run in client.call("processes")["runs"]}
    assert (listed[first["id"]], listed[second["id"]]) == (2, 0)
    assert client.call("end", id=first["id"])["left"] == 0
    assert say("jobs -r; echo on")[1].endswith("on\n")


def test_what_a_background_job_prints_later_is_kept_with_the_command_that_started_it(
    say: Say, client: Client
):
    record, _ = say("mkfifo gate; (read x < gate; echo late) & true")
    say("echo other")
    client.run("echo > gate").result()
    page = client.open("output", id=record["id"], cursor=0, limit=100, wait=15, pattern="late")
    assert page.result()["matched"] is True
    assert page.data == b"late\n"


def test_a_session_takes_commands_of_any_length_and_alphabet_in_any_locale(say: Say):
    for locale in ("C", "C.UTF-8", "POSIX"):
        say(f"export LC_ALL={locale}; IFS=x")
        for count in (0, 1, 4_000):
            text = "é'\U0001f600\udcff\n" * count
            command = f"printf %s {shlex.quote(text)} | wc -c; (exit 3)"
            record, printed = say(command)
            assert (record["exit"], record["over"]) == (3, False)
            assert int(printed) == len(text.encode(errors="surrogatepass"))


def test_an_idle_session_does_not_keep_the_box_busy(client: Client):
    client.run("sleep 0.2", session="main").result()
    client.pump_until(lambda: client.notes and not client.notes[-1]["busy"])


def test_a_session_belongs_to_one_user_and_keeps_its_terminal(client: Client):
    client.run("true", session="main").result()
    with pytest.raises(Failed, match="without a terminal"):
        client.run("true", session="main", terminal=[24, 80]).result()
    client.run("tty", session="second", terminal=[30, 100]).result()
    call = client.run("stty size", session="second")
    call.result()
    assert call.stdout == b"30 100\r\n"


def test_ctrl_c_ends_what_a_terminal_session_runs_and_not_the_session(client: Client):
    client.run("echo $$; A=1", session="t", terminal=[24, 80]).result()
    call = client.run("sleep 300; echo after $A", session="t", yield_after=0)
    name = call.result()["id"]

    def sleeps() -> bool:
        (run,) = (run for run in client.call("processes")["runs"] if run["id"] == name)
        return "sleep" in [one["name"] for one in run["members"]]

    eventually(sleeps)
    client.open("input", id=name).send(b"\x03").finish().result()
    page = client.call("output", id=name, limit=1000, wait=10, until="exit")
    assert (page["running"], page["over"]) == (False, False)
