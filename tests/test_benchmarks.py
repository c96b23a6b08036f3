"""The benchmarks run and tell all their figures. How good these are depends on the machine."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import calls

RUN_TIMEOUT = 300.0
"""Seconds for a few rounds; they take about 40, most of it for new boxes and servers."""

pytestmark = pytest.mark.timeout(RUN_TIMEOUT + 20)

ALWAYS = {
    calls.RUN,
    calls.WRITE,
    calls.READ,
    calls.ECHOED,
    calls.RUN + calls.SDK,
    calls.WRITE + calls.SDK,
    calls.READ + calls.SDK,
    calls.ECHOED + calls.SDK,
    calls.FORK,
    calls.EXEC,
    calls.PUT,
    calls.GET,
    calls.FIRST_CALL,
    calls.CREATE_CALL,
    calls.SPAWN,
    calls.SPAWN_ECHO,
}
"""Rows that do not depend on what else is installed."""


def test_benchmark_of_calls_measures_every_row_and_compares_it_with_every_goal(
    tmp_path: Path,
) -> None:
    path = tmp_path / "calls.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "calls", "--rounds", "3", "--json", str(path)],
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    report: dict[str, Any] = json.loads(path.read_text())

    rows: dict[str, dict[str, float]] = report["rows"]
    assert rows.keys() | {calls.EXEC_CLI} == ALWAYS | {calls.EXEC_CLI}
    assert [name for name, row in rows.items() if row["n"] != 3] == []
    assert [name for name, row in rows.items() if not 0 < row["p50_ms"] <= row["p95_ms"]] == []
    assert len(report["goals"]) == 7
    for goal in report["goals"]:
        above = goal["value"] >= goal["limit"]
        assert goal["met"] == (above if goal["at_least"] else goal["value"] <= goal["limit"])
        assert goal["name"] in done.stdout


def test_an_unknown_benchmark_is_refused_with_the_names_of_those_there_are() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "nonesuch"],
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert "calls" in done.stderr
