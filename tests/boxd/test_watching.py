from __future__ import annotations

import errno
import os
import shutil
import time
from contextlib import contextmanager, suppress
from itertools import count
from typing import TYPE_CHECKING

import pytest

from box_mcp.boxd.connection import Refusal
from box_mcp.boxd.watching import refusals_at_limits
from tests.support.boxd import Call, Client, Failed, LocalBoxd, eventually

if TYPE_CHECKING:
    from collections.abc import Generator

CHANGED = {"newest": "changed"}
NUMBERS = count()
MANY = """import os
for n in range(20_000): os.mknod("folder/%d" % n)"""


def watching(client: Client, path: str) -> Call:
    """A watch that has begun."""
    call = client.open("watch", path=path)
    client.pump_until(lambda: call.notes or call.done)
    if call.done:
        call.result()
    assert call.notes == [{"watching": True}]
    call.notes.clear()
    return call


@contextmanager
def told(client: Client, call: Call) -> Generator[None, None, None]:
    """What happens inside is told."""
    call.notes.clear()
    yield
    hear_out(client)
    assert call.notes
    assert all(note == CHANGED for note in call.notes)


def hear_out(client: Client) -> None:
    """Receives what boxd has to tell of all that has happened so far: it tells all at once."""
    name = f"marker-{next(NUMBERS)}"
    marker = watching(client, name)
    client.write(name, b"")
    client.pump_until(lambda: marker.notes)
    client.call("stat", path="/")
    marker.cancel()


def inotifies(boxd: LocalBoxd) -> int:
    folder = f"/proc/{boxd.process.pid}/fd"
    found = 0
    for fd in os.listdir(folder):  # noqa: PTH208 - numbers
        with suppress(FileNotFoundError):  # closed since it was listed
            found += os.readlink(f"{folder}/{fd}") == "anon_inode:inotify"  # noqa: PTH115
    return found


def test_a_change_of_content_is_told(client: Client, boxd: LocalBoxd):
    client.write("a", b"1")
    call = watching(client, "/workspace/a")
    with told(client, call):
        client.run("echo 2 >> a").result()
    with told(client, call):
        client.run("chmod 600 a").result()


def test_a_file_that_is_replaced_by_another_is_followed(client: Client):
    client.write("a", b"1")
    call = watching(client, "a")
    for _ in range(2):
        with told(client, call):
            client.write("a", b"2")  # boxd's own writes replace files
    with told(client, call):
        client.run("echo 3 > a").result()


def test_a_file_that_is_deleted_and_made_again_is_followed(client: Client):
    client.write("a", b"1")
    call = watching(client, "a")
    with told(client, call):
        client.run("rm a").result()
    with told(client, call):
        client.run("echo 2 > a").result()
    with told(client, call):
        client.run("echo 3 >> a").result()


def test_a_file_that_does_not_exist_yet_is_told_of_when_it_does(client: Client):
    call = watching(client, "deep/down/a")
    with told(client, call):
        client.run("mkdir -p deep/down; echo 1 > deep/down/a").result()
    with told(client, call):
        client.run("echo 2 >> deep/down/a").result()


def test_a_file_whose_directory_is_exchanged_is_followed(client: Client, boxd: LocalBoxd):
    client.run("mkdir one two; echo 1 > one/a; echo 2 > two/a").result()
    call = watching(client, "one/a")
    with told(client, call):
        client.run("mv one old; mv two one").result()
    with told(client, call):
        client.run("echo 3 > one/a").result()
    client.run("echo 4 > old/a").result()
    call.notes.clear()
    hear_out(client)
    assert call.notes == []


def test_what_a_symlink_leads_to_is_watched(client: Client):
    client.run("mkdir there; echo 1 > there/a; echo 2 > there/b; ln -s there/a link").result()
    call = watching(client, "link")
    with told(client, call):
        client.run("echo 3 >> there/a").result()
    with told(client, call):
        client.run("ln -sfn there/b link").result()
    with told(client, call):
        client.run("echo 4 >> there/b").result()


def test_entries_that_come_and_go_are_told_of_a_directory(client: Client):
    client.run("mkdir folder; touch folder/a").result()
    call = watching(client, "folder")
    for change in ("touch folder/b", "mv folder/b folder/c", "rm folder/c", "rm -r folder"):
        with told(client, call):
            client.run(change).result()
    with told(client, call):
        client.run("mkdir folder").result()
    with told(client, call):
        client.run("touch folder/d").result()


def test_what_happens_beside_a_path_is_not_told(client: Client, boxd: LocalBoxd):
    client.run("mkdir folder; touch folder/a").result()
    file, folder = watching(client, "folder/a"), watching(client, "folder")
    client.run("touch b folder/a.txt; cat folder/a; rm b; echo x > b").result()
    hear_out(client)
    assert (file.notes, folder.notes) == ([], [CHANGED])


def test_names_that_are_no_text_are_watched(client: Client):
    name = os.fsdecode(b"caf\xe9\nb")
    call = watching(client, name)
    with told(client, call):
        client.write(name, b"1")


def test_a_burst_is_told_at_most_four_times_a_second(client: Client):
    client.write("a", b"")
    call = watching(client, "a")
    start = time.monotonic()
    client.run("end=$((SECONDS + 2)); while ((SECONDS < end)); do echo x >> a; done").result()
    hear_out(client)
    took = time.monotonic() - start
    assert 3 <= len(call.notes) <= 2 + 4 * took


def test_more_events_than_the_kernel_keeps_lose_no_change(client: Client, boxd: LocalBoxd):
    client.run("mkdir folder; touch folder/a").result()
    call = watching(client, "folder/a")
    with told(client, call):
        client.run(f"python3 -c '{MANY}'; echo x > folder/a").result()
    shutil.rmtree(boxd.workspace / "folder")


def test_several_streams_share_what_the_kernel_watches(client: Client, boxd: LocalBoxd):
    client.write("a", b"1")
    calls = [watching(client, "a") for _ in range(3)]
    assert inotifies(boxd) == 1
    calls[0].cancel()
    client.pump_until(lambda: calls[0].done)
    client.write("a", b"2")
    for call in calls[1:]:
        client.pump_until(lambda call=call: call.notes)
    assert calls[0].notes == []


def test_a_watch_ends_when_it_is_cancelled_or_its_server_goes(boxd: LocalBoxd):
    with boxd.connect() as client:
        client.write("a", b"1")
        call = watching(client, "a")
        with pytest.raises(Failed):
            call.cancel().result()
        assert inotifies(boxd) == 0
        watching(client, "a")
        assert inotifies(boxd) == 1
    eventually(lambda: inotifies(boxd) == 0, "boxd lets go")


def test_a_watch_makes_no_box_busy(client: Client, boxd: LocalBoxd):
    watching(client, "a")
    with boxd.connect() as other:
        assert other.hello["busy"] is False


def test_a_server_that_does_not_listen_is_told_of_what_is_newest_only(boxd: LocalBoxd):
    with boxd.connect() as deaf, boxd.connect() as client:
        client.write("a", b"1")
        call = watching(deaf, "a")
        client.run("yes | head -c 20000000", head=1, tail=1).result()
        for _ in range(3):
            client.write("a", b"2")
        deaf.pump_until(lambda: call.notes)
        assert call.notes[0] == CHANGED


def test_what_the_user_may_not_read_is_not_watched(client: Client):
    client.run("mkdir locked; touch locked/a secret; chmod 0 locked secret").result()
    for path in ("secret", "locked", "locked/a"):
        with pytest.raises(Failed) as caught:
            watching(client, path)
        assert caught.value.code == "denied"
    client.run("chmod 755 locked").result()


def test_a_file_that_may_not_be_read_any_more_ends_its_watch(client: Client):
    client.write("a", b"1")
    call = watching(client, "a")
    client.run("chmod 0 a").result()
    with pytest.raises(Failed) as caught:
        call.result()
    assert caught.value.code == "denied"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become the box's user")
def test_boxd_as_root_watches_with_the_rights_of_the_user():
    with LocalBoxd(as_root=True) as boxd, boxd.connect() as client:
        (boxd.workspace / "roots").touch(0o600)
        with pytest.raises(Failed) as caught:
            watching(client, "roots")
        assert caught.value.code == "denied"
        client.write("a", b"1")
        call = watching(client, "a")
        with told(client, call):
            client.run("echo 2 >> a").result()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOSPC])
def test_a_limit_of_the_machine_is_told_with_words(number: int):
    said = r"the limit of .* is reached on this machine"
    with pytest.raises(Refusal, match=said) as caught, refusals_at_limits():
        raise OSError(number, "too many or too much")
    assert caught.value.code == "too_many"
