"""Programs that ask, draw and edit, on terminals in a real box: worked with as an agent does."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from box_mcp.surface.shell import SCREEN_HISTORY
from tests.support.client import PATIENCE, Server, serving, until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

SOON = 0.3
"""Seconds after which a call is left behind by the program that it has started."""

DEBIAN_TAKES = 90.0
"""Seconds for what is downloaded; no test waits for anything else so long."""

DEV_SERVER = """
require('child_process').spawn('sleep', ['300'], { detached: true, stdio: 'ignore' })
require('http')
  .createServer((_, answer) => answer.end('%s'))
  .listen(function () { console.log('Listening on', this.address().port) })
"""


@dataclass(frozen=True)
class Program:
    """A command on a terminal."""

    server: Server
    id: str

    async def types(self, text: str = "", *keys: str, **more: Any) -> str:
        """What is answered to some text, and then keys."""
        return await self.server.say("process_input", id=self.id, text=text, keys=keys, **more)

    async def output(self, **arguments: Any) -> str:
        """What was printed."""
        return await self.server.say("process_output", id=self.id, **arguments)

    async def shows(self, pattern: str) -> str:
        """The screen, with its header, once it matches."""
        screen = ""

        async def matches() -> bool:
            nonlocal screen
            screen = await self.output(show_screen=True)
            return re.search(pattern, screen, re.MULTILINE) is not None

        try:
            await until(matches, f"{pattern!r} on the screen")
        except AssertionError as error:
            raise AssertionError(f"{error}; it is\n{screen}") from None
        return screen

    async def last_words(self, text: str) -> str:
        """What is printed after some text was typed, up to the end that this leads to."""
        printed = re.search(r" of ([\d,]+)", await self.output(max_output=200))
        assert printed is not None
        await self.types(text, wait=0)
        cursor = int(printed[1].replace(",", ""))
        return await self.output(wait=PATIENCE, until="exit", cursor=cursor)

    async def ends(self) -> str:
        """Its whole output, with a header that tells how it ended."""
        return await self.output(wait=PATIENCE, until="exit", cursor=0)


@pytest.fixture(scope="module")
async def server(shared_env: dict[str, str]) -> AsyncGenerator[Server, None]:
    """Of all tests, each of which has programs of its own in its box."""
    async with serving(shared_env) as server:
        yield server


async def on_terminal(server: Server, command: str, **arguments: Any) -> Program:
    """A program that goes on behind the call that started it."""
    answer = await server.run(command, tty=True, yield_after=SOON, **arguments)
    return Program(server, process_in(answer))


def process_in(answer: str) -> str:
    """The process id that an answer's header names."""
    found = re.search(r"^\[.*?\b(p\d+)\b.*\]$", answer, re.MULTILINE)
    assert found is not None, answer
    return found[1]


def body(answer: str) -> str:
    """What comes below the header."""
    return answer.partition("]\n")[2]


@pytest.fixture(scope="module")
async def editor(server: Server) -> Server:
    """The same, with vim in the box, and Debian's list of packages."""
    install = "sudo apt-get -q update && sudo apt-get -q -y install vim"
    await server.run(f"({install}) >log 2>&1 || cat log", yield_after=DEBIAN_TAKES)
    assert "VIM" in await server.run("vim --version")
    return server


async def test_apt_asks_before_it_installs_and_goes_on_when_answered(editor: Server):
    for answer, exit_status in (("n", 1), ("", 0)):
        apt = await on_terminal(editor, "sudo apt-get install whiptail")
        asked = await apt.output(cursor=0, wait=PATIENCE, pattern=r"continue\? \[Y/n\] $")
        assert "pattern found" in asked
        assert "whiptail" in body(asked)
        await apt.types(answer, "enter")
        assert f"exit {exit_status} · " in await apt.ends()
    assert "exit 0" in await editor.run("whiptail --version")


async def test_vim_writes_the_file_that_was_typed_into_it(editor: Server):
    await editor.run("rm -f poem")
    vim = await on_terminal(editor, "vim poem")
    await vim.shows(r'^"poem" \[New\]')
    await vim.types("itwo\nthree\nfour", "escape")
    screen = await vim.shows(r"cursor at row 3, column 4\b")
    assert body(screen).startswith("two\nthree\nfour\n~\n")
    await vim.types("", "up", "up", "home")
    await vim.shows(r"cursor at row 1, column 1\b")
    await vim.types("Oone", "escape")
    assert body(await vim.shows(r"^one$")).startswith("one\ntwo\n")
    await vim.types(":wq", "enter")
    assert "exit 0" in await vim.ends()
    assert body(await editor.run("cat poem")) == "one\ntwo\nthree\nfour\n"


async def test_what_a_full_screen_program_leaves_behind_is_not_shown_as_its_last_words(
    editor: Server,
):
    vim = await on_terminal(editor, "echo before; vim -u NONE nothing; echo after")
    await vim.shows(r"^~$")
    answer = await vim.last_words("itext of the file\n\x1b:q!\n")
    assert "exit 0" in answer
    assert "text of the file" not in answer
    assert "~" not in answer
    assert body(answer).strip().splitlines()[-1] == "after"


async def test_the_shell_is_seen_again_when_a_full_screen_program_is_left(
    editor: Server,
):
    bash = await on_terminal(editor, "bash")
    await bash.types("echo shell $((1 + 1))\n")
    await bash.shows(r"^shell 2$")
    await bash.types("vim -u NONE nothing\n")
    assert "shell 2" not in await bash.shows(r"^~$")
    await bash.types(":q", "enter")
    assert "~\n" not in await bash.shows(r"^shell 2$")
    await bash.types("exit\n")
    assert "exit 0" in await bash.ends()


async def test_a_screen_is_right_however_much_was_drawn_before(editor: Server):
    await editor.run("seq -f 'verse %g of a poem that does not end' 1 20000 > long")
    vim = await on_terminal(editor, "vim -u NONE long")
    await vim.shows(r"^verse 1 of")
    await vim.types("\x06" * 200)  # ctrl-f, 21 lines on each time
    await vim.shows(r"^verse 4201 of")
    await vim.types(":set number", "enter")
    screen = await vim.shows(r"^ +4201 verse 4201 of")
    assert body(screen).splitlines()[:23] == [
        f"{n:>7} verse {n} of a poem that does not end" for n in range(4201, 4224)
    ]
    await vim.types(":q")
    await vim.shows(r"^:q\Z")
    await vim.types("", "enter")
    ended = await vim.ends()
    assert "exit 0" in ended
    printed = re.search(r" of ([\d,]+)", ended)
    assert printed is not None
    assert int(printed[1].replace(",", "")) > SCREEN_HISTORY


async def test_git_rebases_interactively_as_its_editor_is_told(editor: Server):
    await editor.run(
        "rm -rf poems; git init -q poems; cd poems;"
        "git config user.name Ann; git config user.email ann@example.org;"
        "for n in one two three; do echo $n > $n; git add .; git commit -qm $n; done"
    )
    rebase = await on_terminal(
        editor, "git rebase -i --root", cwd="poems", env={"GIT_EDITOR": "vim -u NONE"}
    )
    assert re.match(r"pick \w+ one\npick", body(await rebase.shows(r"^pick \w+ three$")))
    await rebase.types("ddp")
    await rebase.shows(r"^pick \w+ two\npick \w+ one$")
    await rebase.types(":3s/pick/squash/", "enter")
    await rebase.shows(r"^squash \w+ three$")
    await rebase.types(":wq", "enter")
    await rebase.shows(r"This is a combination of 2 commits")
    await rebase.types("ggdGione and three", "escape")
    await rebase.shows(r"^one and three$")
    await rebase.types(":wq", "enter")
    ended = await rebase.ends()
    assert "exit 0" in ended
    assert "Successfully rebased" in ended
    log = await editor.run("git log --format=%s; git ls-files; git status -s", cwd="poems")
    assert body(log) == "one and three\ntwo\none\nthree\ntwo\n"


async def test_sudo_asks_for_a_password_and_asks_again_after_a_wrong_one(
    server: Server,
):
    account = (
        "sudo useradd --create-home --shell /bin/bash ann; echo ann:sesame | sudo chpasswd;"
        "echo 'ann ALL=(ALL) ALL' | sudo tee /etc/sudoers.d/ann"
    )
    await server.run(account)
    sudo = await on_terminal(server, "whoami; sudo id -u", user="ann")
    await sudo.shows(r"^\[sudo\] password for ann:$")
    await sudo.types("wrong\n")
    await sudo.shows(r"^Sorry, try again.\n\[sudo\] password for ann:$")
    await sudo.types("sesame\n")
    ended = await sudo.ends()
    assert "exit 0" in ended
    assert body(ended).splitlines()[0] == "ann"
    assert body(ended).splitlines()[-1] == "0"
    assert "sesame" not in ended


async def test_a_password_that_is_typed_unseen_is_in_no_output(server: Server):
    ask = "read -rsp 'Password: ' word; echo; echo got ${#word} characters"
    asking = await on_terminal(server, ask)
    await asking.shows(r"^Password:$")
    answer = await asking.types("open sesame\n", wait=PATIENCE)
    ended = await asking.output(cursor=0, raw=True, wait=PATIENCE, until="exit")
    assert "exit 0" in ended
    assert body(ended).split("\r\n") == ["Password: ", "got 11 characters", ""]
    assert "sesame" not in answer


async def test_a_python_prompt_computes_takes_blocks_recalls_and_is_interrupted(
    server: Server,
):
    python = await on_terminal(server, "python3 -q")
    await python.shows(r"^>>>$")
    await python.types("6 * 7\n")
    await python.shows(r"^42\n>>>$")
    await python.types("def twice(x):\n    return x + x\n\ntwice('ab')\n")
    await python.shows(r"^'abab'\n>>>$")
    await python.types("", "up", "enter")
    await python.shows(r"^'abab'\n(.*\n)*'abab'\n>>>$")
    await python.types("import time; print('sl' + 'eeps'); time.sleep(300)\n")
    await python.shows(r"^sleeps$")
    await python.types("", "ctrl-c")
    await python.shows(r"^KeyboardInterrupt\n>>>$")
    await python.types("6 * 8\n")
    await python.shows(r"^48\n>>>$")
    await python.types(end=True)
    assert "exit 0" in await python.ends()


async def test_top_draws_itself_anew_until_it_is_left(server: Server):
    top = await on_terminal(server, "top -d 0.2 -u box", cols=100)
    first = await top.shows(r"^ *PID USER .*\n(.*\n)* *\d+ box .* top$")
    assert "screen 100x24" in first
    assert re.match(r"top - .*\nTasks: +\d+ total,", body(first))
    clock = re.escape(body(first).splitlines()[0])
    await top.shows(rf"^(?!{clock}$)top - ")
    await top.types("c")  # whole command lines
    await top.shows(r" top -d 0\.2 -u box$")
    await top.types("q")
    assert "exit 0" in await top.ends()


async def test_less_pages_searches_and_is_left(server: Server):
    less = await on_terminal(server, "seq 1 500 > numbers; less numbers")
    assert body(await less.shows(r"^numbers$")).startswith("1\n2\n")
    await less.types("", "page-down")
    assert body(await less.shows(r"^46\n:$")).startswith("24\n25\n")
    await less.types("/^450\n")
    assert body(await less.shows(r"^472\n:$")).startswith("450\n")
    await less.types("g")
    await less.shows(r"^1\n2\n")
    await less.types("q")
    assert "exit 0" in await less.ends()


async def test_a_resized_program_hears_of_it_and_its_other_side_stays(server: Server):
    told = "trap 'stty size; tput cols' WINCH; stty size; sleep 300 & while :; do wait; done"
    program = await on_terminal(server, told, rows=30, cols=90)
    await program.shows(r"^30 90$")
    await program.types(rows=40, cols=100)
    assert "screen 100x40" in await program.shows(r"^40 100\n100$")
    await program.types(cols=132)
    assert "screen 132x40" in await program.shows(r"^40 132\n132$")
    await program.types(rows=50)
    await program.shows(r"^50 132\n132$")
    await server.say("process_signal", id=program.id)


async def test_a_resized_screen_is_drawn_anew(server: Server):
    less = await on_terminal(server, "seq 1 500 > numbers; less numbers")
    await less.shows(r"^23\nnumbers$")
    await less.types(rows=10, cols=60)
    screen = await less.shows(r"^9\n.*\Z")
    assert "screen 60x10" in screen
    assert len(body(screen).splitlines()) == 10
    await less.types("q")
    assert "exit 0" in await less.ends()


@pytest.mark.parametrize(
    ("command", "end"),
    [
        ("echo works; sleep 300; echo never", "killed by SIGINT"),
        ("trap 'echo tidies up; exit 3' INT; echo works; sleep 300 & wait", "exit 3"),
    ],
    ids=["that does not care", "that tidies up"],
)
async def test_ctrl_c_interrupts_a_command(server: Server, command: str, end: str):
    program = await on_terminal(server, command)
    await program.shows(r"^works$")
    await program.types("", "ctrl-c")
    ended = await program.ends()
    assert f"{end} · " in ended
    assert "never" not in ended
    assert ("tidies up" in ended) == (end == "exit 3")


async def test_a_job_is_stopped_by_ctrl_z_and_comes_back_with_fg(server: Server):
    bash = await on_terminal(server, "bash")
    await bash.shows(r"\$$")
    await bash.types("sleep 300\n")
    await bash.shows(r"sleep 300$")
    await bash.types("", "ctrl-z")
    await bash.shows(r"^\[1\]\+ +Stopped +sleep 300\n.*\$$")
    await bash.types("fg\n")
    await bash.shows(r"fg\nsleep 300$")
    await bash.types("", "ctrl-c")
    await bash.shows(r"^\^C\n.*\$$")
    await bash.types("jobs; echo jobs: $?\n")
    await bash.shows(r"jobs; echo jobs: \$\?\njobs: 0$")
    await bash.types("exit 7\n")
    assert "exit 7" in await bash.ends()


async def test_a_call_returns_when_its_program_waits_for_an_answer(server: Server):
    with anyio.fail_after(PATIENCE / 2):
        asked = await server.run("read -rp 'Name? ' name; echo hi $name", tty=True)
    assert body(asked) == "Name?"
    asking = Program(server, process_in(asked))
    assert (await asking.last_words("Ann\n")).endswith("hi Ann\n")


async def test_a_question_is_seen_below_however_much_output(server: Server):
    asking = await on_terminal(server, "seq 1 30000; read -rp 'Name? ' name; echo hi $name")
    assert body(await asking.shows(r"^30000\nName\?$")).startswith("29978\n")
    assert (await asking.output(max_output=300)).endswith("\n30000\nName? ")
    answer = await asking.last_words("Ann\n")
    assert "exit 0" in answer
    assert answer.endswith("hi Ann\n")


async def test_input_is_answered_as_soon_as_the_program_is_quiet(server: Server):
    cat = await on_terminal(server, "stty -echo; echo ready; cat")  # all else is its answer
    await cat.shows(r"^ready$")
    with anyio.fail_after(PATIENCE / 2):
        for word in ("one", "two", "three", "four", "five", "six", "seven", "eight"):
            assert f"\n{word}" in await cat.types(f"{word}\n", wait=PATIENCE)
    assert "exit 0" in await cat.types("", "ctrl-d", wait=PATIENCE)


async def test_a_line_break_in_typed_text_is_the_key_enter(server: Server):
    keyboard = (
        "stty -icrnl -icanon -echo; echo ready; keys=$(head -c 3 | od -An -c); echo got $keys"
    )
    program = await on_terminal(server, keyboard)
    await program.shows(r"^ready$")
    await program.types("a\n", "enter")
    assert r"got a \r \r" in await program.ends()


async def test_who_types_to_what_has_ended_hears_so(server: Server):
    bash = await on_terminal(server, "bash")
    await bash.types("exit 4\n")
    assert "exit 4" in await bash.ends()
    said = await server.fail("process_input", id=bash.id, text="more")
    assert f"{bash.id} has ended" in said


async def test_a_dev_server_is_found_asked_edited_and_ended_with_all_it_started(
    server: Server,
):

    async def listed(process: str) -> tuple[int, list[int]]:
        """The port, and the processes, of a command in the list."""
        listing = await server.say("process_list")
        found = re.search(
            rf"^{process}  running for \d+ s · ((?:\d+\(\w+\) ?)+) · .*"
            r"listens on (\d+) · node --watch server\.js$",
            listing,
            re.MULTILINE,
        )
        assert found is not None, listing
        return int(found[2]), [int(pid) for pid in re.findall(r"(\d+)\(", found[1])]

    await server.say("file_write", path="dev/server.js", content=DEV_SERVER % "first")
    started = await server.run("node --watch server.js", cwd="dev", background=True)
    node = Program(server, process_in(started))
    said = await node.output(cursor=0, wait=PATIENCE, pattern=r"Listening on \d+\n")
    port, _ = await listed(node.id)
    assert body(said).endswith(f"Listening on {port}\n")
    assert (await server.run(f"curl -sS localhost:{port}")).endswith("]\nfirst")

    cursor = re.search(r"next cursor=(\d+)", said)
    assert cursor is not None
    await server.say("file_write", path="dev/server.js", content=DEV_SERVER % "second")
    again = await node.output(cursor=int(cursor[1]), wait=PATIENCE, pattern=r"Listening on \d+\n")
    assert "pattern found" in again
    port, pids = await listed(node.id)
    assert (await server.run(f"curl -sS localhost:{port}")).endswith("]\nsecond")

    ended = await server.say("process_signal", id=node.id)
    assert "ended as asked for" in ended
    for pid in pids:
        assert not await server.lives(pid)
    assert "exit 7" in await server.run(f"curl -s localhost:{port}")
