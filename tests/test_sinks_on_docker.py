"""Logs, audit, metrics and traces of real servers: what is in them, and what never is."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager, suppress
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from mcp import Client, MCPError
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import format_span_id, format_trace_id

from box_mcp.observe.verifying import verify
from tests.support.client import LEGACY, MODERN, serving, text
from tests.support.collector import Collector, collecting
from tests.support.http import HttpServer, serving_http
from tests.support.needles import leaks

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from pathlib import Path

WHERE = ("argument", "input", "variable", "file", "own", "header", "token", "path")
NEEDLES = {where: f"{where}-{token_hex(12)}" for where in WHERE}
SECRET = {where: needle for where, needle in NEEDLES.items() if where != "path"}
NAME = f"{NEEDLES['path']}.txt"

SETTINGS = {"log_format": "json", "log_level": "DEBUG", "tracing": "otlp"}
TRACER = TracerProvider().get_tracer("a client")


def watched(env: Mapping[str, str], collector: Collector) -> dict[str, str]:
    """Variables of a server that tells all that it tells, and has secrets itself."""
    return {
        **env,
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization={NEEDLES['header']}",
        "OWN_SECRET": NEEDLES["own"],
    }


async def leave_needles(client: Client) -> str:
    """Calls that have needles in all that calls have, and that end in all ways; names the box."""

    async def call(tool: str, **arguments: Any) -> str:
        return text(await client.call_tool(tool, arguments))

    command = f"echo {NEEDLES['argument']} $VARIABLE; cat"
    run = {"env": {"VARIABLE": NEEDLES["variable"]}, "stdin": NEEDLES["input"]}
    said = await call("shell_run", command=command, **run)
    assert all(NEEDLES[where] in said for where in ("argument", "variable", "input"))
    await call("file_write", path=NAME, content=NEEDLES["file"])
    assert NEEDLES["file"] in await call("file_read", path=NAME)
    edit = {"old_text": NEEDLES["argument"], "new_text": NEEDLES["input"]}
    await call("file_edit", path=NAME, edits=[edit])
    await call("file_search", pattern=f"({NEEDLES['argument']}")
    await call("file_read", path=f"/nowhere/{NEEDLES['path']}")
    await call("shell_run", command=NEEDLES["argument"], timeout=NEEDLES["argument"])
    await call("shell_run", command=f"exec {NEEDLES['argument']}")
    await call("box_info", box="no-such-box")
    box = json.loads(await call("box_list"))["boxes"][0]["id"]
    with suppress(MCPError):
        await client.read_resource(f"box://{box}/workspace/{NAME}")
    with suppress(MCPError):
        await client.read_resource(f"box://{box}/nowhere/{NEEDLES['path']}")
    return box


def entries(state: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (state / "audit.jsonl").read_text().splitlines()]


def check_trace(collector: Collector, trace: str, parent: str, box: str) -> None:
    """The client's span, in it the request, and in that its box and what that was asked."""
    spans = collector.of(trace)
    requests = {span.name: span for span in spans if span.parent == parent}
    call = requests["tools/call shell_run"]
    inner = [span for span in spans if span.parent == call.id]
    assert len(requests) + len(inner) == len(spans)
    assert {"box create", "boxd run"} <= {span.name for span in inner}
    assert {span.attributes["box_mcp.box"] for span in inner} == {box}
    assert min(span.begin for span in inner) >= call.begin
    assert max(span.end for span in inner) <= call.end


@asynccontextmanager
async def first_call(client: Client) -> AsyncGenerator[tuple[str, str], None]:
    """A call in a span of the client's own; the ids of both."""
    with TRACER.start_as_current_span("an agent") as span:
        result = await client.call_tool("shell_run", {"command": "hostname"})
        assert not result.is_error, text(result)
        about = span.get_span_context()
    yield format_trace_id(about.trace_id), format_span_id(about.span_id)


def hidden(collector: Collector, **sinks: str) -> dict[str, set[str]]:
    """Which needles are in which sinks."""
    sinks["spans"] = "\n".join(body.decode("latin-1") for body in collector.bodies)
    found = {name: leaks(text, SECRET.values()) for name, text in sinks.items()}
    for name in ("spans", "metrics"):
        found[name] = found.get(name, set()) | leaks(sinks.get(name, ""), [NEEDLES["path"]])
    return {name: needles for name, needles in found.items() if needles}


async def metrics_of(server: HttpServer) -> str:
    async with server.raw(await server.token("alice")) as http:
        assert (await http.get("/metrics")).status_code == 403
    async with server.raw(await server.token("prometheus", "boxes:metrics")) as http:
        shown = await http.get("/metrics")
    assert shown.status_code == 200
    return shown.text


async def test_over_http_sinks_tell_of_all_that_happens_and_of_no_secret(
    server_env: dict[str, str],
):
    with collecting() as collector:
        env = watched(server_env, collector)
        async with serving_http(env, **SETTINGS, http__metrics="token") as server:
            token = await server.token("alice")
            async with server.client("alice") as client, first_call(client) as ids:
                box = await leave_needles(client)
            async with server.client("alice", LEGACY) as client:
                await leave_needles(client)
            async with server.raw(f"bxm_Ab12Cd34_{NEEDLES['token']}") as http:
                assert (await http.post("/mcp", json={"a": NEEDLES["argument"]})).status_code == 401
            async with server.raw(token) as http:
                await http.post("/mcp", content=NEEDLES["argument"].encode())
            metrics = await metrics_of(server)
            await server.stop()
            log = server.log.read_text()
    audit = (server.state / "audit.jsonl").read_text()
    sinks = {"log": log, "audit": audit, "metrics": metrics}
    assert hidden(collector, **sinks) == {}
    assert leaks("".join(sinks.values()), [token]) == set()
    assert all(leaks(sinks[one], [NEEDLES["path"]]) for one in ("log", "audit")), "as documented"
    check_trace(collector, *ids, box)

    lines = entries(server.state)
    outcomes = {(line.get("tool"), line.get("outcome")) for line in lines}
    assert {("shell_run", "ok"), ("file_edit", "error"), ("box_info", "error")} <= outcomes
    assert {line["principal"] for line in lines if line["event"] == "CallEnded"} == {"alice"}
    refused = [line["status"] for line in lines if line["event"] == "RequestRefused"]
    assert refused == [401, 400, 403]
    assert lines[0]["boxes"] == [box]
    assert verify(server.state / "audit.jsonl").breaks == []
    logged = [json.loads(line) for line in log.splitlines()]
    assert {line.get("event") for line in logged} >= {"CallEnded", "RequestRefused", "BoxAsked"}
    assert 'tool="shell_run"' in metrics
    assert 'box_mcp_boxes{state="running"} 2.0' in metrics


async def test_over_stdio_sinks_tell_of_all_that_happens_and_of_no_secret(
    server_env: dict[str, str],
):
    with collecting() as collector:
        env = watched(server_env, collector)
        env |= {f"BOX_MCP_{name.upper()}": value for name, value in SETTINGS.items()}
        async with serving(env, mode=MODERN) as server, first_call(server.client) as ids:
            box = await leave_needles(server.client)
    state = server.log.parent / "state"
    audit = (state / "audit.jsonl").read_text()
    assert hidden(collector, log=server.log.read_text(), audit=audit) == {}
    check_trace(collector, *ids, box)
    assert {line["principal"] for line in entries(state)} == {"local"}
    assert verify(state / "audit.jsonl").breaks == []


async def test_a_server_that_a_client_ends_has_written_its_last_call(server_env: dict[str, str]):
    async with serving(server_env) as server:
        await server.call("box_list")
    state = server.log.parent / "state"
    assert [line["tool"] for line in entries(state)] == ["box_list"]
