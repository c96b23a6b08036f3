"""Coding agents in boxes: started, followed, told of, ended.

Nothing of a run is held here: its row is in the ledger, its events are in the box's log of its
processes. So it outlives calls, connections and servers, and whoever looks at it takes it on::

    start ──▶ running ──its process has ended──▶ ended (see `verdict`)
                 ▲                                 │ its answer breaks the schema
                 └── another process, resumed ─────┘ (announced in the row: one does it)

What was read of runs lately is kept, so that the next look reads on; without it, a look reads from
the beginning.
"""

from __future__ import annotations

import math
import posixpath
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import anyio

from box_mcp.capabilities.agent import answers
from box_mcp.capabilities.agent.account import answer_of, is_session
from box_mcp.capabilities.agent.asked import (
    Choice,
    Conversation,
    OnAct,
    Place,
    Usual,
    Wish,
    unheard,
)
from box_mcp.capabilities.agent.driving import Driver
from box_mcp.capabilities.agent.legs import (
    END_TIMEOUT,
    Legs,
    beginning,
    laid_out,
    titles_of,
    write,
)
from box_mcp.capabilities.agent.story import Sink, Story
from box_mcp.capabilities.git import place as quoted
from box_mcp.capabilities.harnesses.base import (
    Assignment,
    Event,
    FileChange,
    Finished,
    Harness,
    Reader,
    Unknown,
)
from box_mcp.capabilities.harnesses.install import install
from box_mcp.domain.models import Prices, Tokens
from box_mcp.domain.names import LOCAL, BoxId, Principal
from box_mcp.domain.paths import WORKSPACE
from box_mcp.domain.runs import Ending, Run, RunId, Usage, is_run_id, mint_key, mint_run_id
from box_mcp.errors import (
    BoxError,
    CallRefused,
    InvalidArgument,
    RunNotFound,
)
from box_mcp.gateway.models.service import Models
from box_mcp.ledger import Ledger

LAY_OUT_TIMEOUT = 20.0  # s for a look whether its program is there
SAID = 1000  # bytes of what that look prints
MAX_STORIES = 16  # that are kept to be read on


@dataclass(frozen=True)
class Report:
    """A run so far, or all of it: `run.ending` is None while it goes on.

    `text` is its last word, or what it said last; `act` is what it does, or did last. `answer` is
    what it made for the schema, `violations` tell what is wrong with that. Of many files and
    commands the first ones are told, `more_files` and `more_commands` count the others. `cost`
    (US dollars) is None where a model has no price; usage is what the gateway counted. `cursor` is
    behind the newest event. `forgotten` tells that the box can't tell any more what was printed.
    """

    run: Run
    act: str = ""
    text: str = ""
    answer: Any = None
    violations: Sequence[str] = ()
    files: Sequence[FileChange] = ()
    more_files: int = 0
    commands: Sequence[str] = ()
    more_commands: int = 0
    turns: int | None = None
    usage: Sequence[Usage] = ()
    tokens: Tokens = field(default_factory=Tokens)
    cost: float | None = 0.0
    seconds: float = 0.0
    cursor: int = 0
    forgotten: bool = False


@dataclass(frozen=True)
class Look:
    """Some events of a run and how it is. `cursor` is behind these; `more` are there already."""

    report: Report
    events: Sequence[Event]
    cursor: int
    more: bool


class Agents:
    """Coding agents, by name, and the models that they have.

    All methods that take a `Place` raise what Shell and Files do, and StoreUnusable.
    """

    def __init__(
        self,
        ledger: Ledger,
        models: Models,
        harnesses: Mapping[str, Harness],
        usual: Usual,
        prices: Prices,
    ) -> None:
        self._ledger = ledger
        self._models = models
        self._harnesses = harnesses
        self._usual = usual
        self._prices = prices
        self._legs = Legs(ledger, usual.job_awake_max)
        self._driver = Driver(ledger, self._legs, models, harnesses)
        self._stories: OrderedDict[RunId, Story] = OrderedDict()

    async def find(self, principal: Principal, ref: str) -> Run:
        """The principal's run of this id; raises RunNotFound."""
        run = await self._ledger.run(RunId(ref), principal) if is_run_id(ref) else None
        if run is None:
            raise RunNotFound(ref)
        return run

    async def runs(self, principal: Principal, box: BoxId | None = None) -> list[Run]:
        """The principal's runs, or those in one box, newest first, as they were last seen."""
        return await self._ledger.runs(principal, box)

    async def start(
        self, place: Place, wish: Wish, on_act: OnAct = unheard, until: float = math.inf
    ) -> Run:
        """Starts an agent; returns when its process runs. Who is cancelled ends it again.

        Raises InvalidArgument, RunNotFound, NoModel, NoPrice and HarnessMissing; the latter also
        where its program is being installed still at `until` (on the clock of anyio).
        """
        await self._look_at_others(place)
        before = await self._conversation(place, wish.resume)
        choice = Choice.of(wish, before, place.box, self._harnesses, self._usual)
        run = self._new_run(place, wish, choice)
        choice.check_budget(run.max_cost, self._prices)
        if run.schema is not None:
            await answers.check_schema(run.schema)
        assignment = Assignment(
            prompt=wish.prompt,
            scratch=run.scratch,
            access=choice.access(self._models, place.box, run.key),
            model=choice.model,
            resume=before.session,
            max_turns=wish.max_turns,
            schema=wish.schema,
            system=wish.system,
            servers=wish.servers,
            skills=wish.skills,
        )
        launch = choice.harness.launch(assignment)
        await write(place, {choice.within(path): text for path, text in wish.files.items()})
        await self._lay_out(place, run, choice.harness, on_act, until)
        await write(place, laid_out(run, launch))
        run = replace(run, starting=time.time())
        await self._ledger.add(run)
        return await self._legs.start(place, run, launch, run.timeout)

    async def follow(
        self,
        place: Place,
        run: Run,
        *,
        seconds: float,
        on_act: OnAct = unheard,
        attended: bool = False,
    ) -> Report:
        """How the run is when it has ended, or after `seconds`.

        Who is cancelled ends it, if `attended`; what it did stays.
        """
        try:
            async with self._story(run) as story:
                run = await self._driver.take_on(place, run, story, seconds, on_act)
                return await self._report(run, story)
        except anyio.get_cancelled_exc_class():
            if attended:
                with anyio.move_on_after(END_TIMEOUT, shield=True), suppress(BoxError):
                    await self._end(place, run)
            raise

    async def look(
        self, place: Place, run: Run, cursor: int = 0, *, wait: float = 0.0, limit: int = 100
    ) -> Look:
        """At most `limit` events from `cursor` (of another look, else 0) on.

        Waits up to `wait` s for one, or for the end.
        """
        async with self._story(run, cursor) as story:
            sink = Sink(cursor, limit)
            run = await self._driver.take_on(place, run, story, wait, unheard, sink)
            report = await self._report(run, story)
        behind = sink.behind if sink.events else report.cursor
        return Look(report, sink.events, behind, sink.more)

    async def report(self, place: Place, run: Run) -> Report:
        """How the run is now."""
        return await self.follow(place, run, seconds=0)

    async def cancel(self, place: Place, run: Run) -> Report:
        """Ends a run with its whole process tree; one that has ended is left as it is."""
        return await self.report(place, await self._end(place, run))

    async def lost(self, run: Run, why: str) -> Report:
        """How a run is whose box is gone, for `why`; it has ended by that."""
        run = await self._legs.conclude(await self._legs.again(run), Ending.LOST, why)
        async with self._story(run) as story:
            story.forgotten = not story.leg_is_over
            return await self._report(run, story)

    async def _look_at_others(self, place: Place) -> None:
        """Has those be over that are: else their budgets would hold for whoever comes next."""
        _, budgeted = await self._ledger.concerned(place.box.id, "")
        for run in budgeted:
            await self.report(place, run)

    async def _conversation(self, place: Place, resume: str | None) -> Conversation:
        """What is to go on."""
        if resume is None:
            return Conversation()
        if not is_run_id(resume):
            if not is_session(resume):
                raise InvalidArgument("resume", "is neither a run's id nor a session's")
            return Conversation(resume)
        run = await self.find(_principal(place), resume)
        if run.ending is None and run.box == place.box.id:
            run = (await self.report(place, run)).run
            if run.ending is None:
                raise InvalidArgument("resume", "is a run that goes on: wait, or end it first")
        session = run.session or await self._session_in(place, run)
        if not session:
            raise InvalidArgument("resume", "is a run whose conversation is not in this box")
        return Conversation(session, run)

    async def _session_in(self, place: Place, run: Run) -> str:
        """What the harness called it, in a box that has become of the run's."""
        story = Story(self._new_reader(run))
        try:
            for leg, title in zip(run.legs, titles_of(run), strict=True):
                page, _ = await place.shell.output(leg, limit=1, cursor=0)
                if not page.command.startswith(title):
                    return ""  # another box's process of the same name
            await story.read(place, run)
        except CallRefused:
            return ""
        return story.account.session

    def _new_run(self, place: Place, wish: Wish, choice: Choice) -> Run:
        run = mint_run_id()
        return Run(
            id=run,
            principal=_principal(place),
            box=place.box.id,
            key=mint_key(),
            harness=choice.harness.name,
            began=time.time(),
            model=choice.model,
            path=choice.path,
            title=beginning(wish.prompt),
            schema=wish.schema,
            max_cost=self._usual.max_cost if wish.max_cost is None else wish.max_cost,
            max_turns=wish.max_turns,
            limits_turns=choice.harness.limits_turns,
            timeout=wish.timeout or self._usual.timeout,
            scratch=f"/tmp/.agent-{run}",  # noqa: S108 - the box's
        )

    async def _lay_out(
        self, place: Place, run: Run, harness: Harness, on_act: OnAct, until: float
    ) -> None:
        """Makes the run's directory, and has the harness's program in the box."""
        program = quoted(harness.program)
        outcome = await place.shell.run(
            f"mkdir -m 700 -- {run.scratch} && {{ command -v -- {program} || :; }}",
            timeout=LAY_OUT_TIMEOUT,
            yield_after=LAY_OUT_TIMEOUT,
            max_output=SAID,
            cwd=run.path or None,
            visits=True,
            title=f"agent {run.id}: looks for {harness.program}",
        )
        if outcome.stdout:
            return
        if outcome.record.exit != 0:
            said = outcome.stderr.decode(errors="replace").strip()
            raise CallRefused("failed", f"{run.scratch} can't be made in the box: {said}")
        version = self._usual.versions.get(harness.name, "")
        await install(place.shell, harness.program, harness.package, version, on_act, until)

    async def _end(self, place: Place, run: Run) -> Run:
        """Has it ended: by its own word if that came first."""
        run = await self._legs.again(run)
        if run.ending is None and run.starting is not None:
            run = await self._legs.found(place, run) or run
        if run.ending is None and run.legs:
            with suppress(CallRefused):  # the next step finds why
                await place.shell.end(run.legs[-1])
            async with self._story(run) as story:
                story.may_mend = False
                run = await self._driver.step(place, run, story, None, 0.0)
        return await self._legs.conclude(run, Ending.CANCELLED, "it was ended as asked for")

    @asynccontextmanager
    async def _story(self, run: Run, cursor: int | None = None) -> AsyncGenerator[Story, None]:
        """What was read of it, if not beyond `cursor`; others find nothing meanwhile."""
        story = self._stories.pop(run.id, None)
        if story is None:
            story = Story(self._new_reader(run))
        elif cursor is not None and story.account.cursor > cursor:
            story = story.begin_again()
        try:
            yield story
        finally:
            self._stories[run.id] = story
            if len(self._stories) > MAX_STORIES:
                self._stories.popitem(last=False)

    def _new_reader(self, run: Run) -> Callable[[], Reader]:
        """What makes readers for its legs; of a harness that there is no more, none reads."""
        harness = self._harnesses.get(run.harness)
        path = posixpath.join(WORKSPACE, run.path) if not run.path.startswith("~") else ""
        return NoReader if harness is None else partial(harness.reader, path)

    async def _report(self, run: Run, story: Story) -> Report:
        account, usage = story.account, await self._ledger.usage(run.id)
        costs = [one.cost for one in usage]
        word = account.word if run.schema is not None else None
        return Report(
            run,
            act=account.act,
            text=account.said,
            answer=answer_of(word) if isinstance(word, Finished) else None,
            violations=story.violations or (),
            files=[FileChange(*change) for change in account.files.items()],
            more_files=account.more_files,
            commands=[*account.commands],
            more_commands=account.more_commands,
            turns=account.turns,
            usage=usage,
            tokens=sum((one.tokens for one in usage), Tokens()),
            cost=None if None in costs else sum(filter(None, costs)),
            seconds=story.seconds,
            cursor=account.cursor,
            forgotten=story.forgotten,
        )


class NoReader:
    """Understands nothing."""

    def read(self, said: Mapping[str, Any]) -> Sequence[Event]:
        """See `Reader`."""
        del said
        return [Unknown("event")]


def _principal(place: Place) -> Principal:
    return place.box.principal or LOCAL
