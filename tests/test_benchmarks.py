"""The benchmarks run and tell all their figures. How good these are depends on the machine."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks import (
    agent,
    calls,
    density,
    fair,
    files,
    git,
    lifecycle,
    neighbours,
    network,
    serve,
    shell,
    single,
)
from tests.support import internet

RUN_TIMEOUT = 300.0
"""Seconds for a few rounds; they take about 60, most of it for new boxes and servers."""

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


def report_of(path: Path, benchmark: str, *options: str) -> dict[str, Any]:
    """What a short run writes; all its rows and goals are sound, and are printed, too."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", benchmark, *options, "--json", str(path)],
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    report: dict[str, Any] = json.loads(path.read_text())
    for name, row in report["rows"].items():
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"], name
        assert name in done.stdout
    for goal in report["goals"]:
        above = goal["value"] >= goal["limit"]
        assert goal["met"] == (above if goal["at_least"] else goal["value"] <= goal["limit"])
        assert goal["name"] in done.stdout
    return report


def test_benchmark_of_calls_measures_every_row_and_compares_it_with_every_goal(
    tmp_path: Path,
) -> None:
    report = report_of(tmp_path / "calls.json", "calls", "--rounds", "2")

    rows: dict[str, dict[str, float]] = report["rows"]
    assert rows.keys() | {calls.EXEC_CLI} == ALWAYS | {calls.EXEC_CLI}
    assert [name for name, row in rows.items() if row["n"] != 2] == []
    assert len(report["goals"]) == 7


def test_benchmark_of_the_lifecycle_measures_waking_making_and_saving_beside_the_engine(
    tmp_path: Path,
) -> None:
    amounts = lifecycle.Amounts(rounds=1, rested=1, sequence=2, burst=2, big=1, files=10)
    options = [f"--{name}={amount}" for name, amount in asdict(amounts).items()]

    report = report_of(tmp_path / "lifecycle.json", "lifecycle", *options)

    counted = {name: row["n"] for name, row in report["rows"].items()}
    counted.setdefault(lifecycle.RUN_CLI, 1)  # where the engine's client is installed
    in_a_row, at_once, raw_at_once = amounts.queues()
    saves = [name for change in amounts.changes() for name in lifecycle.saving(change)]
    assert counted == {
        **dict.fromkeys([*lifecycle.WAKES, *lifecycle.CREATIONS, *saves], 1),
        in_a_row: 2,
        at_once: 2,
        raw_at_once: 2,
    }
    assert len(report["goals"]) == 9


def test_benchmark_of_density_finds_frozen_boxes_that_cost_no_cpu_and_memory_that_comes_back(
    tmp_path: Path,
) -> None:
    amounts = density.Amounts(boxes=3, calls=5, creations=1, watched=2)
    options = [f"--{name}={amount}" for name, amount in asdict(amounts).items()]

    report = report_of(tmp_path / "density.json", "density", *options)

    assert report["rows"][density.FREEZE]["n"] == report["rows"][density.STOP]["n"] == 3
    assert report["rows"][density.CALL]["n"] == report["rows"][density.CALL_BESIDE]["n"] == 5
    goals = {goal["name"]: goal for goal in report["goals"]}
    assert len(goals) == 5
    assert goals[density.boxes_cpu(2)]["value"] == 0
    assert goals[density.GROUPS_LEFT]["value"] == 0
    held = report["figures"]
    assert 1 < held[density.BOXD_HELD]["value"] <= held[density.ALL_HELD]["value"]


def test_benchmark_of_the_shell_measures_many_callers_streams_floods_and_memory(
    tmp_path: Path,
) -> None:
    amounts = shell.Amounts(rounds=2, calls=4, callers=(1, 2), boxes=2, crowd=4, single=3, big=1)
    options = [
        option
        for name, amount in asdict(amounts).items()
        for option in (f"--{name}", *(map(str, amount) if name == "callers" else (str(amount),)))
    ]

    report = report_of(tmp_path / "shell.json", "shell", *options)

    kinds = (shell.RUN, shell.EXEC, shell.ECHOED)
    many = [shell.among(callers, 1, kind) for callers in (1, 2) for kind in kinds]
    many += [shell.among(2, 2, kind) for kind in (shell.RUN, shell.EXEC)]
    single = (*shell.SESSIONS, *shell.STREAMS)
    crowds = [shell.crowd(4, boxes) for boxes in (1, 2)]
    assert {name: row["n"] for name, row in report["rows"].items()} == {
        **dict.fromkeys([*many, *shell.FAIRNESS], 2 * 4),
        **dict.fromkeys(single, 3),
        **dict.fromkeys(shell.printing(1), 2),
        **dict.fromkeys(crowds, 4),
    }
    rates = report["figures"]
    assert all(rates[name]["value"] > 0 for name in [*many, *shell.printing(1), *shell.FLOODS])
    goals = {goal["name"]: goal for goal in report["goals"]}
    assert len(goals) == 6
    assert goals[shell.SERVER_GREW]["value"] >= 0
    assert goals[shell.BOXD_GREW]["value"] >= 0
    assert [goals[f"{name}: succeeded"]["value"] for name in crowds] == [4, 4]


def test_benchmark_of_files_measures_calls_searches_and_moves_beside_what_else_does_them(
    tmp_path: Path,
) -> None:
    amounts = files.Amounts(rounds=2, tree=200, big=2, files=100)
    options = [f"--{name}={amount}" for name, amount in asdict(amounts).items()]

    report = report_of(tmp_path / "files.json", "files", *options)

    searches = [name for word in amounts.matches() for name in files.searching(word)]
    moves = [name for part in ("big", "many") for name in files.moving(amounts.moved(part))]
    names = [*files.SMALL, *files.LARGER, files.ECHO_BESIDE, *searches, *moves]
    assert {name: row["n"] for name, row in report["rows"].items()} == dict.fromkeys(names, 2)
    assert all(report["figures"][name]["value"] > 0 for name in moves)
    goals = {goal["name"]: goal for goal in report["goals"]}
    assert len(goals) == 14
    for part in ("big", "many"):
        assert goals[f"{files.SERVER_GREW}, {amounts.moved(part)}"]["value"] >= 0


def test_benchmark_of_networks_measures_tunnels_the_proxy_and_boxes_with_and_without_one(
    tmp_path: Path,
) -> None:
    amounts = network.Amounts(rounds=2, megabytes=2, trips=5, creations=2, boxes=3)
    options = [f"--{name}={amount}" for name, amount in asdict(amounts).items()]

    report = report_of(tmp_path / "network.json", "network", *options)

    trips = [name for way in network.WAYS for name in (network.trip(way), network.first(way))]
    assert {name: row["n"] for name, row in report["rows"].items()} == {
        **dict.fromkeys(trips, 2 * 5),
        **dict.fromkeys(network.CREATIONS, 2),
        **dict.fromkeys([network.MAKE, network.PING, network.REMOVE], 3),
    }
    rates = [network.rate(way, to) for way in network.WAYS for to in (network.DOWN, network.UP)]
    assert all(report["figures"][name]["value"] > 0 for name in rates)
    goals = {goal["name"]: goal for goal in report["goals"]}
    assert len(goals) == 8
    assert goals[network.EXIST]["value"] == 3
    assert goals[network.LEFT]["value"] == 0


@pytest.mark.skipif(not internet.usable, reason=f"needs {internet.NEEDS}")
def test_benchmark_of_git_measures_clones_and_tools_beside_what_else_does_them(
    tmp_path: Path,
) -> None:
    amounts = git.Amounts(rounds=2, clones=1, commits=20, big=2, files=60)
    options = [f"--{name}={amount}" for name, amount in asdict(amounts).items()]

    report = report_of(tmp_path / "git.json", "git", *options)

    clones = [name for what in amounts.repositories() for name in git.cloning(what)]
    tools = [name for tool in git.TOOLS for name in (tool, git.bare(tool), git.reference(tool))]
    assert {name: row["n"] for name, row in report["rows"].items()} == {
        **dict.fromkeys(clones, 1),
        **dict.fromkeys([git.ECHOED, *tools], 2),
    }
    assert len(report["goals"]) == 2 + 2 * len(git.TOOLS)


def test_benchmark_of_agents_measures_runs_beside_their_bare_programs(tmp_path: Path) -> None:
    report = report_of(tmp_path / "agent.json", "agent", "--rounds=1")

    rows = [name(harness) for harness in agent.MODELS for name in (agent.by_tool, agent.by_hand)]
    assert {name: row["n"] for name, row in report["rows"].items()} == dict.fromkeys(rows, 1)
    assert len(report["goals"]) == len(agent.MODELS)


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


def test_benchmark_of_neighbours_compares_calls_beside_an_attack_with_calls_without(
    tmp_path: Path,
) -> None:
    path, options = tmp_path / "neighbours.json", ("--rounds=1", "--calls=5", "--only=burner")
    report = report_of(path, "neighbours", *options)

    assert report["rows"].keys() == {neighbours.ALONE, neighbours.beside("burner")}
    assert {row["n"] for row in report["rows"].values()} == {5}
    assert len(report["goals"]) == 1


def test_benchmark_of_serving_finds_no_wrong_box_no_error_and_all_boxes_after_a_kill(
    tmp_path: Path,
) -> None:
    amounts = {"principals": 3, "boxes": 3, "seconds": 1, "rounds": 2, "fair": 1, "calls": 3}
    options = [f"--{name}={amount}" for name, amount in amounts.items()]
    kinds = ("calls", "dribble")

    report = report_of(
        tmp_path / "serve.json", "serve", *options, "--flood=0.005", "--kinds", *kinds
    )

    rows: dict[str, dict[str, float]] = report["rows"]
    alone = [single.by_http(what, era) for what in single.CALLS for era in single.ERAS]
    floods = [name(kind) for kind in kinds for name in (fair.quiet, fair.beside)]
    assert {name: rows[name]["n"] for name in [*alone, single.FORK, *floods]} == {
        **dict.fromkeys([*alone, single.FORK], 2),
        **dict.fromkeys(floods, 3),
    }
    assert rows[serve.ALL]["n"] > 10
    values = {goal["name"]: goal["value"] for goal in report["goals"]}
    assert [values[name] for name in (serve.WRONG, serve.ERRORS, serve.LOST)] == [0, 0, 0]
    assert values[serve.BACK] == 3
