from __future__ import annotations

import json
import logging
import os
import stat
import subprocess
import sys
import textwrap
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import portalocker
import pytest

from box_mcp.events import BoxAssigned, ModelUsed, RouteUsed
from box_mcp.observe.audit import Audit

if TYPE_CHECKING:
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


def lines(*paths: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def test_each_request_is_a_line_that_says_who_asked_what_and_how_it_ended(tmp_path: Path):
    path = tmp_path / "state" / "audit.jsonl"
    audit = Audit(path)
    audit(USED)
    audit(replace(USED, status=403, refused="for reading only"))
    first, second = lines(path)
    assert first.pop("time").endswith("+00:00")
    assert first == {
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
    }
    assert (second["status"], second["refused"]) == (403, "for reading only")


def test_what_models_were_asked_is_a_line_too_with_what_it_cost(tmp_path: Path):
    path = tmp_path / "audit.jsonl"
    used = ModelUsed("box-aaaaaaaa", "local", "anthropic", "POST", "/v1/messages", 200)
    Audit(path)(replace(used, model="m", run="run-aaaaaaaa", input=7, output=5, cost=0.25))
    (line,) = lines(path)
    assert (line["route"], line["run"], line["model"]) == ("anthropic", "run-aaaaaaaa", "m")
    assert (line["input"], line["output"], line["cost"]) == (7, 5, 0.25)


def test_other_events_are_none_of_its_business(tmp_path: Path):
    Audit(tmp_path / "audit.jsonl")(BoxAssigned("box-aaaaaaaa", "local"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such bits")
def test_nobody_else_may_read_it(tmp_path: Path):
    Audit(tmp_path / "audit.jsonl")(USED)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_what_a_box_says_stays_within_its_line(tmp_path: Path):
    path = tmp_path / "audit.jsonl"
    Audit(path)(replace(USED, path='/"\n{}\u2028\x00' + "x" * 10_000, refused="y" * 10_000))
    (line,) = path.read_bytes().split(b"\n")[:-1]
    assert len(line) < 2_000
    assert json.loads(line)["path"].startswith('/"\n{}\u2028\x00xxx')


def test_a_full_file_is_kept_until_the_next_one_is_full_and_no_more_is(tmp_path: Path):
    path = tmp_path / "audit.jsonl"
    audit = Audit(path, max_size=2_000)
    for number in range(100):
        audit(replace(USED, sent=number))
    before = tmp_path / "audit.jsonl.1"
    kept = [line["sent"] for line in lines(before, path)]
    assert kept == list(range(kept[0], 100))
    assert 8 < len(kept) < 20
    assert max(before.stat().st_size, path.stat().st_size) <= 2_000


def test_what_was_done_is_not_forgotten_for_all_that_is_refused(tmp_path: Path):
    path, now = tmp_path / "audit.jsonl", [0.0]
    audit = Audit(path, clock=lambda: now[0])
    refused = replace(
        USED, status=404, method="X" * 1000, path="y" * 1000, refused="z" * 1000, asked=False
    )
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
    assert [line.get("left_out") for line in found[-4:]] == [None, 4_800, None, None]
    assert found[-1]["method"].startswith("X")
    assert len(found) == 1 + 200 + 3


def test_several_servers_lose_no_line_to_each_other(tmp_path: Path):
    path = tmp_path / "audit.jsonl"
    program = textwrap.dedent("""
        import sys
        from dataclasses import replace
        from pathlib import Path
        from box_mcp.observe.audit import Audit
        from tests.observe.test_audit import USED
        audit = Audit(Path(sys.argv[1]), max_size=80_000)
        for number in range(200):
            audit(replace(USED, box=sys.argv[2], sent=number))
    """)
    servers = [
        subprocess.Popen([sys.executable, "-c", program, path, name]) for name in ("one", "two")
    ]
    assert [server.wait(30) for server in servers] == [0, 0]
    found = lines(tmp_path / "audit.jsonl.1", path)
    for name in ("one", "two"):
        assert [line["sent"] for line in found if line["box"] == name] == list(range(200))


def test_a_server_that_was_stopped_while_it_wrote_holds_up_nobody(tmp_path: Path):
    path = tmp_path / "audit.jsonl"
    audit = Audit(path, max_size=10)
    with portalocker.Lock(tmp_path / "audit.jsonl.lock", "a"):
        audit(USED)
        audit(USED)
    assert len(lines(path)) == 2


def test_a_disk_that_takes_nothing_is_told_of_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "file").touch()
    with caplog.at_level(logging.ERROR):
        Audit(tmp_path / "file" / "audit.jsonl")(USED)
    assert "could not be written" in caplog.text
