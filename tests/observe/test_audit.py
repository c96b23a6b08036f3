from __future__ import annotations

import errno
import json
import logging
import os
import resource
import signal
import stat
import subprocess
import sys
import textwrap
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import portalocker
import pytest

from box_mcp.events import (
    BoxAssigned,
    CallEnded,
    Event,
    ModelUsed,
    PortUsed,
    RequestRefused,
    RouteUsed,
)
from box_mcp.observe import audit as audits
from box_mcp.observe.audit import Audit
from box_mcp.observe.verifying import verify

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from pathlib import Path

USED = RouteUsed(
    box="box-aaaaaaaa",
    principal="local",
    route="github",
    method="GET",
    path="/me/app.git/info/refs",
    status=200,
    received=154,
    seconds=0.121,
)
CALLED = CallEnded(
    principal="alice",
    token="Ab12Cd34",
    method="tools/call",
    tool="shell_run",
    boxes=("box-aaaaaaaa",),
    arguments="0123456789abcdef0123456789abcdef",
    outcome="ok",
    error="",
    seconds=0.004,
)
PATIENCE = 20.0


def lines(*paths: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


@contextmanager
def written(path: Path, **bounds: Any) -> Generator[Audit, None, None]:
    """An audit of which all is written after the block."""
    audit = Audit(path, **bounds)
    yield audit
    audit.close(PATIENCE)


def write(path: Path, events: Iterable[Event], **bounds: Any) -> None:
    with written(path, **bounds) as audit:
        for event in events:
            audit(event)


def test_the_use_of_a_port_is_a_line_that_says_whose_and_how_often(tmp_path: Path):
    write(tmp_path / "audit.jsonl", [PortUsed("box-aaaaaaaa", "alice", 3000, "Ab12Cd34", 7)])
    (line,) = lines(tmp_path / "audit.jsonl")
    assert (
        line.items()
        >= {
            "event": "PortUsed",
            "box": "box-aaaaaaaa",
            "principal": "alice",
            "port": 3000,
            "token": "Ab12Cd34",
            "requests": 7,
        }.items()
    )


def test_each_request_of_a_box_is_a_line_that_says_who_asked_what_and_how_it_ended(tmp_path: Path):
    path = tmp_path / "state" / "audit.jsonl"
    write(path, [USED, replace(USED, status=403, refused="for reading only")])
    first, second = lines(path)
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "n": 1,
        "event": "RouteUsed",
        "box": "box-aaaaaaaa",
        "principal": "local",
        "route": "github",
        "method": "GET",
        "path": "/me/app.git/info/refs",
        "status": 200,
        "sent": 0,
        "received": 154,
        "seconds": 0.121,
        "refused": "",
        "asked": True,
        "prev": "",
    }
    assert (second["status"], second["refused"]) == (403, "for reading only")


def test_each_call_is_a_line_with_a_digest_of_what_it_was_given(tmp_path: Path):
    path = tmp_path / "audit.jsonl"
    write(path, [CALLED])
    (line,) = lines(path)
    assert (line["event"], line["principal"], line["token"]) == ("CallEnded", "alice", "Ab12Cd34")
    assert (line["method"], line["tool"], line["boxes"]) == (
        "tools/call",
        "shell_run",
        ["box-aaaaaaaa"],
    )
    assert (line["arguments"], line["outcome"]) == (CALLED.arguments, "ok")


def test_what_models_were_asked_is_a_line_too_with_what_it_cost(tmp_path: Path):
    path = tmp_path / "audit.jsonl"
    used = ModelUsed("box-aaaaaaaa", "local", "anthropic", "POST", "/v1/messages", 200)
    write(path, [replace(used, model="m", run="run-aaaaaaaa", input=7, output=5, cost=0.25)])
    (line,) = lines(path)
    assert (line["route"], line["run"], line["model"]) == ("anthropic", "run-aaaaaaaa", "m")
    assert (line["input"], line["output"], line["cost"]) == (7, 5, 0.25)


def test_who_is_not_let_in_is_a_line(tmp_path: Path):
    path = tmp_path / "audit.jsonl"
    write(path, [RequestRefused("10.0.0.9", 401, "bad token")])
    (line,) = lines(path)
    assert (line["client"], line["status"], line["why"]) == ("10.0.0.9", 401, "bad token")


def test_other_events_are_none_of_its_business(tmp_path: Path):
    write(tmp_path / "audit.jsonl", [BoxAssigned("box-aaaaaaaa", "local")])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such bits")
def test_nobody_else_may_read_it(tmp_path: Path):
    write(tmp_path / "audit.jsonl", [USED] * 30, max_size=2_000)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_what_a_box_says_stays_within_its_line(tmp_path: Path):
    path = tmp_path / "audit.jsonl"
    write(path, [replace(USED, path='/"\n{}\u2028\x00\ud800' + "x" * 10_000, refused="y" * 10_000)])
    (line,) = path.read_bytes().split(b"\n")[:-1]
    assert len(line) < 2_000
    assert json.loads(line)["path"].startswith('/"\n{}\u2028\x00\ud800xxx')


def test_full_files_are_kept_up_to_a_number_and_the_chain_goes_through_them(tmp_path: Path):
    path = tmp_path / "audit.jsonl"
    write(path, [replace(USED, sent=number) for number in range(100)], max_size=2_000, files=3)
    files = [tmp_path / "audit.jsonl.2", tmp_path / "audit.jsonl.1", path]
    kept = [line["sent"] for line in lines(*files)]
    assert kept == list(range(kept[0], 100))
    assert 12 < len(kept) < 30
    assert max(file.stat().st_size for file in files) <= 2_000
    assert not (tmp_path / "audit.jsonl.3").exists()
    verdict = verify(path)
    assert (verdict.breaks, verdict.first, verdict.last.n) == ([], kept[0] + 1, 100)


def test_fewer_files_than_before_are_kept_when_the_setting_says_so(tmp_path: Path):
    path = tmp_path / "audit.jsonl"
    write(path, [USED] * 100, max_size=1_000, files=8)
    write(path, [USED] * 100, max_size=1_000, files=2)
    found = {file.name for file in tmp_path.iterdir()}
    assert found == {"audit.jsonl", "audit.jsonl.1", "audit.jsonl.head", "audit.jsonl.lock"}


def test_what_was_done_is_not_forgotten_for_all_that_is_refused(tmp_path: Path):
    path, now = tmp_path / "audit.jsonl", [0.0]
    refused = replace(
        USED, status=404, method="X" * 1000, path="y" * 1000, refused="z" * 1000, asked=False
    )
    with written(path, clock=lambda: now[0]) as audit:
        audit(replace(USED, method="POST"))
        for number in range(5_000):
            audit(replace(refused, box=f"box-{number}"))
        audit(replace(USED, status=0, refused="the box left before the end"))
        audit(replace(USED, principal="other", status=404, refused="no", asked=False))
        now[0] = 10.0
        audit(refused)
        audit(refused)
    found = lines(path)
    assert found[0]["method"] == "POST"
    assert [line.get("left_out") for line in found[-5:]] == [None, 4_800, None, None, 1]
    assert len(found) == 1 + 200 + 4


@pytest.mark.parametrize(
    "event",
    [
        replace(CALLED, outcome="refused", error="NotPermitted"),
        replace(CALLED, outcome="invalid", error="MCPError"),
        RequestRefused("10.0.0.9", 401, "bad token"),
    ],
)
def test_refusals_beyond_some_are_counted_whatever_they_are(event: Event, tmp_path: Path):
    path = tmp_path / "audit.jsonl"
    write(path, [CALLED, *[event] * 1_000, CALLED], clock=lambda: 0.0)
    found = lines(path)
    assert len(found) in (202, 203)
    assert sum(line.get("left_out", 0) for line in found) == 800


def test_what_did_not_fit_the_queue_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(audits, "MAX_WAITING", 10)
    monkeypatch.setattr(audits, "GATHER", PATIENCE)
    path = tmp_path / "audit.jsonl"
    write(path, [CALLED] * 15)
    found = lines(path)
    assert [line["event"] for line in found] == ["CallEnded"] * 10 + ["Lost"]
    assert found[-1]["lost"] == 5


def test_who_emits_waits_for_no_disk(tmp_path: Path):
    path = tmp_path / "audit.jsonl"
    write(path, [CALLED])
    audit = Audit(path)
    with portalocker.Lock(tmp_path / "audit.jsonl.lock", "a"):
        began = time.thread_time()
        for _ in range(1_000):
            audit(CALLED)
        assert time.thread_time() - began < 1
        assert len(lines(path)) == 1
    audit.close(PATIENCE)
    assert len(lines(path)) == 1_001


def test_an_end_waits_no_longer_than_it_may_and_tells_what_was_not_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path = tmp_path / "audit.jsonl"
    audit = Audit(path)
    with portalocker.Lock(tmp_path / "audit.jsonl.lock", "a"):
        audit(CALLED)
        began = time.monotonic()
        audit.close(0.05)
        assert time.monotonic() - began < audits.PATIENCE
        assert "1 lines were not written" in caplog.text


SERVER = textwrap.dedent("""
    import sys
    from dataclasses import replace
    from pathlib import Path
    from box_mcp.observe.audit import Audit
    from tests.observe.test_audit import USED
    audit = Audit(Path(sys.argv[1]), max_size=int(sys.argv[3]))
    for number in range(int(sys.argv[4])):
        audit(replace(USED, box=sys.argv[2], sent=number))
        if number % 50 == 0:
            print(number, flush=True)
    audit.close(20)
""")


def server(path: Path, name: str, size: int, count: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", SERVER, path, name, str(size), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def test_several_servers_lose_no_line_to_each_other_and_make_one_chain(tmp_path: Path):
    path = tmp_path / "audit.jsonl"
    servers = [server(path, name, 80_000, 400) for name in ("one", "two")]
    for each in servers:
        each.communicate(timeout=30)
    assert [each.returncode for each in servers] == [0, 0]
    verdict = verify(path)
    assert (verdict.breaks, verdict.lines, len(verdict.files)) == ([], 800, 4)
    found = lines(*verdict.files)
    for name in ("one", "two"):
        assert [line["sent"] for line in found if line["box"] == name] == list(range(400))


def test_a_killed_server_leaves_a_whole_chain_that_the_next_one_goes_on_with(tmp_path: Path):
    path = tmp_path / "audit.jsonl"
    killed = server(path, "one", 10_000_000, 10**9)
    assert killed.stdout is not None
    while not path.exists() or path.stat().st_size < 100_000:
        killed.stdout.readline()
    killed.kill()
    killed.communicate(timeout=30)
    before = verify(path)
    assert before.breaks == []
    write(path, [CALLED])
    after = verify(path, str(before.last))
    assert (after.breaks, after.lines) == ([], before.lines + 1)


def test_a_line_that_a_crash_cut_off_is_told_and_the_chain_goes_on_behind_it(tmp_path: Path):
    path = tmp_path / "audit.jsonl"
    write(path, [CALLED] * 3)
    with path.open("ab") as file:
        file.write(b'{"n": 4, "time": "2026-01-01T00:')
    write(path, [CALLED] * 2)
    verdict = verify(path)
    assert (verdict.breaks, verdict.lines) == ([], 5)
    assert verdict.notes == ["audit.jsonl, line 4 was cut off by a crash or a full disk"]
    assert path.read_bytes().count(b"\n") == 6


def test_a_server_that_was_stopped_while_it_wrote_holds_up_nobody_for_ever(tmp_path: Path):
    path = tmp_path / "audit.jsonl"
    with written(path) as audit:
        with portalocker.Lock(tmp_path / "audit.jsonl.lock", "a"):
            audit(CALLED)
        audit(CALLED)
    assert len(lines(path)) == 2


def test_a_disk_that_takes_nothing_is_told_of_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "file").touch()
    with caplog.at_level(logging.ERROR):
        write(tmp_path / "file" / "audit.jsonl", [USED])
    assert "can't be written" in caplog.text
    assert "1 lines were not written" in caplog.text


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of a process's files there")
def test_what_a_full_disk_did_not_take_is_written_when_it_does_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(audits, "RETRY", 0.01)
    path = tmp_path / "audit.jsonl"
    write(path, [CALLED] * 3)
    size = path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with written(path) as audit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, hard))  # half a line fits
            try:
                for _ in range(5):
                    audit(CALLED)
                while "can't be written" not in caplog.text:
                    time.sleep(0.01)
                assert path.stat().st_size == size
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    finally:
        signal.signal(signal.SIGXFSZ, before)
    assert os.strerror(errno.EFBIG) in caplog.text
    assert "is written again" in caplog.text
    verdict = verify(path)
    assert (verdict.breaks, verdict.notes, verdict.lines) == ([], [], 8)


def test_a_file_that_is_deleted_under_a_server_is_missed(tmp_path: Path):
    path = tmp_path / "audit.jsonl"
    with written(path) as audit:
        audit(CALLED)
        audit(CALLED)
        while not path.exists() or len(lines(path)) < 2:
            time.sleep(0.01)
        for file in list(tmp_path.iterdir()):
            file.unlink()
        audit(CALLED)
    verdict = verify(path)
    assert (verdict.first, verdict.lines) == (3, 1)
    assert verdict.notes == ["it begins with line 3: those before are not there any more"]


def test_closing_twice_and_without_a_line_is_nothing(tmp_path: Path):
    with closing(Closable(tmp_path / "audit.jsonl")) as audit:
        audit.close()
    assert list(tmp_path.iterdir()) == []


class Closable(Audit):
    def close(self, timeout: float = PATIENCE) -> None:
        super().close(timeout)
