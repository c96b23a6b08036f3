"""Who pays for what boxes ask of models, and whether they still can."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus

import anyio

from box_mcp.domain.box import Box
from box_mcp.domain.metering import NEARBY, Metered, Total, prices_of
from box_mcp.domain.modelrequests import Wanted
from box_mcp.domain.models import Dialect, Price, Prices
from box_mcp.domain.names import LOCAL, Principal
from box_mcp.domain.runs import Run, RunId, Use
from box_mcp.errors import StoreUnusable
from box_mcp.gateway.turns import Refused
from box_mcp.ledger import Ledger

logger = logging.getLogger(__name__)

TIMEOUT = 5.0  # s for what an answer cost to be written down; it takes milliseconds

IN_REGIONS = (Dialect.VERTEX, Dialect.BEDROCK)
"""Clouds whose regions may cost more than Anthropic itself."""


@dataclass(frozen=True)
class Payers:
    """Whose a request is: of the run that has its key, and of those whose budgets it counts for."""

    principal: Principal
    run: RunId | None
    charged: tuple[RunId, ...]


class Tab:
    """What one answer costs. It is written down once."""

    def __init__(
        self,
        ledger: Ledger,
        payers: Payers,
        wanted: Wanted,
        prices: Sequence[Price] | None,
        factor: float,
    ) -> None:
        self.payers = payers
        self.total = Total()
        self.metered = Metered()
        self.cost: float | None = None
        self.owed = False
        """Whether the model may have worked."""
        self._ledger = ledger
        self._wanted = wanted
        self._prices = prices
        self._factor = factor
        self._begun = time.monotonic()
        self._paid = False

    def begin(self) -> None:
        """The request is on its way."""
        self.owed = True
        self._begun = time.monotonic()

    async def pay(self) -> None:
        """Writes down what is known by now, also for who is cancelled meanwhile."""
        if self._paid or not self.owed:
            return
        self._paid = True
        self.metered = self.total.settle(self._wanted, time.monotonic() - self._begun)
        if self._prices is not None:
            self.cost = self.metered.cost(self._prices) * self._factor
        payers = self.payers
        use = Use(
            payers.principal,
            _today(),
            self._wanted.priced[0],
            self.metered.tokens,
            self.cost,
            payers.run,
            payers.charged,
        )
        with anyio.move_on_after(TIMEOUT, shield=True) as scope:
            try:
                await self._ledger.use(use)
            except StoreUnusable as error:
                logger.error("what %s cost could not be written down: %s", use.model, error)  # noqa: TRY400
        if scope.cancelled_caught:
            logger.error("what %s cost was not written down within %g s", use.model, TIMEOUT)


class Purse:
    """What may be spent; `max_cost_per_day` is for one principal, in US dollars."""

    def __init__(self, ledger: Ledger, prices: Prices, max_cost_per_day: float | None) -> None:
        self._ledger = ledger
        self._prices = prices
        self._per_day = max_cost_per_day

    async def open(self, box: Box, key: str, wanted: Wanted, dialect: Dialect) -> Tab:
        """For one request; raises Refused where nobody can pay for it."""
        principal = box.principal or LOCAL
        try:
            own, budgeted = await self._ledger.concerned(box.id, key)
            if own is not None and own.ended is not None:
                raise _refused(f"{own.id} is over: what it left behind asks no more in its name")
            charged = [own] if own is not None and own.max_cost is not None else budgeted
            prices = prices_of(self._prices, wanted.priced)
            if prices is None and (charged or self._per_day is not None):
                raise _refused(
                    f"what {wanted.priced[0]!r} costs is not known, and a budget holds here: the "
                    "user can say it in box_mcp's settings (prices), or name another model"
                )
            for run in charged:
                await self._demand_budget(run)
            await self._demand_day(principal)
            if own is not None:
                await self._demand_turn(own)
        except StoreUnusable:
            text = "what this would cost can't be written down now: try again later"
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, text) from None
        payers = Payers(principal, own and own.id, tuple(run.id for run in charged))
        factor = NEARBY if dialect in IN_REGIONS else 1.0
        return Tab(self._ledger, payers, wanted, prices, factor)

    async def _demand_budget(self, run: Run) -> None:
        spent = await self._ledger.charged(run.id)
        if run.max_cost is not None and spent >= run.max_cost:
            told = f"the budget of {run.id}, {_dollars(run.max_cost)}, is used up"
            raise _refused(f"{told}: {_dollars(spent)} were spent on models")

    async def _demand_day(self, principal: Principal) -> None:
        if self._per_day is None:
            return
        spent = await self._ledger.spent(principal, _today())
        if spent >= self._per_day:
            told = f"what may be spent on models in a day, {_dollars(self._per_day)}, is used up"
            raise _refused(f"{told}: {_dollars(spent)} were spent; the next begins at 0:00 UTC")

    async def _demand_turn(self, run: Run) -> None:
        if run.max_turns is None or run.limits_turns:
            return
        if await self._ledger.count(run.id) > run.max_turns:
            raise _refused(f"{run.id} has asked models {run.max_turns} times, and may no more")


def _refused(text: str) -> Refused:
    return Refused(HTTPStatus.FORBIDDEN, text)


def _dollars(amount: float) -> str:
    """Whole cents, and all that counts where it is less than a dollar."""
    return f"${amount:,.2f}" if amount >= 1 else f"${amount:.6f}".rstrip("0").rstrip(".")


def _today() -> str:
    return datetime.now(UTC).date().isoformat()
