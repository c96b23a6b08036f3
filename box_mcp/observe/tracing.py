"""Spans of what happens to boxes, in the trace that a client began, sent away by OTLP over HTTP.

The SDK of MCP makes a span for each request, as a child of what its `_meta` names. What a call did
on the way is told by events, at its end: they come in the task that did it, or in one begun there,
so the request's span is current. One that has ended is none of theirs any more: it belongs to the
call that happened to begin a task that lives longer.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode

from box_mcp.events import BoxAsked, BoxClaimed, Event

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.util.types import AttributeValue

logger = logging.getLogger(__name__)

NAME = "box_mcp"
MAX_TEXT = 200  # characters: clients choose names of tools, and ids of requests
UNNAMED = "unknown_service"  # what the SDK calls a service without a name
CLAIMS = {"created": "box create", "running": "box claim"}
"""What waiting for a box is called, by the state that it was in; else it was woken."""


class Tracing:
    """A listener that makes spans. Only one may be in a process.

    What OpenTelemetry's variables say (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME,
    OTEL_TRACES_SAMPLER ...) holds.
    """

    def __init__(self, version: str) -> None:
        resource = Resource.create()
        if str(resource.attributes[SERVICE_NAME]).startswith(UNNAMED):
            resource = resource.merge(Resource({SERVICE_NAME: NAME, SERVICE_VERSION: version}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(_Discreet(OTLPSpanExporter()))
        trace.set_tracer_provider(self._provider)
        self._tracer = trace.get_tracer(NAME, version)
        self._flushing: threading.Thread | None = None

    def __call__(self, event: Event) -> None:
        """As `Hook`."""
        match event:
            case BoxAsked(box, request, outcome, seconds):
                told = {"box": box, "request": request, "outcome": outcome}
                failed = outcome not in ("ok", "left")
                self._span(f"boxd {request}", SpanKind.CLIENT, told, seconds, failed=failed)
            case BoxClaimed(box, _, was, seconds):
                name = CLAIMS.get(was, "box wake")
                self._span(name, SpanKind.INTERNAL, {"box": box, "was": was}, seconds)
            case _:
                pass

    def _span(
        self,
        name: str,
        kind: SpanKind,
        told: Mapping[str, str],
        seconds: float,
        *,
        failed: bool = False,
    ) -> None:
        if not trace.get_current_span().is_recording():
            return
        end = time.time_ns()
        attributes = {f"{NAME}.{key}": value for key, value in told.items()}
        begin = end - int(seconds * 1e9)
        span = self._tracer.start_span(name, None, kind, attributes, start_time=begin)
        if failed:
            span.set_status(StatusCode.ERROR)
        span.end(end)

    def flush(self) -> None:
        """Begins to send what is left, in a thread of its own: nothing may be recorded later."""
        if self._flushing is None:
            end = threading.Thread(target=self._provider.shutdown, daemon=True)
            self._flushing = end
            end.start()

    def close(self, timeout: float) -> None:
        """Waits for `flush`."""
        self.flush()
        assert self._flushing is not None  # flush() sees to it
        self._flushing.join(timeout)
        if self._flushing.is_alive():
            logger.warning("The last spans could not be sent in time")


class _Discreet(BatchSpanProcessor):
    """Leaves out what exceptions and refusals say: they may quote what a caller sent, or a file."""

    def on_end(self, span: ReadableSpan) -> None:
        super().on_end(
            ReadableSpan(
                span.name[:MAX_TEXT],
                context=span.context,
                parent=span.parent,
                resource=span.resource,
                attributes={key: _bounded(one) for key, one in (span.attributes or {}).items()},
                links=span.links,
                kind=span.kind,
                status=Status(span.status.status_code),
                start_time=span.start_time,
                end_time=span.end_time,
                instrumentation_scope=span.instrumentation_scope,
            )
        )


def _bounded(value: AttributeValue) -> AttributeValue:
    return value[:MAX_TEXT] if isinstance(value, str) else value
