"""Runs taken on: whoever looks at one reads what there is, and does what is to be done then."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import anyio

from box_mcp.capabilities.agent import answers
from box_mcp.capabilities.agent.account import answer_of
from box_mcp.capabilities.agent.asked import Choice, OnAct, Place
from box_mcp.capabilities.agent.legs import START_GRACE, Legs, laid_out, write
from box_mcp.capabilities.agent.story import Sink, Story
from box_mcp.capabilities.agent.verdict import Mend, Over, Standing, decide, is_over_budget
from box_mcp.capabilities.harnesses.base import Assignment, Finished, Harness
from box_mcp.domain.runs import Ending, Run
from box_mcp.errors import BoxError, BoxUnavailable, CallInterrupted, CallRefused
from box_mcp.gateway.models.service import Models
from box_mcp.ledger import Ledger

MAX_LEGS = 3  # of one run: the first, and two that mend its answer
BEAT = 10.0  # s between two words on an act that goes on, and between two looks at the budget
OVER_BUDGET_GRACE = 10.0  # s for a harness that is refused any more to end by itself
MEND_TIMEOUT = 30.0  # s for starting another leg
START_POLL = 0.2  # s between two looks for a process that another server starts
STDERR_LINES, STDERR_BYTES = 20, 1500  # of the end of it, for a reason


class Driver:
    """Takes the runs of a ledger on; raises what Shell and Files do, and StoreUnusable."""

    def __init__(
        self, ledger: Ledger, legs: Legs, models: Models, harnesses: Mapping[str, Harness]
    ) -> None:
        self._ledger = ledger
        self._legs = legs
        self._models = models
        self._harnesses = harnesses

    async def take_on(
        self,
        place: Place,
        run: Run,
        story: Story,
        seconds: float,
        on_act: OnAct,
        sink: Sink | None = None,
    ) -> Run:
        """Reads on until the run has ended, or the sink has something, or for so many `seconds`."""
        until = anyio.current_time() + seconds
        heard, wait = Heard(on_act), 0.0
        while True:
            run = await self.step(place, run, story, sink, wait)
            await heard(story)
            left = until - anyio.current_time()
            rests = run.ending is not None or story.left_to_others
            if rests or left <= 0 or (sink is not None and sink.events):
                return run
            wait = min(left, BEAT)

    async def step(
        self, place: Place, run: Run, story: Story, sink: Sink | None, wait: float
    ) -> Run:
        """Reads what there is, and does what is to be done then."""
        run, story.left_to_others = await self._legs.again(run), False
        if run.ending is None and run.starting is not None:
            run = await self._started(place, run)
        try:
            await story.read(place, run, sink, wait)
        except CallRefused as refused:
            if refused.code != "not_found":
                raise
            story.forgotten = True
            if run.ending is not None:
                return run
            run = replace(run, session=story.account.session or run.session)
            return await self._legs.settle(run, Ending.LOST, "its box remembers it no more")
        if run.ending is not None:
            return run
        if run.starting is not None:
            await anyio.sleep(min(wait, START_POLL))
            return run
        if story.leg_is_over:
            return await self._settle(place, run, story)
        await self._keep_budget(place, run, story)
        return run

    async def _started(self, place: Place, run: Run) -> Run:
        """A run of which somebody was starting a process: with it, or without, or as before."""
        assert run.starting is not None
        if (found := await self._legs.found(place, run)) is not None:
            return found
        if time.time() - run.starting < START_GRACE:
            return run
        if run.legs:  # what mends its answer may be started anew
            calmed = replace(run, starting=None)
            return await self._ledger.save(calmed) or await self._legs.again(run)
        why = "it was never started: the server that was about to has ended"
        return await self._legs.settle(run, Ending.LOST, why)

    async def _keep_budget(self, place: Place, run: Run, story: Story) -> None:
        """Ends what does not end by itself though it gets nothing any more."""
        if not is_over_budget(run, await self._spent(run)):
            return
        now = anyio.current_time()
        story.over_budget_since = story.over_budget_since or now
        if now - story.over_budget_since >= OVER_BUDGET_GRACE:
            await place.shell.end(run.legs[-1])

    async def _settle(self, place: Place, run: Run, story: Story) -> Run:
        """A run whose process has ended, with the next one or with an ending."""
        assert story.record is not None
        word, session = story.account.word, story.account.session
        if story.violations is None:
            story.violations = await self._violations(run, word)
        turns = None if run.max_turns is None else run.max_turns - (story.account.turns or 0)
        standing = Standing(
            story.record,
            word,
            story.violations,
            spent=await self._spent(run),
            seconds=story.seconds,
            turns=turns,
            may_mend=story.may_mend and bool(session) and len(run.legs) < MAX_LEGS,
        )
        run = replace(run, session=session or run.session)
        match decide(run, standing):
            case Mend() if place.only_looks:
                story.left_to_others = True
                return run
            case Mend(violations):
                seconds = run.timeout - story.seconds
                return await self._mend(place, run, violations, seconds, turns)
            case Over(ending, reason, crashed):
                said = await self._last_words(place, run) if crashed else ""
                reason = f"{reason}: {said}" if said else reason
                return await self._legs.settle(run, ending, reason)
            case None:
                return run

    async def _violations(self, run: Run, word: object) -> Sequence[str]:
        if run.schema is None or not isinstance(word, Finished):
            return ()
        return await answers.violations(run.schema, answer_of(word))

    async def _spent(self, run: Run) -> float:
        return 0.0 if run.max_cost is None else await self._ledger.charged(run.id)

    async def _mend(
        self,
        place: Place,
        run: Run,
        violations: Sequence[str],
        seconds: float,
        turns: int | None,
    ) -> Run:
        """Has the agent give its answer once more, unless somebody else has it do so."""
        announced = await self._ledger.save(replace(run, starting=time.time()))
        if announced is None:
            return await self._legs.again(run)
        with anyio.move_on_after(MEND_TIMEOUT, shield=True):  # who only looks may go away
            try:
                return await self._start_mending(place, announced, violations, seconds, turns)
            except (BoxUnavailable, CallInterrupted):
                raise
            except BoxError as error:
                why = f"its answer breaks the schema, and could not be mended: {error}"
                return await self._legs.conclude(announced, Ending.FAILED, why)
        return await self._legs.again(run)

    async def _start_mending(
        self,
        place: Place,
        run: Run,
        violations: Sequence[str],
        seconds: float,
        turns: int | None,
    ) -> Run:
        assert run.schema is not None
        harness = self._harnesses[run.harness]
        assignment = Assignment(
            prompt=answers.mending(run.schema, violations),
            scratch=run.scratch,
            access=Choice(harness, run.model, run.path).access(self._models, place.box, run.key),
            model=run.model,
            resume=run.session,
            max_turns=turns,
            schema=run.schema,
        )
        launch = harness.launch(assignment)
        await write(place, laid_out(run, launch))
        return await self._legs.start(place, run, launch, seconds)

    async def _last_words(self, place: Place, run: Run) -> str:
        """The end of what its program wrote to stderr, where that can be read."""
        try:
            part = await place.files.tail(f"{run.scratch}/stderr", STDERR_LINES, STDERR_BYTES)
        except CallRefused:
            return ""
        return part.content.decode(errors="replace").strip()


class Heard:
    """Tells of acts, each when it begins and every now and then."""

    def __init__(self, on_act: OnAct) -> None:
        self._on_act = on_act
        self._act = ""
        self._told = -math.inf

    async def __call__(self, story: Story) -> None:
        """Tells of the act that it comes to."""
        now = anyio.current_time()
        if story.account.act != self._act or now - self._told >= BEAT:
            self._act, self._told = story.account.act, now
            await self._on_act(self._act or "starts", story.account.acts)
