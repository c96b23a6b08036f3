from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from tests.support.collector import Collector, collecting

if TYPE_CHECKING:
    from pathlib import Path

BEGIN = """
import anyio, time
from opentelemetry import trace
from box_mcp.events import *
from box_mcp.observe.tracing import Tracing
tracing = Tracing("1.2.3")
tracer = trace.get_tracer("test")
CLAIMED = BoxClaimed("box-aaaaaaaa", "alice", "frozen", 0.5)
ASKED = BoxAsked("box-aaaaaaaa", "read", "not_found", 0.25)
"""
END = """
tracing.close(20)
"""


def run(program: str, collector: Collector, **variables: str) -> None:
    """Runs a program that has `tracing`, in a process of its own: there may be one in each."""
    env = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, **variables}
    command = [sys.executable, "-c", BEGIN + textwrap.dedent(program) + END]
    subprocess.run(command, env=env, timeout=60, check=True)


def test_what_a_call_did_is_in_its_span_with_the_time_that_it_took():
    program = """
        with tracer.start_as_current_span("call"):
            time.sleep(0.01)
            tracing(CLAIMED)
            tracing(ASKED)
    """
    with collecting() as collector:
        run(program, collector)
    spans = {span.name: span for span in collector.spans()}
    call, wake, read = spans["call"], spans["box wake"], spans["boxd read"]
    assert {wake.parent, read.parent} == {call.id}
    assert {wake.trace, read.trace} == {call.trace}
    assert wake.attributes == {"box_mcp.box": "box-aaaaaaaa", "box_mcp.was": "frozen"}
    assert read.attributes["box_mcp.outcome"] == "not_found"
    assert (wake.end - wake.begin, read.end - read.begin) == (500_000_000, 250_000_000)


def test_what_belongs_to_no_call_or_to_one_that_is_over_has_no_span():
    program = """
        tracing(ASKED)

        async def main():
            over = anyio.Event()

            async def lives_longer():
                await over.wait()
                tracing(ASKED)

            async with anyio.create_task_group() as group:
                with tracer.start_as_current_span("call"):
                    group.start_soon(lives_longer)
                    await anyio.lowlevel.checkpoint()
                over.set()

        anyio.run(main)
    """
    with collecting() as collector:
        run(program, collector)
    assert [span.name for span in collector.spans()] == ["call"]


def test_what_exceptions_and_refusals_say_is_not_sent():
    program = """
        try:
            with tracer.start_as_current_span("call" + "x" * 1000) as span:
                span.set_attribute("tool", "y" * 1000)
                raise ValueError("needle")
        except ValueError:
            pass
    """
    with collecting() as collector:
        run(program, collector)
    (span,) = collector.spans()
    assert (len(span.name), len(span.attributes["tool"])) == (200, 200)
    assert not [body for body in collector.bodies if b"needle" in body]


def test_the_variables_of_opentelemetry_hold():
    with collecting() as collector:
        run('tracer.start_span("one").end()', collector, OTEL_TRACES_SAMPLER="always_off")
        assert collector.bodies == []
        run('tracer.start_span("one").end()', collector)
        named = {"OTEL_SERVICE_NAME": "team", "OTEL_RESOURCE_ATTRIBUTES": "region=north"}
        run('tracer.start_span("one").end()', collector, **named)
    first, second = collector.bodies
    assert b"box_mcp" in first
    assert b"team" in second
    assert b"north" in second


def test_an_end_does_not_wait_for_a_collector_that_does_not_answer(tmp_path: Path):
    program = """
        tracer.start_span("one").end()
        began = time.monotonic()
        tracing.close(0.1)
        took = time.monotonic() - began
        assert took < 5, took
        import os
        os._exit(0)
    """
    with collecting() as collector:
        nowhere = collector.endpoint
    run(program, Collector(nowhere))


def test_without_the_packages_the_server_says_what_is_missing(tmp_path: Path):
    program = """
        import sys
        sys.modules["opentelemetry.sdk"] = None
        from box_mcp.cli import main
        main(["serve"])
    """
    settings: dict[str, Any] = {"BOX_MCP_TRACING": "otlp", "BOX_MCP_STATE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, **settings},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert 'pip install "box-mcp[tracing]"' in done.stderr
    assert "Traceback" not in done.stderr
