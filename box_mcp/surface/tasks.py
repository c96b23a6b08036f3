"""Tasks: what outlives its call is followed by the client, where its request asks so.

MCP's extension `io.modelcontextprotocol/tasks` as specified for 2026-07-28 (SEP-2663; the
repository ext-tasks, `specification/2026-07-28/tasks.md`): a request that declares it may be
answered with a task. The client asks `tasks/get` until the task has ended, which brings the tool's
result along; `tasks/cancel` ends it. There is no `tasks/result` and no `tasks/list` any more.

No server holds a task: its id is that of an agent's run, or says which process in which box it is.
So it outlives connections and servers, and lives as long as the run is remembered, or the process
by its box. The id grants nothing: only whose the box is can ask. `input_required` never comes, so
`tasks/update` changes nothing, and clients are sent no `notifications/tasks`: they poll.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from mcp import MCPError
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.extension import Extension, MethodBinding
from mcp.server.mcpserver import require_client_extension
from mcp.shared.inbound import MCP_NAME_HEADER, decode_header_value
from mcp_types import (
    HEADER_MISMATCH,
    INTERNAL_ERROR,
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    RequestParams,
    TextContent,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from box_mcp.capabilities.agent.agents import Report
from box_mcp.capabilities.shell import Outcome, RunRecord
from box_mcp.domain.runs import Ending, Run, is_run_id
from box_mcp.errors import BoxError, BoxLost, BoxNotFound, CallRefused, RunNotFound
from box_mcp.surface.failures import MAX_QUOTE, legible
from box_mcp.surface.lifecycle import moment
from box_mcp.surface.refusals import with_refusals
from box_mcp.surface.runs import of_run, place, state, whole
from box_mcp.surface.sessions import Backend, Ctx, OpenBox, backend, caller, open_box
from box_mcp.surface.toolset import record

TASKS = "io.modelcontextprotocol/tasks"
POLL_EVERY = 2000  # ms that clients should leave between two looks at a task
EARLIEST = 10**9  # s since the epoch; boxes tell when a command was started, and may tell lies
MAX_MESSAGE = 400  # characters of a status message
CANCELLED = ("cancelled", "ended")  # causes of an end that somebody asked for

Request = ServerRequestContext[Backend, Any]

_ID = re.compile(
    r"(box-[a-z0-9]{8})\.([a-z0-9-]{1,32})\.([1-9][0-9]{9})\.([1-9][0-9]{2,5})(\.raw)?"
)


class Render(Protocol):
    """What makes an outcome text."""

    def __call__(self, outcome: Outcome, *, raw: bool) -> str:
        """What a tool returns; with control sequences when it is `raw`."""
        ...


@dataclass(frozen=True)
class View:
    """What a call wants to see of its command's output."""

    max_output: int
    raw: bool = False


@dataclass(frozen=True)
class TaskId:
    """A process in a box, when it was started (s since the epoch), and what to show of it."""

    box: str
    process: str
    started: int
    view: View

    def __str__(self) -> str:
        raw = ".raw" if self.view.raw else ""
        return f"{self.box}.{self.process}.{self.started}.{self.view.max_output}{raw}"

    @classmethod
    def of(cls, box: str, record: RunRecord, view: View, now: float) -> TaskId:
        """The id of a new task."""
        return cls(box, record.id, int(min(max(EARLIEST, record.started), now)), view)

    @classmethod
    def parse(cls, text: str) -> TaskId:
        """The other way round; raises MCPError for what can't be the id of a task."""
        found = _ID.fullmatch(text)
        if found is None:
            raise unknown(text)
        box, process, started, max_output, raw = found.groups()
        return cls(box, process, int(started), View(int(max_output), raw is not None))


@dataclass(frozen=True)
class Followed:
    """A command that is, or becomes, a task: its box, how it is, what to show of it."""

    opened: OpenBox
    outcome: Outcome
    view: View


@dataclass(kw_only=True)
class Deferrable(ServerRequestContext[Backend, Any]):
    """A request that may be answered with a task; its tool says so by `hand_over`.

    `report` is of an agent's run that becomes one.
    """

    followed: Followed | None = None
    report: Report | None = None


class TaskParams(RequestParams):
    """What all requests about tasks have; `inputResponses` would answer what is never asked."""

    task_id: str


class Tasks(Extension):
    """What a server needs to offer tasks."""

    identifier = TASKS

    def __init__(self, render: Render) -> None:
        self._render = render

    def methods(self) -> Sequence[MethodBinding]:
        """Requests about tasks; older protocols have none, or others of the same name."""
        handlers = {"tasks/get": self._get, "tasks/update": _update, "tasks/cancel": _cancel}
        versions = frozenset(MODERN_PROTOCOL_VERSIONS)
        return [MethodBinding(name, TaskParams, do, versions) for name, do in handlers.items()]

    async def intercept_tool_call(
        self, params: CallToolRequestParams, ctx: Request, call_next: CallNext
    ) -> HandlerResult:
        """Answers with a task instead of the tool's result where the tool hands its call over."""
        del params
        if not declared(ctx):
            return await call_next(ctx)
        request = Deferrable(**vars(ctx))
        result, now = await call_next(request), time.time()
        if request.report is not None:
            most = ctx.lifespan_context.limits.max_output
            return {"resultType": "task", **described_run(request.report, most, now)}
        if (followed := request.followed) is None:
            return result
        record = followed.outcome.record
        task = TaskId.of(followed.opened.id, record, followed.view, now)
        made = described(task, record, self._text(ctx, followed), now)
        return {"resultType": "task", **made}

    async def _get(self, ctx: Request, params: TaskParams) -> HandlerResult:
        task = asked_for(ctx, params)
        if isinstance(task, str):
            return await looked_at(ctx, task, cancel=False)
        try:
            async with looked_up(ctx, task) as followed:
                text = self._text(ctx, followed)
                return described(task, followed.outcome.record, text, time.time())
        except BoxLost as error:
            return failed(task, error, time.time())

    def _text(self, ctx: Request, followed: Followed) -> str:
        opened, outcome = followed.opened, followed.outcome
        text = self._render(outcome, raw=followed.view.raw)
        if ended_by_itself(outcome.record):  # else nobody reads the text, and it is told once
            text = with_refusals(Ctx(request_context=ctx), opened, opened.id, text)
        return opened.reply(text)


async def _update(ctx: Request, params: TaskParams) -> HandlerResult:
    task = asked_for(ctx, params)
    if isinstance(task, str):
        with answered(task):
            who = caller(Ctx(request_context=ctx)).principal
            await ctx.lifespan_context.agents.find(who, task)
        return {}
    with suppress(BoxLost):
        async with looked_up(ctx, task):
            pass
    return {}


async def _cancel(ctx: Request, params: TaskParams) -> HandlerResult:
    task = asked_for(ctx, params)
    if isinstance(task, str):
        await looked_at(ctx, task, cancel=True)
        return {}
    with suppress(BoxLost):
        async with looked_up(ctx, task) as followed:
            if followed.outcome.record.running:  # what has ended stays as it ended
                await followed.opened.shell.end(task.process)
    return {}


async def listening(ctx: Request, call_next: CallNext) -> HandlerResult:
    """Middleware: refuses who wants to hear of tasks and does not declare them, as specified."""
    wanted = (ctx.params or {}).get("notifications")
    if ctx.method == "subscriptions/listen" and isinstance(wanted, Mapping) and "taskIds" in wanted:
        require_client_extension(ctx, TASKS)
    return await call_next(ctx)


def hand_over(
    ctx: Ctx, opened: OpenBox, outcome: Outcome, max_output: int, *, raw: bool = False
) -> bool:
    """Has a call whose command goes on answered with a task, if its request declares tasks.

    Not for calls that ask for a process to work with, rather than for its result: a model may hear
    nothing of a task before it has ended. Tells whether that is so: nobody reads the reply then.
    """
    if outcome.record.running and isinstance(request := ctx.request_context, Deferrable):
        request.followed = Followed(opened, outcome, View(max_output, raw))
        return True
    return False


def hand_over_run(ctx: Ctx, report: Report) -> None:
    """The same for a call whose agent goes on: nobody reads the reply where it becomes a task."""
    if report.run.ending is None and isinstance(request := ctx.request_context, Deferrable):
        request.report = report


def declared(ctx: Request) -> bool:
    """Whether this very request declares tasks; what earlier ones declared does not count."""
    capabilities = ctx.session.client_capabilities
    extensions = capabilities and capabilities.extensions
    return ctx.protocol_version in MODERN_PROTOCOL_VERSIONS and TASKS in (extensions or {})


def asked_for(ctx: Request, params: TaskParams) -> TaskId | str:
    """The command or the run that a request is about.

    Raises MCPError when it may not ask, or means none.
    """
    require_client_extension(ctx, TASKS)
    _match_head(ctx, params.task_id)
    return params.task_id if is_run_id(params.task_id) else TaskId.parse(params.task_id)


def _match_head(ctx: Request, task: str) -> None:
    """Over HTTP, what the head says that a request is about must be what it is about (SEP-2243).

    The SDK sees to it for what MCP itself has; that the head says it at all is not demanded here.
    """
    said = ctx.request.headers.get(MCP_NAME_HEADER) if ctx.request is not None else None
    if said is not None and decode_header_value(said.strip()) != task:
        raise MCPError(HEADER_MISMATCH, f"The header {MCP_NAME_HEADER} names another task")


async def looked_at(ctx: Request, run: str, *, cancel: bool) -> dict[str, Any]:
    """The task of an agent's run, as it is, or as it was ended; raises MCPError."""
    asked = Ctx(request_context=ctx)
    server = backend(asked)
    look = server.agents.cancel if cancel else server.agents.report

    async def tell(opened: OpenBox, found: Run) -> Report:
        return await look(place(opened), found)

    with answered(run):
        report = await of_run(asked, run, tell, lambda report: report)
    return described_run(report, server.limits.max_output, time.time())


@asynccontextmanager
async def looked_up(ctx: Request, task: TaskId) -> AsyncGenerator[Followed, None]:
    """The task's box, held awake, and how its process is; raises MCPError and BoxLost."""
    with answered(str(task)):
        async with open_box(Ctx(request_context=ctx), task.box) as opened:
            try:
                outcome = await opened.shell.outcome(task.process, task.view.max_output)
                yield Followed(opened, outcome, task.view)
            except CallRefused as error:
                raise forgotten(task) if error.code == "not_found" else error from None


@contextmanager
def answered(task: str) -> Generator[None, None, None]:
    """Turns what goes wrong inside into MCPErrors, but for BoxLost."""
    try:
        yield
    except BoxLost:
        raise
    except (BoxNotFound, RunNotFound):
        raise unknown(task) from None
    except BoxError as error:
        raise MCPError(INTERNAL_ERROR, legible(error.explain())) from error


def ended_by_itself(record: RunRecord) -> bool:
    """Whether its task is completed, and has a result."""
    return not record.running and record.cause not in CANCELLED


def described(task: TaskId, record: RunRecord, text: str, now: float) -> dict[str, Any]:
    """A task as clients are told of it; `text` is what its tool returns, or would return now."""
    lines = [line for line in text.splitlines() if line.strip()]
    name, began = str(task), task.started
    if record.running:
        return told(name, began, "working", lines[-1], now)
    ended = min(began + record.seconds, now)
    if not ended_by_itself(record):
        return told(name, began, "cancelled", lines[0], ended)
    result = CallToolResult(content=[TextContent(text=text)])
    return {**told(name, began, "completed", lines[0], ended), **with_result(result)}


def described_run(report: Report, most: int, now: float) -> dict[str, Any]:
    """The task of an agent's run; its result is what agent_run returns, however the run ended."""
    run = report.run
    if run.ending is None:
        return told(run.id, run.began, "working", report.act or "started", now)
    how = f"{state(run)}: {run.reason}" if run.reason else state(run)
    ended = now if run.ended is None else run.ended
    if run.ending is Ending.CANCELLED:
        return told(run.id, run.began, "cancelled", how, ended)
    result = record(whole(report, most))
    return {**told(run.id, run.began, "completed", how, ended), **with_result(result)}


def with_result(result: CallToolResult) -> dict[str, Any]:
    """What a completed task brings along."""
    return {"result": result.model_dump(mode="json", by_alias=True, exclude_none=True)}


def failed(task: TaskId, error: BoxError, now: float) -> dict[str, Any]:
    """A task that will never end otherwise."""
    why = legible(error.explain())
    return {
        **told(str(task), task.started, "failed", str(error), now),
        "error": {"code": INTERNAL_ERROR, "message": why},
    }


def told(task: str, started: float, status: str, message: str, updated: float) -> dict[str, Any]:
    """What is told of any task."""
    shown = "".join(character for character in message if character.isprintable())
    return {
        "taskId": task,
        "status": status,
        "statusMessage": shown[-MAX_MESSAGE:],
        "createdAt": moment(started),
        "lastUpdatedAt": moment(updated),
        "ttlMs": None,  # it lives as long as the box remembers it
        "pollIntervalMs": POLL_EVERY,
    }


def unknown(text: str) -> MCPError:
    """What is no task, or a task in somebody else's box: the same answer to both."""
    return MCPError(INVALID_PARAMS, f"There is no task {text[:MAX_QUOTE]!r}")


def forgotten(task: TaskId) -> MCPError:
    """A process that its box does not know, or no longer."""
    return MCPError(
        INVALID_PARAMS,
        f"The box {task.box} remembers no process {task.process}: it keeps the newest only",
    )
