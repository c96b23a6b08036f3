"""Files read, written and edited by the tools, in a real box."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import anyio
import pytest
from mcp_types import BlobResourceContents, EmbeddedResource, ImageContent, TextContent

from tests.support.client import ERAS, MODERN, Server, kill_boxd, serving, text, until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

SESSION = ("--session", "files")
PNG = b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
PDF = b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n1 0 obj<</Type/Catalog>>endobj\n"
PROGRAM = "def one():\n    return 1\n\n\ndef two():\n    return 2\n"


@asynccontextmanager
async def shared(env: dict[str, str], era: str = MODERN) -> AsyncGenerator[Server, None]:
    """A server whose session has one box for all tests of this module."""
    async with serving(env, *SESSION, mode=era) as server:
        yield server


@pytest.fixture(scope="module")
async def server(shared_env: dict[str, str]) -> AsyncGenerator[Server, None]:
    """Of all tests but those of the protocol's eras."""
    async with shared(shared_env) as server:
        yield server


def version_of(text: str) -> str:
    """The version that a header tells."""
    return text.partition(" · version ")[2].partition(" ")[0].partition("]")[0]


@pytest.mark.parametrize("era", ERAS)
async def test_pictures_and_documents_come_as_such(shared_env: dict[str, str], era: str):
    async with shared(shared_env, era) as server:
        for name, content in (("dot.png", PNG), ("a ä.pdf", PDF)):
            encoded = b64encode(content).decode()
            await server.say("file_write", path=name, content=encoded, base64=True)
        result = await server.call("file_read", path="dot.png")
        header, picture = result.content
        assert isinstance(header, TextContent)
        assert header.text.startswith(f"[dot.png · {len(PNG)} bytes · version ")
        assert header.text.endswith(" · image/png]")
        assert isinstance(picture, ImageContent)
        assert (b64decode(picture.data), picture.mime_type) == (PNG, "image/png")
        assert result.structured_content is None

        _, document = (await server.call("file_read", path="a ä.pdf")).content
        assert isinstance(document, EmbeddedResource)
        assert isinstance(document.resource, BlobResourceContents)
        assert b64decode(document.resource.blob) == PDF
        assert document.resource.mime_type == "application/pdf"
        assert document.resource.uri.endswith("/files/workspace/a%20%C3%A4.pdf")

        await server.run("head -c 4000000 /dev/zero >> dot.png")
        assert "too large to be shown" in await server.say("file_read", path="dot.png")


async def test_a_file_is_written_read_edited_and_read_again(server: Server):
    await server.run("rm -rf code")
    written = await server.say("file_write", path="code/a.py", content=PROGRAM)
    edited = await server.say(
        "file_edit",
        path="code/a.py",
        edits=[{"old": "return 1", "new": "return 11"}, {"old": "two", "new": "zwei"}],
        if_version=version_of(written),
    )
    header, *diff = edited.splitlines()
    assert header.startswith("[edited code/a.py · 2 replacements · 52 bytes · version ")
    assert diff == [
        "@@ -1,6 +1,6 @@",
        " def one():",
        "-    return 1",
        "+    return 11",
        " ",
        " ",
        "-def two():",
        "+def zwei():",
        "     return 2",
    ]
    read = await server.say("file_read", path="code/a.py", tail=2, line_numbers=True)
    assert version_of(read) == version_of(edited)
    assert read.splitlines()[1:] == ["5\tdef zwei():", "6\t    return 2"]
    assert "lines 5-6 of 6]" in read

    late = await server.fail(
        "file_write", path="code/a.py", content="", if_version=version_of(written)
    )
    assert "has changed" in late
    assert "read it again" in late
    again = await server.fail("file_write", path="code/a.py", content="", if_version="new")
    assert "exists already" in again


async def test_edits_come_as_json_text_from_clients_that_send_them_so(
    server: Server,
):
    await server.say("file_write", path="json", content="[1]")
    edits = json.dumps([{"old": "1", "new": "[2]", "replace_all": True}])
    assert "1 replacement" in await server.say("file_edit", path="json", edits=edits)
    assert (await server.say("file_read", path="json")).endswith("]\n[[2]]")
    wrong = await server.fail("file_edit", path="json", edits=[{"old": "1", "neu": ""}])
    assert "edits.0.new` is missing" in wrong
    assert "edits.0.neu" in wrong


async def test_edits_are_taken_as_the_tools_of_others_name_them(server: Server):
    lone = {"old_string": "1", "new_string": "2"}
    calls: list[dict[str, object]] = [
        {"path": "theirs", "edits": [lone]},
        {"path": "theirs", "edits": {"old": "2", "new": "3"}},
        {"path": "theirs", "edits": json.dumps({"old_str": "3", "new_str": "4"})},
        {"file_path": "theirs", "old_string": "4", "new_string": "5", "replace_all": True},
    ]
    await server.say("file_write", path="theirs", content="1")
    for arguments in calls:
        assert "1 replacement" in await server.say("file_edit", **arguments)
    assert (await server.say("file_read", file_path="theirs")).endswith("]\n5")
    both = await server.fail("file_read", file_path="theirs", path="theirs")
    assert "no argument `file_path`" in both
    assert "`edits` is missing" in await server.fail("file_edit", path="theirs")


async def test_a_path_that_leads_to_nothing_tells_what_may_be_meant(server: Server):
    await server.run("mkdir -p miss/Source; touch miss/Source/app.py miss/README.md; cd miss")
    for path, words in (
        ("miss/source/app.py", "There is no `miss/source`. Did you mean `miss/Source/`?"),
        ("miss/Source/ap.py", "Did you mean `miss/Source/app.py`?"),
        ("/miss/README.md", "Did you mean `miss/README.md`?"),
        ("workspace/miss", "Did you mean `/workspace/miss`?"),
        ("miss/app.py", 'Look for it: `file_list` with path="miss", depth=9, glob="app.py".'),
        ("miss/*.md", "A path takes no wildcards: `file_list` and `file_search` have `glob`."),
    ):
        said = await server.fail("file_read", path=path)
        assert "No such file or directory: /" in said
        assert said.endswith(words), path
    found = await server.say("file_list", path="miss", depth=9, glob="app.py")
    assert found.endswith("Source/app.py")
    for tool, more in (
        ("file_list", {}),
        ("file_search", {"pattern": "x"}),
        ("file_edit", {"edits": [{"old": "a", "new": "b"}]}),
        ("file_delete", {}),
        ("file_download", {}),
    ):
        said = await server.fail(tool, path="miss/README", **more)
        assert "`miss/README.md`?" in said or tool == "file_download"
    said = await server.fail("file_move", source="miss/README", destination="x")
    assert said.endswith("Did you mean `miss/README.md`?")


async def test_an_edit_that_does_not_match_tells_what_is_near(server: Server):
    await server.say("file_write", path="near.py", content=PROGRAM)
    good = {"old": "one", "new": "eins"}
    edits = [good, {"old": "def two():\n\treturn 2", "new": "x"}]
    said = await server.fail("file_edit", path="near.py", edits=edits)
    assert "Edit 2 of 2 matches nothing in near.py; nothing was changed. The nearest" in said
    assert "lines 5-6: only white space is different, line 6 is '    return 2'" in said
    said = await server.fail("file_edit", path="near.py", edits=[{"old": "def", "new": "x"}])
    assert "matches 2 places in near.py, on lines 1, 5; nothing was changed. Add" in said
    same = {"old": "one", "new": "one"}
    assert "are the same" in await server.fail("file_edit", path="near.py", edits=[same])
    empty = await server.fail("file_edit", path="near.py", edits=[{"old": "", "new": "x"}])
    assert "file_write makes" in empty
    dry = await server.say("file_edit", path="near.py", edits=[good], dry_run=True)
    assert dry.startswith("[dry run, near.py is unchanged · 1 replacement possible")
    assert (await server.say("file_read", path="near.py")).endswith(PROGRAM)


async def test_bytes_come_and_go_as_base64_in_slices(server: Server):
    every = bytes(range(256)) * 40
    first, second = b64encode(every[:5000]).decode(), b64encode(every[5000:]).decode()
    await server.say("file_write", path="bytes", content=first, base64=True)
    added = await server.say("file_write", path="bytes", content=second, base64=True, append=True)
    assert added.startswith("[appended to bytes · 10,240 bytes · version ")
    got, offset = b"", 0
    while len(got) < len(every):
        said = await server.say("file_read", path="bytes", base64=True, offset=offset)
        header, content = said.split("\n")
        got += b64decode(content)
        offset = len(got)
        assert f"more: offset={offset}]" in header or offset == len(every)
    assert got == every
    assert "binary, begins with 00 01 02" in await server.say("file_read", path="bytes")
    assert "base64=true" in await server.say("file_read", path="bytes", length=10)
    bad = await server.fail("file_write", path="bytes", content="?", base64=True)
    assert "'content' is no base64" in bad


async def test_encodings_line_ends_and_long_lines_are_told(server: Server):
    await server.run(
        "printf '\\xff\\xfe' > wide; printf 'ä\\r\\nb\\r\\n' | iconv -t utf-16le >> wide"
    )
    said = await server.say("file_read", path="wide")
    assert said.endswith(" · utf-16-le · CRLF · lines 1-2 of 2]\nä\nb\n")
    await server.say("file_edit", path="wide", edits=[{"old": "ä\nb", "new": "ö\nc"}])
    assert (await server.run("iconv -f utf-16 wide | od -c")).count("\\r") == 2

    await server.run("(echo first; head -c 3000000 /dev/zero | tr '\\0' x; echo; echo last) > long")
    said = await server.say("file_read", path="long")
    first, long, last = said.splitlines()[1:]
    assert (first, last) == ("first", "last")
    assert long.endswith("x [... 2998000 bytes left out from offset 2006 ...]")
    assert (await server.say("file_read", path="long", offset=2006, length=3)).endswith("\nxxx")


async def test_what_is_no_file_says_what_to_use_instead(server: Server):
    await server.run(
        "mkdir -p folder; rm -f fifo; mkfifo fifo; echo a > /tmp/ro; sudo chown root /tmp/ro"
    )
    said = await server.fail("file_read", path="folder")
    assert said.endswith("/workspace/folder is a directory. `file_list` tells what is in it.")
    for tool, more in (("file_read", {}), ("file_write", {"content": ""})):
        said = await server.fail(tool, path="fifo", **more)
        assert "is a device, a pipe or a socket. `shell_run`" in said
    assert "Permission denied" in await server.fail("file_write", path="/tmp/ro", content="")
    for path in ("folder/", "fresh/"):
        said = await server.fail("file_write", path=path, content="")
        assert "ends with a slash" in said
    odd = await server.fail("file_read", path="folder", tail=1, offset=1)
    assert "'tail' can't be combined with first_line, offset" in odd
    said = await server.say("file_read", path="/etc/passwd", offset=10**6)
    assert said.endswith(" · ends before offset 1000000]")


async def test_a_file_of_somebody_else_stays_theirs_and_keeps_its_mode(
    server: Server,
):
    await server.run("echo a > theirs; chmod 4767 theirs; sudo chown 12:34 theirs")
    await server.say("file_write", path="theirs", content="b\n")
    await server.say("file_edit", path="theirs", edits=[{"old": "b", "new": "c"}])
    said = await server.run("stat -c '%u:%g %a' theirs; cat theirs; stat -c %U dot.png")
    assert said.endswith("]\n12:34 767\nc\nbox\n")


async def test_a_file_whose_box_dies_during_edits_is_whole(server: Server):
    """The last test: its box is another one afterwards."""
    box = await server.hostname()
    body = "some line of a file\n" * 200_000
    await server.say("file_write", path="whole", content=f"{body}0")
    edits = [{"old": "file\n0", "new": "file\n1"}]
    shows = "head -c -1 whole | wc; tail -c 1 whole"
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(partial(server.call, "file_edit", path="whole", edits=edits))
        await anyio.to_thread.run_sync(kill_boxd, box)

    async def look() -> str | None:
        """What is there; a call may still have met the daemon that was dying."""
        answer = await server.call("shell_run", command=shows)
        return None if answer.is_error else text(answer)

    digest = await until(look, "the box answers again")
    assert "200000" in digest
    assert digest[-1] in "01"
