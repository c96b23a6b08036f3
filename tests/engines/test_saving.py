"""What engines promise of saved boxes, changes, usage and preparation: the fake one and Docker."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from requests import Response

from box_mcp.capabilities.files import Files
from box_mcp.domain.network import Mode, Network
from box_mcp.engines import saving
from box_mcp.engines.base import Change, ChangeKind, Condition
from box_mcp.engines.docker import DockerEngine
from box_mcp.engines.fake import FakeEngine
from box_mcp.engines.isolation import Isolation
from box_mcp.errors import EngineRefused, ImageMissing
from tests.support.client import docker
from tests.support.engines import IMAGE, MEBI, RUN, SPEC, Workshop, channel_to, run, said, workshop

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from box_mcp.domain.names import BoxId
    from box_mcp.engines.base import Saved
    from tests.engines.conftest import Images
    from tests.support.second_engine import Machine

ENGINES: dict[str, Callable[[], FakeEngine | DockerEngine]] = {
    "fake": lambda: FakeEngine({IMAGE: True}),
    "docker": lambda: DockerEngine(Isolation(owner=f"test-{RUN}")),
}
ABOUT = {"box_mcp.snapshot": '{"any": "words, \\"quoted\\""}'}
on_docker = pytest.mark.parametrize("kind", ["docker"])


@pytest.fixture(params=ENGINES)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
async def shop(kind: str) -> AsyncGenerator[Workshop, None]:
    engine = ENGINES[kind]()
    async with workshop(engine) as shop:
        yield shop
        for box in shop.made:
            await engine.delete(box)
        for image in await engine.saved():
            await engine.drop(image.image)
        assert await engine.saved() == [], "an image was left behind"


async def write(shop: Workshop, box: BoxId, path: str, content: bytes) -> None:
    async with channel_to(shop.engine, box) as channel:
        await Files(channel).write(path, content)


async def read(shop: Workshop, box: BoxId, path: str) -> bytes:
    async with channel_to(shop.engine, box) as channel:
        return (await Files(channel).read(path, 1, 99, 9999)).content


async def images(shop: Workshop) -> list[str]:
    return [image.image for image in await shop.engine.saved()]


@on_docker
async def test_no_box_is_made_from_a_snapshot_of_somebody_elses(shop: Workshop):
    saved = await shop.engine.save(await shop.running(), "it", ABOUT)
    async with workshop(DockerEngine(Isolation(owner="somebody"))) as theirs:
        with pytest.raises(ImageMissing):
            await theirs.running(image=saved.image)


@pytest.mark.parametrize("state", [Condition.RUNNING, Condition.FROZEN, Condition.STOPPED])
async def test_a_box_is_saved_in_any_state_and_stays_in_it(shop: Workshop, state: Condition):
    box = await shop.running()
    await write(shop, box, "kept", b"as it was\n")
    if state is Condition.FROZEN:
        await shop.engine.freeze(box)
    elif state is Condition.STOPPED:
        await shop.engine.stop(box)
    saved = await shop.engine.save(box, "it", ABOUT)
    assert await shop.condition(box) is state
    await shop.engine.delete(box)
    copy = await shop.running(image=saved.image)
    assert await read(shop, copy, "kept") == b"as it was\n"


async def test_a_saved_image_tells_what_it_was_told_and_its_size(shop: Workshop):
    box = await shop.running()
    await write(shop, box, "large", b"x" * MEBI)
    saved = await shop.engine.save(box, "it", ABOUT)
    (listed,) = await shop.engine.saved()
    for image in (saved, listed):
        assert image.image == saved.image
        assert ABOUT.items() <= image.labels.items()
        assert MEBI <= image.added <= image.size
        assert image.added < 2 * MEBI
        assert abs(image.created - saved.created) < 2


async def test_what_was_written_on_a_saved_image_is_told_and_of_others_nothing(shop: Workshop):
    saved = await shop.engine.save(await shop.running(), "it", ABOUT)
    told = await shop.engine.labels(saved.image)
    assert told is not None
    assert ABOUT.items() <= told.items()
    assert await shop.engine.labels(IMAGE) is None
    with pytest.raises(ImageMissing):
        await shop.engine.labels("no-such:image")


@on_docker
async def test_a_saved_image_is_known_by_any_name_that_the_engine_takes(shop: Workshop):
    saved = await shop.engine.save(await shop.running(), "it", ABOUT)
    known = docker("image", "inspect", "-f", "{{.Id}}", saved.image)
    for name in (known, known[:19], known.removeprefix("sha256:")[:12]):
        assert await shop.engine.labels(name) is not None
    async with workshop(DockerEngine(Isolation(owner="somebody"))) as theirs:
        with pytest.raises(ImageMissing):
            await theirs.engine.labels(known)


@on_docker
async def test_copies_without_a_name_count_for_the_oldest_that_stands_on_them(shop: Workshop):
    part = 4 * MEBI  # boxd's own files are less than one
    first = await shop.running()
    await write(shop, first, "first", b"x" * part)
    below = await shop.engine.save(first, "below", ABOUT)
    tags = ("older", "newer")
    for tag in tags:
        box = await shop.running(image=below.image)
        await write(shop, box, tag, b"x" * 2 * part)
        await shop.engine.save(box, tag, ABOUT)
        await shop.engine.delete(box)
    assert [one.added // part for one in await shop.engine.saved()] == [1, 2, 2]
    await shop.engine.delete(first)
    await shop.engine.drop(below.image)
    assert sorted(one.added // part for one in await shop.engine.saved()) == [2, 3]
    await shop.engine.drop((await images(shop))[0])
    assert [one.added // part for one in await shop.engine.saved()] == [3]


async def test_a_tag_that_is_saved_again_means_the_newer(shop: Workshop):
    box = await shop.running()
    await write(shop, box, "kept", b"old\n")
    await shop.engine.save(box, "it", ABOUT)
    await write(shop, box, "kept", b"new\n")
    saved = await shop.engine.save(box, "it", ABOUT)
    assert await images(shop) == [saved.image]
    assert await read(shop, await shop.running(image=saved.image), "kept") == b"new\n"


async def test_a_dropped_image_is_no_more_but_its_boxes_go_on(shop: Workshop):
    saved = await shop.engine.save(await shop.running(), "it", ABOUT)
    box = await shop.running(image=saved.image)
    await write(shop, box, "mine", b"own\n")
    await shop.engine.drop(saved.image)
    assert saved.image not in await images(shop)
    with pytest.raises(ImageMissing):
        await shop.created(image=saved.image)
    await shop.engine.stop(box)
    await shop.engine.start(box)
    again = await shop.engine.save(box, "again", ABOUT)
    assert await read(shop, await shop.running(image=again.image), "mine") == b"own\n"
    for one in shop.made:
        await shop.engine.delete(one)
    assert await images(shop) == [again.image]
    for _ in range(2):
        await shop.engine.drop(again.image)
    assert await images(shop) == []


async def test_an_image_without_tag_goes_with_the_last_box_made_of_it(shop: Workshop):
    fork = await shop.engine.save(await shop.running(), None, ABOUT)
    one, two = await shop.running(image=fork.image), await shop.running(image=fork.image)
    await shop.engine.delete(one)
    assert await images(shop) == [fork.image]
    await shop.engine.delete(two)
    assert await images(shop) == []


async def test_an_image_without_tag_that_no_box_was_made_of_can_be_dropped(shop: Workshop):
    fork = await shop.engine.save(await shop.running(), None, ABOUT)
    await shop.engine.drop(fork.image)
    assert await images(shop) == []


async def test_what_is_not_a_saved_box_is_not_dropped(shop: Workshop):
    with pytest.raises(EngineRefused, match=IMAGE):
        await shop.engine.drop(IMAGE)
    assert await shop.created()  # it is there still
    await shop.engine.drop("box-mcp-snapshot:never-was")


async def test_a_box_is_saved_twice_at_once(shop: Workshop):
    box = await shop.running()
    made: list[Saved] = []

    async def save(tag: str) -> None:
        made.append(await shop.engine.save(box, tag, ABOUT))

    async with anyio.create_task_group() as group:
        for tag in ("one", "two"):
            group.start_soon(save, tag)
    assert sorted(await images(shop)) == sorted(image.image for image in made)
    assert await shop.condition(box) is Condition.RUNNING


async def test_what_became_of_a_boxs_files_is_told(shop: Workshop):
    first = await shop.running()
    for path in ("gone", "changed", "untouched"):
        await write(shop, first, path, b"old\n")
    saved = await shop.engine.save(first, "it", ABOUT)
    box = await shop.running(image=saved.image)
    assert await shop.engine.changes(box) == []
    await write(shop, box, "changed", b"new\n")
    await write(shop, box, "added here", b"\n")
    added, changed = ChangeKind.ADDED, ChangeKind.CHANGED
    told = [one for one in await shop.engine.changes(box) if one.path.startswith("/workspace/")]
    assert told == [
        Change("/workspace/added here", added),
        Change("/workspace/changed", changed),
    ]


@on_docker
async def test_odd_names_and_deletions_are_told_and_nothing_of_ours(shop: Workshop):
    box = await shop.running()
    async with channel_to(shop.engine, box) as channel:
        await said(channel, "touch '/tmp/a b' $'/tmp/new\\nline' /tmp/\u00e9; sudo rm /etc/motd")
        told = {one.path: one.kind for one in await shop.engine.changes(box)}
    assert told.pop("/etc/motd") is ChangeKind.DELETED
    assert {path for path, kind in told.items() if kind is ChangeKind.ADDED} >= {
        "/tmp/a b",
        "/tmp/new\nline",
        "/tmp/\u00e9",
    }
    assert not [path for path in told if "box_mcp" in path or "docker-init" in path]


@on_docker
async def test_a_restored_box_is_as_its_origin_was(shop: Workshop):
    box = await shop.running(env={"GREETING": "two\nlines"})
    saved = await shop.engine.save(box, "it", ABOUT)
    copy = await shop.running(image=saved.image)
    look = "id -un; pwd; printenv GREETING; echo $0; sudo id -u"
    async with channel_to(shop.engine, box) as one, channel_to(shop.engine, copy) as two:
        assert await said(two, look) == await said(one, look)


@on_docker
async def test_a_restored_box_runs_commands_as_the_user_of_the_first_image(
    shop: Workshop, images: Images
):
    saved = await shop.engine.save(await shop.running(image=images.worker), "it", ABOUT)
    async with channel_to(shop.engine, await shop.running(image=saved.image)) as channel:
        assert await said(channel, "id -un") == "worker"


@on_docker
async def test_commands_stand_still_while_a_box_is_saved_and_go_on(shop: Workshop):
    box = await shop.running()
    async with channel_to(shop.engine, box) as channel:
        await said(
            channel,
            "nohup sh -c 'while :; do date +%N >> ticks; done' > /dev/null 2>&1 &"
            "until [ -s ticks ]; do sleep .02; done",
        )
        await shop.engine.save(box, "it", ABOUT)
        before = int(await said(channel, "wc -l < ticks"))
        await said(channel, f"until [ $(wc -l < ticks) -gt {before} ]; do sleep .02; done")


async def test_too_many_layers_become_one(
    host: Machine, host_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DOCKER_HOST", host.host)  # whose image is smaller: it is saved as a whole
    async with workshop(ENGINES["docker"]()) as shop:
        engine = shop.engine
        assert isinstance(engine, DockerEngine)
        api: Any = engine.api

        def layers(image: str) -> int:
            return len(api.inspect_image(image)["RootFS"]["Layers"])

        most = layers(SPEC.image) + 1
        monkeypatch.setattr(saving, "MAX_LAYERS", most)
        box, image = await shop.running(env={"GREETING": "two\nlines"}), ""
        heights: list[int] = []
        for number in range(4):
            await write(shop, box, f"file-{number}", b"kept\n")
            image = (await shop.engine.save(box, f"it-{number}", ABOUT)).image
            heights.append(layers(image))
            await shop.engine.delete(box)
            box = await shop.running(image=image)
        look = "ls | wc -l; printenv GREETING; id -un"
        async with channel_to(shop.engine, box) as channel:
            assert await said(channel, look) == "4\ntwo\nlines\nbox"
            assert await said(channel, "sudo cat /etc/shadow | wc -l") != "0"
        assert max(heights) <= most
        assert 1 in heights


async def test_a_prepared_box_is_made_and_deleted_as_any_other(shop: Workshop):
    box = shop.new_id()
    for _ in range(2):
        await shop.engine.prepare(box)
    await shop.engine.create(box, SPEC)
    await shop.engine.start(box)
    assert await shop.condition(box) is Condition.RUNNING
    await shop.engine.delete(box)
    assert await shop.listed(box) is None
    await shop.engine.prepare(box)
    await shop.engine.delete(box)
    assert await shop.listed(box) is None


async def test_what_is_made_ahead_is_listed_as_absent_until_it_is_deleted(shop: Workshop):
    box = shop.new_id()
    await shop.engine.prepare(box)
    listed = [found for found in await shop.engine.list() if found.box == box]
    assert [found.condition for found in listed] == [Condition.ABSENT]
    assert await shop.condition(box) is Condition.ABSENT
    for _ in range(2):
        await shop.engine.delete(box)
        assert await shop.listed(box) is None


@on_docker
async def test_what_was_prepared_may_be_cleaned_away_by_others(shop: Workshop):
    box = shop.new_id()
    await shop.engine.prepare(box)
    assert (await shop.listed(box)) is not None
    await ENGINES["docker"]().delete(box)
    await shop.engine.create(box, SPEC)
    await shop.engine.start(box)
    assert await shop.condition(box) is Condition.RUNNING


async def test_a_box_that_never_ran_has_changed_nothing_and_holds_no_memory(shop: Workshop):
    box = await shop.created()
    assert await shop.engine.changes(box) == []
    assert (await shop.engine.usage(box)).memory == 0
    assert await shop.condition(box) is Condition.CREATED


async def test_memory_is_held_until_a_box_stops_and_files_for_ever(shop: Workshop):
    box = await shop.running()
    before = await shop.engine.usage(box)
    await write(shop, box, "large", b"x" * 4 * MEBI)
    await shop.engine.freeze(box)
    frozen = await shop.engine.usage(box)
    await shop.engine.stop(box)
    stopped = await shop.engine.usage(box)
    assert before.memory
    assert frozen.memory
    assert before.disk is not None
    assert frozen.disk is not None
    assert frozen.disk - before.disk >= 4 * MEBI
    assert (stopped.memory, stopped.disk) == (0, frozen.disk)


@on_docker
async def test_memory_of_a_command_is_seen(shop: Workshop):
    box = await shop.running()
    async with channel_to(shop.engine, box) as channel:
        before = (await shop.engine.usage(box)).memory
        hog = "python3 -c 'import time; x = b\"x\" * 50_000_000; print(flush=True); time.sleep(99)'"
        await said(channel, f"(nohup {hog} 2>&1 &) | head -n 1")
        held = (await shop.engine.usage(box)).memory
        assert before is not None
        assert held is not None
        assert held - before > 45_000_000


async def test_the_disk_has_room(shop: Workshop):
    free = await shop.engine.free_disk()
    assert free is not None
    assert free > 0


@on_docker
async def test_a_box_without_network_has_its_loopback_alone(shop: Workshop):
    box = await shop.running(network=Network(Mode.NONE))
    async with channel_to(shop.engine, box) as channel:
        assert await said(channel, "ls /sys/class/net") == "lo"
        assert (await run(channel, "curl -m 3 http://192.0.2.1/")).failed
    await shop.engine.stop(box)
    await shop.engine.start(box)
    async with channel_to(shop.engine, box) as channel:
        assert await said(channel, "ls /sys/class/net") == "lo"


@pytest.mark.parametrize(
    ("status", "said", "fine"),
    [
        (500, "unrecognized image ID sha256:0123", True),
        (409, "image has dependent child images", True),
        (500, "no space left on device", False),
    ],
)
def test_a_copy_that_another_call_removes_at_the_same_time_is_gone(
    status: int, said: str, fine: bool
):
    from docker.errors import APIError

    def remove_image(image: str) -> None:
        response = Response()
        response.status_code = status
        raise APIError(image, response, said)

    api: Any = SimpleNamespace(
        inspect_image=lambda _: {"RepoTags": []},  # pyright: ignore[reportUnknownLambdaType]
        remove_image=remove_image,
    )
    with nullcontext() if fine else pytest.raises(APIError):
        labels = {saving.SAVED_LABEL: "anybody"}
        saving.drop_unused(api, {"Config": {"Labels": labels}, "Image": "sha256:0123"})


@pytest.mark.parametrize("what", ["save", "changes", "usage"])
async def test_there_is_nothing_to_tell_of_a_box_that_is_not_there(shop: Workshop, what: str):
    box = shop.new_id()
    requests = {
        "save": lambda: shop.engine.save(box, "it", ABOUT),
        "changes": lambda: shop.engine.changes(box),
        "usage": lambda: shop.engine.usage(box),
    }
    with pytest.raises(EngineRefused):
        await requests[what]()
