"""How a run stands: decided from what the kernel, the gateway and the harness say of it; pure.

The kernel's word comes first: a harness that was killed has not finished, whatever it printed. Who
ends a run does so by ending its process, so that whoever looks next decides the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from box_mcp.capabilities.harnesses.base import Failed, Finished
from box_mcp.capabilities.shell import RunRecord
from box_mcp.domain.runs import Ending, Run
from box_mcp.domain.signals import signal_name

LEAST_TIME = 10.0  # s that must be left for mending an answer
MAX_REASON = 2000  # characters
MISSING = 127  # what a shell exits with when it finds no such program


@dataclass(frozen=True)
class Mend:
    """The answer breaks its schema, and there is time and money for another leg."""

    violations: Sequence[str]


@dataclass(frozen=True)
class Over:
    """The run has ended; `crashed` tells that what it wrote to stderr may say why."""

    ending: Ending
    reason: str = ""
    crashed: bool = False


@dataclass(frozen=True)
class Standing:
    """What a decision is made from.

    `record` is what the kernel says of the present leg, `word` the last of the harness in it,
    `violations` what is wrong with its answer. `spent` is what counts for the budget (US dollars),
    `seconds` how long all legs took, `turns` how many are left, where that is bounded and known.
    """

    record: RunRecord
    word: Finished | Failed | None
    violations: Sequence[str] = ()
    spent: float = 0.0
    seconds: float = 0.0
    turns: int | None = None
    may_mend: bool = True


def decide(run: Run, standing: Standing) -> Mend | Over | None:
    """What comes of a run; None while it goes on."""
    if standing.record.running:
        return None
    return (
        _ended_from_outside(run, standing)
        or _ended_badly(run, standing)
        or _ended_with_violations(run, standing)
        or Over(Ending.FINISHED)
    )


def is_over_budget(run: Run, spent: float) -> bool:
    """Whether the gateway refuses whatever else it asks for."""
    return run.max_cost is not None and spent >= run.max_cost


def _ended_from_outside(run: Run, standing: Standing) -> Over | None:
    match standing.record.cause:
        case "timeout":
            return Over(Ending.TIMED_OUT, f"its {run.timeout:g} s were over")
        case "box_stopped":
            return Over(Ending.LOST, "its box was stopped under it: pass its id as `resume`")
        case "ended" | "cancelled" if is_over_budget(run, standing.spent):
            return Over(Ending.OVER_BUDGET, _spent(run, standing.spent))
        case "ended" | "cancelled":
            return Over(Ending.CANCELLED, "its processes were ended as asked for")
        case _:
            return None


def _ended_badly(run: Run, standing: Standing) -> Over | None:
    word, broken = standing.word, _broken(standing.record)
    if isinstance(word, Finished) and not broken:
        return None
    if is_over_budget(run, standing.spent):
        return Over(Ending.OVER_BUDGET, _spent(run, standing.spent))
    if isinstance(word, Failed):
        return Over(Ending.FAILED, word.message[:MAX_REASON])
    return Over(Ending.FAILED, broken or "its program ended without a last word", crashed=True)


def _ended_with_violations(run: Run, standing: Standing) -> Mend | Over | None:
    if not standing.violations:
        return None
    wrong = f"its answer breaks the schema: {'; '.join(standing.violations)}"[:MAX_REASON]
    if is_over_budget(run, standing.spent):
        return Over(Ending.OVER_BUDGET, f"{wrong}. {_spent(run, standing.spent)}")
    if standing.seconds + LEAST_TIME > run.timeout:
        return Over(Ending.TIMED_OUT, f"{wrong}. No time was left to mend it")
    if standing.turns is not None and standing.turns <= 0:
        return Over(Ending.FAILED, f"{wrong}. No turn was left to mend it")
    if not standing.may_mend:
        return Over(Ending.FAILED, wrong)
    return Mend(standing.violations)


def _spent(run: Run, spent: float) -> str:
    return f"its budget of ${run.max_cost:g} is used up (${spent:.4f})"


def _broken(record: RunRecord) -> str:
    """How a program ended that should not have ended so; empty where it is well."""
    if record.signal is not None:
        return f"its program was killed by {signal_name(record.signal)}"
    if record.exit == MISSING:
        return "its program could not be started"
    if record.exit is None:
        return "its program ended, nobody knows how"
    return f"its program failed with exit status {record.exit}" if record.exit else ""
