"""Metrics as Prometheus collects them: of calls, boxes, gateways and refusals.

No label bears a principal, a box, a path, or anything else that a caller or a box chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from box_mcp.events import (
    ActFailed,
    BoxAsked,
    BoxClaimed,
    CallEnded,
    Event,
    ModelUsed,
    RequestRefused,
    RouteUsed,
)

if TYPE_CHECKING:
    from prometheus_client.registry import Collector
else:
    Collector = object

PREFIX = "box_mcp"
BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
OUTCOMES = ("ok", "lost", "left")
OTHER = "other"


class Counts(Protocol):
    """A pool at one moment."""

    @property
    def states(self) -> Mapping[Any, int]:
        """How many boxes are in each state."""
        ...

    @property
    def spares(self) -> int:
        """How many are nobody's yet."""
        ...

    @property
    def claims(self) -> int:
        """How many calls hold a box."""
        ...

    @property
    def waiters(self) -> int:
        """How many wait for one."""
        ...

    @property
    def acting(self) -> int:
        """How many boxes something is being done to."""
        ...


class Metrics:
    """A listener that counts. `tools` are those that there are, `counts` asks the pool."""

    type = CONTENT_TYPE_LATEST

    def __init__(self, tools: Collection[str]) -> None:
        self.counts: Callable[[], Counts] | None = None
        self._tools = frozenset(tools)
        self._registry = registry = CollectorRegistry(auto_describe=False)
        registry.register(_Pool(self))
        ProcessCollector(registry=registry)

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"{PREFIX}_{name}", about, labels, registry=registry)

        def seconds(name: str, about: str, *labels: str) -> Histogram:
            return Histogram(
                f"{PREFIX}_{name}_seconds", about, labels, registry=registry, buckets=BUCKETS
            )

        self._calls = counter(
            "calls", "Requests of MCP, by method, tool and outcome", "method", "tool", "outcome"
        )
        self._call_time = seconds("call", "How long they took", "method", "tool")
        self._claims = seconds("claim", "How long calls waited for a box, by its state", "was")
        self._asked = counter(
            "box_requests", "Requests to the daemons in boxes", "request", "outcome"
        )
        self._asked_time = seconds("box_request", "How long they took", "request")
        self._failures = counter("failures", "What could not be done to a box", "act")
        self._routes = counter(
            "route_requests", "What boxes asked of credential routes", "route", "status"
        )
        self._models = counter("model_requests", "What boxes asked of models", "route", "status")
        self._tokens = counter("model_tokens", "Tokens of models", "route", "kind")
        self._cost = counter("model_cost_dollars", "What models cost, in US dollars", "route")
        self._refusals = counter("http_refusals", "Requests over HTTP that were refused", "status")

    def __call__(self, event: Event) -> None:
        """As `Hook`."""
        match event:
            case BoxAsked():
                outcome = event.outcome if event.outcome in OUTCOMES else "refused"
                self._asked.labels(event.request, outcome).inc()
                self._asked_time.labels(event.request).observe(event.seconds)
            case CallEnded():
                tool = self._tool(event)
                self._calls.labels(event.method, tool, event.outcome).inc()
                self._call_time.labels(event.method, tool).observe(event.seconds)
            case BoxClaimed():
                self._claims.labels(event.was).observe(event.seconds)
            case ActFailed():
                self._failures.labels(event.act).inc()
            case RouteUsed():
                self._routes.labels(event.route, _kind(event.status)).inc()
            case ModelUsed():
                self._count_model(event)
            case RequestRefused():
                self._refusals.labels(str(event.status)).inc()
            case _:
                pass

    def _tool(self, event: CallEnded) -> str:
        if event.method != "tools/call":
            return ""
        return event.tool if event.tool in self._tools else OTHER

    def _count_model(self, event: ModelUsed) -> None:
        self._models.labels(event.route, _kind(event.status)).inc()
        for kind in ("input", "cache_read", "cache_write", "output"):
            self._tokens.labels(event.route, kind).inc(getattr(event, kind))
        self._cost.labels(event.route).inc(event.cost or 0.0)

    def text(self) -> bytes:
        """All figures, as `type` has them. Call it where the pool runs: it looks at that."""
        return generate_latest(self._registry)


class _Pool(Collector):
    """What is counted only when somebody looks."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """As Prometheus wants it."""
        if self._metrics.counts is None:
            return
        now = self._metrics.counts()
        boxes = GaugeMetricFamily(
            f"{PREFIX}_boxes", "Boxes, as this server knows them", labels=["state"]
        )
        for state, number in now.states.items():
            boxes.add_metric([state], number)
        yield boxes
        for name, about, number in (
            ("spares", "Boxes that are nobody's yet", now.spares),
            ("claims", "Calls that hold a box", now.claims),
            ("waiters", "Calls that wait for a box", now.waiters),
            ("acting", "Boxes that are being made, woken, paused or deleted", now.acting),
        ):
            yield GaugeMetricFamily(f"{PREFIX}_{name}", about, value=number)


def _kind(status: int) -> str:
    return f"{status // 100}xx"
