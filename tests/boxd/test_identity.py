from __future__ import annotations

import os
from signal import SIGKILL
from typing import TYPE_CHECKING

import pytest

from tests.support.boxd import NOBODY, Client, Failed, LocalBoxd, alive, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def boxd() -> Iterator[LocalBoxd]:
    with LocalBoxd(as_root=True) as boxd:
        yield boxd


def test_commands_of_a_root_boxd_run_as_the_user(client: Client):
    call = client.run("id -u; id -g; id -G")
    call.result()
    assert call.stdout.split() == [str(NOBODY).encode()] * 3


def test_commands_cannot_signal_boxd_nor_runners(client: Client, boxd: LocalBoxd):
    client.run("true").result()
    eventually(boxd.at_rest)
    runner, waiting = boxd.spare()
    assert set(runner.uids()) == {0}
    assert set(waiting.uids()) == {NOBODY}
    assert client.run(f"kill -9 {boxd.process.pid} {runner.pid}").result()["exit"] == 1
    assert alive(boxd.process.pid)
    assert client.run("exit 4").result()["exit"] == 4


def test_a_command_that_kills_the_shell_that_waits_costs_the_next_nothing(
    client: Client, boxd: LocalBoxd
):
    for _ in range(10):
        eventually(boxd.at_rest)
        client.run("true").result()
        eventually(boxd.at_rest)
        _, waiting = boxd.spare()
        assert client.run(f"kill -9 {waiting.pid} $$").result()["signal"] == SIGKILL
        assert client.run("exit 4").result()["exit"] == 4


def test_file_work_of_a_root_boxd_has_the_users_rights(client: Client, boxd: LocalBoxd):
    secret = boxd.root / "secret"
    secret.write_text("x")
    secret.chmod(0o600)
    os.chown(secret, 0, 0)
    os.chown(boxd.root, 0, 0)
    client.write("file", b"x")
    assert (boxd.workspace / "file").stat().st_uid == NOBODY
    for op, path in (("read", "/secret"), ("write", "/secret"), ("write", "/new/file")):
        with pytest.raises(Failed) as caught:
            client.call(op, path=path, max_lines=1, max_bytes=1)
        assert caught.value.code == "denied"


def test_a_command_may_read_its_log(client: Client):
    log = client.run("echo x").result()["log"]
    call = client.run(f"cat {log}")
    call.result()
    assert call.stdout == b"x\n" or call.stderr
