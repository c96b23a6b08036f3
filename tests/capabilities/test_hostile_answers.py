"""A box that answers nonsense breaks its own channel's calls, and nothing else."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from box_mcp.boxd import wire
from box_mcp.capabilities import shell
from box_mcp.capabilities.files import Edit, Edited, Files
from box_mcp.capabilities.shell import Outcome, Shell
from box_mcp.capabilities.trees import File, Line, Trees
from box_mcp.channel import Channel, open_channel
from box_mcp.errors import BoxBroken, CallInterrupted, CallRefused, InvalidArgument
from box_mcp.surface.files import render_bytes, render_edited, render_part
from box_mcp.surface.trees import Findings, render_found, render_listing
from tests.support.boxd import PATIENCE
from tests.support.records import ENDED

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

HELLO = {"version": wire.VERSION, "boot": "x", "busy": False}
FILE: dict[str, Any] = {"kind": "file", "size": 2, "mode": 0o644, "modified": 1.0}
READ: dict[str, Any] = {
    **FILE,
    "version": "0f",
    "encoding": "utf-8",
    "bom": False,
    "crlf": False,
    "media": None,
    "text": True,
    "first_line": 1,
    "lines": 1,
    "total": 1,
    "more": False,
}
WRITTEN: dict[str, Any] = {"size": 1, "created": True, "version": "0f"}
EDITED: dict[str, Any] = {**WRITTEN, "done": True, "places": 1, "hunks": 1}
MISMATCH: dict[str, Any] = {"done": False, "edit": 1, "matches": 2, "lines": [1, 2]}
LISTED: dict[str, Any] = {"directory": "/x", "more": True, "total": 4, "unreadable": ["y"]}
SEARCHED: dict[str, Any] = {
    "directory": "/x",
    "one_file": False,
    "engine": "ripgrep",
    "unreadable": False,
    "more": True,
    "matches": 2,
    "files": 1,
}
JUNK: list[Any] = [None, "x", -1, 1.5, float("nan"), float("inf"), 2**70, [], {}, True]


class HandFed:
    """A byte stream whose other end greets, and answers the first request with given frames."""

    def __init__(self, answer: bytes, hello: dict[str, Any]) -> None:
        self._answer = answer
        self._hello = hello
        self._decoder = wire.Decoder(wire.FROM_SERVER)
        self._send, self._receive = anyio.create_memory_object_stream[bytes](100)
        self.requests: list[dict[str, Any]] = []

    async def receive(self, max_bytes: int = 65536) -> bytes:
        return await self._receive.receive()

    async def send(self, item: bytes) -> None:
        for frame in self._decoder.feed(item):
            if frame.kind == wire.HELLO:
                await self._send.send(wire.pack_object(wire.HELLO, 0, self._hello))
            elif frame.kind == wire.OPEN:
                self.requests.append(frame.object())
                answer, self._answer = self._answer, b""
                if answer:
                    await self._send.send(answer)

    async def aclose(self) -> None:
        self._send.close()
        self._receive.close()


@asynccontextmanager
async def answering(
    *frames: bytes, hello: dict[str, Any] | None = None
) -> AsyncGenerator[tuple[Channel, HandFed], None]:
    """A channel to a box that answers its first request (stream 1) so."""
    stream = HandFed(b"".join(frames), hello or HELLO)
    channel = await open_channel("box-aaaaaaaa", stream)
    async with anyio.create_task_group() as group:
        group.start_soon(channel.receive_forever)
        yield channel, stream
        await channel.aclose()
        group.cancel_scope.cancel()


def end(result: dict[str, Any]) -> bytes:
    return wire.pack_object(wire.END, 1, result)


def note(said: dict[str, Any]) -> bytes:
    return wire.pack_object(wire.NOTE, 1, said)


def data(content: bytes, label: int = wire.CONTENT) -> bytes:
    return wire.pack_data(1, content, label)


async def run(channel: Channel, command: str = "true", **options: Any) -> Outcome:
    limits: dict[str, Any] = {"timeout": 5, "yield_after": 5, "max_output": 1000}
    with anyio.fail_after(PATIENCE):
        return await Shell(channel).run(command, **{**limits, **options})


async def read(channel: Channel) -> object:
    with anyio.fail_after(PATIENCE):
        return await Files(channel).read("x", 1, 10, 1000)


async def listing(channel: Channel) -> object:
    with anyio.fail_after(PATIENCE):
        return await Trees(channel).listing("x", limit=3)


async def searching(channel: Channel) -> Findings:
    with anyio.fail_after(PATIENCE):
        model: type[Line | File] = Line
        return await Trees(channel).search(model, "x", "y", limit=3, max_output=100)


async def moving(channel: Channel) -> object:
    with anyio.fail_after(PATIENCE):
        return await Trees(channel).move("x", "y")


async def deleting(channel: Channel) -> object:
    with anyio.fail_after(PATIENCE):
        return await Trees(channel).delete("x")


async def write(channel: Channel) -> object:
    with anyio.fail_after(PATIENCE):
        return await Files(channel).write("x", b"y")


async def edit(channel: Channel) -> Edited:
    with anyio.fail_after(PATIENCE):
        return await Files(channel).edit("x", [Edit("a", "b")], max_diff=1000)


def without(record: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != name}


async def test_proper_answers_are_taken():
    frames = (note({"newest": "o", "printed": 1}), data(b"out", 1), end(ENDED))
    async with answering(*frames) as (channel, _):
        outcome = await run(channel)
        assert (outcome.head, outcome.record.exit) == (b"out", 0)
    line = json.dumps({"path": "n\udcff", **FILE}).encode() + b"\n"
    async with answering(data(line), end(LISTED)) as (channel, _):
        found = await Trees(channel).listing("x", limit=3)
        assert [entry.path for entry in found.entries] == [b"n\xff"]


@pytest.mark.parametrize("field", list(ENDED))
async def test_a_run_whose_end_lacks_a_field_or_has_junk_in_it_is_a_broken_box_or_harmless(
    field: str,
):
    for record in (without(ENDED, field), *({**ENDED, field: junk} for junk in JUNK)):
        async with answering(end(record)) as (channel, _):
            with suppress(BoxBroken):
                outcome = await run(channel)
                assert json.dumps(outcome.record.model_dump(), allow_nan=False)


@pytest.mark.parametrize(
    "log", ["", "x", "/a\nb", "/\x1b", "/ä", "/" + "x" * 1000, "/\udcff"], ids=ascii
)
async def test_a_log_path_that_is_none_is_a_broken_box(log: str):
    async with answering(end({**ENDED, "log": log})) as (channel, _):
        with pytest.raises(BoxBroken):
            await run(channel)


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"other": 1},
        *({"skipped": junk} for junk in JUNK),
        *({"newest": "x", "printed": junk} for junk in JUNK),
        *({"newest": junk, "printed": 1} for junk in JUNK if junk != "x"),
        {"newest": "x"},
        {"newest": "x" * 5000, "printed": 1},
        {"newest": "\udcff", "printed": 1},
    ],
    ids=repr,
)
async def test_a_note_that_is_none_is_a_broken_box(said: dict[str, Any]):
    async with answering(note(said), end(ENDED)) as (channel, _):
        with pytest.raises(BoxBroken):
            await run(channel)


async def test_more_output_than_was_asked_for_is_a_broken_box():
    async with answering(data(b"x" * 1001), end(ENDED)) as (channel, _):
        with pytest.raises(BoxBroken, match="more than was asked for"):
            await run(channel)


async def test_a_run_that_is_never_answered_is_given_up_and_its_channel_closed(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(shell, "ANSWER_GRACE", 0.05)
    async with answering() as (channel, _):
        with pytest.raises(CallInterrupted, match="it gave no answer within"):
            await run(channel, yield_after=0.05)
        assert not channel.open


@pytest.mark.parametrize(
    "ask",
    [read, write, edit, listing, searching, moving, deleting],
    ids=lambda ask: ask.__name__,
)
@pytest.mark.parametrize("junk", [{}, {"total": "x"}, {"size": -1}, {"error": 1}], ids=repr)
async def test_file_work_whose_end_is_junk_is_a_broken_box(
    ask: Callable[[Channel], Any], junk: dict[str, Any]
):
    async with answering(end(junk)) as (channel, _):
        with pytest.raises(BoxBroken, match="its daemon sent no proper"):
            await ask(channel)


@pytest.mark.parametrize("field", list(READ))
async def test_a_read_whose_end_has_junk_in_a_field_is_a_broken_box_or_can_be_shown(field: str):
    for junk in JUNK:
        async with answering(end({**READ, field: junk})) as (channel, _):
            with suppress(BoxBroken):
                part = await Files(channel).read("x", 1, 10, 1000)
                assert render_part("x", 1, part, line_numbers=True)
                assert render_bytes("x", 0, part, base64=False)


@pytest.mark.parametrize("field", list(EDITED))
async def test_an_edit_whose_end_has_junk_in_a_field_is_a_broken_box_or_can_be_shown(field: str):
    for junk in JUNK:
        async with answering(end({**EDITED, field: junk})) as (channel, _):
            with suppress(BoxBroken):
                assert render_edited("x", await edit(channel), 1000, dry_run=False)


@pytest.mark.parametrize("field", ["edit", "matches", "lines"])
@pytest.mark.parametrize(
    "junk", [*JUNK, 2, [-1], ["x"], [1] * 1000], ids=lambda junk: repr(junk)[:9]
)
async def test_a_mismatch_with_junk_in_a_field_is_a_broken_box_or_can_be_told(
    field: str, junk: Any
):
    async with answering(end({**MISMATCH, field: junk})) as (channel, _):
        with pytest.raises((BoxBroken, CallRefused)):
            await edit(channel)


@pytest.mark.parametrize(
    "line",
    [
        b"x\n",
        b"{}\n",
        b"null\n",
        b"[1, 1]\n",
        b'[1, 1, "a", "b", "c"]\n',
        b'[1, -1, "a", "b"]\n',
        b'[1, 1.5, "a", "b"]\n',
        b'[1, 1, "a", null]\n',
        b'[1, 1, "a", "\\ud800"]\n',
        b"[" * 900 + b"\n",
        b"\xff\n",
    ],
    ids=lambda line: ascii(line[:30]),
)
async def test_a_change_that_is_none_is_a_broken_box(line: bytes):
    async with answering(data(line), end(EDITED)) as (channel, _):
        with pytest.raises(BoxBroken):
            await edit(channel)


@pytest.mark.parametrize(
    "line",
    [
        b"x\n",
        b"[]\n",
        b"{}\n",
        b"null\n",
        b"\xff\n",
        b"[" * 60_000 + b"\n",
        b'{"path": 1}\n',
        b'{"path": "x"}\n',
        b'{"path": "", "kind": "file", "size": 1, "mode": 1, "modified": 1}\n',
        b'{"path": "\\ud800", "kind": "file", "size": 1, "mode": 1, "modified": 1}\n',
        b'{"path": "x", "kind": "file", "size": 1, "mode": -1, "modified": 1}\n',
        b'{"path": "x", "kind": "file", "size": 1, "mode": 1, "modified": Infinity}\n',
        b'{"path": "x", "line": 1, "hit": true, "text": "\\ud800"}\n',
        b'{"path": "x", "line": -1, "hit": true, "text": ""}\n',
    ],
    ids=lambda line: ascii(line[:40]),
)
async def test_a_line_that_is_no_entry_and_no_match_is_a_broken_box(line: bytes):
    for ask, ended in ((listing, LISTED), (searching, SEARCHED)):
        async with answering(data(line), end(ended)) as (channel, _):
            with pytest.raises(BoxBroken):
                await ask(channel)


@pytest.mark.parametrize("junk", [*JUNK, ["x", 1], "\ud800", "a\0\nb"], ids=repr)
async def test_a_tree_with_junk_in_a_field_is_a_broken_box_or_can_be_shown(junk: Any):
    entry = {"path": "x", **FILE, "target": "y"}
    for field in (*LISTED, *entry):
        line = json.dumps({**entry, field: junk}).encode() + b"\n"
        for lines in (b"", line):
            async with answering(data(lines), end({**LISTED, field: junk})) as (channel, _):
                with suppress(BoxBroken):
                    found = await Trees(channel).listing("x", limit=3)
                    assert render_listing("x", found, 1000).encode()
    match = {"path": "x", "line": 1, "hit": True, "text": "z"}
    for field in (*SEARCHED, *match):
        line = json.dumps({**match, field: junk}).encode() + b"\n"
        for lines in (b"", line):
            async with answering(data(lines), end({**SEARCHED, field: junk})) as (channel, _):
                with suppress(BoxBroken):
                    found = await searching(channel)
                    assert render_found("x", found).encode()


async def test_more_entries_or_bytes_than_were_asked_for_are_a_broken_box():
    line = json.dumps({"path": "x", **FILE}).encode() + b"\n"
    async with answering(data(line * 4), end(LISTED)) as (channel, _):
        with pytest.raises(BoxBroken, match="more than was asked for"):
            await listing(channel)
    async with answering(data(b"x" * 1101), end(READ)) as (channel, _):
        with pytest.raises(BoxBroken, match="more than was asked for"):
            await read(channel)
    async with answering(data(b"x" * 1001), end(EDITED)) as (channel, _):
        with pytest.raises(BoxBroken, match="more than was asked for"):
            await edit(channel)


@pytest.mark.parametrize(
    "options",
    [
        {"command": "a\0b"},
        {"cwd": "x" * 5000},
        {"env": {"": "x"}},
        {"env": {"A=": "x"}},
        {"env": {"A": "\0"}},
        {"env": {"A": "\N{GRINNING FACE}" * 20_000}},
    ],
    ids=lambda options: ascii(options)[:30],
)
async def test_what_no_kernel_or_frame_takes_is_refused_before_it_is_sent(options: dict[str, Any]):
    async with answering() as (channel, stream):
        with pytest.raises(InvalidArgument):
            await run(channel, **options)
        assert stream.requests == []


@pytest.mark.parametrize("command", ["\x01" * 60_000, "é" * 32_000], ids=["controls", "accents"])
async def test_a_command_that_grows_beyond_a_frame_as_json_travels_as_a_file(
    monkeypatch: pytest.MonkeyPatch, command: str
):
    monkeypatch.setattr(shell, "ANSWER_GRACE", 0.05)
    async with answering(end({"size": 1, "created": True})) as (channel, stream):
        with pytest.raises(CallInterrupted):  # this box answers the first request only
            await run(channel, command, yield_after=0.05)
        assert [request["op"] for request in stream.requests] == ["write", "run"]
        assert len(json.dumps(stream.requests[1])) < 1000 + 6 * shell.TITLE
