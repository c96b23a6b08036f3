"""What runs of coding agents were told, how they ended, and what models cost, of all servers.

A file of its own beside the store's: nothing of it is needed to find a box again. Every method
raises StoreUnusable when the file can't be read or written; a cancelled caller's change may or may
not be kept.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from box_mcp.database import Database
from box_mcp.domain.models import Tokens
from box_mcp.domain.names import BoxId, Principal
from box_mcp.domain.runs import Ending, Run, RunId, Usage, Use

KEPT = 500  # runs of a principal; older ones that have ended are forgotten

MIGRATIONS = (
    """
    CREATE TABLE runs (
        id TEXT PRIMARY KEY,
        principal TEXT NOT NULL,
        box TEXT NOT NULL,
        key TEXT NOT NULL,
        began REAL NOT NULL,
        ended REAL,
        max_cost REAL,
        charged REAL NOT NULL DEFAULT 0,
        requests INTEGER NOT NULL DEFAULT 0,
        version INTEGER NOT NULL,
        facts TEXT NOT NULL
    );
    CREATE INDEX runs_of_principals ON runs (principal, began);
    CREATE INDEX runs_of_boxes ON runs (box, ended);
    CREATE TABLE uses (
        principal TEXT NOT NULL,
        day TEXT NOT NULL,
        run TEXT NOT NULL,
        model TEXT NOT NULL,
        answers INTEGER NOT NULL,
        input INTEGER NOT NULL,
        cache_read INTEGER NOT NULL,
        cache_write INTEGER NOT NULL,
        output INTEGER NOT NULL,
        cost REAL,
        PRIMARY KEY (principal, day, run, model)
    );
    CREATE INDEX uses_of_runs ON uses (run);
    """,
    """
    CREATE TABLE spent (
        principal TEXT NOT NULL,
        day TEXT NOT NULL,
        cost REAL NOT NULL,
        PRIMARY KEY (principal, day)
    );
    INSERT INTO spent SELECT principal, day, total(cost) FROM uses GROUP BY principal, day;
    """,
)
"""``charged`` is what counts for a run's budget: it may be more than its own requests cost.

``spent`` is what counts for a day's: all that had a price, also of models that once had none.
"""


class Ledger:
    """Runs, and what models cost."""

    def __init__(self, path: Path) -> None:
        self._file = Database(path, MIGRATIONS)

    def __repr__(self) -> str:
        return f"<Ledger {self._file.path}>"

    async def add(self, run: Run) -> None:
        """Keeps a new run."""
        await self._file.run(partial(self._add, run))

    async def run(self, run: RunId, principal: Principal) -> Run | None:
        """One of the principal's runs."""
        where = "WHERE id = ? AND principal = ?"
        found = await self._file.run(partial(self._runs, where, run, principal))
        return found[0] if found else None

    async def runs(self, principal: Principal, box: BoxId | None = None) -> list[Run]:
        """The principal's runs, or those in one box, newest first."""
        where, values = "WHERE principal = ?", [principal]
        if box is not None:
            where, values = f"{where} AND box = ?", [principal, box]
        return await self._file.run(partial(self._runs, f"{where} ORDER BY began DESC", *values))

    async def concerned(self, box: BoxId, key: str) -> tuple[Run | None, list[Run]]:
        """Whose `key` it is, of the runs in a box; and its unfinished ones that have a budget."""
        return await self._file.run(partial(self._concerned, box, key))

    async def save(self, run: Run) -> Run | None:
        """Keeps how a run is by now; None when somebody changed it since `run` was read."""
        return await self._file.run(partial(self._save, run))

    async def count(self, run: RunId) -> int:
        """Counts one more request of a run to models; returns how many these are."""
        return await self._file.run(partial(self._count, run))

    async def use(self, use: Use) -> None:
        """Keeps what an answer cost, and charges it to budgets."""
        await self._file.run(partial(self._use, use))

    async def charged(self, run: RunId) -> float:
        """How much of a run's budget is used up, in US dollars."""
        return await self._file.run(partial(self._charged, run))

    async def usage(self, run: RunId) -> list[Usage]:
        """What the run's own requests cost, by model."""
        return await self._file.run(partial(self._usage, "run = ?", run))

    async def usage_of(self, principal: Principal, day: str) -> list[Usage]:
        """What all of a principal's requests of one day (UTC) cost, by model."""
        where = "principal = ? AND day = ?"
        return await self._file.run(partial(self._usage, where, principal, day))

    async def spent(self, principal: Principal, day: str) -> float:
        """What all of a principal's requests of one day (UTC) cost, in US dollars."""
        return await self._file.run(partial(self._spent, principal, day))

    async def days(self) -> list[tuple[Principal, str]]:
        """Who used models on which day, newest first."""
        return await self._file.run(self._days)

    async def aclose(self) -> None:
        """Closes the file."""
        await self._file.aclose()

    def _add(self, run: Run) -> None:
        with self._file.writing() as database:
            database.execute(
                "INSERT INTO runs (id, principal, box, key, began, max_cost, version, facts) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(run.id, run.principal, run.box, run.key, run.began, run.max_cost),
                    *(run.version, _facts(run)),
                ),
            )
            database.execute(
                "DELETE FROM runs WHERE principal = ? AND ended IS NOT NULL AND id NOT IN "
                "(SELECT id FROM runs WHERE principal = ? ORDER BY began DESC LIMIT ?)",
                (run.principal, run.principal, KEPT),
            )

    def _runs(self, where: str, *values: str) -> list[Run]:
        columns = "id, principal, box, key, began, ended, max_cost, version, facts"
        query = f"SELECT {columns} FROM runs {where}"  # noqa: S608 - both are ours
        rows = self._file.connection.execute(query, values).fetchall()
        return [_run_from(*row) for row in rows]

    def _concerned(self, box: BoxId, key: str) -> tuple[Run | None, list[Run]]:
        own = self._runs("WHERE box = ? AND key = ?", box, key)
        where = "WHERE box = ? AND ended IS NULL AND max_cost IS NOT NULL"
        return (own[0] if own else None), self._runs(where, box)

    def _save(self, run: Run) -> Run | None:
        saved = replace(run, version=run.version + 1)
        with self._file.writing() as database:
            changed = database.execute(
                "UPDATE runs SET ended = ?, version = ?, facts = ? WHERE id = ? AND version = ?",
                (run.ended, saved.version, _facts(saved), run.id, run.version),
            )
        return saved if changed.rowcount else None

    def _count(self, run: RunId) -> int:
        with self._file.writing() as database:
            database.execute("UPDATE runs SET requests = requests + 1 WHERE id = ?", (run,))
            row = database.execute("SELECT requests FROM runs WHERE id = ?", (run,)).fetchone()
        return row[0] if row else 0

    def _use(self, use: Use) -> None:
        tokens = use.tokens
        counts = (tokens.input, tokens.cache_read, tokens.cache_write, tokens.output)
        with self._file.writing() as database:
            database.execute(
                "INSERT INTO uses VALUES (?, ?, ?, ?, 1, ?, ?, ?, ?, ?) "
                "ON CONFLICT DO UPDATE SET answers = answers + 1, "
                "input = input + excluded.input, "
                "cache_read = cache_read + excluded.cache_read, "
                "cache_write = cache_write + excluded.cache_write, "
                "output = output + excluded.output, cost = cost + excluded.cost",
                (use.principal, use.day, use.run or "", use.model, *counts, use.cost),
            )
            database.execute(
                "INSERT INTO spent VALUES (?, ?, ?) "
                "ON CONFLICT DO UPDATE SET cost = cost + excluded.cost",
                (use.principal, use.day, use.cost or 0.0),
            )
            for run in use.charged:
                database.execute(
                    "UPDATE runs SET charged = charged + ? WHERE id = ?", (use.cost or 0.0, run)
                )

    def _charged(self, run: RunId) -> float:
        query = "SELECT charged FROM runs WHERE id = ?"
        row = self._file.connection.execute(query, (run,)).fetchone()
        return row[0] if row else 0.0

    def _spent(self, principal: Principal, day: str) -> float:
        query = "SELECT cost FROM spent WHERE principal = ? AND day = ?"
        row = self._file.connection.execute(query, (principal, day)).fetchone()
        return row[0] if row else 0.0

    def _usage(self, where: str, *values: str) -> list[Usage]:
        rows = self._file.connection.execute(
            "SELECT model, sum(answers), sum(input), sum(cache_read), sum(cache_write), "  # noqa: S608
            "sum(output), sum(cost), count(*) = count(cost) "
            f"FROM uses WHERE {where} GROUP BY model ORDER BY model",
            values,
        )
        return [
            Usage(model, answers, Tokens(*counts), cost if priced else None)
            for model, answers, *counts, cost, priced in rows
        ]

    def _days(self) -> list[tuple[Principal, str]]:
        query = "SELECT DISTINCT principal, day FROM uses ORDER BY day DESC, principal"
        return [(Principal(who), day) for who, day in self._file.connection.execute(query)]


def _facts(run: Run) -> str:
    """All of a run that has no column of its own."""
    facts = {
        **{name: getattr(run, name) for name in _PLAIN},
        "schema": run.schema,
        "legs": list(run.legs),
        "ending": run.ending,
    }
    return json.dumps(facts)


_PLAIN = (
    *("harness", "model", "path", "title", "max_turns", "timeout", "scratch", "session", "reason"),
    *("starting", "limits_turns"),
)


def _run_from(  # one per column
    run: str,
    principal: str,
    box: str,
    key: str,
    began: float,
    ended: float | None,
    max_cost: float | None,
    version: int,
    facts: str,
) -> Run:
    said: dict[str, Any] = json.loads(facts)
    return Run(
        id=RunId(run),
        principal=Principal(principal),
        box=BoxId(box),
        key=key,
        began=began,
        ended=ended,
        max_cost=max_cost,
        version=version,
        schema=said["schema"],
        legs=tuple(said["legs"]),
        ending=said["ending"] and Ending(said["ending"]),
        **{name: said[name] for name in _PLAIN},
    )
