"""The processes of runs in their boxes: each started once, and found again by its title.

    row ──▶ process ──▶ row tells of it

Whoever starts one has said so in the run's row before (`Run.starting`), and says there afterwards
which process it is. Of a server that ends in between, the process is left, whose title tells whose
it is; or nothing is left, and the row says since when.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial

import anyio

from box_mcp.capabilities.agent.asked import Place
from box_mcp.capabilities.git import place as quoted
from box_mcp.capabilities.harnesses.base import Launch
from box_mcp.domain.runs import Ending, Run
from box_mcp.errors import (
    BoxError,
    CallRefused,
    InvalidArgument,
    RunNotFound,
    StoreUnusable,
    first_error,
)
from box_mcp.ledger import Ledger

START_GRACE = 60.0  # s in which a server that still lives has started what it was about to
END_TIMEOUT = 5.0  # s for ending the tree of a caller who was cancelled; boxd goes on by itself
SHOWN = 200  # bytes of output that nobody reads
MAX_TITLE = 120  # characters of what was asked, in titles


class Legs:
    """Starts processes for the runs of a ledger; those longer than `job_awake_max` (s) keep awake.

    Methods raise what Shell and Files do, and StoreUnusable.
    """

    def __init__(self, ledger: Ledger, job_awake_max: float) -> None:
        self._ledger = ledger
        self._job_awake_max = job_awake_max

    async def start(self, place: Place, run: Run, launch: Launch, seconds: float) -> Run:
        """Starts the process that `run.starting` announces, to be killed after `seconds`.

        Who is cancelled meanwhile, or refused, has ended the run. Returns it as it is then, which
        may be otherwise than one would think: somebody else may have ended it.
        """
        leg = ""
        try:
            outcome = await place.shell.run(
                self._command(run, launch),
                cwd=run.path or None,
                env=launch.env,
                timeout=seconds,
                yield_after=0,
                max_output=SHOWN,
                background=True,
                keep_awake=seconds > self._job_awake_max,
                title=f"{title_of(run)}{run.title}",
            )
            leg = outcome.record.id
            return await self._told(place, run, leg)
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(END_TIMEOUT, shield=True), suppress(BoxError):
                if leg:
                    await _ended(place, leg)
                await self.conclude(run, Ending.CANCELLED, "it was given up when it began")
            raise
        except StoreUnusable:  # nobody would hear of it
            if leg:
                await _ended(place, leg)
            raise
        except (CallRefused, InvalidArgument) as error:
            await self.conclude(run, Ending.FAILED, f"it could not be started: {error}")
            raise

    async def found(self, place: Place, run: Run) -> Run | None:
        """The run with the process that was started for it; None where there is none as yet."""
        listing = await place.shell.processes()
        title = title_of(run)
        legs = [one.id for one in listing.runs if one.command.startswith(title)]
        return await self._told(place, run, legs[0]) if legs else None

    async def again(self, run: Run) -> Run:
        """The run as it is by now; raises RunNotFound where it was forgotten."""
        now = await self._ledger.run(run.id, run.principal)
        if now is None:
            raise RunNotFound(run.id)
        return now

    async def conclude(self, run: Run, ending: Ending, reason: str) -> Run:
        """Has it ended by that, unless it had ended before."""
        while run.ending is None:
            run = await self.settle(run, ending, reason)
        return run

    async def settle(self, run: Run, ending: Ending, reason: str) -> Run:
        """The same, but that nothing is changed where somebody else has changed anything."""
        over = replace(run.end(ending, time.time(), reason), starting=None)
        return await self._ledger.save(over) or await self.again(run)

    def _command(self, run: Run, launch: Launch) -> str:
        """What the box's shell does: it becomes the program, for which all is there already."""
        program, *words = launch.command
        command = " ".join([quoted(program), *map(shlex.quote, words)])
        return f"exec {command} <{run.scratch}/{stdin_of(run)} 2>{run.scratch}/stderr"

    async def _told(self, place: Place, run: Run, leg: str) -> Run:
        """The run, of which `leg` is a process now; if it isn't, that is ended."""
        told = replace(run, legs=(*run.legs, leg), starting=None)
        if (saved := await self._ledger.save(told)) is not None:
            return saved
        now = await self.again(run)
        if now.ending is None and now.starting == run.starting:  # another fact has changed
            return await self._told(place, now, leg)
        if leg not in now.legs:
            await place.shell.end(leg)
        return now


def title_of(run: Run) -> str:
    """How the title of the leg begins that is the next."""
    return _title(run, len(run.legs))


def titles_of(run: Run) -> list[str]:
    """How the titles of all its legs begin."""
    return [_title(run, leg) for leg in range(len(run.legs))]


def _title(run: Run, leg: int) -> str:
    return f"agent {run.id}{f'/{leg + 1}' if leg else ''}: "


def stdin_of(run: Run) -> str:
    """The file in the scratch directory that the next leg reads."""
    return f"stdin.{len(run.legs)}"


def beginning(prompt: str) -> str:
    """The first words of what is asked, on one line."""
    return "".join(c if c.isprintable() else " " for c in prompt[:MAX_TITLE]).strip()


def laid_out(run: Run, launch: Launch) -> dict[str, str]:
    """The files that have to be there before the next leg starts."""
    return {**launch.files, f"{run.scratch}/{stdin_of(run)}": launch.stdin}


async def _ended(place: Place, leg: str) -> None:
    """Ends a process as far as that can be done."""
    with suppress(BoxError):
        await place.shell.end(leg)


async def write(place: Place, files: Mapping[str, str]) -> None:
    """Writes texts into a box, at once; raises the first error alone."""
    tasks = [partial(place.files.write, path, _encoded(text)) for path, text in files.items()]
    if len(tasks) == 1:
        await tasks[0]()
        return
    try:
        async with anyio.create_task_group() as group:
            for task in tasks:
                group.start_soon(task)
    except BaseExceptionGroup as errors:
        raise first_error(errors) from None


def _encoded(text: str) -> bytes:
    return text.encode(errors="replace")
