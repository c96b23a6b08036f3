"""MCP's own conformance suite finds nothing wrong, but for what is listed here with a reason.

It is run against the real server, for what any server must do, and against the same server with
what the suite calls by name (`conformance_fixtures`), for all of it. It speaks HTTP only, without
tokens.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import pytest

from tests.support import conformance_fixtures, node
from tests.support.client import COMMAND, fresh_state
from tests.support.http import serving_http

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(node.INSTALL_TIMEOUT + 120)  # the first run installs the suite

RUN_TIMEOUT = 90.0
"""Seconds for one run; the longest takes 17, in which it mostly waits for tasks."""

BEFORE, NOW = "2025-11-25", "2026-07-28"

REAL: Sequence[str] = (*COMMAND, "--http")
FURNISHED: Sequence[str] = (sys.executable, "-m", conformance_fixtures.__name__)

OF_ANY_SERVER: Mapping[str, frozenset[str]] = {
    BEFORE: frozenset(
        {
            *("server-initialize", "server-session-lifecycle", "ping", "dns-rebinding-protection"),
            *("tools-list", "resources-list", "prompts-list", "server-sse-multiple-streams"),
        }
    ),
    NOW: frozenset(
        {
            *("server-stateless", "dns-rebinding-protection", "http-header-validation", "caching"),
            *("tools-list", "resources-list", "prompts-list", "server-sse-multiple-streams"),
            *("sep-2164-resource-not-found", "input-required-result-unsupported-methods"),
        }
    ),
}
"""Scenarios that need nothing of their own on the server."""

UNTESTED = {
    f"server-stateless:sep-2575-{check}": "takes a tool that wants more of its client than it has"
    for check in ("server-rejects-undeclared-capability", "missing-capability-http-400")
}
"""Their checks that do, with the reason."""

UNPLAYED = "the suite itself does not play it yet"
UNRESUMABLE = "a stream that breaks is not resumed: what a call runs goes on, and can be read later"
NEVER_ASKS = "a task never asks: what is to be asked is asked before a call becomes one"
A_COMMAND = "a task is a command, whose status is its result; only one whose box is lost fails"

EXPECTED: Mapping[str, Mapping[str, str]] = {
    BEFORE: {
        "server-sse-polling:incoming-sse-event": UNRESUMABLE,
        "server-sse-polling:server-sse-priming-event": UNRESUMABLE,
        "server-sse-polling:server-sse-retry-field": UNRESUMABLE,
    },
    NOW: {
        "tasks-lifecycle:sep-2663-tool-error-uses-completed-status": A_COMMAND,
        "tasks-lifecycle:sep-2663-tasks-get-status-failed": A_COMMAND,
        "tasks-mrtr-input:sep-2663-tasks-get-status-input-required": NEVER_ASKS,
        "tasks-mrtr-input:tasks-mrtr-tasks-update-resumes": NEVER_ASKS,
        "tasks-mrtr-input:tasks-mrtr-partial-fulfillment": NEVER_ASKS,
    },
}
"""Checks that fail, each with the reason. None is of what a revision requires."""


NOTHING_PASSES: Mapping[str, Mapping[str, str]] = {
    BEFORE: {"server-sse-polling": UNRESUMABLE},
    NOW: {"tasks-status-notifications": UNPLAYED},
}
"""Scenarios without a check that passes, each with the reason. None is of what is required."""


@dataclass(frozen=True)
class Run:
    """What came of a run.

    The scenarios that were played, those of them in which a check passed, and checks that failed,
    with words.
    """

    scenarios: frozenset[str]
    passed: frozenset[str]
    failed: Mapping[str, str]


Runs = dict[tuple[Sequence[str], str], Run]


@pytest.fixture(scope="module")
async def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """All that are needed, at work at the same time: they mostly wait."""
    done: Runs = {}

    async def play(server: Sequence[str], directory: Path) -> None:
        with fresh_state(directory) as env:
            async with serving_http(env, command=server, http__auth="none") as serving:
                for revision in (BEFORE, NOW):
                    what = partial(conform, serving.url, revision, directory / revision)
                    done[server, revision] = await anyio.to_thread.run_sync(what)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(play, REAL, tmp_path_factory.mktemp("real"))
        tasks.start_soon(play, FURNISHED, tmp_path_factory.mktemp("furnished"))
    return done


def conform(url: str, revision: str, results: Path) -> Run:
    """Plays all scenarios of a revision of MCP."""
    suite = [*node.conformance(), "server", "--url", url]
    done = subprocess.run(
        [*suite, "--requirements", revision, "--output-dir", str(results)],
        env=node.node_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT,
        check=False,
    )
    assert "=== SUMMARY ===" in done.stdout, f"{done.stdout}\n{done.stderr}"
    scenarios: set[str] = set()
    passed: set[str] = set()
    failed: dict[str, str] = {}
    for path in results.glob("*/checks.json"):
        scenario = re.sub(r"^server-|-\d{4}-\d\d-\d\dT[\d-]+Z$", "", path.parent.name)
        scenarios.add(scenario)
        for check in json.loads(path.read_text()):
            if check["status"] == "SUCCESS":
                passed.add(scenario)
            if check["status"] in {"FAILURE", "WARNING"}:
                failed[f"{scenario}:{check['id']}"] = check.get("errorMessage", "")
    return Run(frozenset(scenarios), frozenset(passed), failed)


@pytest.mark.parametrize("revision", [BEFORE, NOW])
async def test_the_server_does_what_any_server_must(runs: Runs, revision: str) -> None:
    run = runs[REAL, revision]
    of_any = OF_ANY_SERVER[revision]
    assert of_any <= run.passed
    failed = {check for check in run.failed if check.partition(":")[0] in of_any}
    assert failed == (UNTESTED.keys() if revision == NOW else set()), run.failed


@pytest.mark.parametrize("revision", [BEFORE, NOW])
async def test_with_what_the_suite_calls_nothing_fails_but_what_has_a_reason(
    runs: Runs, revision: str
) -> None:
    run = runs[FURNISHED, revision]
    assert run.scenarios == runs[REAL, revision].scenarios
    assert run.scenarios - run.passed == NOTHING_PASSES[revision].keys()
    assert run.failed.keys() == EXPECTED[revision].keys(), run.failed
