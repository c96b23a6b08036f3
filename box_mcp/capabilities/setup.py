"""The command that prepares a new box, run once before its first call."""

from __future__ import annotations

from box_mcp.capabilities.shell import Shell
from box_mcp.channel import Channel
from box_mcp.domain.box import Box
from box_mcp.errors import BoxError

YIELD_AFTER = 40.0  # s; clients give a call up after about 60
TIMEOUT = 3600.0  # s
SHOWN = 4000  # bytes of its output, where it fails


async def run_setup(channel: Channel, box: Box) -> str:
    """Runs the box's setup command and returns what the first call should hear of it.

    The box stays, whatever becomes of the command; its whole output is in the box.
    """
    try:
        outcome = await Shell(channel, box.spec.cwd).run(
            box.spec.setup,
            timeout=TIMEOUT,
            yield_after=YIELD_AFTER,
            max_output=SHOWN,
        )
    except BoxError as error:
        return f"[the setup of this box could not run: {error.explain()}]"
    record = outcome.record
    if record.running:
        return f"[the setup of this box still runs as {record.id}; its output: {record.log}]"
    if record.exit == 0:
        return ""
    ended = f"exit status {record.exit}" if record.exit is not None else f"signal {record.signal}"
    gap = f"\n[{outcome.skipped} bytes left out]\n".encode() if outcome.skipped else b""
    output = (outcome.head + gap + outcome.tail).decode(errors="replace").rstrip()
    return (
        f"[the setup of this box failed with {ended}; the box is there for you to look at, and "
        f"setup is not run again. Whole output: {record.log}]\n{output}\n[end of setup's output]"
    )
