from __future__ import annotations

import os
import signal
import stat
import subprocess
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from box_mcp.boxd import wire
from box_mcp.boxd.writing import MAX_APPENDED
from tests.support.boxd import NOBODY, Client, Failed, LocalBoxd, descriptors_given_back, eventually

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.boxd import Call

LARGE = 3 * wire.WINDOW
ATTACKED = 400  # writes; before it was mended, a dozen were enough

JUGGLER = """
import ctypes, os
exchange, names = ctypes.CDLL(None).renameat2, (b"file", b"other")
open("file", "w").close()
while True:
    if not any(map(os.path.islink, names)):
        os.symlink("/etc/passwd", "link")
        os.rename("link", "other")
    for _ in range(20):
        exchange(-100, names[0], -100, names[1], 2)
    if any(os.lstat(name).st_uid == 0 for name in names):
        open("won", "w").close()
"""
"""Has a file of the user's and a link to one of root's trade their names all the time."""


def begin(client: Client, path: str, data: bytes, **options: Any) -> Call:
    return client.open("write", path=path, **options).send(data)


def write(client: Client, path: str, data: bytes, **options: Any) -> dict[str, Any]:
    return begin(client, path, data, **options).finish().result()


def refused(client: Client, path: str, **options: Any) -> str:
    with pytest.raises(Failed) as caught:
        write(client, path, b"x", **options)
    return caught.value.code


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))  # noqa: PTH208 - names, not paths


@pytest.mark.parametrize("size", [0, 1, wire.CHUNK, 3_000_000])
def test_a_file_holds_exactly_what_was_sent(client: Client, boxd: LocalBoxd, size: int):
    data = os.urandom(size)
    result = client.write("file", data)
    assert (result["size"], result["created"]) == (size, True)
    assert (boxd.workspace / "file").read_bytes() == data
    assert client.call("stat", path="file")["version"] == result["version"]


def test_a_relative_path_is_below_the_workspace(client: Client, boxd: LocalBoxd):
    client.write("a/../b", b"x")
    client.write("/../../workspace/c", b"x")
    assert names(boxd.workspace) == ["b", "c"]


def test_missing_parents_are_made(client: Client, boxd: LocalBoxd):
    client.write("a/b/c/file", b"x")
    write(client, "d/e/log", b"x", append=True)
    assert (boxd.workspace / "a/b/c/file").read_bytes() == b"x"
    assert (boxd.workspace / "d/e/log").read_bytes() == b"x"


def test_a_file_is_replaced_in_one_step_and_keeps_its_mode(client: Client, boxd: LocalBoxd):
    client.run("echo old > script; chmod 6751 script").result()
    with (boxd.workspace / "script").open("rb") as reader:
        assert client.write("script", b"new\n")["created"] is False
        assert reader.read() == b"old\n"
    assert (boxd.workspace / "script").read_bytes() == b"new\n"
    assert stat.S_IMODE((boxd.workspace / "script").stat().st_mode) == 0o751


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_somebody_else_stays_theirs():
    with LocalBoxd(as_root=True) as boxd, boxd.connect() as client:
        theirs = boxd.workspace / "theirs"
        theirs.write_bytes(b"old")
        theirs.chmod(0o4666)
        os.chown(theirs, 1234, 4321)
        client.write("theirs", b"new")
        found = theirs.stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1234, 4321, 0o666)
        assert theirs.read_bytes() == b"new"
        client.write("own", b"x")
        assert (boxd.workspace / "own").stat().st_uid == NOBODY
        theirs.chmod(0o644)
        assert refused(client, "theirs") == "denied"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_no_juggling_with_links_makes_a_file_that_is_roots():
    with LocalBoxd(as_root=True) as boxd, boxd.connect() as client:
        client.write("juggler.py", JUGGLER.encode())
        juggling = client.run("exec python3 juggler.py")
        eventually((boxd.workspace / "other").exists)
        for _ in range(ATTACKED):
            with suppress(Failed):
                client.write("file", b"x")
        assert not (boxd.workspace / "won").exists()
        juggling.cancel()


def test_a_symlink_is_written_through(client: Client, boxd: LocalBoxd):
    client.run("mkdir real; echo old > real/file; ln -s real/file link; ln -s real/new ghost")
    eventually((boxd.workspace / "ghost").is_symlink)
    client.write("link", b"new\n")
    client.write("ghost", b"born\n")
    write(client, "link", b"more\n", append=True)
    assert (boxd.workspace / "link").is_symlink()
    assert (boxd.workspace / "real" / "file").read_bytes() == b"new\nmore\n"
    assert (boxd.workspace / "real" / "new").read_bytes() == b"born\n"


@pytest.mark.parametrize("append", [False, True])
def test_a_version_that_is_not_the_files_is_refused(client: Client, boxd: LocalBoxd, append: bool):
    first = write(client, "file", b"one", if_version="new", append=append)["version"]
    assert refused(client, "file", if_version="new", append=append) == "changed"
    second = write(client, "file", b"two", if_version=first, append=append)["version"]
    assert refused(client, "file", if_version=first, append=append) == "changed"
    assert refused(client, "none", if_version=second, append=append) == "changed"
    assert (boxd.workspace / "file").read_bytes() == (b"onetwo" if append else b"two")
    assert names(boxd.workspace) == ["file"]


@pytest.mark.parametrize("folder", ["proc", "locked"])
def test_where_no_file_can_be_made_the_directory_is_named(client: Client, folder: str):
    client.run("ln -s /proc proc; mkdir locked; chmod 555 locked").result()
    with pytest.raises(Failed, match=rf"No new file can be made here: \S*/{folder}$"):
        client.write(f"{folder}/file", b"")


@pytest.mark.parametrize("append", [False, True])
@pytest.mark.parametrize("if_version", ["new", "its own"])
def test_a_file_that_changes_while_its_content_comes_is_not_replaced(
    client: Client, boxd: LocalBoxd, append: bool, if_version: str
):
    path = boxd.workspace / "file"
    if if_version != "new":
        if_version = client.write("file", b"old")["version"]
    call = begin(client, "file", b"x" * LARGE, if_version=if_version, append=append)
    path.write_bytes(b"theirs")
    path.chmod(0o666)
    with pytest.raises(Failed, match=r"has changed|exists already") as caught:
        call.finish().result()
    assert caught.value.code == "changed"
    assert path.read_bytes() == b"theirs"
    assert names(boxd.workspace) == ["file"]


def test_what_is_added_comes_behind_what_is_there(client: Client, boxd: LocalBoxd):
    path = boxd.workspace / "log"
    assert write(client, "log", b"one\n", append=True)["created"] is True
    with path.open("ab") as other:
        call = begin(client, "log", b"x" * LARGE, append=True)
        other.write(b"other\n")
        other.flush()
        inode = path.stat().st_ino
        result = call.finish().result()
        assert path.stat().st_ino == inode
    assert path.read_bytes() == b"one\nother\n" + b"x" * LARGE
    assert (result["size"], result["created"]) == (LARGE + 10, False)


def test_more_than_can_be_added_at_once_is_refused_whole(client: Client, boxd: LocalBoxd):
    client.write("log", b"old")
    call = begin(client, "log", b"x" * (MAX_APPENDED + 1), append=True)
    with pytest.raises(Failed) as caught:
        call.finish().result()
    assert caught.value.code == "too_large"
    assert (boxd.workspace / "log").read_bytes() == b"old"


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system takes root to mount")
def test_of_what_does_not_fit_on_the_disk_nothing_stays(client: Client, boxd: LocalBoxd):
    disk = boxd.workspace / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=1777", "none", str(disk)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        write(client, "disk/log", b"x" * 700_000, append=True)
        for append in (True, False):
            with pytest.raises(Failed) as caught:
                write(client, "disk/log", b"y" * 700_000, append=append)
            assert caught.value.code == "no_space"
            assert (disk / "log").read_bytes() == b"x" * 700_000
        assert names(disk) == ["log"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("leave", ["cancel", "disconnect", "boxd stops"])
def test_a_write_given_up_leaves_the_old_file_and_nothing_else(boxd: LocalBoxd, leave: str):
    (boxd.workspace / "file").write_bytes(b"old")
    (boxd.workspace / "file").chmod(0o666)
    with boxd.connect() as client:
        call = begin(client, "file", b"x" * LARGE)
        assert len(names(boxd.workspace)) == 2
        if leave == "cancel":
            with pytest.raises(Failed):
                call.cancel().result()
        elif leave == "boxd stops":
            boxd.stop()
    eventually(lambda: names(boxd.workspace) == ["file"])
    assert (boxd.workspace / "file").read_bytes() == b"old"


@pytest.mark.parametrize("append", [False, True])
@pytest.mark.parametrize("path", ["fifo", "folder", "/dev/null"])
def test_what_is_no_file_is_refused_without_waiting(
    client: Client, boxd: LocalBoxd, path: str, append: bool
):
    client.run("mkfifo fifo; mkdir folder").result()
    (boxd.root / "dev").symlink_to("/dev")
    code = "is_directory" if path == "folder" else "not_a_file"
    assert refused(client, path, append=append) == code


def test_what_the_user_may_not_do_is_denied(client: Client):
    client.run("mkdir locked; touch locked/file fixed").result()
    client.run("chmod 444 fixed; chmod 555 locked").result()
    for path in ("fixed", "locked/new", "locked/below/new", "locked/file"):
        assert refused(client, path) == "denied"
    assert refused(client, "fixed", append=True) == "denied"
    assert write(client, "locked/file", b"x", append=True)["size"] == 1
    client.run("chmod 755 locked").result()


def test_boxd_killed_in_the_middle_of_a_write_leaves_the_old_file_or_the_new_one(
    boxd: LocalBoxd,
):
    """While another process replaces the file all the time, as an editor would."""
    path = boxd.workspace / "file"
    old, new = b"old\n" * 250_000, b"new\n" * 500_000
    path.write_bytes(old)
    path.chmod(0o666)
    over = threading.Event()
    seen: set[bytes] = set()

    def look() -> None:
        while not over.is_set():
            seen.add(path.read_bytes())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for part in (0.1, 0.5, 0.9, 1.0):
            with boxd.connect() as client:
                call = client.open("write", path="file")
                call.send(new[: int(len(new) * part)])
                if part == 1.0:
                    call.finish()
                boxd.process.send_signal(signal.SIGKILL)
                client.wait_for_disconnect()
            boxd.process.wait()
            assert path.read_bytes() in (old, new)
            boxd.start()
    finally:
        over.set()
        watcher.join()
    assert seen <= {old, new}


def test_writing_leaves_no_descriptors(client: Client, boxd: LocalBoxd):
    client.write("file", b"x")
    eventually(boxd.at_rest)
    with descriptors_given_back(boxd.facts):
        for number in range(50):
            client.write(f"file{number}", b"x")
            write(client, "file", b"x", append=True)
            refused(client, "file", if_version="0")
            refused(client, "file/below")
            with pytest.raises(Failed):
                client.open("write", path="given up").send(b"x").cancel().result()
    assert "given up" not in names(boxd.workspace)
