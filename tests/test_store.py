from __future__ import annotations

import os
import sqlite3
import stat
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from box_mcp.domain.box import Box, BoxSpec, Move, State, Terms
from box_mcp.domain.limits import Room
from box_mcp.domain.names import LOCAL, BoxId, BoxName, Principal, mint_id
from box_mcp.errors import BoxError, StoreUnusable
from box_mcp.store import MIGRATIONS, Full, NameInUse, Store

SPEC = BoxSpec(
    "box-mcp:base", cpus=1.5, memory=2**30, size="small", env={"A": "\u00e9"}, sudo=False, pids=64
)
SOMEBODY = Principal("somebody")
IT = BoxName("it")


def new_box(name: BoxName | None = None, principal: Principal = LOCAL) -> Box:
    return Box(
        mint_id(), SPEC, created=100.0, principal=principal, name=name, used=100.0, since=100.0
    )


@asynccontextmanager
async def two_servers(path: Path) -> AsyncGenerator[tuple[Store, Store], None]:
    """Two stores on one file, as two processes have them."""
    one, two = Store(path / "state.db"), Store(path / "state.db")
    try:
        yield one, two
    finally:
        await one.aclose()
        await two.aclose()


async def test_a_box_comes_back_as_it_was_kept(tmp_path: Path):
    async with two_servers(tmp_path) as (one, two):
        box = replace(new_box(IT), state=State.FROZEN, reason="idle")
        await one.add(box, Room())
        assert await two.box(box.id) == box
        assert await two.boxes() == [box]


async def test_an_unknown_box_is_none(tmp_path: Path):
    async with two_servers(tmp_path) as (one, _):
        assert await one.box(mint_id()) is None
        assert await one.boxes() == []


async def test_a_name_belongs_to_one_box_of_its_principal_on_all_servers(tmp_path: Path):
    async with two_servers(tmp_path) as (one, two):
        await one.add(new_box(IT), Room())
        with pytest.raises(NameInUse):
            await two.add(new_box(IT), Room())
        await two.add(new_box(IT, SOMEBODY), Room())
        await two.add(new_box(), Room())
        await two.add(new_box(), Room())
        assert len(await one.boxes()) == 4


async def test_a_name_is_free_when_its_box_is_removed(tmp_path: Path):
    async with two_servers(tmp_path) as (one, two):
        box = new_box(IT)
        await one.add(box, Room())
        await two.remove(box.id)
        await one.add(new_box(IT), Room())


async def test_one_of_many_servers_gets_a_name(tmp_path: Path):
    won: list[BoxId] = []

    async def take(store: Store) -> None:
        box = new_box(IT)
        try:
            await store.add(box, Room())
        except NameInUse:
            return
        won.append(box.id)

    async with two_servers(tmp_path) as stores, anyio.create_task_group() as group:
        for store in stores * 5:
            group.start_soon(take, store)
    assert len(won) == 1


async def test_a_saved_state_is_seen_by_all(tmp_path: Path):
    async with two_servers(tmp_path) as (one, two):
        box = new_box(IT)
        await one.add(box, Room())
        started = box.moved(Move.START, 200.0, "a call came")
        assert await two.save(started)
        assert await one.box(box.id) == started


async def test_the_time_of_use_only_grows(tmp_path: Path):
    async with two_servers(tmp_path) as (one, two):
        box = new_box()
        await one.add(box, Room())
        await one.save(box.touched(300.0))
        await two.save(box.touched(200.0))
        assert (await one.boxes())[0].used == 300.0


async def test_an_older_state_does_not_replace_a_newer(tmp_path: Path):
    async with two_servers(tmp_path) as (one, two):
        box = new_box().moved(Move.START, 150.0)
        await one.add(box, Room())
        frozen = box.moved(Move.FREEZE, 200.0, "idle")
        await one.save(frozen)
        assert await two.save(box.touched(300.0))
        assert await one.box(box.id) == frozen.touched(300.0)


async def test_a_removed_box_stays_removed(tmp_path: Path):
    async with two_servers(tmp_path) as (one, two):
        box = new_box()
        await one.add(box, Room())
        await two.remove(box.id)
        assert not await one.save(box.moved(Move.START, 200.0))
        assert await two.boxes() == []


async def test_a_conversation_has_one_own_box_per_principal(tmp_path: Path):
    async with two_servers(tmp_path) as (one, two):
        first, second = mint_id(), mint_id()
        assert await one.own_box(LOCAL, "talk") is None
        await one.set_own_box(LOCAL, "talk", first)
        await one.set_own_box(SOMEBODY, "talk", second)
        assert await two.own_box(LOCAL, "talk") == first
        assert await two.own_box(SOMEBODY, "talk") == second
        await two.set_own_box(LOCAL, "talk", second)
        assert await one.own_box(LOCAL, "talk") == second


async def test_removing_a_box_forgets_whose_own_it_was(tmp_path: Path):
    async with two_servers(tmp_path) as (one, two):
        box, other = new_box(), new_box()
        for each in (box, other):
            await one.add(each, Room())
        await one.set_own_box(LOCAL, "a", box.id)
        await one.set_own_box(LOCAL, "b", box.id)
        await one.set_own_box(LOCAL, "c", other.id)
        await two.remove(box.id)
        assert await one.own_box(LOCAL, "a") is None
        assert await one.own_box(LOCAL, "b") is None
        assert await one.own_box(LOCAL, "c") == other.id


@pytest.mark.skipif(os.name == "nt", reason="modes are POSIX's")
async def test_the_directory_is_the_users_alone(tmp_path: Path):
    path = tmp_path / "deep" / "state"
    async with two_servers(path) as (one, _):
        await one.boxes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


async def test_a_closed_store_opens_again(tmp_path: Path):
    async with two_servers(tmp_path) as (one, _):
        box = new_box()
        await one.add(box, Room())
        await one.aclose()
        await one.aclose()
        assert await one.boxes() == [box]


async def test_what_a_newer_version_wrote_is_refused_and_left_alone(tmp_path: Path):
    path = tmp_path / "state.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    async with two_servers(tmp_path) as (one, _):
        for _ in range(2):
            with pytest.raises(StoreUnusable, match="a newer box_mcp wrote it") as failure:
                await one.boxes()
            assert failure.value.path == path
            assert isinstance(failure.value, BoxError)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS) + 1,)
        assert database.execute("SELECT name FROM sqlite_master").fetchall() == []


async def test_a_directory_that_can_not_be_made_is_refused_with_words(tmp_path: Path):
    (tmp_path / "file").touch()
    async with two_servers(tmp_path / "file" / "state") as (one, _):
        with pytest.raises(StoreUnusable):
            await one.own_box(LOCAL, "talk")


def test_servers_that_start_at_once_make_one_file(tmp_path: Path):
    """Threads that meet at a barrier stand for processes; SQLite treats them alike."""
    failures: list[BaseException] = []

    def serve(path: Path, barrier: threading.Barrier) -> None:
        async def keep() -> None:
            store = Store(path)
            barrier.wait(10)
            await store.add(new_box(), Room())
            await store.aclose()

        try:
            anyio.run(keep)
        except BaseException as failure:  # noqa: BLE001 - of any kind
            failures.append(failure)

    for attempt in range(12):
        barrier = threading.Barrier(6)
        path = tmp_path / f"{attempt}.db"
        threads = [threading.Thread(target=serve, args=(path, barrier)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert failures == []


# Spares, limits, other servers


async def test_a_spare_is_kept_and_becomes_somebodys_once(tmp_path: Path):
    async with two_servers(tmp_path) as (one, two):
        spare = replace(new_box(), principal=None, state=State.RUNNING)
        await one.add(spare, Room(boxes=0))
        assert await two.boxes() == [spare]
        terms = Terms(labels={"a": "b"}, ttl=5.0, keep_awake=True)
        mine = replace(spare.assigned(LOCAL, IT, 300.0, terms), created=250.0)
        assert await two.assign(mine, Room())
        assert await one.box(spare.id) == mine
        assert not await one.assign(spare.assigned(SOMEBODY, None, 301.0, Terms()), Room())
        assert await one.box(spare.id) == mine


async def test_a_spare_that_is_gone_is_nobodys(tmp_path: Path):
    async with two_servers(tmp_path) as (one, _):
        assert not await one.assign(new_box(), Room())
        assert await one.boxes() == []


async def test_a_spare_is_not_assigned_against_a_name_or_a_limit(tmp_path: Path):
    async with two_servers(tmp_path) as (one, two):
        await one.add(new_box(IT), Room())
        spare = replace(new_box(), principal=None)
        await one.add(spare, Room())
        with pytest.raises(NameInUse):
            await two.assign(spare.assigned(LOCAL, IT, 1.0, Terms()), Room())
        with pytest.raises(Full, match="own_boxes"):
            await two.assign(spare.assigned(LOCAL, None, 1.0, Terms()), Room(own_boxes=1))
        assert await one.box(spare.id) == spare
        assert await two.assign(spare.assigned(SOMEBODY, IT, 1.0, Terms()), Room(own_boxes=1))


async def test_a_box_too_many_is_not_kept(tmp_path: Path):
    async with two_servers(tmp_path) as (one, two):
        await one.add(new_box(), Room(boxes=1))
        with pytest.raises(Full, match="boxes"):
            await two.add(new_box(), Room(boxes=1))
        assert len(await one.boxes()) == 1


async def test_room_is_reserved_for_as_many_as_may_run(tmp_path: Path):
    async with two_servers(tmp_path) as (one, two):
        first, second = new_box(), new_box()
        for box in (first, second):
            await one.add(box, Room())
        assert await one.reserve(first, Room(awake=1))
        assert await one.reserve(first, Room(awake=1))
        assert not await two.reserve(second, Room(awake=1))
        assert [box.reason for box in await two.boxes()] == ["about to run", ""]
        assert [box.state for box in await two.boxes()] == [State.CREATED, State.CREATED]
        await one.save(replace(first, state=State.STOPPED))
        assert await two.reserve(second, Room(awake=1))


async def test_of_servers_that_race_for_the_last_place_one_wins(tmp_path: Path):
    stores = [Store(tmp_path / "state.db") for _ in range(6)]
    spare = replace(new_box(), principal=None)
    await stores[0].add(spare, Room())
    won: list[str] = []

    async def race(store: Store, number: int) -> None:
        mine = spare.assigned(Principal(f"p{number}"), None, 1.0, Terms())
        if await store.assign(mine, Room()):
            won.append("spare")
        with suppress(Full):
            await store.add(new_box(), Room(boxes=2))
            won.append("place")

    async with anyio.create_task_group() as group:
        for number, store in enumerate(stores):
            group.start_soon(race, store, number)
    assert sorted(won) == ["place", "spare"]
    for store in stores:
        await store.aclose()


async def test_a_server_notices_what_others_wrote_and_not_its_own(tmp_path: Path):
    async with two_servers(tmp_path) as (one, two):
        await one.changed()
        await two.changed()
        await one.add(new_box(), Room())
        assert await two.changed()
        assert not await two.changed()
        assert not await one.changed()


async def test_the_file_of_an_older_version_is_taken_over(tmp_path: Path):
    path = tmp_path / "state.db"
    with closing(sqlite3.connect(path)) as database:
        database.executescript(MIGRATIONS[0] + "PRAGMA user_version = 1;")
        record = '{"image": "i", "cpus": 1.0, "memory": 1, "of_another_version": 1}'
        row = ("box-aaaaaaaa", "local", "it", "frozen", record, 1.0, 2.0, 3.0, "idle")
        database.execute("INSERT INTO boxes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        database.execute("INSERT INTO sessions VALUES ('local', 'talk', 'box-aaaaaaaa')")
        database.commit()
    async with two_servers(tmp_path) as (one, two):
        assert await one.boxes() == [
            Box(
                BoxId("box-aaaaaaaa"),
                BoxSpec("i", 1.0, 1),
                created=1.0,
                state=State.FROZEN,
                principal=LOCAL,
                name=IT,
                used=2.0,
                since=3.0,
                reason="idle",
            )
        ]
        assert await two.own_box(LOCAL, "talk") == "box-aaaaaaaa"


# A file that was lost


async def kept(path: Path) -> Box:
    """A box of a conversation's own, remembered by a server that is gone."""
    async with two_servers(path) as (one, _):
        box = replace(new_box(IT), terms=Terms(labels={"a": "b"}), state=State.FROZEN)
        await one.add(box, Room())
        await one.set_own_box(LOCAL, "talk", box.id)
        await one.set_own_box(LOCAL, "another", box.id)
        spare = replace(new_box(), principal=None)
        await one.add(spare, Room())
        gone = new_box()
        await one.add(gone, Room())
        await one.remove(gone.id)
    return box


def set_aside(directory: Path) -> list[Path]:
    return list(directory.glob("state.db.corrupt-*"))


@pytest.mark.parametrize("damage", ["zeros", "text", "removed", "middle"])
async def test_boxes_are_remembered_though_the_file_is_damaged(tmp_path: Path, damage: str):
    box = await kept(tmp_path)
    path = tmp_path / "state.db"
    match damage:
        case "zeros":
            path.write_bytes(b"\xff" * 8192)
        case "text":
            path.write_text("this is no database, and never was one\n" * 200)
        case "removed":
            path.unlink()
        case _:
            data = path.read_bytes()
            path.write_bytes(data[:100] + b"\xff" * (len(data) - 100))
    async with two_servers(tmp_path) as (one, two):
        (found,) = await one.boxes()
        assert (found.id, found.principal, found.name) == (box.id, LOCAL, IT)
        assert (found.spec, found.terms, found.created) == (box.spec, box.terms, box.created)
        assert found.reason == "rebuilt from its record"
        assert box.caught_up(found).state is box.state, "whoever knows better is believed"
        for talk in ("talk", "another"):
            assert await two.own_box(LOCAL, talk) == box.id
    assert bool(set_aside(tmp_path)) == (damage != "removed")


async def test_a_file_that_is_damaged_under_its_servers_is_made_anew_once(tmp_path: Path):
    box = await kept(tmp_path)
    async with two_servers(tmp_path) as (one, two):
        await one.boxes()
        await two.boxes()
        await two.changed()
        for name in ("state.db", "state.db-wal", "state.db-shm"):
            (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / "state.db").write_bytes(b"\xff" * 8192)
        await one.changed()
        await two.changed()
        assert [found.id for found in await one.boxes()] == [box.id]
        other = new_box()
        await two.add(other, Room())
        assert {found.id for found in await one.boxes()} == {box.id, other.id}
    assert len(set_aside(tmp_path)) == 1


async def test_a_record_that_can_not_be_read_stays_and_the_others_are_taken(tmp_path: Path):
    box = await kept(tmp_path)
    (tmp_path / "state.db").unlink()
    strange = tmp_path / "records" / "box-zzzzzzzz.json"
    strange.write_text('{"id": 3}')
    async with two_servers(tmp_path) as (one, _):
        assert [found.id for found in await one.boxes()] == [box.id]
    assert strange.exists()


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
SPECS = st.builds(
    BoxSpec,
    image=TEXTS,
    cpus=st.floats(0.1, 64),
    memory=st.integers(0, 2**40),
    size=TEXTS,
    pids=st.integers(1, 2**20),
    env=st.dictionaries(TEXTS, TEXTS, max_size=3),
    sudo=st.booleans(),
    orphan_after=st.floats(0, 1e9),
)


@settings(max_examples=30, database=None)
@given(SPECS, TEXTS, st.floats(0, 1e12))
def test_any_box_comes_back_as_it_was_kept(
    tmp_path_factory: pytest.TempPathFactory, spec: BoxSpec, reason: str, time: float
):
    async def keep() -> None:
        async with two_servers(tmp_path_factory.mktemp("state")) as (one, two):
            box = replace(new_box(), spec=spec, reason=reason, created=time, used=time, since=time)
            await one.add(box, Room())
            assert await two.box(box.id) == box

    anyio.run(keep)
