"""What every engine promises (see `Engine`), held against the fake one and the real one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest
from anyio import to_thread

from box_mcp.capabilities.files import Files
from box_mcp.channel import open_channel
from box_mcp.domain.names import mint_id
from box_mcp.engines.base import Condition, Engine, PipeClosed
from box_mcp.engines.docker import DockerEngine
from box_mcp.engines.fake import FakeEngine
from box_mcp.engines.isolation import LABEL
from box_mcp.errors import (
    CallInterrupted,
    EngineRefused,
    EngineUnreachable,
    ImageMissing,
    ImageUnusable,
)
from tests.support.engines import (
    IMAGE,
    PATIENCE,
    RUN,
    SPEC,
    Workshop,
    channel_to,
    run,
    said,
    that_leaves_sockets_behind,
    workshop,
)
from tests.support.faults import FaultyEngine, NoAnswer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from pathlib import Path

    from box_mcp.domain.names import BoxId
    from tests.engines.conftest import Images

    Step = Callable[[Engine, BoxId], Awaitable[object]]

NO_PYTHON = f"box-mcp-test:no-python-{RUN}"

ENGINES: dict[str, Callable[[], FakeEngine | DockerEngine]] = {
    "fake": lambda: FakeEngine({IMAGE: True, NO_PYTHON: False}),
    "docker": DockerEngine,
}
RUNNING_COMMANDS = [name for name, make in ENGINES.items() if make().abilities.runs_commands]

that_runs_commands = pytest.mark.parametrize("kind", RUNNING_COMMANDS)


@pytest.fixture(params=ENGINES)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
async def shop(kind: str) -> AsyncGenerator[Workshop, None]:
    async with workshop(ENGINES[kind]()) as shop:
        yield shop


@pytest.fixture(scope="module", params=ENGINES)
async def shared(request: pytest.FixtureRequest) -> AsyncGenerator[Workshop, None]:
    """For tests that leave its one box, which runs, as they found it."""
    async with workshop(ENGINES[request.param]()) as shop:
        await shop.running()
        yield shop


OPERATIONS: dict[str, Step] = {
    "prepare": lambda engine, box: engine.prepare(box),
    "create": lambda engine, box: engine.create(box, SPEC),
    "start": lambda engine, box: engine.start(box),
    "freeze": lambda engine, box: engine.freeze(box),
    "thaw": lambda engine, box: engine.thaw(box),
    "stop": lambda engine, box: engine.stop(box),
    "delete": lambda engine, box: engine.delete(box),
    "inspect": lambda engine, box: engine.inspect(box),
    "list": lambda engine, _: engine.list(),
    "attach": lambda engine, box: engine.attach(box, attached=False),
    "save": lambda engine, box: engine.save(box, "tag", {}),
    "saved": lambda engine, _: engine.saved(),
    "drop": lambda engine, _: engine.drop("box-mcp-snapshot:tag"),
    "labels": lambda engine, _: engine.labels("box-mcp-snapshot:tag"),
    "changes": lambda engine, box: engine.changes(box),
    "usage": lambda engine, box: engine.usage(box),
    "free_disk": lambda engine, _: engine.free_disk(),
    "free_files": lambda engine, _: engine.free_files(),
    "last_words": lambda engine, box: engine.last_words(box),
    "open_channel": lambda engine, box: engine.open_channel(box),
    "open_pipe": lambda engine, box: engine.open_pipe(box, "token"),
}
"""All that an engine can be asked to do."""


def test_each_operation_is_held_to_the_contract():
    public = {name for name in vars(Engine) if not name.startswith("_")}
    assert set(OPERATIONS) == public - {"abilities", "aclose", "keep"}  # these ask for nothing


@that_leaves_sockets_behind
async def test_each_operation_tells_when_there_is_no_engine(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    async with workshop(FaultyEngine(NoAnswer()) if kind == "fake" else DockerEngine()) as shop:
        for operate in OPERATIONS.values():
            with pytest.raises(EngineUnreachable) as unreachable:
                await operate(shop.engine, mint_id())
            assert unreachable.value.detail
            assert "Boxes and their files are untouched" in unreachable.value.explain()


async def created(engine: Engine, box: BoxId) -> None:
    await engine.create(box, SPEC)


async def running(engine: Engine, box: BoxId) -> None:
    await created(engine, box)
    await engine.start(box)


async def frozen(engine: Engine, box: BoxId) -> None:
    await running(engine, box)
    await engine.freeze(box)


async def stopped(engine: Engine, box: BoxId) -> None:
    await running(engine, box)
    await engine.stop(box)


async def absent(engine: Engine, box: BoxId) -> None:
    pass


async def test_each_step_brings_the_box_where_it_should_be_and_may_be_repeated(shop: Workshop):
    engine, box = shop.engine, await shop.created()
    assert await shop.condition(box) is Condition.CREATED
    for step, expected in (
        (engine.stop, Condition.CREATED),  # it never ran: there is nothing to end
        (engine.start, Condition.RUNNING),
        (engine.thaw, Condition.RUNNING),
        (engine.freeze, Condition.FROZEN),
        (engine.thaw, Condition.RUNNING),
        (engine.stop, Condition.STOPPED),
        (engine.start, Condition.RUNNING),
        (engine.freeze, Condition.FROZEN),
        (engine.stop, Condition.STOPPED),
        (engine.delete, Condition.ABSENT),
    ):
        for _ in range(2):
            await step(box)
            found = await engine.inspect(box)
            assert (found.box, found.condition) == (box, expected), step


@pytest.mark.parametrize("state", [created, running, frozen, stopped, absent])
async def test_a_box_can_be_deleted_from_any_state(shop: Workshop, state: Step):
    box = shop.new_id()
    await state(shop.engine, box)
    await shop.engine.delete(box)
    assert await shop.condition(box) is Condition.ABSENT
    assert await shop.listed(box) is None


async def test_repeating_at_the_same_time_does_no_harm(shop: Workshop):
    engine, box = shop.engine, await shop.created()
    for step, expected in (
        (engine.start, Condition.RUNNING),
        (engine.freeze, Condition.FROZEN),
        (engine.thaw, Condition.RUNNING),
        (engine.stop, Condition.STOPPED),
        (engine.delete, Condition.ABSENT),
    ):
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(step, box)
        assert await shop.condition(box) is expected
    assert await shop.listed(box) is None


async def test_why_a_box_does_not_run_is_told_and_no_reason_is_given_for_one_that_does(
    shop: Workshop,
):
    assert (await shop.engine.inspect(shop.new_id())).detail
    box = await shop.created()
    assert not (await shop.engine.inspect(box)).detail
    await shop.engine.start(box)
    assert not (await shop.engine.inspect(box)).detail
    await shop.engine.freeze(box)
    assert not (await shop.engine.inspect(box)).detail
    await shop.engine.stop(box)
    assert (await shop.engine.inspect(box)).detail


async def test_boxes_bear_our_label_and_are_found_by_it_in_every_state(shop: Workshop):
    states = {
        await shop.created(): Condition.CREATED,
        await shop.running(): Condition.RUNNING,
    }
    for state, expected in ((frozen, Condition.FROZEN), (stopped, Condition.STOPPED)):
        box = shop.new_id()
        await state(shop.engine, box)
        states[box] = expected
    never_made = shop.new_id()
    listed = {found.box: found for found in await shop.engine.list()}
    assert {box: listed[box].condition for box in states} == states
    assert never_made not in listed
    for box in states:
        assert listed[box].labels[LABEL] == box
        assert (await shop.engine.inspect(box)).labels[LABEL] == box


@pytest.mark.parametrize("state", [created, stopped])
async def test_a_box_that_does_not_run_is_neither_frozen_nor_thawed_nor_connected_to(
    shop: Workshop, state: Step
):
    box = shop.new_id()
    await state(shop.engine, box)
    before = await shop.condition(box)
    for step in (shop.engine.freeze, shop.engine.thaw, shop.engine.open_channel):
        with pytest.raises(EngineRefused):
            await step(box)
        assert await shop.condition(box) is before


async def test_a_frozen_box_is_neither_started_nor_connected_to(shop: Workshop):
    box = await shop.running()
    await shop.engine.freeze(box)
    for step in (shop.engine.start, shop.engine.open_channel):
        with pytest.raises(EngineRefused):
            await step(box)
        assert await shop.condition(box) is Condition.FROZEN


@pytest.mark.parametrize("step", ["start", "freeze", "thaw", "stop", "last_words", "open_channel"])
async def test_what_needs_a_box_is_refused_where_there_is_none(shared: Workshop, step: str):
    with pytest.raises(EngineRefused) as refused:
        await getattr(shared.engine, step)(shared.new_id())
    assert refused.value.operation
    assert refused.value.detail


async def test_an_image_that_the_engine_lacks_is_named_and_nothing_is_left(shared: Workshop):
    box = shared.new_id()
    with pytest.raises(ImageMissing) as missing:
        await shared.created(image="box-mcp-test:never-made")
    assert missing.value.image == "box-mcp-test:never-made"
    assert await shared.condition(box) is Condition.ABSENT
    assert await shared.listed(shared.made[-1]) is None


async def test_an_image_without_python_is_told_at_the_start(shop: Workshop, images: Images):
    assert images.no_python == NO_PYTHON
    box = await shop.created(image=NO_PYTHON)
    for _ in range(2):
        with pytest.raises(ImageUnusable) as unusable:
            await shop.engine.start(box)
        assert unusable.value.image == NO_PYTHON
        assert "no python3" in unusable.value.detail


async def test_a_second_box_of_the_same_id_is_refused_and_the_first_is_left_alone(shop: Workshop):
    box = await shop.running()
    async with channel_to(shop.engine, box) as channel:
        with pytest.raises(EngineRefused):
            await shop.engine.create(box, SPEC)
        assert await shop.condition(box) is Condition.RUNNING
        assert await channel.request("processes")
    await shop.engine.stop(box)
    await shop.engine.start(box)  # needs its network, too


async def test_a_cancelled_creation_leaves_nothing_once_it_is_deleted(shop: Workshop):
    for turn in range(4):
        box = shop.new_id()
        with anyio.move_on_after(turn * 0.04):
            await shop.engine.create(box, SPEC)
        await shop.engine.delete(box)
        assert await shop.condition(box) is Condition.ABSENT
        assert await shop.listed(box) is None


async def test_a_channel_leads_to_a_daemon_that_greets(shared: Workshop):
    (box,) = shared.made[:1]
    channel = await open_channel(box, await shared.engine.open_channel(box))
    assert channel.hello["boot"]
    assert channel.hello["workspace"] == "/workspace"
    assert not channel.busy
    await channel.aclose()


async def test_channels_to_one_box_work_side_by_side(shared: Workshop):
    (box,) = shared.made[:1]
    async with (
        channel_to(shared.engine, box) as one,
        channel_to(shared.engine, box) as two,
        channel_to(shared.engine, box) as three,
    ):
        await Files(one).write("common", b"written through the first")
        await two.aclose()
        assert (await Files(three).read("common", 1, 10, 1000)).content.startswith(b"written")
        assert one.hello["boot"] == three.hello["boot"]


async def test_much_goes_through_a_channel_both_ways_unchanged(shared: Workshop):
    (box,) = shared.made[:1]
    content = (bytes(range(32, 127)) + b"\n") * 32_000
    async with channel_to(shared.engine, box) as channel:
        await Files(channel).write("large", content)
        assert (await Files(channel).read("large", 1, 10**6, 10**7)).content == content


async def test_a_closed_stream_says_so_and_may_be_closed_again(shared: Workshop):
    stream = await shared.engine.open_channel(shared.made[0])
    await stream.aclose()
    with pytest.raises(anyio.ClosedResourceError):
        await stream.receive()
    with pytest.raises(anyio.ClosedResourceError):
        await stream.send(b"too late")
    await stream.aclose()


async def test_whoever_waits_on_a_stream_hears_that_it_is_closed(shared: Workshop):
    stream = await shared.engine.open_channel(shared.made[0])

    async def wait() -> None:
        with pytest.raises(anyio.ClosedResourceError):
            await stream.receive()

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            await stream.aclose()


@pytest.mark.parametrize("end", ["stop", "delete"])
async def test_a_stream_ends_with_its_box_and_stays_at_its_end(shop: Workshop, end: str):
    box = await shop.running()
    stream = await shop.engine.open_channel(box)
    await getattr(shop.engine, end)(box)
    with anyio.fail_after(PATIENCE):
        for _ in range(2):
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()
        with pytest.raises(anyio.BrokenResourceError):
            await stream.send(b"anybody there?")
    await stream.aclose()


async def test_a_pipe_that_no_request_waits_for_ends_and_can_be_given_up(shared: Workshop):
    (box,) = shared.made[:1]
    if not shared.engine.abilities.opens_pipes:
        with pytest.raises(EngineRefused):
            await shared.engine.open_pipe(box, "token")
        return
    pipe = await shared.engine.open_pipe(box, "unheard of")
    with anyio.fail_after(PATIENCE):
        assert not await to_thread.run_sync(pipe.receive, memoryview.release)
    pipe.abort()
    with pytest.raises(PipeClosed):
        pipe.send(b"too late")
    pipe.close()


async def test_whoever_waits_on_a_pipe_hears_that_it_was_given_up(shared: Workshop):
    if not shared.engine.abilities.opens_pipes:
        return
    (box,) = shared.made[:1]
    async with (
        channel_to(shared.engine, box) as channel,
        channel.call("unpack", path="x", overwrite=False, pipe="word") as call,
    ):
        assert await anext(call.labelled()) == (-1, {"ready": True})
        pipe = await shared.engine.open_pipe(box, "word")

        def receive() -> None:
            with pytest.raises(PipeClosed):
                pipe.receive(lambda _: None)

        async with anyio.create_task_group() as group:
            group.start_soon(to_thread.run_sync, receive)
            while pipe.waiting_since is None:  # noqa: ASYNC110 - it happens in another thread
                await anyio.sleep(0.01)
            pipe.abort()
        pipe.close()


@pytest.mark.parametrize("end", ["stop", "delete"])
async def test_a_channel_ends_with_its_box_and_tells_it(shop: Workshop, end: str):
    box = await shop.running()
    told = anyio.Event()
    async with channel_to(shop.engine, box) as channel:
        channel.on_change = told.set
        await getattr(shop.engine, end)(box)
        await told.wait()
        assert not channel.open
        with pytest.raises(CallInterrupted):
            await channel.request("processes")


async def test_a_frozen_box_answers_nothing_until_it_is_thawed(shop: Workshop):
    box = await shop.running()
    answers: list[object] = []

    async with channel_to(shop.engine, box) as channel:

        async def ask() -> None:
            answers.append(await channel.request("processes"))

        await shop.engine.freeze(box)
        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            await shop.engine.inspect(box)
            assert not answers
            await shop.engine.thaw(box)
        assert len(answers) == 1


async def test_files_and_the_daemon_survive_a_freeze_and_files_alone_a_stop(shop: Workshop):
    box = await shop.running()
    async with channel_to(shop.engine, box) as channel:
        boot = channel.hello["boot"]
        await Files(channel).write("kept", b"as it was\n")
        await shop.engine.freeze(box)
        await shop.engine.thaw(box)
        assert (await Files(channel).read("kept", 1, 9, 99)).content == b"as it was\n"
    await shop.engine.stop(box)
    await shop.engine.start(box)
    async with channel_to(shop.engine, box) as channel:
        assert channel.hello["boot"] != boot
        assert (await Files(channel).read("kept", 1, 9, 99)).content == b"as it was\n"


@that_runs_commands
async def test_processes_survive_a_freeze_and_end_with_a_stop(shop: Workshop):
    box = await shop.running()
    async with channel_to(shop.engine, box) as channel:
        pid = await said(channel, "setsid sleep 1000 > /dev/null 2>&1 & echo $!")
        await shop.engine.freeze(box)
        await shop.engine.thaw(box)
        assert await said(channel, f"cat /proc/{pid}/comm") == "sleep"
    await shop.engine.stop(box)
    await shop.engine.start(box)
    async with channel_to(shop.engine, box) as channel:
        assert (await run(channel, "pgrep -xf 'sleep 1000'")).output == ""


@that_runs_commands
async def test_a_box_whose_daemon_ends_stops_and_can_be_started_again(shop: Workshop):
    box = await shop.running()
    told = anyio.Event()
    async with channel_to(shop.engine, box) as channel:
        channel.on_change = told.set
        with pytest.raises(CallInterrupted):
            await run(channel, "echo kept > kept; sudo kill -TERM 1")
        await told.wait()
    await shop.engine.stop(box)  # waits for the end that has begun
    assert (await shop.engine.inspect(box)).condition is Condition.STOPPED
    await shop.engine.start(box)
    async with channel_to(shop.engine, box) as channel:
        assert await said(channel, "cat kept") == "kept"


async def test_boxes_stay_as_they_are_when_their_engine_is_let_go_of(shared: Workshop):
    await shared.engine.aclose()
    await shared.engine.aclose()
    assert await shared.condition(shared.made[0]) is Condition.RUNNING
    assert await shared.engine.last_words(shared.made[0]) == ""
