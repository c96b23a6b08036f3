from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass, field, replace

import pytest

from box_mcp.events import (
    ActFailed,
    BoxAsked,
    BoxClaimed,
    BoxMoved,
    CallEnded,
    Event,
    ModelUsed,
    RequestRefused,
    RouteUsed,
)
from box_mcp.observe.metrics import Metrics

BOX = "box-aaaaaaaa"
CALLED = CallEnded("alice", "Ab12", "tools/call", "shell_run", (BOX,), "01ab", "ok", "", 0.004)


@dataclass(frozen=True)
class Pool:
    states: dict[str, int] = field(default_factory=lambda: {"running": 2, "frozen": 3})
    spares: int = 1
    claims: int = 2
    waiters: int = 4
    acting: int = 5


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics(["shell_run", "file_read"])
    metrics.counts = Pool
    return metrics


def shown(metrics: Metrics, *events: Event) -> dict[str, float]:
    """The figures after some events, by name and labels."""
    for event in events:
        metrics(event)
    lines = metrics.text().decode().splitlines()
    pairs = [line.rpartition(" ") for line in lines if not line.startswith("#")]
    return {name: float(number) for name, _, number in pairs}


def test_calls_are_counted_and_timed_by_tool(metrics: Metrics):
    found = shown(metrics, CALLED, CALLED)
    labels = 'method="tools/call",outcome="ok",tool="shell_run"'
    assert found[f"box_mcp_calls_total{{{labels}}}"] == 2
    timed = 'method="tools/call",tool="shell_run"'
    assert found[f"box_mcp_call_seconds_count{{{timed}}}"] == 2
    assert found[f'box_mcp_call_seconds_bucket{{le="0.0025",{timed}}}'] == 0
    assert found[f'box_mcp_call_seconds_bucket{{le="0.005",{timed}}}'] == 2


def test_what_the_pool_holds_is_looked_at_when_somebody_asks(metrics: Metrics):
    found = shown(metrics)
    assert found['box_mcp_boxes{state="running"}'] == 2
    assert found['box_mcp_boxes{state="frozen"}'] == 3
    names = ("spares", "claims", "waiters", "acting")
    assert [found[f"box_mcp_{name}"] for name in names] == [1, 2, 4, 5]


def test_before_there_is_a_pool_there_are_figures_all_the_same():
    assert "box_mcp_spares" not in shown(Metrics([]))


def test_wake_times_requests_failures_and_refusals_are_told(metrics: Metrics):
    found = shown(
        metrics,
        BoxClaimed(BOX, "alice", "frozen", 0.02),
        BoxAsked(BOX, "read", "ok", 0.001),
        BoxAsked(BOX, "read", "not_found", 0.001),
        ActFailed(BOX, "start", "it fell"),
        RequestRefused("10.0.0.9", 401, "bad token"),
        BoxMoved(BOX, "running", "frozen", "idle"),
    )
    assert found['box_mcp_claim_seconds_count{was="frozen"}'] == 1
    assert found['box_mcp_box_requests_total{outcome="ok",request="read"}'] == 1
    assert found['box_mcp_box_requests_total{outcome="refused",request="read"}'] == 1
    assert found['box_mcp_failures_total{act="start"}'] == 1
    assert found['box_mcp_http_refusals_total{status="401"}'] == 1


def test_routes_and_models_are_counted_with_what_they_cost(metrics: Metrics):
    used = ModelUsed(BOX, "alice", "anthropic", "POST", "/v1/messages", 200, "m", "run-aaaaaaaa")
    found = shown(
        metrics,
        RouteUsed(BOX, "alice", "github", "GET", "/me/app", 404),
        replace(used, input=7, output=5, cost=0.25),
        replace(used, input=1),
    )
    assert found['box_mcp_route_requests_total{route="github",status="4xx"}'] == 1
    assert found['box_mcp_model_requests_total{route="anthropic",status="2xx"}'] == 2
    assert found['box_mcp_model_tokens_total{kind="input",route="anthropic"}'] == 8
    assert found['box_mcp_model_tokens_total{kind="output",route="anthropic"}'] == 5
    assert found['box_mcp_model_cost_dollars_total{route="anthropic"}'] == 0.25


def test_no_label_has_what_a_caller_or_a_box_chose(metrics: Metrics):
    needle = "needle"
    for event in (
        CallEnded(needle, needle, "tools/call", needle, (needle,), needle, "invalid", needle, 0.1),
        CallEnded(needle, "", "resources/read", f"box://{needle}", (), "", "ok", "", 0.1),
        RouteUsed(needle, needle, "github", needle, f"/{needle}", 200, refused=needle),
        ModelUsed(needle, needle, "anthropic", needle, needle, 200, needle, needle, refused=needle),
        BoxClaimed(needle, needle, "running", 0.1),
        BoxAsked(needle, "read", needle, 0.1),
        ActFailed(needle, "start", needle),
        RequestRefused(needle, 400, needle),
    ):
        metrics(event)
    text = metrics.text().decode()
    assert needle not in text
    assert 'tool="other"' in text
    assert set(re.findall(r"(\w+)=\"", text)) <= {
        *("method", "tool", "outcome", "le", "was", "request", "act", "route", "status", "kind"),
        "state",
    }


def test_who_wants_no_metrics_imports_nothing_for_them():
    program = "import sys, box_mcp.app; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
