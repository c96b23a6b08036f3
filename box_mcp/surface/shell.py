"""Tool that runs commands in a box."""

from __future__ import annotations

from signal import Signals
from typing import Annotated

from pydantic import Field

from box_mcp.capabilities.shell import OnOutput, Outcome, RunRecord
from box_mcp.surface.sessions import BoxRef, Ctx, backend, open_box
from box_mcp.surface.toolset import Toolset

tools = Toolset()

MAX_TIMEOUT = 86400.0


@tools.tool(destroys=True, open_world=True, core=True)
async def shell_run(
    command: Annotated[str, Field(description="Run by bash. May have many lines.")],
    ctx: Ctx,
    box: BoxRef = None,
    cwd: Annotated[str | None, Field(description="Working directory. Default: /workspace.")] = None,
    env: Annotated[dict[str, str] | None, Field(description="Variables for this command.")] = None,
    stdin: Annotated[
        str | None, Field(description="Text for standard input. Default: none.")
    ] = None,
    timeout: Annotated[
        float | None,
        Field(
            gt=0,
            le=MAX_TIMEOUT,
            description="Seconds until its whole process tree is killed. Default: 600.",
        ),
    ] = None,
    yield_after: Annotated[
        float | None,
        Field(
            gt=0,
            le=MAX_TIMEOUT,
            description="Seconds until the call returns and the command goes on. Default: 45.",
        ),
    ] = None,
    max_output: Annotated[
        int | None,
        Field(
            ge=200,
            le=100_000,
            description="Bytes of output to return, half from its start, half from its end.",
        ),
    ] = None,
) -> str:
    """Run a shell command in the box (an isolated Linux container, not the user's machine) and
    return its output (stdout and stderr together) and exit status.

    Runs as user box with passwordless sudo; apt, pip and npm install. Each call is a new shell:
    cd and exports last for one call, files and background processes stay. A command that takes
    longer than yield_after goes on in the box; the reply names the log file with all its output.
    """
    limits = backend(ctx).limits
    async with open_box(ctx, box) as opened:
        outcome = await opened.shell.run(
            command,
            cwd=cwd,
            env=env,
            stdin=stdin,
            timeout=timeout or limits.timeout,
            yield_after=yield_after or limits.yield_after,
            max_output=max_output or limits.max_output,
            on_output=progress(ctx),
        )
        return opened.reply(render(outcome))


def progress(ctx: Ctx) -> OnOutput:
    """Reports the newest output line as progress; boxd repeats it when nothing new comes."""
    beats = 0

    async def report(line: str, printed: int) -> None:
        nonlocal beats
        beats += 1  # progress must grow, also when nothing was printed
        await ctx.report_progress(printed + beats, message=printable(line) or "running")

    return report


def render(outcome: Outcome) -> str:
    """A header line on how it ended, then the output, cut in its middle if need be."""
    record = outcome.record
    text = outcome.head.decode(errors="replace")
    if outcome.skipped:
        kept = "" if record.logged >= record.printed else f" (its first {record.logged:,} bytes)"
        gap = f"[... {outcome.skipped:,} bytes left out; all of it{kept} is in {record.log} ...]"
        text = f"{text}\n{gap}\n{outcome.tail.decode(errors='replace')}"
    else:
        text += outcome.tail.decode(errors="replace")
    return f"[{headline(record)}]\n{text}"


def headline(record: RunRecord) -> str:
    """How the command ended, in one line."""
    if record.running:
        return (
            f"still running after {record.seconds:.0f} s as {record.id}; it goes on in the box"
            f" until its timeout. All its output goes to {record.log}: read that file to follow it"
        )
    if record.signal is not None:
        how = f"killed by {signal_name(record.signal)}"
    else:
        how = f"exit {record.exit}"
    if record.cause == "timeout":
        how = f"timed out: its whole process tree was ended ({how})"
    left = f" · {record.left} processes that it started still run" if record.left else ""
    return f"{how} · {record.seconds:.2f} s{left}"


def signal_name(number: int) -> str:
    """``SIGKILL`` for 9; the number itself where it has no name."""
    try:
        return Signals(number).name
    except ValueError:
        return f"signal {number}"


def printable(text: str) -> str:
    """One line without control characters, for clients that show it as it is."""
    return "".join(c for c in text if c.isprintable())
