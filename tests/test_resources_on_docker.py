"""Files of boxes as MCP resources, in both eras of the protocol, on real Docker."""

from __future__ import annotations

import base64
import json
import sqlite3
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from mcp import MCPError
from mcp.shared.subscriptions import ResourcesListChanged, ResourceUpdated
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    BlobResourceContents,
    EmptyResult,
    ResourceTemplateReference,
    ResourceUpdatedNotification,
    SubscribeRequest,
    SubscribeRequestParams,
    TextResourceContents,
    UnsubscribeRequest,
    UnsubscribeRequestParams,
)

from box_mcp.capabilities.watching import MAX_OWN_WATCHES
from box_mcp.domain.uris import TEMPLATE, file_uri
from tests.support.client import (
    ERAS,
    LEGACY,
    MODERN,
    PATIENCE,
    Server,
    container_state,
    serving,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from anyio.streams.memory import MemoryObjectReceiveStream

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
NOT_FOUND = {LEGACY: -32002, MODERN: INVALID_PARAMS}
BOX = "shared"

eras = pytest.mark.parametrize("era", ERAS)


class Told:
    """What a server said of changed resources."""

    def __init__(self, uris: MemoryObjectReceiveStream[str]) -> None:
        self._uris = uris

    async def next(self) -> str:
        """The URI of the next that changed."""
        with anyio.fail_after(PATIENCE):
            return await self._uris.receive()


@asynccontextmanager
async def subscribed(
    env: Mapping[str, str], era: str, *uris: str
) -> AsyncGenerator[tuple[Server, Told], None]:
    """A server whose client is told of changes."""
    send, receive = anyio.create_memory_object_stream[str](1000)

    async def on_message(message: object) -> None:
        if isinstance(message, ResourceUpdatedNotification):
            send.send_nowait(message.params.uri)

    with send, receive:
        async with (
            serving(env, mode=era, on_message=on_message) as server,
            listening(server, era, uris, send.send_nowait),
        ):
            yield server, Told(receive)


@asynccontextmanager
async def listening(
    server: Server, era: str, uris: tuple[str, ...], tell: Any
) -> AsyncGenerator[None, None]:
    if era == LEGACY:
        for uri in uris:
            await subscribe(server, uri)
        yield
        return

    async def hear() -> None:
        async for event in subscription:
            assert isinstance(event, ResourceUpdated)
            tell(event.uri)

    async with server.client.listen(resource_subscriptions=uris) as subscription:
        assert subscription.honored.resource_subscriptions == list(uris)
        async with anyio.create_task_group() as group:
            group.start_soon(hear)
            yield
            group.cancel_scope.cancel()


async def subscribe(server: Server, uri: str) -> None:
    request = SubscribeRequest(params=SubscribeRequestParams(uri=uri))
    await server.client.session.send_request(request, EmptyResult)


async def unsubscribe(server: Server, uri: str) -> None:
    request = UnsubscribeRequest(params=UnsubscribeRequestParams(uri=uri))
    await server.client.session.send_request(request, EmptyResult)


async def read(server: Server, uri: str) -> TextResourceContents | BlobResourceContents:
    (content,) = (await server.client.read_resource(uri)).contents
    assert content.uri == uri
    return content


async def refused(server: Server, uri: str) -> MCPError:
    with pytest.raises(MCPError) as caught:
        await server.client.read_resource(uri)
    return caught.value


async def completed(server: Server, name: str, value: str, **context: str) -> list[str]:
    result = await server.client.complete(
        ResourceTemplateReference(uri=TEMPLATE), {"name": name, "value": value}, context or None
    )
    assert result.completion.has_more is False
    assert result.completion.total == len(result.completion.values)
    return result.completion.values


async def put_to_sleep(server: Server, depth: str = "frozen") -> None:
    """The last server that ended may have stopped the box."""
    await server.tell("box_resume", box=BOX)
    await server.tell("box_pause", box=BOX, depth=depth)


def workspace(path: str = "", box: str = BOX) -> str:
    return file_uri(box, f"/workspace/{path}")


@pytest.fixture(scope="module")
def env(shared_env: dict[str, str]) -> dict[str, str]:
    """Of servers that share one box."""

    async def make() -> None:
        async with serving(shared_env) as server:
            await server.tell("box_create", name=BOX, size="small")

    anyio.run(make)
    return shared_env


@eras
async def test_boxes_are_listed_by_their_workspaces_and_not_woken(env: dict[str, str], era: str):
    mode = {MODERN: "auto"}.get(era, era)  # a client that is told which protocol never asks
    async with serving(env, mode=mode) as server:
        box = (await server.tell("box_info", box=BOX))["id"]
        await put_to_sleep(server)
        (found,) = (await server.client.list_resources()).resources
        assert (found.uri, found.name) == (f"box://{box}/files/workspace/", BOX)
        assert found.mime_type == "inode/directory"
        assert container_state(box) == "paused"
        (template,) = (await server.client.list_resource_templates()).resource_templates
        assert template.uri_template == "box://{box}/files/{+path}"
        with pytest.raises(MCPError, match="no cursor of ours"):
            await server.client.list_resources(cursor="what?")
        capabilities = server.client.server_capabilities
        assert capabilities.resources is not None
        assert capabilities.resources.subscribe is True
        assert capabilities.completions is not None


@eras
async def test_files_are_read_as_what_they_are(env: dict[str, str], era: str):
    async with serving(env, mode=era) as server:
        box = (await server.tell("box_info", box=BOX))["id"]
        encoded = base64.b64encode(PNG).decode()
        await server.run(
            "rm -rf a && mkdir a && cd a && printf 'hë\\n' > b.md && echo '{}' > c.json"
            f" && base64 -d <<<{encoded} > d.png && cp d.png e && echo 'let x' > f.ts"
            " && printf '\\x00\\x01' > g.txt && : > h",
            box=BOX,
        )
        text = await read(server, workspace("a/b.md"))
        assert isinstance(text, TextResourceContents)
        assert (text.text, text.mime_type) == ("hë\n", "text/markdown")
        assert (await read(server, workspace("a/b.md", box))).mime_type == "text/markdown"
        types = {
            name: (await read(server, workspace(f"a/{name}"))).mime_type
            for name in ("c.json", "d.png", "e", "f.ts", "g.txt", "h")
        }
        assert types == {
            "c.json": "application/json",
            "d.png": "image/png",
            "e": "image/png",
            "f.ts": "text/plain",
            "g.txt": "application/octet-stream",
            "h": "text/plain",
        }
        image = await read(server, workspace("a/e"))
        assert isinstance(image, BlobResourceContents)
        assert base64.b64decode(image.blob) == PNG


@eras
async def test_a_directory_tells_the_uris_of_what_it_holds_whatever_the_names(
    env: dict[str, str], era: str
):
    names = [b"caf\xe9", b"a b", b"%41", b"what?#x", b"line\nbreak", "ä".encode(), b"n" * 255]
    script = ";".join(f"open({name!r}, 'wb').write({name!r})" for name in names)
    async with serving(env, mode=era) as server:
        await server.run(
            'rm -rf odd && mkdir -p odd/sub && cd odd && python3 -c "$SCRIPT"',
            box=BOX,
            env={"SCRIPT": script},
        )
        listing = await read(server, workspace("odd/"))
        assert isinstance(listing, TextResourceContents)
        assert listing.mime_type == "application/json"
        said = json.loads(listing.text)
        entries = {entry["name"]: entry for entry in said["entries"]}
        assert said["more"] is False
        assert entries["sub"]["uri"] == workspace("odd/sub/")
        assert entries["caf\\xe9"]["size"] == 4
        found: list[bytes] = []
        for entry in said["entries"]:
            if entry["kind"] == "file":
                content = await read(server, entry["uri"])
                found.append(
                    content.text.encode()
                    if isinstance(content, TextResourceContents)
                    else base64.b64decode(content.blob)
                )
        assert sorted(found) == sorted(names)


@eras
async def test_what_cannot_be_read_is_refused_with_words(env: dict[str, str], era: str):
    async with serving(env, mode=era) as server:
        await server.run(
            "truncate -s 9M big; touch secret; chmod 0 secret; mkfifo -m 666 p", box=BOX
        )
        big = await refused(server, workspace("big"))
        assert "9,437,184 bytes" in big.message
        assert "at most 8 MiB" in big.message
        assert "file_read" in big.message
        assert "denied" in (await refused(server, workspace("secret"))).message.lower()
        assert (await refused(server, workspace("p"))).code == INTERNAL_ERROR
        for uri in (
            workspace("missing"),
            workspace("big/below"),
            workspace("x", "nobodys"),
            workspace("x", "box-aaaaaaaa"),
            workspace("nul%00"),
            "box://",
            f"box://{BOX}",
            f"box://{BOX}/elsewhere/x",
            "file:///etc/passwd",
        ):
            error = await refused(server, uri)
            assert (error.code, error.data) == (NOT_FOUND[era], {"uri": uri})
            assert error.message == f"There is no resource {uri!r}"
        await server.run("rm -f big secret p", box=BOX)


async def test_another_principals_box_is_none(env: dict[str, str]):
    async with serving(env) as server:
        theirs = (await server.tell("box_create", name="theirs", size="small"))["id"]
        await server.run("echo x > a", box=theirs)
        assert workspace("", theirs) in [
            r.uri for r in (await server.client.list_resources()).resources
        ]
    database = Path(env["BOX_MCP_STATE_DIR"]) / "state.db"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE boxes SET principal = 'somebody' WHERE id = ?", (theirs,))
    async with serving(env) as server:
        for ref in (theirs, "theirs"):
            uri = workspace("a", ref)
            assert (await refused(server, uri)).message == f"There is no resource {uri!r}"
            with pytest.raises(MCPError, match="There is no resource"):
                async with server.client.listen(resource_subscriptions=[uri]):
                    pass
            assert await completed(server, "path", "", box=ref) == []
        assert theirs not in await completed(server, "box", "box-")
        assert "theirs" not in await completed(server, "box", "the")


@eras
async def test_boxes_and_paths_are_completed(env: dict[str, str], era: str):
    async with serving(env, mode=era) as server:
        box = (await server.tell("box_info", box=BOX))["id"]
        await server.run(
            "rm -rf comp && mkdir -p comp/sub && cd comp && touch 'so so' .so x", box=BOX
        )
        assert await completed(server, "box", "sha") == [BOX]
        assert await completed(server, "box", "are") == [BOX]
        assert box in await completed(server, "box", "")
        assert await completed(server, "path", "workspace/comp/s", box=BOX) == [
            "workspace/comp/so%20so",
            "workspace/comp/sub/",
        ]
        assert await completed(server, "path", "/workspace/comp/x", box=box) == [
            "/workspace/comp/x"
        ]
        assert await completed(server, "path", "workspace/comp/.", box=BOX) == [
            "workspace/comp/.so"
        ]
        assert "workspace/" in await completed(server, "path", "work", box=BOX)
        assert await completed(server, "path", "workspace/none/", box=BOX) == []
        assert await completed(server, "path", "workspace/") == []
        with pytest.raises(MCPError, match="has no 'colour'"):
            await completed(server, "colour", "")
        await put_to_sleep(server)
        assert await completed(server, "path", "workspace/comp/s", box=BOX) == []
        assert container_state(box) == "paused"


@eras
async def test_a_change_is_told_and_after_a_freeze_and_a_stop_too(env: dict[str, str], era: str):
    async with serving(env) as server:
        box = (await server.tell("box_info", box=BOX))["id"]
        await server.run("echo 1 > live", box=BOX)
    uri = workspace("live", box)
    replace = "echo new > live.tmp && mv live.tmp live"  # in one step, so it is told once
    async with subscribed(env, era, uri) as (server, told):
        await server.run(replace, box=BOX)
        assert await told.next() == uri
        await server.tell("box_pause", box=BOX)
        await server.run(replace, box=BOX)
        assert await told.next() == uri
        await server.tell("box_pause", box=BOX, depth="stopped")
        assert "was started again" in await server.run("true", box=BOX)
        assert await told.next() == uri  # what happened meanwhile, nobody knows
        await server.run("rm live", box=BOX)
        assert await told.next() == uri
        await server.run(replace, box=BOX)
        assert await told.next() == uri


async def test_a_subscription_wakes_its_box_once_and_lets_it_pause_again(env: dict[str, str]):
    async with serving(env) as server:
        box = (await server.tell("box_info", box=BOX))["id"]
        await put_to_sleep(server, "stopped")

    async def paused() -> bool:
        return container_state(box) == "paused"

    uri = workspace("idle")
    async with subscribed({**env, "BOX_MCP_PAUSE_AFTER": "0.5"}, MODERN, uri) as (server, told):
        await until(paused, "the box pauses")
        assert "was started again" in await server.run("echo x > idle", box=BOX)
        assert await told.next() == uri


async def test_who_unsubscribes_is_told_no_more(env: dict[str, str]):
    first, second = workspace("first"), workspace("second")
    async with subscribed(env, LEGACY, first, first, second) as (server, told):
        await unsubscribe(server, first)
        await unsubscribe(server, first)
        await server.run("rm -f first second; touch first; touch second", box=BOX)
        assert await told.next() == second
        await unsubscribe(server, second)
        await subscribe(server, first)
        await server.run("rm second; rm first", box=BOX)
        assert await told.next() == first


async def test_who_subscribes_again_before_the_box_is_awake_is_told_once_and_then_no_more(
    env: dict[str, str],
):
    first, second = workspace("first"), workspace("second")
    async with subscribed(env, LEGACY) as (server, told):
        await put_to_sleep(server, "stopped")
        async with anyio.create_task_group() as group:
            for ask in (subscribe, unsubscribe, subscribe):
                group.start_soon(ask, server, first)
                await anyio.wait_all_tasks_blocked()
        await unsubscribe(server, first)
        await subscribe(server, second)
        await server.run("rm -f first; touch first; sleep 0.5; rm -f second", box=BOX)
        await server.run("touch second", box=BOX)
        assert await told.next() == second


async def test_a_box_of_the_same_name_can_be_subscribed_to_when_the_first_is_gone(
    env: dict[str, str],
):
    uri = workspace("a", "brief")
    async with subscribed(env, LEGACY) as (server, told):
        for _ in range(2):
            await server.tell("box_create", name="brief", size="small")
            await subscribe(server, uri)
            await server.run("touch a", box="brief")
            assert await told.next() == uri
            await server.tell("box_delete", box="brief")


async def test_a_file_of_the_image_is_watched_though_its_first_change_makes_a_copy(
    env: dict[str, str],
):
    uri = file_uri(BOX, "/home/box/.bashrc")
    async with subscribed(env, MODERN, uri) as (server, told):
        for _ in range(2):
            await server.run("echo >> ~/.bashrc", box=BOX)
            assert await told.next() == uri


async def test_what_cannot_be_listened_to_is_left_out_and_watches_end_with_the_listening(
    env: dict[str, str],
):
    many = [workspace(f"many/{number}") for number in range(MAX_OWN_WATCHES)]
    wanted = [workspace("a", "nobodys"), *many, workspace("one/too/many")]
    async with serving(env) as server:
        for _ in range(2):
            async with server.client.listen(resource_subscriptions=wanted) as subscription:
                assert subscription.honored.resource_subscriptions == many


async def test_more_subscriptions_than_allowed_are_refused_with_words(env: dict[str, str]):
    async with serving(env, mode=LEGACY) as server:
        for number in range(MAX_OWN_WATCHES):
            await subscribe(server, workspace(f"many/{number}"))
        with pytest.raises(MCPError, match=f"limit of {MAX_OWN_WATCHES} subscriptions"):
            await subscribe(server, workspace("many/more"))
        await unsubscribe(server, workspace("many/0"))
        await subscribe(server, workspace("many/more"))


async def test_boxes_that_come_and_go_are_told(env: dict[str, str]):
    async with (
        serving(env) as server,
        server.client.listen(resources_list_changed=True) as subscription,
    ):
        await server.tell("box_create", name="short", size="small")
        with anyio.fail_after(PATIENCE):
            assert await anext(subscription) == ResourcesListChanged()
        await server.say("box_delete", box="short")
        with anyio.fail_after(PATIENCE):
            assert await anext(subscription) == ResourcesListChanged()
