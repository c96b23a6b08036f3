"""Tools that run commands in a box, and work with the processes that go on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated

from anyio import to_thread
from pydantic import Field

from box_mcp.capabilities.keys import key_bytes
from box_mcp.capabilities.shell import (
    Listed,
    Listing,
    OnOutput,
    Outcome,
    Page,
    RunRecord,
    Shell,
    Terminal,
    Until,
)
from box_mcp.capabilities.terminal import (
    as_printed,
    below_full_screen,
    legible,
    screen,
    sends_application_keys,
)
from box_mcp.domain.access import Group
from box_mcp.domain.signals import BoxSignal, signal_name
from box_mcp.errors import InvalidArgument
from box_mcp.surface.refusals import with_refusals
from box_mcp.surface.sessions import BoxRef, Ctx, backend, open_box
from box_mcp.surface.tasks import hand_over
from box_mcp.surface.toolset import Toolset

tools = Toolset(Group.SHELL)

MAX_TIMEOUT = 86400.0
MAX_WAIT = 3600.0
MAX_OUTPUT = 100_000
MAX_SIDE = 500
TTY_QUIET = 1.0  # s without output that mean a program on a terminal waits for input
ANSWER_WAIT = 1.0  # s for what a program says to its input, at most; a quarter of silence ends it
SHOWN_CPU = 1.0  # s from which on it is worth a model's attention
SHOWN_PEAK = 256 * 1024**2  # bytes, as much
SCREEN_HISTORY = 100_000  # bytes of output from which a screen is drawn

MaxOutput = Annotated[
    int | None,
    Field(
        ge=200,
        le=MAX_OUTPUT,
        description=f"Bytes of output, at most {MAX_OUTPUT}: its start and its end.",
    ),
]
ProcessRef = Annotated[str, Field(description="Process id, such as p7.")]
Raw = Annotated[bool, Field(description="Keep control sequences and progress bars.")]
Rows = Annotated[int | None, Field(ge=1, le=MAX_SIDE, description="Of the terminal.")]
Cols = Annotated[int | None, Field(ge=1, le=MAX_SIDE, description="Of the terminal.")]


@tools.tool(destroys=True, open_world=True, core=True)
async def shell_run(
    command: Annotated[str, Field(description="Run by bash. May have many lines.")],
    ctx: Ctx,
    box: BoxRef = None,
    cwd: Annotated[str | None, Field(description="Working directory. Default: /workspace.")] = None,
    env: Annotated[dict[str, str] | None, Field(description="Variables for this command.")] = None,
    stdin: Annotated[str | None, Field(description="Text for standard input.")] = None,
    timeout: Annotated[
        float | None,
        Field(
            gt=0,
            le=MAX_TIMEOUT,
            description="Seconds until its whole process tree is killed. Default: 600; in the "
            "background: never.",
        ),
    ] = None,
    yield_after: Annotated[
        float | None,
        Field(
            gt=0,
            le=MAX_TIMEOUT,
            description="Seconds until the call returns while the command goes on. Default: 45 "
            "(clients may give up after 60); on a tty, once it is quiet for 1.",
        ),
    ] = None,
    background: Annotated[
        bool, Field(description="Return a process id at once: for servers and long jobs.")
    ] = False,
    session: Annotated[
        str | None,
        Field(
            description="Name of a bash that keeps cwd, variables, functions and activated "
            "environments for later calls. Default: a new shell."
        ),
    ] = None,
    tty: Annotated[
        bool,
        Field(description="Give it a terminal: for programs that ask, draw or edit (vim, sudo)."),
    ] = False,
    rows: Rows = None,
    cols: Cols = None,
    user: Annotated[
        str | None, Field(description="Run as this user, such as root. Default: box.")
    ] = None,
    keep_awake: Annotated[
        bool, Field(description="While it runs, the box never pauses, not even after an hour.")
    ] = False,
    max_output: MaxOutput = None,
    raw: Raw = False,
) -> str:
    """Run a shell command in the box (an isolated Linux container, not the user's machine) and
    return its output (stdout and stderr together) and exit status.

    Runs as user box with passwordless sudo; apt, pip and npm install. Each call is a new shell,
    unless `session` names one: cd and exports last for one call, files and background processes
    stay. A command that takes longer than yield_after goes on: the reply gives its id for
    process_output, process_input and process_signal.
    """
    limits = backend(ctx).limits
    room = max_output or limits.max_output
    async with open_box(ctx, box) as opened:
        outcome = await opened.shell.run(
            command,
            cwd=cwd,
            env=env,
            stdin=stdin,
            timeout=timeout or (None if background else limits.timeout),
            yield_after=yield_after or limits.yield_after,
            quiet=TTY_QUIET if tty and yield_after is None else None,
            background=background,
            session=session,
            terminal=terminal(rows, cols) if tty else None,
            user=user,
            keep_awake=keep_awake,
            max_output=room,
            on_output=progress(ctx),
        )
        if not background and not tty and hand_over(ctx, opened, outcome, room, raw=raw):
            return ""
        if outcome.record.running and outcome.record.terminal:
            text = await drawn(opened.shell, outcome.record)
        else:
            text = render(outcome, raw=raw, box=box, named=background)
        return opened.reply(with_refusals(ctx, opened, box, text))


@tools.tool(reads=True)
async def process_list(ctx: Ctx, box: BoxRef = None) -> str:
    """List the commands in the box, not the user's machine: running ones, then the newest that
    ended, with id, state, age, memory, TCP ports listened on, and session.
    """
    async with open_box(ctx, box) as opened:
        return opened.reply(render_listing(await opened.shell.processes()))


@tools.tool(reads=True, core=True)
async def process_output(
    id: ProcessRef,  # noqa: A002 - what models are told it is
    ctx: Ctx,
    box: BoxRef = None,
    cursor: Annotated[
        int | None,
        Field(
            ge=0,
            description="Byte to start at; replies name the next. Default: the newest output.",
        ),
    ] = None,
    wait: Annotated[
        float,
        Field(
            ge=0, le=MAX_WAIT, description="Seconds to wait, 45 at most, for `until` or `pattern`."
        ),
    ] = 0,
    until: Annotated[
        Until,
        Field(description="output: something new. quiet: new, then silence. exit: its end."),
    ] = "output",
    pattern: Annotated[
        str | None,
        Field(
            description='Regular expression to wait for instead, such as "Listening on"; without '
            "cursor, also in what was printed before."
        ),
    ] = None,
    show_screen: Annotated[bool, Field(description="Show a terminal's screen.")] = False,
    max_output: MaxOutput = None,
    raw: Raw = False,
) -> str:
    """Read what a command in the box, not the user's machine, printed, running or ended, from
    any point on; or wait for more, for its end, or for a pattern. Nothing is lost: output stays
    when calls and connections end.

    The header tells state, exit status, and which bytes are shown.
    """
    limits = backend(ctx).limits
    async with open_box(ctx, box) as opened:
        page, data = await opened.shell.output(
            id,
            limit=max_output or limits.max_output,
            cursor=cursor,
            wait=min(wait, limits.yield_after),
            until=until,
            pattern=pattern,
            on_output=progress(ctx),
        )
        if show_screen and page.terminal:
            text = await drawn(opened.shell, page, verdict(page, pattern))
        else:
            text = render_page(page, data, pattern=pattern, raw=raw)
        return opened.reply(with_refusals(ctx, opened, box, text))


@tools.tool(destroys=True, open_world=True)
async def process_input(
    id: ProcessRef,  # noqa: A002 - what models are told it is
    ctx: Ctx,
    box: BoxRef = None,
    text: Annotated[
        str, Field(description="Typed as it is; end lines with \\n or key enter.")
    ] = "",
    keys: Annotated[
        Sequence[str],
        Field(description="Pressed after the text: enter, tab, escape, up, ctrl-c, f1 ..."),
    ] = (),
    end: Annotated[bool, Field(description="End of input after it.")] = False,
    rows: Rows = None,
    cols: Cols = None,
    wait: Annotated[
        float,
        Field(ge=0, le=MAX_WAIT, description="Most seconds for it to answer and go quiet."),
    ] = ANSWER_WAIT,
    max_output: MaxOutput = None,
    raw: Raw = False,
) -> str:
    """Type into a command in the box, not the user's machine, that was started with tty or
    background; return what it answers: a terminal's screen, or new output. rows and cols resize
    the terminal.
    """
    limits = backend(ctx).limits
    async with open_box(ctx, box) as opened:
        shell = opened.shell
        typed = await typed_bytes(shell, id, text, keys)
        record = await shell.type(id, typed, end=end, rows=rows, cols=cols)
        page, data = await shell.output(
            id,
            limit=max_output or limits.max_output,
            cursor=record.printed,
            wait=min(wait, limits.yield_after),
            until="quiet",
            on_output=progress(ctx),
        )
        if page.terminal and page.running:
            text = await drawn(shell, page)
        else:
            text = render_page(page, data, raw=raw)
        return opened.reply(with_refusals(ctx, opened, box, text))


@tools.tool(destroys=True)
async def process_signal(
    id: ProcessRef,  # noqa: A002 - what models are told it is
    ctx: Ctx,
    box: BoxRef = None,
    signal: Annotated[
        str,
        Field(
            description="end: ask to end, kill what does not within 2 s. Else TERM, INT, HUP ..."
        ),
    ] = "end",
    pid: Annotated[
        int | None, Field(gt=0, description="One process of its tree. Default: all.")
    ] = None,
) -> str:
    """End or signal a command in the box, not the user's machine, with its whole process tree,
    daemons included.
    """
    async with open_box(ctx, box) as opened:
        if signal == "end" and pid is None:
            record = await opened.shell.end(id)
            return opened.reply(f"[{record.id} {headline(record)}]")
        number = signal_number(signal)
        told = await opened.shell.signal(id, number, pid)
        whom = ", ".join(map(str, told)) or "nobody: nothing of it runs"
        return opened.reply(f"[{id}: {signal_name(number)} went to {whom}]")


def terminal(rows: int | None, cols: int | None) -> Terminal:
    """A terminal's size, of which parts may be left out."""
    usual = Terminal()
    return Terminal(rows or usual.rows, cols or usual.cols)


def progress(ctx: Ctx) -> OnOutput:
    """Reports the newest output line as progress; boxd repeats it when nothing new comes."""
    beats = 0

    async def report(line: str, printed: int) -> None:
        nonlocal beats
        beats += 1  # progress must grow, also when nothing was printed
        message = printable(legible(line.encode(errors="replace"))) or "running"
        await ctx.report_progress(printed + beats, message=message)

    return report


async def typed_bytes(shell: Shell, process: str, text: str, keys: Sequence[str]) -> bytes:
    """What a keyboard sends for this; arrows send what the program has asked for."""
    page, printed = await shell.output(process, limit=SCREEN_HISTORY)
    if page.terminal is None and keys:
        raise InvalidArgument("keys", "needs a terminal: pass text, or use process_signal")
    if page.terminal is not None:
        text = text.replace("\r\n", "\r").replace("\n", "\r")  # as the key enter sends it
    pressed = key_bytes(keys, application=sends_application_keys(printed))
    return text.encode(errors="surrogatepass") + pressed


async def drawn(shell: Shell, record: RunRecord, said: Sequence[str] = ()) -> str:
    """A terminal's screen as it is now, below a header."""
    page, printed = await shell.output(record.id, limit=SCREEN_HISTORY)
    rows, cols = page.terminal or (0, 0)
    seen = await to_thread.run_sync(screen, printed, rows, cols)
    parts = [f"{page.id} {headline(page)}", *said]
    parts.append(f"screen {cols}x{rows}, cursor at row {seen.row}, column {seen.col}")
    if page.running:
        parts.append(f'next cursor={page.end}, answer by process_input(id="{page.id}")')
    return f"[{' · '.join(parts)}]\n{seen.text}"


def render(
    outcome: Outcome, *, raw: bool = False, box: str | None = None, named: bool = False
) -> str:
    """A header line on how it ended, then the output, cut in its middle if need be.

    The header names `box` in calls that it proposes, and the process where it is to be `named`.
    """
    record = outcome.record
    where = f', box="{box}"' if box else ""
    shown = partial(text_of, record, raw=raw)
    if outcome.skipped:
        cursor = len(outcome.head)
        gap = (
            f'[... {outcome.skipped:,} bytes left out: process_output(id="{record.id}"{where}, '
            f"cursor={cursor}) reads on from here; {_kept(record)} is in {record.log} ...]"
        )
        text = f"{shown(outcome.head)}\n{gap}\n{shown(outcome.tail)}"
    else:
        text = shown(outcome.head + outcome.tail)
    name = f"{record.id} " if named else ""
    return f"[{name}{headline(record)}{_going_on(record, where)}]\n{text}"


def _kept(record: RunRecord) -> str:
    if record.dropped:
        return f"all of it but {record.dropped:,} bytes from its middle"
    return "all of it"


def _going_on(record: RunRecord, where: str) -> str:
    if not record.running:
        return ""
    follow = f'process_output(id="{record.id}"{where}, cursor={record.printed}, wait=45)'
    return f" as {record.id}, and goes on · follow it by {follow}, end it by process_signal"


def render_page(page: Page, data: bytes, *, pattern: str | None = None, raw: bool = False) -> str:
    """A header line on how it is and what is shown, then the output."""
    parts = [f"{page.id} {headline(page)}", *verdict(page, pattern)]
    parts.append(f"bytes {page.start:,}-{page.end:,} of {page.printed:,}")
    if page.running or page.end < page.logged:
        parts.append(f"next cursor={page.end}")
    shown = data if raw or not page.start else below_full_screen(data)
    return f"[{' · '.join(parts)}]\n{text_of(page, shown, raw=raw)}"


def verdict(page: Page, pattern: str | None) -> list[str]:
    """Whether a pattern was found, if one was looked for."""
    if pattern is None:
        return []
    return ["pattern found" if page.matched else "pattern not found"]


def text_of(record: RunRecord, output: bytes, *, raw: bool) -> str:
    """What a command printed as text: `raw`, or as it looked."""
    if raw:
        return as_printed(output)
    return legible(output, *(record.terminal or ()))


def render_listing(listing: Listing) -> str:
    """A line for each command."""
    shown = len(listing.runs)
    more = f", {shown} of them shown" if shown < listing.total else ""
    running = sum(run.running for run in listing.runs)
    return "\n".join(
        [f"[{running} running, {listing.total} known{more}]", *map(_line, listing.runs)]
    )


def _line(run: Listed) -> str:
    parts = [headline(run)]
    if run.members:
        parts.append(" ".join(f"{one.pid}({printable(one.name)})" for one in run.members))
        parts.append(f"{run.memory / 2**20:.0f} MiB")
    if run.ports:
        parts.append(f"listens on {', '.join(map(str, run.ports))}")
    if run.session and not run.fresh:
        parts.append(f"session {printable(run.session)}")
    return f"{run.id}  {' · '.join(parts)} · {printable(run.command)}"


def headline(record: RunRecord) -> str:
    """How the command is or ended, in one line."""
    how = "running for" if record.running else f"{_end(record)} ·"
    digits = 0 if record.running else 2
    return " · ".join([f"{how} {record.seconds:.{digits}f} s", *_remarks(record)])


def _end(record: RunRecord) -> str:
    if record.signal is not None:
        how = f"killed by {signal_name(record.signal)}"
    elif record.exit is not None:
        how = f"exit {record.exit}"
    else:
        how = "its exit status is not known"
    match record.cause:
        case "timeout":
            return f"timed out: its whole process tree was ended ({how})"
        case "ended":
            return f"ended as asked for ({how})"
        case "cancelled":
            return f"ended because its call was given up ({how})"
        case "box_stopped":
            return "ended with the box, which was stopped: what it printed until then is kept"
        case _:
            return how


def _remarks(record: RunRecord) -> list[str]:
    said: list[str] = []
    if record.cpu is not None and record.cpu >= SHOWN_CPU:
        said.append(f"cpu {record.cpu:.1f} s")
    if record.peak is not None and record.peak >= SHOWN_PEAK:
        said.append(f"peak {record.peak / 2**20:.0f} MiB")
    if record.left:
        said.append(f"{record.left} processes that it started still run")
    if record.session is not None and record.fresh:
        said.append(f"new session {printable(record.session)}")
    if record.session is not None and record.over:
        name = printable(record.session)
        said.append(f"session {name} ended with it: the next call that names it starts anew")
    if not record.running and record.logged < record.printed:
        said.append(f"only the first {record.logged:,} bytes could be kept: the disk is full")
    return said


def signal_number(name: str) -> int:
    """9 for ``KILL``, ``SIGKILL`` and ``9``; raises InvalidArgument for what is no signal."""
    text = name.upper().removeprefix("SIG")
    try:
        return BoxSignal(int(text)) if text.isdigit() else BoxSignal[f"SIG{text}"]
    except (KeyError, ValueError):
        raise InvalidArgument("signal", f"is {name[:40]!r}: no signal, and not end") from None


def printable(text: str) -> str:
    """One line without control characters, for clients that show it as it is."""
    return "".join(c if c.isprintable() else " " for c in text)
