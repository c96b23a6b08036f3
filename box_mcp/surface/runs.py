"""How runs of coding agents are told, and how they are found: what tools and tasks share."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, TypeVar

from box_mcp.capabilities.agent.agents import Look, Place, Report
from box_mcp.capabilities.agent.plain import is_deeper
from box_mcp.capabilities.harnesses.base import (
    Event,
    Failed,
    FileChange,
    Finished,
    Notice,
    Reasoning,
    Started,
    Text,
    ToolCall,
    ToolResult,
    Unknown,
    Used,
)
from box_mcp.domain.models import Tokens
from box_mcp.domain.runs import Run
from box_mcp.errors import BoxLost, BoxNotFound
from box_mcp.surface.lifecycle import moment
from box_mcp.surface.sessions import Ctx, OpenBox, backend, caller, open_box
from box_mcp.surface.words import visible

T = TypeVar("T")
Facts = dict[str, Any]

LISTED_LENGTH = 2500  # characters of files, and of commands, that a record tells
LINE = 300  # characters of one of them, of an act, of a title
REASON = 2000  # characters
SAID = 1000  # characters of what one event says
LEAST_TEXT = 500  # characters of the final text, however long the rest is
MAX_ANSWER = 100_000  # characters of JSON
MAX_DEPTH = 64  # objects and lists of an answer within each other; no client's parser takes any
RUNNING = "running"
FORGOTTEN = "what it printed: its box keeps that of its newest 100 commands only"
EVENTS: Mapping[type[Event], str] = {
    Started: "started",
    Text: "text",
    Reasoning: "reasoning",
    ToolCall: "tool_call",
    ToolResult: "tool_result",
    FileChange: "file_change",
    Used: "usage",
    Notice: "notice",
    Finished: "finished",
    Failed: "failed",
    Unknown: "unknown",
}
UNTOLD = ("id", "input", "answer", "tokens", "whole")
"""Fields of events that are left out: an act says in words what its input does in JSON."""


def place(opened: OpenBox) -> Place:
    """A box as agents work in it."""
    return Place(opened.claim.box, opened.shell, opened.files, opened.only_reads)


async def of_run(
    ctx: Ctx,
    ref: str,
    tell: Callable[[OpenBox, Run], Awaitable[T]],
    gone: Callable[[Report], T],
) -> T:
    """What `tell` says of the caller's run, in its box, held awake; `gone` where that is gone."""
    agents = backend(ctx).agents
    run = await agents.find(caller(ctx).principal, ref)
    try:
        async with open_box(ctx, run.box) as opened:
            return await tell(opened, run)
    except BoxNotFound:
        lost = await agents.lost(run, f"its box {run.box} was deleted")
    except BoxLost as error:
        lost = await agents.lost(run, str(error))
    return gone(lost)


def state(run: Run) -> str:
    """How it is, in a word or two."""
    return run.ending.value if run.ending is not None else RUNNING


def whole(report: Report, most: int, news: str = "") -> Facts:
    """A run in about `most` characters of JSON; what is not known, or does not apply, is missing.

    Lists and the final text are cut, and then it says so.
    """
    run, answer = report.run, report.answer
    if too_much := not may_be_told(answer):
        answer = None
    head = known(
        run=run.id,
        state=state(run),
        reason=clean(run.reason, REASON),
        act=clean(report.act, LINE) if run.ending is None else "",
    )
    if answer is not None:
        head["answer"] = answer
    head |= known(
        answer_left_out=f"it is too large or too deep: {kept(run)}" if too_much else "",
        left_out=FORGOTTEN if report.forgotten else "",
        violations=some(report.violations),
    )
    files, commands = (
        some(f"{one.change} {one.path}" for one in report.files),
        some(report.commands),
    )
    tail = {
        "files": files,
        **known(more_files=report.more_files + len(report.files) - len(files)),
        "commands": commands,
        **known(more_commands=report.more_commands + len(report.commands) - len(commands)),
        **known(turns=turns(report)),
        "tokens": counts(report.tokens),
        "cost_usd": None if report.cost is None else round(report.cost, 6),
        "seconds": round(report.seconds, 1),
        "box": run.box,
        "harness": run.harness,
        **known(model=clean(models(report), LINE), session=run.session),
        **known(next=following(run, report.cursor), news=news),
    }
    return {**head, **final_text(report, answer, most - size(head) - size(tail)), **tail}


def boxless(report: Report, most: int) -> Facts:
    """A run whose box is gone: there is nothing that could be done next."""
    return {name: fact for name, fact in whole(report, most).items() if name != "next"}


def brief(look: Look, events: Sequence[Facts], news: str = "") -> Facts:
    """Some events of a run, and how it is."""
    report = look.report
    run = report.run
    return known(
        run=run.id,
        state=state(run),
        reason=clean(run.reason, REASON),
        act=clean(report.act, LINE) if run.ending is None else "",
        left_out=FORGOTTEN if report.forgotten else "",
        news=news,
    ) | {
        "events": [*events],
        "cursor": look.cursor,
        "more": look.more,
    }


def line_of(run: Run) -> Facts:
    """A run in a list, as it was when somebody looked last."""
    return known(
        run=run.id,
        state=state(run),
        title=clean(run.title, LINE),
        box=run.box,
        harness=run.harness,
        model=clean(run.model, LINE),
        began=moment(run.began),
    )


def told_event(event: Event) -> Facts:
    """An event; what it says is cut."""
    facts = {name: value for name, value in vars(event).items() if name not in UNTOLD}
    said = {
        name: clean(value, SAID) if isinstance(value, str) else value
        for name, value in facts.items()
    }
    tokens = counts(event.tokens) if isinstance(event, Used) else {}
    return {"event": EVENTS[type(event)], **known(**said), **tokens}


def fitting(events: Sequence[Facts], most: int) -> int:
    """How many of the first events go into `most` characters of JSON: one at least, of any."""
    sizes = accumulate(size(one) + 1 for one in events)
    return max(sum(total <= most for total in sizes), min(1, len(events)))


def final_text(report: Report, answer: Any, room: int) -> Facts:
    """The final text in `room` characters of JSON, unless it says what `answer` does."""
    text = valid(visible(report.text))
    if answer is not None and repeats(text, answer):
        return {}
    taken = size(text)
    if taken <= max(room, LEAST_TEXT):
        return {"text": text}
    most = max(room, LEAST_TEXT) * len(text) // taken  # some characters are two or six in JSON
    left_out = f"{len(text) - most:,} characters from its middle: {kept(report.run)}"
    return {"text": excerpt(text, most), "text_left_out": left_out}


def turns(report: Report) -> int:
    """As its agent counts them; else the answers of models, as `max_turns` does then."""
    return report.turns or sum(one.answers for one in report.usage)


def models(report: Report) -> str:
    """The model that was wished for, else those that answered."""
    return report.run.model or ", ".join(dict.fromkeys(one.model for one in report.usage))


def kept(run: Run) -> str:
    """Where all is that an agent has said."""
    if not run.legs:
        return "it is lost"
    return f'all that the agent printed shows process_output(id="{run.legs[-1]}", box="{run.box}")'


def following(run: Run, cursor: int) -> str:
    """What can be done next."""
    if run.ending is None:
        return (
            f'agent_status(run="{run.id}", wait=45) waits for its end, with cursor={cursor} for '
            "its next events; agent_cancel ends it"
        )
    if not run.session:
        return ""
    return f'agent_run(resume="{run.id}", prompt=...) goes on in this conversation'


def repeats(text: str, answer: Any) -> bool:
    """Whether a text is the answer once more."""
    try:
        return json.loads(text) == answer
    except (ValueError, RecursionError):
        return False


def may_be_told(answer: Any) -> bool:
    """Whether JSON that came out of a box is one that clients' parsers can be given."""
    return not is_deeper(answer, MAX_DEPTH) and size(answer) <= MAX_ANSWER


def excerpt(text: str, most: int) -> str:
    """Beginning and end of a text that is longer than `most`."""
    half = most // 2
    return f"{text[:half]}\n[... left out ...]\n{text[len(text) - half :]}"


def some(lines: Iterable[str]) -> list[str]:
    """As many as one likes to read."""
    told = [clean(line, LINE) for line in lines]
    lengths = accumulate(map(len, told))
    return [line for line, length in zip(told, lengths, strict=True) if length <= LISTED_LENGTH]


def clean(text: str, most: int) -> str:
    """`text` without what controls terminals, `most` characters of it."""
    text = valid(visible(text))
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def valid(text: str) -> str:
    """`text` as any encoding takes it."""
    return text.encode(errors="replace").decode()


def counts(tokens: Tokens) -> dict[str, int]:
    """Tokens by kind."""
    return {**vars(tokens)}


def known(**facts: Any) -> Facts:
    """Those facts that say something."""
    return {name: value for name, value in facts.items() if value not in ("", None, 0, [])}


def size(facts: Any) -> int:
    """Characters of it as JSON."""
    return len(json.dumps(facts, ensure_ascii=False))
