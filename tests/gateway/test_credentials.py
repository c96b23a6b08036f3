from __future__ import annotations

import base64
import os
import shlex
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio
import psutil
import pytest

from box_mcp.domain.routes import Credential, Route, parse_upstream
from box_mcp.errors import NoCredential
from box_mcp.gateway import credentials
from box_mcp.gateway.credentials import Secret, Secrets

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

TOKEN = "open-sesame-1234"


def route(credential: Credential, url: str = "https://git.example/base") -> Route:
    return Route("work", parse_upstream(url), credential)


def python(*lines: str) -> Credential:
    """What a program prints."""
    return Credential(command=(sys.executable, "-c", "\n".join(lines)))


async def refusal(credential: Credential, secrets: Secrets | None = None) -> str:
    with pytest.raises(NoCredential) as caught:
        await (secrets or Secrets()).of(route(credential))
    assert caught.value.route == "work"
    assert "in box_mcp's settings says where" in caught.value.advice
    for words in (str(caught.value), repr(caught.value), caught.value.explain()):
        assert TOKEN not in words
    return caught.value.detail


async def test_a_variable_is_read_each_time(monkeypatch: pytest.MonkeyPatch):
    secrets, by = Secrets(), route(Credential(variable="TOKEN", user="me"))
    for value in (TOKEN, "another"):
        monkeypatch.setenv("TOKEN", f" {value}\n")
        assert await secrets.of(by) == Secret("me", value)
    monkeypatch.delenv("TOKEN")
    assert "TOKEN is not set" in await refusal(Credential(variable="TOKEN"), secrets)


async def test_a_file_s_first_line_is_kept_for_a_moment_unless_it_is_not_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    now = 1000.0
    monkeypatch.setattr(credentials.time, "monotonic", lambda: now)
    file = tmp_path / "token"
    secrets, by = Secrets(), route(Credential(file=str(file)))
    file.write_text(f"{TOKEN}\r\nsomething else\n")
    first = await secrets.of(by)
    assert first == Secret("x-access-token", TOKEN)
    file.write_text("second")
    assert await secrets.of(by) == first
    assert (await secrets.of(by, but=first)).value == "second"
    file.write_text("third")
    now += credentials.READ
    assert (await secrets.of(by)).value == "third"


async def test_a_file_that_is_not_there_is_looked_for_each_time(tmp_path: Path):
    file = tmp_path / "token"
    secrets, by = Secrets(), route(Credential(file=str(file)))
    assert await refusal(by.credential, secrets) == "its file is not there"
    file.mkdir()
    assert await refusal(by.credential, secrets) == "its file is not there"
    file.rmdir()
    file.write_text(TOKEN)
    assert (await secrets.of(by)).value == TOKEN


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes in directories")
async def test_a_file_that_is_a_pipe_holds_up_nobody(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with anyio.fail_after(5):
        assert "not there" in await refusal(Credential(file=str(tmp_path / "pipe")))


async def test_a_program_s_first_line_is_a_secret():
    asked = python("print('open-sesame-1234'); print('more')")
    assert await Secrets().of(route(asked)) == Secret("x-access-token", TOKEN)


async def test_it_has_the_user_s_variables_no_input_and_no_way_to_ask(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("TOKEN_OF_MINE", TOKEN)
    asked = python(
        "import os, sys",
        "assert sys.stdin.read() == ''",
        "assert os.environ['GIT_TERMINAL_PROMPT'] == '0'",
        "print(os.environ['TOKEN_OF_MINE'])",
    )
    assert (await Secrets().of(route(asked))).value == TOKEN


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (["import sys", f"print('{TOKEN}')", "sys.exit(3)"], "ended with status 3"),
        (["raise ValueError('open-sesame-1234')"], "ended with status 1"),
        (["pass"], "can be no secret"),
        ([f"print('\\n{TOKEN}')"], "can be no secret"),
        (["import sys", "sys.stdout.buffer.write(b'\\xff\\xfe')"], "is no text"),
        ([f"print('{TOKEN}\\x1b[0m')"], "can be no secret"),
        ([f"print('{TOKEN}\\0')"], "can be no secret"),
        ([f"import sys; sys.stderr.write('{TOKEN}'); sys.exit(1)"], "ended with status 1"),
    ],
)
async def test_what_goes_wrong_is_told_without_what_it_printed(lines: list[str], why: str):
    assert why in await refusal(python(*lines))


async def test_a_program_that_is_not_there_is_named():
    assert "'no-such-program' can't be started" in await refusal(
        Credential(command=("no-such-program", TOKEN))
    )


async def test_a_user_with_a_colon_is_no_user(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOKEN", TOKEN)
    assert "no secret" in await refusal(Credential(variable="TOKEN", user="a:b"))


async def test_a_program_that_hangs_is_ended_with_all_that_it_began(tmp_path: Path):
    note = tmp_path / "pids"
    asked = python(
        "import os, subprocess, sys, time",
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])",
        f"open({str(note)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')",
        "time.sleep(60)",
    )
    for patience in (1, 4, 16):  # it begins later where much else is done
        told = await refusal(asked, Secrets(timeout=patience))
        assert f"does not end within {patience} s" in told
        if note.exists():
            break
    pids = [int(pid) for pid in note.read_text().split()]
    assert len(pids) == 2
    gone, alive = psutil.wait_procs(
        [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], 5
    )
    assert alive == [] or all(one.status() == psutil.STATUS_ZOMBIE for one in alive), gone


async def test_one_that_leaves_something_behind_is_not_waited_for(tmp_path: Path):
    note = tmp_path / "pid"
    asked = python(
        "import subprocess, sys",
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])",
        f"open({str(note)!r}, 'w').write(str(child.pid))",
        f"print('{TOKEN}')",
    )
    with anyio.fail_after(20):
        assert (await Secrets().of(route(asked))).value == TOKEN
    psutil.Process(int(note.read_text())).kill()  # it goes on


async def test_one_that_prints_without_end_is_ended():
    asked = python("while True: print('x' * 100_000)")
    with anyio.fail_after(10):
        await refusal(asked, Secrets(timeout=1))


def counting(count: Path, *more: str) -> Credential:
    """Prints how often it was asked."""
    return python(
        f"with open({str(count)!r}, 'a+') as file:",
        "    file.write('x'); file.flush(); file.seek(0)",
        "    print(f'secret-{len(file.read())}')",
        *more,
    )


async def test_who_needs_it_at_the_same_time_shares_one_fetch(tmp_path: Path):
    secrets, asked = Secrets(), route(counting(tmp_path / "count", "import time; time.sleep(.2)"))
    found: list[str] = []

    async def need() -> None:
        found.append((await secrets.of(asked)).value)

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(need)
    assert found == ["secret-1"] * 10


async def test_who_gives_up_waiting_leaves_nothing_that_others_wait_for(tmp_path: Path):
    secrets, asked = Secrets(), route(counting(tmp_path / "count", "import time; time.sleep(.3)"))
    with anyio.move_on_after(0.1):
        await secrets.of(asked)
    with anyio.fail_after(5):
        assert (await secrets.of(asked)).value.startswith("secret-")


async def test_it_is_kept_for_some_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    secrets, asked = Secrets(), route(counting(tmp_path / "count"))
    assert (await secrets.of(asked)).value == "secret-1"
    assert (await secrets.of(asked)).value == "secret-1"
    later = time.monotonic() + credentials.KEPT + 1
    monkeypatch.setattr(credentials.time, "monotonic", lambda: later)
    assert (await secrets.of(asked)).value == "secret-2"


async def test_one_that_was_not_accepted_is_fetched_anew_but_not_at_once_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    secrets, asked = Secrets(), route(counting(tmp_path / "count"))
    now = 1000.0
    monkeypatch.setattr(credentials.time, "monotonic", lambda: now)
    first = await secrets.of(asked)
    assert await secrets.of(asked, but=first) == first
    now += credentials.TRIED
    second = await secrets.of(asked, but=first)
    assert second.value == "secret-2"
    assert await secrets.of(asked, but=first) == second


async def test_a_failure_is_remembered_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    count, now = tmp_path / "count", 1000.0
    secrets, asked = Secrets(), counting(count, "raise SystemExit(1)")
    monkeypatch.setattr(credentials.time, "monotonic", lambda: now)
    for expected in (1, 1, 2):
        await refusal(asked, secrets)
        assert len(count.read_text()) == expected
        now += credentials.TRIED * 0.6


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's, with a git of his own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("GIT_CONFIG_GLOBAL", raising=False)
    return tmp_path


def helper(home: Path, *lines: str) -> None:
    """git's credential helper: a program that is told on its input what is wanted."""
    program = home / "helper.py"
    program.write_text("\n".join(["import sys", "said = sys.stdin.read()", *lines]))
    command = f"!{shlex.quote(sys.executable)} {shlex.quote(str(program))}".replace("\\", "/")
    (home / ".gitconfig").write_text(f'[credential]\n\thelper = "{command}"\n')


async def test_git_s_own_helpers_are_asked_for_the_upstream(home: Path):
    helper(
        home,
        "open('asked', 'a').write(sys.argv[1] + chr(10) + said)",
        f"print('username=ada'); print('password={TOKEN}=x')",
    )
    secret = await Secrets().of(route(Credential(helper=True), "https://git.example:8443/"))
    assert secret == Secret("ada", f"{TOKEN}=x")
    asked = (home / "asked").read_text().splitlines()
    assert asked[0] == "get"
    assert {"protocol=https", "host=git.example:8443"} <= set(asked)


async def test_one_that_knows_nothing_is_told_of_and_nobody_is_asked_for_a_password(home: Path):
    helper(home)
    with anyio.fail_after(10):
        assert "status 128" in await refusal(Credential(helper=True))


async def test_one_that_refuses_is_not_told_to_forget(home: Path):
    helper(home, "open('asked', 'a').write(sys.argv[1] + ' ')", "sys.exit(1)")
    await refusal(Credential(helper=True))
    assert (home / "asked").read_text() == "get "


def test_a_secret_is_not_shown():
    secret = Secret("ada", TOKEN)
    for shown in (repr(secret), str(secret), f"{secret}", repr(replace(secret, user="b"))):
        assert TOKEN not in shown
        assert base64.b64encode(TOKEN.encode()).decode()[:12] not in shown


def test_it_is_proved_as_basic_has_it():
    proof = Secret("ada", "ü:=").basic.removeprefix("Basic ")
    assert base64.b64decode(proof).decode() == "ada:ü:="
