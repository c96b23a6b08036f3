"""What git costs: cloned with a credential that stays on the host, and asked and told by tools.

clone     a box's git, by a credential route       beside the same from the same server, directly
tools     git_status, git_diff, git_commit         beside bare git in the same box, by a connection
                                                   that is held, and the SDK's echo
                                                   beside mcp-server-git in the same box

The server is git's own http-backend with a password. It is in a network namespace, so that this
machine and boxes reach it at the same address.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import anyio

from benchmarks.bench import Bench, bench, box_in
from benchmarks.calls import ECHO, commands_environment
from benchmarks.direct import Direct, Runner, Stopwatch, engine_client
from benchmarks.measure import Found, Goal, Operation, interleaved, seconds_of, table, timed, write
from benchmarks.thin import ThinClient
from box_mcp.capabilities.git import DIFF as DIFF_COMMAND
from box_mcp.capabilities.git import GIT
from box_mcp.domain.remotes import ROUTES_PORT

if TYPE_CHECKING:
    from tests.support.gitserver import Server

RESULTS = Path(__file__).with_name("results") / "git.json"
REFERENCE = "mcp-server-git==2026.10.19"
REFERENCE_PLACE = "/tmp/reference"  # noqa: S108 - in a box that is the bench's own
WORKSPACE = "/workspace"
ROUTE = "bench"
WARMUP = 3  # rounds that do not count
CLONE_WARMUP = 1
BIG_COMMITS = 3
MB = 1_000_000
CLONE_GOAL, TOOL_GOAL = 1.2, 1.15

ECHOED = "SDK echo"
STATUS, DIFF, COMMIT, COMMIT_ALL = TOOLS = (
    "git_status",
    "git_diff",
    "git_commit",
    "git_commit, all",
)
MESSAGE = "Change"
AS_TOOLS_DO = {"LANGUAGE": "C", "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "TZ": "UTC0"}
STATUS_COMMAND = (
    "status --porcelain=v2 --branch --show-stash -z --untracked-files=normal --ignored=no"
)
"""As Git.status has it."""

MAKE_REPOSITORIES = """\
set -e
python3 - "$FILES" <<'END'
import os, sys
for number in range(int(sys.argv[1])):
    directory = f"first/part-{number // 50 % 8}/part-{number // 50}"
    os.makedirs(directory, exist_ok=True)
    with open(f"{directory}/file-{number}.py", "w") as file:
        file.writelines(f"value_{line} = {number} * {line}\\n" for line in range(number % 60 + 10))
END
cd first
git init --quiet --initial-branch=main
git config user.name Bench && git config user.email bench@example.org
git config gc.auto 0
git add . && git commit --quiet --message First
for copy in $COPIES; do cp -a ../first ../$copy; done
cd ../looked
printf 'staged = 1\\n' >> part-0/part-0/file-0.py && git add part-0/part-0/file-0.py
for number in 1 2 3 4 5 6 7 8 9; do printf 'new = 1\\n' >> part-0/part-0/file-$number.py; done
printf 'new\\n' > untracked.txt
"""
LOOKED, OURS, BARE, THEIRS = "looked", "ours", "bare", "theirs"
CLONED = f"{WORKSPACE}/cloned"
CHANGED = "part-0/part-0/file-0.py"
"""A file of each copy that every commit changes."""


@dataclass(frozen=True)
class Amounts:
    """How much of everything; `big` is in MB, `files` are those of the repository for the tools."""

    rounds: int = 200
    clones: int = 10
    commits: int = 500
    big: int = 100
    files: int = 2000

    def repositories(self) -> tuple[str, str]:
        """What is cloned."""
        return f"{self.commits} commits", f"{self.big} MB"


def cloning(what: str) -> tuple[str, str]:
    """The names of the rows of a repository: by a route, directly."""
    return f"clone by a route, {what}", f"clone directly, {what}"


def bare(tool: str) -> str:
    """The name of the row of what a tool runs, without it."""
    return f"{tool}: bare git over a held connection"


def reference(tool: str) -> str:
    """The name of the row of what the reference server has for it."""
    return f"{tool}: mcp-server-git"


@contextmanager
def served(directory: Path) -> Generator[Server, None, None]:
    """A git server that this machine and boxes reach at the same address."""
    from tests.support import internet
    from tests.support.gitserver import serving_git

    if not internet.usable:
        raise RuntimeError(f"clones are measured by {internet.NEEDS}")
    host = internet.Host("site", internet.SITE, directory / "site.log")
    inside, gateway = f"{internet.SITE}/24", f"{internet.SITE_GATEWAY}/24"
    with (
        internet.alone(host.name),
        internet.joined(host, inside, gateway, ()),
        serving_git(directory / "git", also=[(host.address, host.namespace)]) as server,
    ):
        yield server


async def measure_clones(bench: Bench, amounts: Amounts, found: Found) -> None:
    """The same git in the same box, by a route and directly, in turns."""
    from tests.support.gitserver import TOKEN, USER, Content
    from tests.support.internet import SITE

    small, large = amounts.repositories()
    contents = {
        small: Content(commits=amounts.commits),
        large: Content(commits=BIG_COMMITS, big=amounts.big * MB),
    }
    secret = bench.directory / "secret"
    secret.write_text(f"{TOKEN}\n")
    with served(bench.directory) as server, ExitStack() as stack:
        upstream = f"http://127.0.0.1:{server.web.port}"
        route = {"upstream": upstream, "credential": {"file": str(secret), "user": USER}}
        client = stack.enter_context(
            bench.thin(pause_after="off", routes=json.dumps({ROUTE: route}))
        )
        box = box_in(client.call("shell_run", command="true"))
        stopwatch = Direct(box).stopwatch(commands_environment(client))
        stack.callback(stopwatch.close)
        password = f"{quote(USER)}:{quote(TOKEN, safe='')}"
        calls: dict[str, Operation] = {}
        for number, (what, content) in enumerate(contents.items()):
            name = f"bench/{number}.git"
            server.add(name, content)
            commits = content.commits + len(content.branches)
            ours, theirs = cloning(what)
            by_route = f"http://127.0.0.1:{ROUTES_PORT}/{ROUTE}/{name}"
            calls[ours] = cloned(stopwatch, by_route, commits)
            directly = f"http://{password}@{SITE}:{server.web.port}/{name}"
            calls[theirs] = cloned(stopwatch, directly, commits)
        rows = await interleaved(calls, min(amounts.rounds, amounts.clones), CLONE_WARMUP)
    p50 = {row.name: row.p50 for row in rows}
    found.rows += rows
    for ours, theirs in map(cloning, contents):
        found.goals.append(Goal(f"{ours} / directly", p50[ours] / p50[theirs], CLONE_GOAL))


def cloned(stopwatch: Stopwatch, url: str, commits: int) -> Operation:
    """What `git clone` takes in the box, all commits having come."""

    async def operation() -> float:
        os.sync()  # each begins with nothing else to be written
        seconds, _ = stopwatch.run(["git", "clone", "--quiet", url, CLONED])
        _, came = stopwatch.run(["git", "-C", CLONED, "rev-list", "--all"])
        stopwatch.run(["rm", "-rf", CLONED])
        if came != commits:
            raise RuntimeError(f"{came} commits came, not {commits}")
        return seconds

    return operation


async def measure_tools(bench: Bench, amounts: Amounts, found: Found) -> None:
    """Each tool, what it runs without it, and the reference server's, in turns in one box."""
    with ExitStack() as stack:
        client = stack.enter_context(bench.thin(pause_after="off"))
        echo = stack.enter_context(bench.thin(ECHO))
        box = box_in(client.call("shell_run", command="true"))
        env = {"FILES": str(amounts.files), "COPIES": f"{LOOKED} {OURS} {BARE} {THEIRS}"}
        client.call("shell_run", command=MAKE_REPOSITORIES, env=env)
        runner = Direct(box).runner({**commands_environment(client), **AS_TOOLS_DO})
        stack.callback(runner.close)
        calls = {
            ECHOED: timed(partial(echo.call, "echo", text="true")),
            **by_tools(client, runner),
            **by_git(runner),
            **by_reference(stack.enter_context(reference_server(bench, client, box)), runner),
        }
        rows = await interleaved(calls, amounts.rounds, WARMUP)
    p50 = {row.name: row.p50 for row in rows}
    found.rows += rows
    for tool in TOOLS:
        least, theirs = p50[bare(tool)] + p50[ECHOED], p50[reference(tool)]
        found.goals.append(Goal(f"{tool} / (bare git + {ECHOED})", p50[tool] / least, TOOL_GOAL))
        found.goals.append(Goal(f"{tool} / mcp-server-git", p50[tool] / theirs, 1))


def by_tools(client: ThinClient, runner: Runner) -> dict[str, Operation]:
    call = partial(client.call, path=OURS)
    return {
        STATUS: timed(partial(client.call, "git_status", path=LOOKED)),
        DIFF: timed(partial(client.call, "git_diff", path=LOOKED)),
        COMMIT: changed(runner, OURS, partial(call, "git_commit", message=MESSAGE), staged=True),
        COMMIT_ALL: changed(runner, OURS, partial(call, "git_commit", message=MESSAGE, all=True)),
    }


def by_git(runner: Runner) -> dict[str, Operation]:
    """The commands that the tools run, each by one process that is there already."""

    def run(place: str, *commands: str) -> None:
        for command in commands:
            program, *arguments = shlex.split(f"{GIT} {command}")
            runner.run([program, "-C", below(place), *arguments])

    commit = f"commit -m {MESSAGE} --cleanup=whitespace"
    return {
        bare(STATUS): timed(partial(run, LOOKED, STATUS_COMMAND)),
        bare(DIFF): timed(partial(run, LOOKED, f"{DIFF_COMMAND} --shortstat --patch --")),
        bare(COMMIT): changed(runner, BARE, partial(run, BARE, commit), staged=True),
        bare(COMMIT_ALL): changed(runner, BARE, partial(run, BARE, "add --all", commit)),
    }


def by_reference(server: ThinClient, runner: Runner) -> dict[str, Operation]:
    """What the reference server has for the same; it commits what is staged only."""
    looked, theirs = {"repo_path": below(LOOKED)}, {"repo_path": below(THEIRS)}
    commit = partial(server.call, "git_commit", message=MESSAGE, **theirs)

    def commit_all() -> None:
        server.call("git_add", files=["."], **theirs)
        commit()

    return {
        reference(STATUS): timed(partial(server.call, "git_status", **looked)),
        reference(DIFF): timed(partial(server.call, "git_diff_unstaged", **looked)),
        reference(COMMIT): changed(runner, THEIRS, commit, staged=True),
        reference(COMMIT_ALL): changed(runner, THEIRS, commit_all),
    }


def changed(
    runner: Runner, place: str, act: Callable[[], object], *, staged: bool = False
) -> Operation:
    """`act`, where something has been changed before, and perhaps staged."""
    numbers = count()

    async def operation() -> float:
        name = f"{below(place)}/{CHANGED}"
        change = f"printf 'changed = {next(numbers)}\\n' >> {name}"
        stage = f" && git -C {below(place)} add {CHANGED}" if staged else ""
        runner.run(["bash", "-c", f"{change}{stage}"])
        return seconds_of(act)

    return operation


def reference_server(bench: Bench, client: ThinClient, box: str) -> ThinClient:
    """The reference server for git in the client's box, run as its commands are."""
    python = f"{REFERENCE_PLACE}/bin/python"
    install = f"{python} -m pip install --quiet --disable-pip-version-check {REFERENCE}"
    client.call("shell_run", command=f"set -e; python3 -m venv {REFERENCE_PLACE}; {install}")
    user = commands_environment(client)["USER"]
    run = [engine_client(), "exec", "--interactive", "--user", user, box]
    return bench.thin([*run, python, "-m", "mcp_server_git"])


def below(name: str) -> str:
    """The whole path of a repository in the workspace."""
    return f"{WORKSPACE}/{name}"


MEASURES = {"clone": measure_clones, "tools": measure_tools}


async def run(amounts: Amounts, parts: Sequence[str], path: Path) -> None:
    found = Found()
    with bench() as made:
        facts = {**made.facts(), **asdict(amounts)}
        for part in parts:
            await MEASURES[part](made, amounts, found)
    print(table(found.rows, found.goals, found.figures))
    write(path, facts, found.rows, found.goals, found.figures)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks git", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    whole = Amounts()
    add = parser.add_argument
    add("--rounds", type=int, default=whole.rounds, help="of each, at most")
    add("--clones", type=int, default=whole.clones, help="of each repository, at most")
    add("--commits", type=int, default=whole.commits, help="of the one repository that is cloned")
    add("--big", type=int, default=whole.big, help="MB of the other one")
    add("--files", type=int, default=whole.files, help="of the repository that tools work on")
    add("--only", nargs="+", choices=MEASURES, default=list(MEASURES), help="parts to measure")
    add("--json", type=Path, default=RESULTS, help="where the figures go")
    given = vars(parser.parse_args(arguments))
    parts, path = given.pop("only"), given.pop("json")
    anyio.run(run, Amounts(**given), parts, path)
