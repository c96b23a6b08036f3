"""Trees into a box and out of it, by a real boxd; the far end is this test."""

from __future__ import annotations

import os
import re
import signal
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from box_mcp.boxd.parcel import DIRECTORY, FILE, LAST, LINK, Entry, Sink, Unpacker
from tests.support.boxd import (
    PATIENCE,
    Call,
    Client,
    Failed,
    LocalBoxd,
    descriptors_given_back,
    eventually,
)

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

WHEN = 1_600_000_000_123_456_789  # ns since the epoch
LARGE = bytes(range(256)) * 4096
TREE: list[tuple[int, int, bytes, bytes]] = [
    (DIRECTORY, 0o750, b"", b""),
    (FILE, 0o644, b"a", b"one\n"),
    (FILE, 0o400, b"empty", b""),
    (DIRECTORY, 0o500, b"d", b""),
    (FILE, 0o755, b"d/large", LARGE),
    (LINK, 0o777, b"d/up", b"../a"),
    (LINK, 0o777, b"away", b"/etc/passwd"),
    (DIRECTORY, 0o755, b"d/none", b""),
    (FILE, 0o644, b"d/odd\n\xff" + b"n" * 249, b"x"),
]

Found = dict[bytes, tuple[int, int, int, bytes]]
"""Path to kind, mode, time and content."""


class Heard(Sink):
    """Remembers what came."""

    def __init__(self) -> None:
        self.found: Found = {}
        self._content = bytearray()

    def begin(self, entry: Entry) -> None:
        self._content.clear()

    def content(self, data: memoryview) -> None:
        self._content += data

    def finish(self, entry: Entry) -> None:
        content = bytes(self._content)
        self.found[entry.path] = (entry.kind, entry.mode, entry.modified, content)


def parcel(*entries: tuple[int, int, bytes, bytes]) -> bytes:
    pieces = [
        Entry(kind, mode, len(content), WHEN, path).packed() + content
        for kind, mode, path, content in entries
    ]
    return b"".join([*pieces, LAST.packed()])


def parsed(data: bytes) -> Found:
    heard = Heard()
    unpacker = Unpacker(heard)
    unpacker.feed(data)
    assert unpacker.ended
    return heard.found


def unpack(client: Client, path: str, data: bytes, *, overwrite: bool = False) -> dict[str, Any]:
    return client.open("unpack", path=path, overwrite=overwrite).send(data).result()


def pack(client: Client, path: str, *, gitignore: bool = False) -> tuple[Found, dict[str, Any]]:
    call = client.open("pack", path=path, gitignore=gitignore)
    result = call.result()
    return parsed(call.data), result


def refused(client: Client, path: str, data: bytes, *, overwrite: bool = False) -> Failed:
    with pytest.raises(Failed) as caught:
        unpack(client, path, data, overwrite=overwrite)
    return caught.value


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))  # noqa: PTH208 - names, not paths


@contextmanager
def piped(boxd: LocalBoxd, token: str) -> Generator[socket.socket]:
    """A connection of its own for a request, brought as the connector does."""
    line, theirs = socket.socketpair()
    with line, theirs, socket.socket(socket.AF_UNIX) as link:
        link.connect(str(boxd.socket))
        socket.send_fds(link, [b"-" + token.encode()], [theirs.fileno()] * 2)
        theirs.close()
        line.settimeout(PATIENCE)
        yield line


def ended(line: socket.socket) -> bool:
    """Whether the other end closes it without a word; what it has not read yet is no matter."""
    try:
        return line.recv(1) == b""
    except ConnectionResetError:
        return True


def awaited(client: Client, op: str, **request: Any) -> Call:
    """A request that waits for its connection."""
    call = client.open(op, **request)
    client.pump_until(lambda: call.notes or call.done)
    return call


FILE_HERE = (FILE, 0o644, b"", b"new")
FOLDER = (DIRECTORY, 0o755, b"", b"")


def test_a_tree_that_was_unpacked_is_packed_as_it_was(client: Client):
    said = unpack(client, "tree", parcel(*TREE))
    assert (said["files"], said["directories"], said["links"]) == (4, 3, 2)
    found, told = pack(client, "tree")
    expected = {path: (kind, mode, content) for kind, mode, path, content in TREE}
    assert {path: (kind, mode, data) for path, (kind, mode, _, data) in found.items()} == expected
    assert {when for _, _, when, _ in found.values()} == {WHEN}
    assert told == said
    assert told["bytes"] == sum(len(content) for *_, content in TREE)


def test_a_survey_tells_what_would_be_packed(client: Client):
    said = unpack(client, "tree", parcel(*TREE))
    surveyed = client.call("survey", path="tree", gitignore=False)
    assert surveyed == {"kind": "directory", **said}
    assert client.call("survey", path="tree/d/large", gitignore=False)["kind"] == "file"
    with pytest.raises(Failed):
        client.call("survey", path="missing", gitignore=False)


def test_a_single_file_and_a_single_link_go_where_they_are_told(client: Client, boxd: LocalBoxd):
    unpack(client, "deep/down/file", parcel((FILE, 0o640, b"", LARGE)))
    assert (boxd.workspace / "deep/down/file").read_bytes() == LARGE
    unpack(client, "link", parcel((LINK, 0o777, b"", b"deep/down/file")))
    found, _ = pack(client, "link")  # a link that is named is followed
    assert found == {b"": (FILE, 0o640, WHEN, LARGE)}


def test_a_directory_joins_one_that_is_there(client: Client, boxd: LocalBoxd):
    client.run("mkdir -p tree/d; chmod 700 tree tree/d; echo kept > tree/d/kept").result()
    unpack(
        client, "tree", parcel(FOLDER, (DIRECTORY, 0o755, b"d", b""), (FILE, 0o644, b"d/n", b""))
    )
    assert names(boxd.workspace / "tree") == ["d"]
    assert names(boxd.workspace / "tree/d") == ["kept", "n"]
    assert (boxd.workspace / "tree/d").stat().st_mode & 0o777 == 0o700


def test_without_overwrite_nothing_is_changed_where_something_is_in_the_way(
    client: Client, boxd: LocalBoxd
):
    client.run("mkdir -p tree/d; echo old > tree/d/a; echo old > file").result()
    data = parcel(FOLDER, (FILE, 0o644, b"new", b"x"), (DIRECTORY, 0o755, b"d", b""),
                  (FILE, 0o644, b"d/a", b"new"))  # fmt: skip
    refusal = refused(client, "tree", data)
    assert refusal.code == "exists"
    assert "d/a" in str(refusal)
    assert "nothing was changed" in str(refusal)
    assert refused(client, "file", parcel(FILE_HERE)).code == "exists"
    assert names(boxd.workspace / "tree") == ["d"]
    assert names(boxd.workspace) == ["file", "tree"]
    assert (boxd.workspace / "tree/d/a").read_text() == "old\n"
    unpack(client, "tree", data, overwrite=True)
    assert (boxd.workspace / "tree/d/a").read_text() == "new"


@pytest.mark.parametrize(
    ("before", "data", "code"),
    [
        ("mkdir place", parcel(FILE_HERE), "is_directory"),
        ("touch place", parcel(FOLDER), "not_directory"),
        ("mkfifo place", parcel(FILE_HERE), "invalid"),
        ("touch place; chmod 444 place", parcel(FILE_HERE), "denied"),
        ("mkdir -p place/x", parcel(FOLDER, (FILE, 0o644, b"x", b"")), "exists"),
        ("mkdir place; touch place/x", parcel(FOLDER, (DIRECTORY, 0o755, b"x", b"")), "exists"),
        ("mkdir place; mkfifo place/x", parcel(FOLDER, (FILE, 0o644, b"x", b"")), "invalid"),
        ("mkdir place; chmod 555 place", parcel(FOLDER), "denied"),
    ],
    ids=range(8),
)
def test_nothing_is_replaced_by_something_of_another_kind(
    client: Client, boxd: LocalBoxd, before: str, data: bytes, code: str
):
    client.run(before).result()
    kept = sorted(str(path) for path in boxd.workspace.rglob("*"))
    assert refused(client, "place", data, overwrite=True).code == code
    assert sorted(str(path) for path in boxd.workspace.rglob("*")) == kept


@pytest.mark.parametrize("data", [parcel(FILE_HERE), parcel(FOLDER)])
def test_a_place_that_cannot_be_made_is_named_as_it_was_asked_for(client: Client, data: bytes):
    client.run("mkdir locked; chmod 555 locked").result()
    failure = refused(client, "locked/place", data)
    assert failure.code == "denied"
    assert str(failure).endswith("/workspace/locked/place")


def test_a_link_leads_nothing_out_of_the_place(client: Client, boxd: LocalBoxd):
    client.run("mkdir out tree; ln -s ../out tree/d; echo old > out/f; ln -s ../out/f tree/f")
    eventually((boxd.workspace / "tree/f").is_symlink)
    through = parcel(FOLDER, (DIRECTORY, 0o755, b"d", b""), (FILE, 0o644, b"d/new", b""))
    assert refused(client, "tree", through, overwrite=True).code == "exists"
    unpack(client, "tree", parcel(FOLDER, (FILE, 0o644, b"f", b"new")), overwrite=True)
    assert names(boxd.workspace / "out") == ["f"]
    assert (boxd.workspace / "out/f").read_text() == "old\n"
    planted = parcel(FOLDER, (LINK, 0o777, b"l", b"../out"), (FILE, 0o644, b"l/new", b""))
    assert refused(client, "tree", planted).code == "invalid"
    assert names(boxd.workspace / "out") == ["f"]


def test_the_place_itself_may_be_a_link_that_the_user_named(client: Client, boxd: LocalBoxd):
    client.run("mkdir real; ln -s real named; echo old > real/f; ln -s real/f file").result()
    unpack(client, "named", parcel(FOLDER, (FILE, 0o644, b"new", b"")))
    unpack(client, "file", parcel(FILE_HERE), overwrite=True)
    assert names(boxd.workspace / "real") == ["f", "new"]
    assert (boxd.workspace / "real/f").read_text() == "new"


@pytest.mark.parametrize("leave", ["cancel", "disconnect", "break", "garbage"])
@pytest.mark.parametrize("there", [True, False])
def test_an_upload_given_up_leaves_nothing(boxd: LocalBoxd, leave: str, there: bool):
    if there:
        (boxd.workspace / "tree").mkdir()
        (boxd.workspace / "tree").chmod(0o777)
    half = parcel(FOLDER, (FILE, 0o644, b"a", b"x"), (FILE, 0o644, b"b", LARGE))[:-500_000]
    with boxd.connect() as client:
        call = client.open("unpack", path="tree", overwrite=False).send(half)
        eventually(lambda: [*boxd.workspace.rglob("b")], "it has begun")
        if leave == "cancel":
            call.cancel()
        elif leave == "break":
            call.finish()
        elif leave == "garbage":
            call.send(b"\xff" * 600_000)
        if leave != "disconnect":
            with pytest.raises(Failed):
                call.result()
    eventually(lambda: [*boxd.workspace.rglob("*")] == [boxd.workspace / "tree"] * there)
    eventually(boxd.at_rest)


def test_what_can_not_be_packed_is_left_out_and_told(client: Client):
    client.run("mkdir -p t/locked; touch t/a t/secret; chmod 0 t/secret t/locked").result()
    client.run(
        "mkfifo t/fifo; python3 -c 'import socket; socket.socket(1).bind(\"t/sock\")'"
    ).result()
    found, told = pack(client, "t")
    assert sorted(found) == [b"", b"a", b"locked"]
    assert sorted(line.partition(":")[0] for line in told["left_out"]) == [
        "fifo",
        "locked",
        "secret",
        "sock",
    ]
    assert "a FIFO" in "".join(told["left_out"])
    with pytest.raises(Failed) as denied:
        pack(client, "t/secret")
    assert denied.value.code == "denied"
    with pytest.raises(Failed) as odd:
        pack(client, "t/fifo")
    assert odd.value.code == "not_a_file"


def test_many_left_out_are_counted(client: Client):
    client.run("mkdir t; cd t; for n in $(seq 50); do mkfifo f$n; done").result()
    _, told = pack(client, "t")
    assert (len(told["left_out"]), told["more_left_out"]) == (20, 30)


def test_long_names_that_are_left_out_are_told_by_their_ends(client: Client, boxd: LocalBoxd):
    directory = os.fsencode(boxd.workspace) + b"/t" + (b"/" + b"\xff" * 250) * 10
    os.makedirs(directory)  # noqa: PTH103 - bytes
    for number in range(20):
        os.mkfifo(b"%s/%d" % (directory, number))
    _, told = pack(client, "t")
    assert len(told["left_out"]) == 20
    assert all(re.fullmatch(r"\.\.\..{300}: it is a FIFO", line) for line in told["left_out"])


def test_a_file_that_shrinks_while_it_is_packed_is_filled_up_and_told(
    client: Client, boxd: LocalBoxd
):
    size = 8 * 1024 * 1024
    (boxd.workspace / "t").mkdir()
    (boxd.workspace / "t/shrinks").write_bytes(b"x" * size)
    call = client.open("pack", path="t", gitignore=False)
    client.pump_until(lambda: call.pieces)  # it waits for credit by now, or soon
    os.truncate(boxd.workspace / "t/shrinks", 0)
    told = call.result()
    content = parsed(call.data)[b"shrinks"][3]
    assert len(content) == size
    assert content.endswith(b"\0")
    assert "shrank" in told["left_out"][0]


def test_what_git_ignores_is_left_out_on_demand(client: Client):
    client.run(
        "mkdir -p t/.git t/keep/build t/build; touch t/.git/x t/keep/build/x t/build/x t/a.log "
        "t/keep/b.log t/keep/c; printf 'build/\\n*.log\\n' > t/.gitignore; "
        "echo '!b.log' > t/keep/.gitignore"
    ).result()
    found, told = pack(client, "t", gitignore=True)
    assert sorted(found) == [
        b"",
        b".gitignore",
        b"keep",
        b"keep/.gitignore",
        b"keep/b.log",
        b"keep/c",
    ]
    assert told["left_out"] == []
    assert len(pack(client, "t")[0]) == 13
    surveyed = client.call("survey", path="t", gitignore=True)
    assert (surveyed["files"], surveyed["directories"]) == (4, 2)


def test_a_gitignore_that_is_a_pipe_holds_nobody_up(client: Client):
    client.run("mkdir t; touch t/a; mkfifo t/.gitignore").result()
    found = client.call("survey", path="t", gitignore=True)
    assert (found["files"], found["left_out"]) == (1, [".gitignore: it is a FIFO"])


def test_much_goes_by_a_connection_of_its_own(client: Client, boxd: LocalBoxd):
    call = awaited(client, "unpack", path="tree", overwrite=False, pipe="word")
    with piped(boxd, "word") as line:
        line.sendall(b"\n" + parcel(*TREE))
        assert call.result()["files"] == 4
        assert ended(line)
    call = awaited(client, "pack", path="tree", gitignore=False, pipe="another")
    heard = Heard()
    unpacker = Unpacker(heard)
    with piped(boxd, "another") as line:
        line.sendall(b"\n")
        while not unpacker.ended:
            unpacker.feed(line.recv(65536))
        assert not call.done
        line.sendall(b"\n")
        assert call.result()["files"] == 4
    assert len(heard.found) == len(TREE)
    assert not call.data
    eventually(boxd.at_rest)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_transfer_by_its_own_connection_can_be_given_up(
    client: Client, boxd: LocalBoxd, when: str
):
    eventually(boxd.at_rest)
    with descriptors_given_back(boxd.facts):
        call = awaited(client, "unpack", path="tree", overwrite=False, pipe="word")
        if when == "before":
            with pytest.raises(Failed):
                call.cancel().result()
            with piped(boxd, "word") as line:
                assert ended(line)  # nobody waits for it any more
        else:
            with piped(boxd, "word") as line:
                line.sendall(b"\n" + parcel(FOLDER, (FILE, 0o644, b"b", LARGE))[:-9])
                eventually(lambda: [*boxd.workspace.rglob("b")], "it has begun")
                with pytest.raises(Failed):
                    call.cancel().result()
                assert ended(line)
        eventually(lambda: names(boxd.workspace) == [])
        eventually(boxd.at_rest)


def test_a_connection_that_nobody_waits_for_is_closed(client: Client, boxd: LocalBoxd):
    with piped(boxd, "unheard of") as line:
        assert ended(line)
    assert client.call("stat", path="/")["kind"] == "directory"


def test_a_token_means_one_request(client: Client):
    awaited(client, "unpack", path="a", overwrite=False, pipe="word")
    with pytest.raises(Failed, match="once"):
        client.call("unpack", path="b", overwrite=False, pipe="word")


def test_a_transfer_whose_connection_ends_too_early_says_so(client: Client, boxd: LocalBoxd):
    call = awaited(client, "unpack", path="tree", overwrite=False, pipe="word")
    with piped(boxd, "word") as line:
        line.sendall(b"\n" + parcel(FOLDER)[:-1])
        line.shutdown(socket.SHUT_WR)
        with pytest.raises(Failed, match="too early"):
            call.result()


def test_many_small_files_are_unpacked(client: Client, boxd: LocalBoxd):
    files = ((FILE, 0o644, b"%d" % number, b"x" * 500) for number in range(3_000))
    assert unpack(client, "many", parcel(FOLDER, *files))["files"] == 3_000
    assert len(names(boxd.workspace / "many")) == 3_000


def test_a_worker_that_is_killed_is_told(client: Client, boxd: LocalBoxd):
    before = boxd.facts.children()
    call = client.open("unpack", path="tree", overwrite=False).send(parcel(FOLDER)[:-1])
    eventually(lambda: names(boxd.workspace))
    (worker,) = (child for child in boxd.facts.children() if child not in before)
    worker.kill()
    with pytest.raises(Failed, match="killed"):
        call.result()


def test_a_transfer_outlives_a_command_that_is_killed_with_its_runner(
    client: Client, boxd: LocalBoxd
):
    sent = parcel(FOLDER)
    call = client.open("unpack", path="tree", overwrite=False).send(sent[:-1])
    command = client.run("echo $PPID > runner; sleep 60")
    os.kill(boxd.pid_in("runner"), signal.SIGKILL)
    command.result()
    assert call.send(sent[-1:]).finish().result()["directories"] == 1


def test_files_are_read_and_written_in_a_box_that_can_not_fork():
    with LocalBoxd(forks=False) as boxd, boxd.connect() as client:
        assert client.write("a", b"x")["created"]
        assert client.call("read", path="a", offset=0, length=1)["size"] == 1
        assert client.call("move", path="a", destination="b")["kind"] == "file"
        for op in ("search", "copy", "unpack"):
            with pytest.raises(Failed, match="the box's process table is full") as caught:
                client.call(op, path="b", pattern="x", destination="c", overwrite=False)
            assert caught.value.code == "not_started"
