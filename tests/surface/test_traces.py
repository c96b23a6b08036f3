"""What a request says of the trace that it is a part of."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mcp.shared._otel import extract_trace_context
from opentelemetry.trace import get_current_span

from box_mcp.surface.traces import believed

if TYPE_CHECKING:
    import pytest

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
PARENTS = st.just(PARENT) | st.from_regex(r"[0-9a-f-]{40,60}") | ANYTHING
STATES = st.from_regex(r"([a-z@_]{1,9}=[ -~]{0,9},?){1,40}") | ANYTHING


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.fixed_dictionaries({"traceparent": PARENTS, "tracestate": STATES, "baggage": ANYTHING}))
def test_nothing_that_a_client_calls_a_trace_fails_or_is_logged(
    caplog: pytest.LogCaptureFixture, meta: dict[str, Any]
):
    with caplog.at_level(logging.DEBUG):
        extract_trace_context(believed(meta))
    assert caplog.records == []


def test_a_trace_is_gone_on_with():
    meta = {"traceparent": PARENT, "tracestate": "a=b,c@d=e f", "progressToken": 1}
    assert believed(meta) == meta
    context = get_current_span(extract_trace_context(believed(meta))).get_span_context()
    assert f"{context.trace_id:032x}" in PARENT
    assert context.trace_state.to_header() == "a=b,c@d=e f"
