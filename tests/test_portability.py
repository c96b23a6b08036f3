"""README promises Windows and macOS: a server over stdio takes no names that only Unix has."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from box_mcp.domain.signals import BoxSignal
from tests.support import client
from tests.support.client import PATIENCE, serving

ON_WINDOWS = [sys.executable, "-m", "tests.support.windows"]


def test_all_modules_are_imported_by_what_python_has_on_windows():
    done = subprocess.run(
        [*ON_WINDOWS, "imports"], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


async def test_a_server_over_stdio_takes_no_more_than_python_has_on_windows(
    server_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(client, "COMMAND", [*ON_WINDOWS, "box_mcp", "serve"])
    async with serving(server_env) as server:
        assert "well" in await server.run("echo well")
        await server.say("shell_run", command="sleep 300", background=True)
        ended = await server.say("process_signal", id="p2", signal="KILL")
        assert "SIGKILL went to" in ended
        await server.say("box_pause")
        assert "well" in await server.run("echo well")
        box = (await server.tell("box_info"))["id"]
        await server.say("box_delete", box=box)
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(PATIENCE)
    assert "Error" not in server.log.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="signals have these numbers on Linux")
def test_signals_of_boxes_are_those_of_linux():
    known = {one.name: one.value for one in signal.Signals}
    assert {one.name: one.value for one in BoxSignal} == known
