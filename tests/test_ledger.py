"""Runs and what models cost, as two servers on one file see them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from box_mcp.database import Database
from box_mcp.domain.models import Tokens
from box_mcp.domain.names import LOCAL, BoxId, Principal, mint_id
from box_mcp.domain.runs import Ending, Run, RunId, Usage, Use, mint_key, mint_run_id
from box_mcp.ledger import MIGRATIONS, Ledger
from tests.support.commands import box_mcp

BOX = mint_id()
SOMEBODY = Principal("somebody")
DAY = "2026-01-31"
SOME = Tokens(input=10, cache_read=200, cache_write=30, output=4)


@asynccontextmanager
async def two_servers(path: Path) -> AsyncGenerator[tuple[Ledger, Ledger], None]:
    """Two ledgers on one file, as two processes have them."""
    one, two = Ledger(path / "runs.db"), Ledger(path / "runs.db")
    try:
        yield one, two
    finally:
        await one.aclose()
        await two.aclose()


def new_run(box: BoxId = BOX, *, began: float = 100.0, max_cost: float | None = None) -> Run:
    return Run(mint_run_id(), LOCAL, box, mint_key(), "codex", began, max_cost=max_cost)


def a_use(run: Run, *charged: Run, model: str = "m", cost: float | None = 0.5) -> Use:
    return Use(LOCAL, DAY, model, SOME, cost, run.id, tuple(one.id for one in charged))


async def test_a_run_comes_back_as_it_was_kept(tmp_path: Path):
    async with two_servers(tmp_path) as (one, two):
        run = replace(
            new_run(max_cost=1.5),
            model="m",
            path="/workspace/\u00e9",
            title="mend it",
            schema={"type": "object"},
            max_turns=3,
            timeout=60.0,
            scratch="/tmp/it",
            legs=("p1", "p2"),
            session="s",
        )
        await one.add(run)
        assert await two.run(run.id, LOCAL) == run


async def test_a_run_of_somebody_else_is_none(tmp_path: Path):
    async with two_servers(tmp_path) as (one, _):
        await one.add(run := new_run())
        assert await one.run(run.id, SOMEBODY) is None
        assert await one.run(RunId("run-00000000"), LOCAL) is None
        assert await one.runs(SOMEBODY) == []


async def test_of_two_servers_that_change_a_run_at_once_one_hears_that_it_was_too_late(
    tmp_path: Path,
):
    async with two_servers(tmp_path) as (one, two):
        await one.add(run := new_run())
        ended = run.end(Ending.CANCELLED, 200.0, "asked for")
        begun = replace(run, legs=("p1",))
        saved: list[Run | None] = []

        async def save(ledger: Ledger, changed: Run) -> None:
            saved.append(await ledger.save(changed))

        async with anyio.create_task_group() as group:
            group.start_soon(save, one, ended)
            group.start_soon(save, two, begun)
        (kept,) = filter(None, saved)
        assert await one.run(run.id, LOCAL) == kept
        assert kept in (replace(ended, version=1), replace(begun, version=1))


async def test_a_key_tells_whose_a_request_is_in_its_own_box_only(tmp_path: Path):
    async with two_servers(tmp_path) as (one, _):
        await one.add(run := new_run())
        await one.add(bounded := new_run(max_cost=1.0))
        await one.add(over := new_run(max_cost=1.0))
        await one.save(over.end(Ending.FINISHED, 200.0))
        await one.add(elsewhere := new_run(mint_id(), max_cost=1.0))
        assert await one.concerned(BOX, run.key) == (run, [bounded])
        assert await one.concerned(BOX, elsewhere.key) == (None, [bounded])


async def test_what_answers_cost_adds_up_for_the_run_for_the_day_and_for_budgets(tmp_path: Path):
    async with two_servers(tmp_path) as (one, two):
        await one.add(run := new_run())
        await one.add(bounded := new_run(max_cost=1.0))
        async with anyio.create_task_group() as group:
            for ledger in (one, two) * 5:
                group.start_soon(ledger.use, a_use(run, bounded))
        await one.use(a_use(bounded, bounded, cost=0.25))
        ten = Tokens(input=100, cache_read=2000, cache_write=300, output=40)
        assert await two.usage(run.id) == [Usage("m", 10, ten, 5.0)]
        assert await two.charged(bounded.id) == 5.25
        assert await two.charged(run.id) == 0.0
        assert await two.usage_of(LOCAL, DAY) == [Usage("m", 11, ten + SOME, 5.25)]
        assert await two.usage_of(LOCAL, "2026-02-01") == []
        assert await two.usage_of(SOMEBODY, DAY) == []
        assert await two.days() == [(LOCAL, DAY)]


async def test_where_one_answer_has_no_price_nobody_knows_what_they_cost_together(tmp_path: Path):
    async with two_servers(tmp_path) as (one, _):
        await one.add(run := new_run())
        await one.use(a_use(run, cost=0.5))
        await one.use(a_use(run, cost=None))
        await one.use(a_use(run, model="other", cost=0.5))
        assert await one.usage(run.id) == [
            Usage("m", 2, SOME + SOME, None),
            Usage("other", 1, SOME, 0.5),
        ]


async def test_requests_are_counted_one_by_one(tmp_path: Path):
    async with two_servers(tmp_path) as (one, two):
        await one.add(run := new_run())
        counts: list[int] = []

        async def count(ledger: Ledger) -> None:
            counts.append(await ledger.count(run.id))

        async with anyio.create_task_group() as group:
            for ledger in (one, two) * 5:
                group.start_soon(count, ledger)
        assert sorted(counts) == list(range(1, 11))


@pytest.mark.parametrize("over", [True, False], ids=["that have ended", "that have not"])
async def test_of_very_many_runs_the_oldest_are_forgotten_if_they_ended(
    over: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("box_mcp.ledger.KEPT", 3)
    async with two_servers(tmp_path) as (one, _):
        runs = [new_run(began=float(at)) for at in range(6)]
        for run in runs:
            await one.add(run)
            if over:
                await one.save(run.end(Ending.FINISHED, run.began))
        known = [run.id for run in await one.runs(LOCAL, BOX)]
        kept = runs[3:] if over else runs
        assert known == [run.id for run in reversed(kept)]


async def test_usage_shows_what_models_cost_by_day_caller_and_model(tmp_path: Path):
    async with two_servers(tmp_path) as (one, _):
        await one.add(run := new_run())
        await one.use(a_use(run, cost=1.25))
        await one.use(replace(a_use(run, cost=None), day="2026-02-01", model="strange"))
    env = {"BOX_MCP_STATE_DIR": str(tmp_path)}
    shown = [line.split() for line in box_mcp("usage", env=env).stdout.splitlines()[1:]]
    assert shown == [
        [*("2026-02-01", "local", "strange", "1", "40", "200", "4"), "no", "price"],
        [*("2026-01-31", "local", "m", "1", "40", "200", "4"), "$1.25"],
    ]
    newest = box_mcp("usage", "--days", "1", env=env).stdout
    assert "2026-02-01" in newest
    assert "2026-01-31" not in newest


def test_usage_says_so_where_nothing_was_asked_of_models(tmp_path: Path):
    said = box_mcp("usage", env={"BOX_MCP_STATE_DIR": str(tmp_path)}).stdout
    assert said == "Boxes have asked nothing of models.\n"


async def test_what_was_spent_in_a_day_counts_whatever_has_no_price_beside_it(tmp_path: Path):
    async with two_servers(tmp_path) as (one, two):
        run = new_run()
        for cost in (None, 0.5, None, 0.25):
            await one.use(a_use(run, cost=cost))
        assert await two.usage(run.id) == [Usage("m", 4, SOME + SOME + SOME + SOME, None)]
        assert await two.spent(LOCAL, DAY) == 0.75
        assert await two.spent(SOMEBODY, DAY) == await two.spent(LOCAL, "2026-02-01") == 0


async def test_what_was_spent_before_days_were_summed_counts_too(tmp_path: Path):
    old = Database(tmp_path / "runs.db", MIGRATIONS[:1])
    values = "(?, ?, 'run-1', ?, 1, 0, 0, 0, 0, ?)"

    def fill() -> None:
        with old.writing() as database:
            for model, cost in (("m", 0.5), ("n", None), ("o", 0.25)):
                row = (LOCAL, DAY, model, cost)
                database.execute(f"INSERT INTO uses VALUES {values}", row)

    await old.run(fill)
    await old.aclose()
    async with two_servers(tmp_path) as (one, _):
        assert await one.spent(LOCAL, DAY) == 0.75
