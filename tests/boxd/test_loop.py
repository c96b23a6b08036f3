from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

from box_mcp.boxd.loop import SWEEP_FROM, Loop
from tests.support.boxd import Client, LocalBoxd, alive, eventually

if TYPE_CHECKING:
    import pytest

FROZEN = 2.5  # s


def test_a_freeze_does_not_count_towards_a_deadline(client: Client, boxd: LocalBoxd):
    call = client.run("echo $$ > main; sleep 300", timeout=2)
    main = boxd.pid_in("main")
    boxd.process.send_signal(signal.SIGSTOP)
    time.sleep(FROZEN)  # what is tested is time itself
    boxd.process.send_signal(signal.SIGCONT)
    assert client.call("processes")["runs"][0]["running"]
    assert alive(main)
    result = call.result()
    assert result["cause"] == "timeout"
    assert 2 <= result["seconds"] < 5


def test_a_read_that_was_frozen_midway_goes_on_at_once(client: Client, boxd: LocalBoxd):
    client.write("large", b"x\n" * 4_000_000)
    call = client.open("read", path="large", max_lines=10**9, max_bytes=10**9)
    client.pump_until(lambda: len(call.data) > 1_000_000)
    boxd.process.send_signal(signal.SIGSTOP)
    time.sleep(FROZEN)
    boxd.process.send_signal(signal.SIGCONT)
    start = time.monotonic()
    assert call.result()["size"] == 8_000_000
    assert time.monotonic() - start < 3


def test_a_boxd_that_nobody_is_connected_to_exits():
    with LocalBoxd(orphan_after=0.5) as boxd:
        assert boxd.process.wait(10) == 0


def test_a_boxd_is_no_orphan_while_somebody_is_connected_or_a_run_is_busy():
    with LocalBoxd(orphan_after=0.5) as boxd:
        with boxd.connect() as client:
            client.run("sleep .7").result()
            lives = f"grep -q '^State:.[RSD]' /proc/{boxd.process.pid}/status"
            client.run(f"sleep .9; {lives} && touch done")
        eventually((boxd.workspace / "done").exists)
        assert boxd.process.wait(10) == 0


def test_a_survivor_beyond_its_deadline_does_not_keep_an_orphan_alive():
    with LocalBoxd(orphan_after=0.3) as boxd:
        with boxd.connect() as client:
            client.run("sleep 300 &", timeout=0.2).result()
        assert boxd.process.wait(10) == 0


def test_sigterm_ends_boxd_and_every_tree(client: Client, boxd: LocalBoxd):
    client.run("trap '' TERM; echo $$ > main; sleep 300")
    main = boxd.pid_in("main")
    boxd.process.terminate()
    assert boxd.process.wait(10) == 0
    eventually(lambda: not alive(main))


def test_timers_fire_in_order_and_cancelled_ones_do_not():
    loop, fired = Loop(), list[str]()
    loop.call_later(0.02, loop.stop)
    loop.call_later(0.01, lambda: fired.append("second"))
    loop.call_later(0, lambda: fired.append("first"))
    loop.call_later(0.01, lambda: fired.append("cancelled")).cancel()
    _run(loop)
    assert fired == ["first", "second"]


def test_a_callback_that_fails_does_not_end_the_loop(capsys: pytest.CaptureFixture[str]):
    loop = Loop()
    loop.call_later(0, _fail)
    loop.call_later(0.01, loop.stop)
    _run(loop)
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_cancelled_timers_do_not_pile_up():
    loop = Loop()
    for _ in range(100 * SWEEP_FROM):
        loop.call_later(600, loop.stop).cancel()
    assert repr(loop) == f"<Loop fds=0 timers={SWEEP_FROM}>"


def _fail() -> None:
    raise ZeroDivisionError


def _run(loop: Loop) -> None:
    """Runs it, and gives pytest its signals back."""
    saved = {number: signal.getsignal(number) for number in (signal.SIGCHLD, signal.SIGTERM)}
    try:
        loop.run()
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in saved.items():
            signal.signal(number, handler)
