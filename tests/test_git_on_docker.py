"""The tools for git in a real box, with real repositories, some of them hostile."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

import anyio
import pytest

from tests.support.client import ERAS, serving, text, until
from tests.support.person import YES, Person

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tests.support.client import Server

SESSION = ("--session", "git")
FILES = 2000

PREPARE = (
    "git config --global user.name Ada && git config --global user.email ada@example.org && "
    "git config --global init.defaultBranch main && git config --global advice.detachedHead true"
)
PRIVATE = """\
import http.server
class Private(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="x"')
        self.end_headers()
    def log_message(self, *_): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Private)
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.fixture(scope="module")
async def server(shared_env: dict[str, str]) -> AsyncGenerator[Server, None]:
    """Its session's box has a person's name; who says yes to all that is asked."""
    async with serving(shared_env, *SESSION, ask=Person(YES).ask) as server:
        await server.run(PREPARE)
        yield server


async def plant(server: Server, name: str, *steps: str) -> None:
    """A new repository of that name, with one commit of the file a, and what else is done in it."""
    made = f"set -e; rm -rf {name}; git init -q {name}; cd {name}; seq 1 9 > a; git add a"
    await script(server, "\n".join([f"{made}; git commit -qm One", *steps]))


async def script(server: Server, commands: str, **arguments: object) -> str:
    """What commands print that all have to succeed."""
    answer = await server.run(f"set -e\n{commands}", max_output=100_000, **arguments)
    assert answer.startswith("[exit 0 "), answer
    return answer.partition("]\n")[2]


async def hook(server: Server, path: str, body: str) -> None:
    """A program of a repository's own."""
    await server.say("file_write", path=path, content=f"#!/bin/sh\n{body}\n")
    await script(server, f"chmod +x {path}")


def header(answer: str) -> str:
    return answer.partition("\n")[0]


def cursor(answer: str) -> str:
    found = re.search(r'more: cursor="([^"]*)"', header(answer))
    return found[1] if found else ""


@pytest.mark.parametrize("era", ERAS)
async def test_work_is_cloned_changed_committed_and_pushed_and_each_step_tells_what_was_done(
    server: Server, shared_env: dict[str, str], era: str
):
    await plant(server, "origin", "rm -rf ../work ../up.git; git clone -q --bare . ../up.git")
    async with serving(shared_env, *SESSION, mode=era) as other:
        cloned = await other.say("git_clone", url="/workspace/up.git", path="work")
        name = (await script(server, "git -C work rev-parse --short HEAD")).strip()
        assert cloned == f"[cloned /workspace/up.git into /workspace/work · main at {name} One]"
        branched = await other.say("git_checkout", path="work", ref="fix", create=True)
        assert header(branched) == "[checked out fix]"
        await script(server, "cd work; sed -i s/5/five/ a; echo new > b; git rm -q --cached a")
        await script(server, "cd work; git add a")
        status = await other.tell("git_status", path="work/../work")
        assert status["root"] == "/workspace/work"
        assert (status["branch"], status["upstream"], status["clean"]) == ("fix", None, False)
        assert (status["staged"], status["untracked"]) == (["M a"], ["b"])
        assert "+five" in await other.say("git_diff", path="work", staged=True)
        committed = await other.say("git_commit", path="work", message="Fix\n\nIt", all=True)
        name = (await script(server, "git -C work rev-parse --short HEAD")).strip()
        assert header(committed) == f"[committed {name} on fix · 2 files changed, +2 -1]"
        assert "create mode 100644 b" in committed
        pushed = await other.say("git_push", path="work")
        assert pushed == "[fix to origin: [new branch] · upstream set to origin/fix]"
        status = await other.tell("git_status", path="work")
        assert (status["upstream"], status["ahead"], status["behind"]) == ("origin/fix", 0, 0)
        log = await other.say("git_log", path="work", ref="origin/main..", body=True, stat=True)
        assert header(log) == "[1 commit]"
        assert re.search(rf"\n{name} \d{{4}}-\d\d-\d\d \d\d:\d\d Ada: Fix \(", log)
        assert log.endswith("\n    It\n  +1 -1 a\n  +1 -0 b")
        again = await other.say("git_push", path="work")
        assert again == "[fix to origin: [up to date]]"


async def test_a_directory_without_repository_is_told_from_one_that_is_clean(server: Server):
    await plant(server, "down/clean")
    named = {"pull_request_create": {"title": "T"}, "git_commit": {"message": "M"}}
    for tool in ("git_status", "git_diff", "git_log", "git_push", *named):
        failed = await server.fail(tool, path="down", **named.get(tool, {}))
        assert "down is not in a git repository" in failed
        assert "Pass the path of one: /workspace/down/clean" in failed
    assert "file_list" in await server.fail("git_status", path="nowhere")
    status = await server.tell("git_status", path="down/clean")
    assert status["clean"]
    assert status["counts"] == dict.fromkeys(("staged", "unstaged", "untracked", "conflicts"), 0)


async def test_git_works_where_a_path_is_no_text(server: Server):
    await script(
        server, r"rm -rf $'caf\xe9'; git init -q $'caf\xe9'; cd $'caf\xe9'; seq 9 > $'\xff'"
    )
    path = "file:///workspace/caf%E9"
    status = await server.tell("git_status", path=path)
    assert (status["root"], status["untracked"]) == (path, [f"{path}/%FF"])
    await server.say("git_commit", path=path, message="One", paths=[f"{path}/%FF"])
    assert f"+9 -0 {path}/%FF" in await server.say("git_log", path=path, stat=True)
    assert f"+9 -0 {path}/%FF" in await server.say(
        "git_diff", path=path, ref="4b825dc642cb6eb9a060e54bf8d69288fbee4904", stat=True
    )


async def test_two_thousand_files_are_counted_and_a_hundred_of_them_named(server: Server):
    long = "n" * 80
    await plant(server, "many", f"mkdir d; for i in $(seq {FILES}); do echo $i > d/{long}$i; done")
    await script(server, "cd many; git add .; git commit -qm Many; sed -i s/^/x/ d/*; touch new")
    status = await server.tell("git_status", path="many")
    assert status["counts"]["unstaged"] == FILES
    assert 0 < len(status["unstaged"]) <= 100
    assert status["untracked"] == ["new"]
    page = await server.say("git_diff", path="many", stat=True)
    assert header(page).startswith("[2,000 files changed, +2,000 -2,000 · bytes 0-")
    named = page.splitlines()[1:]
    while following := cursor(page):
        page = await server.say("git_diff", path="many", stat=True, cursor=following)
        named += page.splitlines()[1:]
    assert sorted(named) == sorted(f"+1 -1 d/{long}{number}" for number in range(1, FILES + 1))


async def test_a_diff_is_paged_through_as_it_was_whatever_changes_meanwhile(server: Server):
    await plant(server, "paged", "seq 1 9999 > a; echo '\x1b[2J\xe9' >> a")
    whole = await script(server, "git -C paged diff", raw=True)
    page = await server.say("git_diff", path="paged")
    assert header(page).startswith("[1 file changed, +9,991 -0 · bytes 0-")
    await script(server, "rm -r paged")
    shown = page.partition("\n")[2]
    while following := cursor(page):
        page = await server.say("git_diff", cursor=following)
        shown += page.partition("\n")[2]
    assert shown == whole.replace("\x1b", "\\x1b")
    assert "none of a diff" in await server.fail("git_diff", cursor="p1")
    assert "none of a diff" in await server.fail("git_diff", cursor="p1:0")
    assert "keeps no longer" in await server.fail("git_diff", cursor="p999999:0")


async def test_a_diff_names_binary_files_and_runs_no_program_of_the_repository(server: Server):
    await plant(
        server,
        "drivers",
        "printf 'a diff=own\\n*.conv diff=conv\\n' > .gitattributes; head -c 99 /dev/zero > binary",
        "git config diff.own.command 'touch ran; false'",
        "git config diff.external 'touch ran; false'",
        "git config diff.conv.textconv 'touch ran; false'; git config color.ui always",
        "git config core.pager 'touch ran; false'; git config pager.diff true",
        "git config diff.noprefix true; echo x > x.conv; git add .; seq 2 9 > a; echo y > x.conv",
    )
    staged = await server.say("git_diff", path="drivers", staged=True)
    assert "\nBinary files /dev/null and b/binary differ\n" in staged
    unstaged = await server.say("git_diff", path="drivers")
    assert "\n--- a/a\n+++ b/a\n@@ -1,4 +1,3 @@\n-1\n" in unstaged
    assert "\n-x\n+y\n" in unstaged
    ranged = {"ref": "HEAD..HEAD", "staged": True}
    assert "'staged' is for one ref" in await server.fail("git_diff", path="drivers", **ranged)
    assert "\nbinary binary\n" in await server.say(
        "git_diff", path="drivers", ref="HEAD", stat=True
    )
    await server.say("git_log", path="drivers", stat=True)
    await script(server, "test ! -e drivers/ran")


async def test_a_path_means_itself_and_a_revision_is_never_an_option(server: Server):
    await plant(server, "odd", "for i in '*' a1 'a[1]' ':x'; do echo 1 > \"$i\"; done; git add .")
    await script(server, 'cd odd; git commit -qm Odd; for i in *; do echo 2 >> "$i"; done')
    for name in ("*", "a[1]", ":x"):
        shown = await server.say("git_diff", path="odd", paths=[name], stat=True)
        assert shown.splitlines()[1:] == [f"+1 -0 {name}"]
    committed = await server.say("git_commit", path="odd", message="Stars", paths=["*"])
    assert "1 file changed" in committed
    for tool in ("git_diff", "git_log", "git_checkout"):
        assert "option" in await server.fail(tool, path="odd", ref="--output=/workspace/odd/out")
    assert "option" in await server.fail("git_push", path="odd", remote="--exec=touch out")
    assert "out" not in (await script(server, "ls odd")).split()


async def test_a_branch_is_never_made_by_accident(server: Server):
    await plant(server, "far", "git branch topic")
    await script(server, "rm -rf near; git clone -q far near")
    failed = await server.fail("git_checkout", path="near", ref="topic")
    assert 'git_checkout(ref="topic", create=true, start="origin/topic", path="near")' in failed
    assert "no such branch" in await server.fail("git_checkout", path="near", ref="topik")
    assert "no such branch" in await server.fail("git_checkout", path="near", ref="a")
    made = await server.say("git_checkout", path="near", ref="topic", create=True)
    assert "origin/topic: pass start" in header(made)
    failed = await server.fail("git_checkout", path="near", ref="topic", create=True)
    assert "did not make the branch topic: there is a branch of this name" in failed
    await script(server, "cd near; git checkout -q main; git branch -D topic")
    start = {"start": "origin/topic", "create": True}
    made = await server.say("git_checkout", path="near", ref="topic", **start)
    assert "set up to track" in made
    await server.say("git_checkout", path="near", ref="other", **start)
    status = await server.tell("git_status", path="near")
    assert (status["branch"], status["upstream"]) == ("other", None)
    await server.say("git_checkout", path="near", ref="HEAD~0")
    assert (await server.tell("git_status", path="near"))["branch"] is None
    assert "create=true" in await server.fail("git_checkout", path="near", ref="x", start="main")


async def test_a_checkout_that_would_lose_changes_is_refused_in_words(server: Server):
    await plant(server, "lose", "git checkout -qb b; seq 5 > a; git commit -qam B; seq 3 > a")
    failed = await server.fail("git_checkout", path="lose", ref="main")
    assert "changes that are not committed would be lost. Nothing was changed" in failed
    assert await script(server, "cat lose/a") == "1\n2\n3\n"


async def test_a_commit_that_is_not_made_tells_why(server: Server):
    await plant(server, "why")
    commit = partial(server.fail, "git_commit", path="why", message="Two")
    assert "there is nothing to commit" in await commit()
    assert "there is nothing to commit" in await commit(all=True)
    assert "there is no such path" in await commit(paths=["nowhere"])
    assert "is not for all=true" not in await commit(paths=["a"])
    await script(server, "cd why; echo x >> a; git config user.name ''")
    assert "nobody is named as the author" in await commit(all=True)
    await script(server, "git -C why config user.name Ada")
    await hook(server, "why/.git/hooks/pre-commit", "echo tabs are not allowed >&2; exit 1")
    refused = await commit(all=True)
    assert "a hook of the repository refused it" in refused
    assert refused.endswith("tabs are not allowed")
    await hook(server, "why/.git/hooks/post-commit", "seq 20000; seq 20000 >&2")
    await hook(server, "why/.git/hooks/pre-commit", "seq 20000 >&2")
    chatty = await server.say("git_commit", path="why", message="Chatty", all=True)
    assert header(chatty).startswith("[committed")
    assert len(chatty) < 12_000
    await script(server, "cd why; rm .git/hooks/post-commit; echo y >> a; git add a")
    await script(server, "rm why/.git/hooks/pre-commit")
    assert "is empty" in await server.fail("git_commit", path="why", message="", all=True)
    assert "NUL" in await server.fail("git_commit", path="why", message="a\0b")
    signed = await server.say("git_commit", path="why", message="#2", sign_off=True)
    assert signed.endswith("\n#2")
    amended = await server.say("git_commit", path="why", message="", amend=True, sign_off=True)
    assert header(amended).endswith("on main · 1 file changed, +1 -0]")
    words = "~/it's $(touch ran)\n\n`touch ran`"
    await server.say("git_commit", path="why", message=words, amend=True, sign_off=True)
    await script(server, "test ! -e why/ran")
    log = await server.say("git_log", path="why", body=True, count=1)
    assert "Ada: ~/it's $(touch ran) (HEAD -> main)\n    `touch ran`\n" in log
    assert "Signed-off-by: Ada <ada@example.org>" in log
    assert header(log) == "[1 commit · more: skip=1]"
    assert "One" in await server.say("git_log", path="why", skip=1)


async def test_paths_are_committed_however_they_changed_and_others_left_alone(server: Server):
    await plant(server, "parts", "for i in b c d e f g; do yes $i | head -9 > $i; done")
    moved = "git mv b B; git rm -q c; rm d; git mv e E; echo x >> f; echo x >> g; echo n > n; : > x"
    await script(
        server, f"cd parts; echo x > .gitignore; git add .; git commit -qm Two; {moved}; git add g"
    )
    commit = partial(server.fail, "git_commit", path="parts", message="Three")
    for paths in (["b", "B", "none"], ["none", "n"]):
        assert "there is no such path" in await commit(paths=paths)
    assert '`paths` should be a list, but was "n"' in await commit(paths="n")
    ignored = await commit(paths=["x"])
    assert "is one that .gitignore leaves out" in ignored
    status = await server.tell("git_status", path="parts")
    assert status["untracked"] == ["n"]
    assert sorted(status["staged"]) == ["D c", "M g", "R b -> B", "R e -> E"]
    changed = ["b", "B", "c", "d", "f", "n"]
    made = await server.say("git_commit", path="parts", message="Three", paths=changed)
    assert header(made).endswith("on main · 5 files changed, +2 -18]")
    status = await server.tell("git_status", path="parts")
    assert (sorted(status["staged"]), status["unstaged"]) == (["M g", "R e -> E"], [])
    assert status["untracked"] == []


async def test_conflicts_are_told_and_not_committed_with_their_marks(server: Server):
    change = "git commit -qam"
    await plant(
        server,
        "merge",
        f"git checkout -qb b; sed -i s/5/b/ a; {change} B",
        f"git checkout -q main; sed -i s/5/main/ a; {change} Main; git merge b || :",
    )
    status = await server.tell("git_status", path="merge")
    assert (status["state"], status["conflicts"], status["clean"]) == ("merging", ["UU a"], False)
    for how in ({"all": True}, {}):
        failed = await server.fail("git_commit", path="merge", message="x", **how)
        assert "files are in conflict" in failed
    assert re.match(r"\[\d+ bytes\]\ndiff --cc a\n", await server.say("git_diff", path="merge"))
    await script(server, "sed -i '/[<=>]\\{7\\}/d' merge/a")
    failed = await server.fail("git_commit", path="merge", message="x", paths=["a"])
    assert "in the middle of a merge all is committed together" in failed
    merged = await server.say("git_commit", path="merge", message="", all=True)
    assert merged.endswith("\nMerge branch 'b'")
    assert (await server.tell("git_status", path="merge"))["clean"]
    change = f"sed -i s/9/stash/ a; git stash -q; sed -i s/9/now/ a; {change} Now"
    await script(server, f"cd merge; {change}; git stash pop || :")
    assert "files are in conflict" in await server.fail(
        "git_commit", path="merge", message="x", all=True
    )


async def test_a_forced_push_overwrites_no_more_than_was_fetched(server: Server):
    await plant(server, "first", "git clone -q --bare . ../shared.git; rm -rf ../mine ../theirs")
    await script(server, "git clone -q shared.git mine; git clone -q shared.git theirs")
    await script(server, "cd theirs; git commit -q --allow-empty -m Theirs; git push -q")
    await script(server, "cd mine; git commit -q --amend -m Mine")
    failed = await server.fail("git_push", path="mine")
    assert "has commits that this one lacks (non-fast-forward)" in failed
    failed = await server.fail("git_push", path="mine", force=True)
    assert "the lease did not hold" in failed
    seen = (
        await script(server, "cd mine; git fetch -q; git rev-parse --short origin/main")
    ).strip()
    forced = await server.say("git_push", path="mine", force=True)
    assert forced.endswith(f"(forced update) · lease: origin/main was {seen} when last fetched]")
    await hook(server, "shared.git/hooks/pre-receive", "echo not here >&2; exit 1")
    await script(server, "cd mine; git commit -q --allow-empty -m Two")
    failed = await server.fail("git_push", path="mine")
    assert "the remote's own rules refuse it" in failed
    assert "remote: not here" in failed
    assert "hint:" not in failed
    await hook(server, "mine/.git/hooks/pre-push", "echo tests fail >&2; exit 1")
    failed = await server.fail("git_push", path="mine")
    assert "a hook refused it before it began" in failed
    assert "tests fail" in failed
    there = "there is no remote 'up'. Its remotes: origin"
    assert there in await server.fail("git_push", path="mine", remote="up")
    assert "is 'host'" in await server.fail("git_push", path="mine", remote="host:/x")
    await script(server, "cd mine; git checkout -q --detach; git remote remove origin")
    empty = await server.fail("git_commit", path="mine", message="", amend=True)
    assert "the commit would be empty" in empty
    await script(server, "date > mine/now")
    alone = await server.say("git_commit", path="mine", message="Now", all=True)
    assert "on no branch (detached HEAD): a rebase goes on by" in header(alone)
    assert "no branch is checked out" in await server.fail("git_push", path="mine")
    assert "it has no remote" in await server.fail("git_push", path="mine", branch="main")
    assert "no branch 'none'" in await server.fail("git_push", path="mine", branch="none")


async def test_a_clone_that_fails_tells_why(server: Server):
    await plant(server, "there")
    await server.say("file_write", path="private.py", content=PRIVATE)
    await server.run("rm -f port; python3 private.py > port", background=True)

    async def port() -> str:
        return (await script(server, "cat port 2>/dev/null || :")).strip()

    here = f"http://127.0.0.1:{await until(port, 'the port of a private server')}"
    for url, words in [
        (f"{here}/x/y.git", "the server wants a credential, and a box has none, by design"),
        ("ssh://git@127.0.0.1/x", "no SSH key is in a box, by design"),
        ("git@127.0.0.1:x", "no SSH key is in a box, by design"),
        ("ext::sh -c 'touch ran'", "transports that are programs"),
        ("--upload-pack=touch ran", "option"),
        ("https://u:p@example.org/x", "has a password in it"),
        ("/workspace/none", "there is no such repository"),
        ("http://127.0.0.1:1/x", "can't be reached from the box"),
    ]:
        assert words in await server.fail("git_clone", url=url, path="failed"), url
    clone = partial(server.fail, "git_clone", url="/workspace/there")
    assert "is there already, and is not empty" in await clone(path="there")
    assert "no branch or tag of this name" in await clone(path="failed", branch="none")
    assert "host:/path only" in await clone(path="failed", uncommitted=True)
    assert await script(server, "ls -d failed ran 2>/dev/null || :") == ""
    shallow = await server.say("git_clone", url="file:///workspace/there", path="~/s", depth=1)
    assert header(shallow).startswith("[cloned file:///workspace/there into /home/box/s · main at ")
    assert '"git fetch origin NAME:NAME" for another branch' in shallow
    await script(server, r"rm -rf empty.git $'odd\xff'; git init -q --bare empty.git")
    odd = "file:///workspace/odd%FF"
    empty = await server.say("git_clone", url="/workspace/empty.git", path=odd)
    assert empty == f"[cloned /workspace/empty.git into {odd} · it has no commit yet]"


async def test_a_clone_that_takes_long_goes_on_and_is_followed(
    server: Server, shared_env: dict[str, str]
):
    await plant(server, "slow", "cd ..; rm -rf go fast template; mkdir -p template/hooks")
    wait = "until [ -e /workspace/go ]; do sleep .02; done"
    await hook(server, "template/hooks/post-checkout", wait)
    await script(server, "git config --global init.templateDir /workspace/template")
    heard: list[str] = []

    async def listen(progress: float, total: float | None, message: str | None) -> None:
        del progress, total
        heard.append(message or "")

    env = {**shared_env, "BOX_MCP_YIELD_AFTER": "2"}  # by then it has said something
    async with serving(env, *SESSION) as impatient:
        arguments = {"url": "file:///workspace/slow", "path": "fast"}
        result = await impatient.client.call_tool("git_clone", arguments, progress_callback=listen)
        found = re.search(r"as (p\d+), and goes on", text(result))
        assert found, text(result)
        assert any(line.startswith(("remote:", "Receiving objects:", "Cloning")) for line in heard)
        await script(server, "touch go; git config --global --unset init.templateDir")
        ended = await impatient.say("process_output", id=found[1], wait=45, until="exit")
        assert ended.startswith(f"[{found[1]} exit 0 ")
    assert (await server.tell("git_status", path="fast"))["clean"]


async def test_hostile_repositories_harm_their_own_box_only_and_are_told_as_they_are(
    server: Server,
):
    evil = "--upload-pack=touch${IFS}ran"
    await plant(
        server,
        "hostile",
        f"git update-ref 'refs/heads/{evil}' HEAD",
        f"git update-ref 'refs/remotes/origin/{evil}' HEAD",
        "git config core.fsmonitor ./hook; git config filter.f.clean './hook; cat'",
        "echo 'a filter=f' > .gitattributes; git remote add origin 'ext::sh -c touch% ran'",
        "git config remote.--exec=ran.url x; git config protocol.ext.allow always",
        "git config branch.main.remote --exec=ran; git config status.showUntrackedFiles no",
        "printf '[submodule \"s\"]\\npath = s\\nurl = ext::sh -c touch%% ran\\n' > .gitmodules",
        "touch $'new\\nline' $'? x'; seq 8 > a",
    )
    forge = "id -un >> /tmp/hooked; echo '[main abcdef0] forged' >&2"
    for path in ("hook", ".git/hooks/post-commit", ".git/hooks/pre-commit"):
        await hook(server, f"hostile/{path}", forge)
    status = await server.tell("git_status", path="hostile")
    assert status["unstaged"] == ["M a"]
    assert "file:///workspace/hostile/new%0Aline" in status["untracked"]
    assert "? x" in status["untracked"]
    committed = await server.say("git_commit", path="hostile", message="Two", all=True)
    name = (await script(server, "git -C hostile rev-parse --short HEAD")).strip()
    assert header(committed).startswith(f"[committed {name} on main · 6 files changed")
    assert evil in await server.say("git_log", path="hostile")
    failed = await server.fail("git_push", path="hostile", remote="origin")
    assert "git does not use this transport here" in failed
    await server.fail("git_push", path="hostile")
    await script(server, f"cd hostile; git symbolic-ref HEAD 'refs/heads/{evil}'; git reset -q")
    assert (await server.tell("git_status", path="hostile"))["branch"] == evil
    await server.fail("git_push", path="hostile", remote="origin", force=True)
    cloned = await server.say(
        "git_clone", url="/workspace/hostile", path="hostile-2", branch="main"
    )
    assert "submodule update" in cloned
    assert await script(server, "ls hostile*/ran ran 2>/dev/null || :; sort -u /tmp/hooked") == (
        "box\n"
    )


async def test_tools_that_look_work_beside_a_git_that_holds_the_lock(server: Server):
    await plant(server, "locked", "touch .git/index.lock; seq 8 > a")
    async with anyio.create_task_group() as group:
        for tool in ("git_status", "git_diff", "git_log"):
            group.start_soon(partial(server.call, tool, path="locked"))
    assert (await server.tell("git_status", path="locked"))["unstaged"] == ["M a"]
    failed = await server.fail("git_commit", path="locked", message="Two", all=True)
    assert "another git works in this repository, or died there" in failed
    assert "rm /workspace/locked/.git/index.lock" in failed
