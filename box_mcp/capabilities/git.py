"""git in a box: run by the box's shell, its answers parsed.

What takes long (clone, commit with its hooks, checkout, push) is a command like any other: it may
go on when the call returns, and then its outcome says so. What only looks is over within
`LOOK_TIMEOUT`. Each is as few processes as can be: mostly git alone, in the shell's place.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from box_mcp.capabilities.calls import checked_path
from box_mcp.capabilities.shell import OnOutput, Outcome, Shell, unheard
from box_mcp.capabilities.terminal import legible
from box_mcp.domain.gitadvice import Cause, cause_of, without_progress
from box_mcp.domain.gitoutput import (
    BODY_FIELD,
    LOG_FIELDS,
    Commit,
    Numbers,
    Status,
    Summary,
    parse_log,
    parse_numbers,
    parse_status,
    take_summary,
)
from box_mcp.domain.paths import ERRORS, shown
from box_mcp.domain.refs import HOME, Branch, Remote, Revision, Source, directory_of
from box_mcp.errors import CallRefused, GitFailed, InvalidArgument, NotARepository

LOOK_TIMEOUT = 40.0  # s; clients give a call up after 60
WORK_TIMEOUT = 3600.0  # s
HELD = 200 * 1024  # bytes of output that one answer brings, half from its start, half from its end
PAGE = 100 * 1024  # bytes of output that are asked for at once
MOST = 8 * 1024 * 1024  # bytes of a status that are read
SUMMARY = 200  # bytes in which a summary at the end of a diff is found
MAX_PATHS = 1000
MAX_MESSAGE = 64 * 1024  # bytes of a commit's message; the kernel takes 128 KiB
NEARBY = 8  # repositories that are proposed

EXPORTS = "export LANGUAGE=C GIT_TERMINAL_PROMPT=0"
LOOKS = f"{EXPORTS} GIT_OPTIONAL_LOCKS=0 TZ=UTC0"
GIT = "git --no-pager -c protocol.ext.allow=never -c core.quotePath=false"
PLAIN = "--no-color --no-ext-diff --no-textconv"
DIFF = (
    f"-c core.safecrlf=false -c diff.relative=false diff {PLAIN} --submodule=short "
    "--src-prefix=a/ --dst-prefix=b/"
)
COMMIT = "-c maintenance.auto=false commit"
"""What looks whether there is something to tidy up takes 5 ms, each time; fetches and merges do."""
PLACE = (
    'cd -P . && d=$PWD; while [ -n "$d" ] && ! [ -e "$d/.git" ]; do d=${d%/*}; done; g=$d/.git; '
    'if [ -f "$g" ]; then IFS= read -r g <"$g"; g=${g#gitdir: }; '
    "case $g in /*) ;; *) g=$d/$g;; esac; fi"
)
"""Finds the top of the working tree, $d, and git's own directory, $g.

All by the shell itself: another process would take a millisecond.
"""
STATE = (
    "s=; for m in MERGE_HEAD CHERRY_PICK_HEAD REVERT_HEAD BISECT_LOG; do "
    '[ -e "$g/$m" ] && s="$s $m"; done; '
    'm=$g/rebase-merge; if [ -d "$m" ]; then i=; n=; h=; read -r i <"$m/msgnum"; '
    'read -r n <"$m/end"; read -r h <"$m/head-name"; s="rebase-merge:$i/$n:$h"; fi 2>/dev/null; '
    'm=$g/rebase-apply; if [ -e "$m/applying" ]; then s="$s applying"; '
    'elif [ -d "$m" ]; then s="$s rebase-apply"; fi; '
    'printf \'%s\\0%s\\0\' "$d" "$s"'
)
"""Prints the top, and what tells what the repository is in the middle of."""
UNRESOLVED = (
    "u=; for m in MERGE_HEAD CHERRY_PICK_HEAD REVERT_HEAD rebase-merge rebase-apply "
    'logs/refs/stash; do [ -e "$g/$m" ] && u=1; done; '
    'if [ -n "$u" ] && [ -n "$({git} ls-files --unmerged {paths})" ] && '
    '( cd "./$({git} rev-parse --show-cdup)" && {git} diff --name-only --diff-filter=U -z | '
    "xargs -0 grep -lE '^(<<<<<<<|>>>>>>>)( |$)' -- >&2 ); "
    "then echo 'fatal: you have unmerged files, which are marked above' >&2; exit 128; fi"
)
"""Stops when what `add` would call resolved still has the marks of conflicts."""
STAGE = (
    "e=$({git} add --all {paths} 2>&1); s=$?; case $e in *'did not match any files'*) "
    "if {git} ls-files --cached --others --exclude-standard --with-tree=HEAD --error-unmatch "
    "{paths} >/dev/null 2>&1; then s=0 e=; {git} ls-files --others --exclude-standard -z {paths} | "
    "xargs -0r {git} --literal-pathspecs add -- || exit; fi;; esac; "
    '[ -z "$e" ] || printf \'%s\\n\' "$e" >&2; [ $s = 0 ] || exit $s'
)
"""Stages what is to be committed.

`add` knows none of the paths that are staged as removed or renamed, which `commit` takes: beside
such, only what is new is staged.
"""
GENERAL_ADVICE = 'Everything that git can do is done by shell_run("git ...")'
TARGETS = (
    "%(refname)%00%(objectname:short)%00%(upstream:remotename)%00%(upstream:short)%00"
    "%(push:remotename)%00"
)

T = TypeVar("T")

_NO_REPOSITORY = re.compile("^(?:fatal: not|warning: Not) a git repository", re.MULTILINE)
_CURSOR = re.compile(r"([a-z0-9-]{1,32}):(\d{1,15})")


@dataclass(frozen=True)
class Pace:
    """After how many seconds a call returns while git goes on; bytes shown; who hears meanwhile."""

    yield_after: float
    max_output: int
    on_output: OnOutput = unheard


@dataclass(frozen=True)
class Page:
    """Part of a diff: text, or with `numbers` what files gained and lost.

    `start` and `end` are offsets in its `total` bytes, `cursor` leads to the next page; `summary`
    is known on the first one.
    """

    text: bytes
    numbers: list[Numbers] | None
    summary: Summary | None
    start: int
    end: int
    total: int
    cursor: str | None


@dataclass(frozen=True)
class History:
    """Commits; `more` follow."""

    commits: list[Commit]
    more: bool


@dataclass(frozen=True)
class Lease:
    """A remote branch as it was when it was last fetched; None: it was not there."""

    name: str
    commit: str | None


@dataclass(frozen=True)
class Target:
    """Where a branch is to be pushed; `tracks`: that becomes its upstream."""

    branch: Branch
    remote: Remote
    upstream: str
    tracks: bool
    lease: Lease


class Git:
    """git in one box, by its shell; `path` is a directory in the repository that is meant.

    All methods raise GitFailed, NotARepository, and what Shell does.
    """

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    async def status(self, path: str) -> Status:
        """How the working tree is."""
        command = (
            f"{PLACE}; {STATE}; exec {GIT} status --porcelain=v2 --branch --show-stash -z "
            "--untracked-files=normal --ignored=no"
        )
        outcome = await self._look("tell its status", "git status", path, command)
        if not outcome.skipped:
            return self._parsed("status", parse_status, outcome.stdout)
        if outcome.stderr:  # warnings, which would be among it
            quiet = f"{command} 2>/dev/null"
            outcome = await self._look("tell its status", "git status", path, quiet)
        return self._parsed("status", parse_status, await self._all(outcome))

    async def top(self, path: str) -> bytes:
        """The top of the working tree, or of what is there of a bare repository."""
        command = f"{PLACE}; printf '%s' \"$d\""
        return (await self._look("find its top", "pwd", path, command)).stdout or b"/"

    async def diff(
        self,
        path: str,
        *,
        staged: bool,
        revision: Revision | None,
        paths: Sequence[str],
        stat: bool,
        limit: int,
    ) -> Page:
        """The first page of a diff, about `limit` bytes."""
        what = "--numstat -z --shortstat" if stat else "--shortstat --patch"
        words = [what, *(["--cached"] if staged else []), *_ended(revision), *_pathspecs(paths)]
        command = f"exec {GIT} {DIFF} {' '.join(words)}"
        tail = SUMMARY if stat else 0
        title = _diff_title(stat)
        outcome = await self._look("diff", title, path, command, limit + tail, tail)
        if stat:
            summary, _ = take_summary((outcome.head + outcome.tail)[-SUMMARY:])
            printed = outcome.head if outcome.skipped else outcome.stdout
            return replace(self._page(outcome, 0, printed, stat=True), summary=summary)
        printed = outcome.head
        if outcome.skipped:
            printed = printed[: printed.rfind(b"\n") + 1] or printed
        page = self._page(outcome, 0, printed, stat=False)
        summary, text = take_summary(printed)
        return replace(page, text=text, summary=summary)

    async def diff_page(self, cursor: str, limit: int) -> Page:
        """The page of a diff that `cursor` leads to: of the very diff that it came from."""
        if not (found := _CURSOR.fullmatch(cursor)):
            raise InvalidArgument("cursor", "is none of a diff")
        process, start = found[1], int(found[2])
        try:
            page, data = await self._shell.output(process, limit=limit, cursor=start)
        except CallRefused as refused:
            if refused.code != "not_found":
                raise
            raise InvalidArgument("cursor", "is of a diff that the box keeps no longer") from None
        if page.command not in (_diff_title(stat=True), _diff_title(stat=False)):
            raise InvalidArgument("cursor", "is none of a diff")
        if page.start != start:
            raise InvalidArgument("cursor", "leads to what the box keeps no longer")
        outcome = Outcome(page, data, page.printed - page.end, b"")
        return self._page(outcome, start, data, stat=page.command == _diff_title(stat=True))

    async def log(
        self,
        path: str,
        *,
        revision: Revision | None,
        paths: Sequence[str],
        count: int,
        skip: int,
        body: bool,
        stat: bool,
    ) -> History:
        """The newest commits, `count` at most."""
        words = [
            f"log -z --no-show-signature --no-notes {PLAIN} --decorate=short",
            f"--date='format-local:%Y-%m-%d %H:%M' --max-count={count + 1} --skip={skip}",
            f"--format='{LOG_FIELDS}{BODY_FIELD if body else ''}'",
            *(["--numstat"] if stat else []),
            *_ended(revision),
            *_pathspecs(paths),
        ]
        command = f"exec {GIT} {' '.join(words)}"
        outcome = await self._look("tell its history", "git log", path, command, PAGE, 0)
        whole = not outcome.skipped

        def parse(said: bytes) -> list[Commit]:
            return parse_log(said, body=body, whole=whole)

        commits = self._parsed("log", parse, outcome.stdout)
        return History(commits[:count], len(commits) > count or not whole)

    async def clone(
        self, source: Source, path: str, *, branch: Branch | None, depth: int | None, pace: Pace
    ) -> Outcome:
        """Clones into `path`; its standard output tells, by NULs, what there is now."""
        into = place(checked_path("path", path or directory_of(source)))
        words = [
            *([f"--branch={shlex.quote(branch)}"] if branch else []),
            *([f"--depth={depth}"] if depth else []),
            f"-- {shlex.quote(source)} {into}",
        ]
        command = (
            f"{EXPORTS}; {GIT} clone --progress {' '.join(words)} && CDPATH= cd -P -- {into} && {{ "
            "printf '%s\\0' \"$PWD\"; [ -e .gitmodules ] && printf submodules; printf '\\0'; "
            f"[ -e .git/shallow ] && printf shallow; printf '\\0'; {GIT} log -1 --no-color "
            "--no-show-signature --decorate=short --format='%h%x00%D%x00%s' 2>/dev/null || :; }"
        )
        title = f"git clone {source}"
        return await self._work(f"clone {source}", title, None, command, pace)

    async def commit(
        self,
        path: str,
        *,
        message: str,
        paths: Sequence[str],
        everything: bool,
        sign_off: bool,
        amend: bool,
        pace: Pace,
    ) -> Outcome:
        """Commits what is staged, or `paths`, or `everything`, with files that are new."""
        words = [
            f"-m {message_word(message)} --cleanup=whitespace" if message else "--no-edit",
            *(["--signoff"] if sign_off else []),
            *(["--amend"] if amend else []),
            *(["--only", *_pathspecs(paths)] if paths else []),
        ]
        steps = [EXPORTS]
        if everything and paths:
            raise InvalidArgument("paths", "are not for all=true, which takes everything")
        if everything or paths:
            named = " ".join(_pathspecs(paths))
            steps.append(PLACE)
            steps.append(UNRESOLVED.format(git=GIT, paths=named))
            steps.append(STAGE.format(git=GIT, paths=named))
        steps.append(f"exec {GIT} {COMMIT} {' '.join(words)}")
        return await self._work("commit", "git commit", path, "; ".join(steps), pace)

    async def checkout(
        self, path: str, *, revision: Revision, create: Branch | None, pace: Pace
    ) -> Outcome:
        """Checks out `revision`, or a new branch there. Nothing else is ever made."""
        words = ["-c advice.detachedHead=false checkout --no-guess"]
        if create is not None:
            same = revision.endswith(f"/{create}")
            words.append(f"{'' if same else '--no-track '}-b {shlex.quote(create)}")
        words.append(f"{shlex.quote(revision)} --")
        command = f"{EXPORTS}; exec {GIT} {' '.join(words)}"
        what = f"make the branch {create}" if create else f"check out {revision}"
        return await self._work(what, "git checkout", path, command, pace)

    async def namesakes(self, path: str, branch: Branch) -> list[str]:
        """Remote branches of this name, as far as they were fetched."""
        pattern = shlex.quote(f"refs/remotes/*/{branch}")
        command = f"exec {GIT} for-each-ref --format='%(refname:short)' {pattern}"
        outcome = await self._look("list branches", "git for-each-ref", path, command)
        return outcome.stdout.decode(errors="backslashreplace").split()

    async def target(self, path: str, *, remote: Remote | None, branch: Branch | None) -> Target:
        """Where `branch`, or the one that is checked out, is to be pushed."""
        current = shlex.quote(branch) if branch else f"$({GIT} symbolic-ref -q --short HEAD)"
        command = (
            f"b={current} || [ $? = 1 ] || exit; printf '%s\\0' \"$b\"; {GIT} remote; "
            "printf '\\0'; "
            f"[ -z \"$b\" ] || exec {GIT} for-each-ref --format='{TARGETS}' "
            '"refs/heads/$b" "refs/remotes/*/$b"'
        )
        outcome = await self._look("look for its remotes", "git for-each-ref", path, command)
        said = outcome.stdout.decode(errors="backslashreplace")
        return _target(said.split("\0"), remote)

    async def push_url(self, path: str, remote: Remote) -> str:
        """Where git pushes to, by the URL that it uses in the end."""
        if "/" in remote or ":" in remote:  # no name
            return remote
        command = f"exec {GIT} remote get-url --push {shlex.quote(remote)}"
        outcome = await self._look("find its remote", "git remote get-url", path, command, PAGE, 0)
        return outcome.stdout.decode(errors="backslashreplace").removesuffix("\n")

    async def overwritten(self, path: str, target: Target, most: int) -> History:
        """The commits that a remote branch would lose by a forced push, as far as was fetched."""
        if target.lease.commit is None:
            return History([], more=False)
        lost = Revision(f"refs/heads/{target.branch}..{target.lease.commit}")
        return await self.log(
            path, revision=lost, paths=(), count=most, skip=0, body=False, stat=False
        )

    async def push(self, path: str, target: Target, *, force: bool, pace: Pace) -> Outcome:
        """Pushes a branch; forced, only over what was last fetched."""
        ref = shlex.quote(f"refs/heads/{target.branch}")
        words = ["push --porcelain --progress"]
        if target.tracks:
            words.append("--set-upstream")
        if force:
            words.append(f"--force-with-lease={ref}:{target.lease.commit or ''}")
        words.append(f"-- {shlex.quote(target.remote)} {ref}:{ref}")
        command = f"{EXPORTS}; exec {GIT} {' '.join(words)}"
        return await self._work(f"push {target.branch}", "git push", path, command, pace)

    async def _look(
        self, what: str, title: str, path: str, command: str, most: int = HELD, tail: int = PAGE
    ) -> Outcome:
        """Runs what only reads; its outcome is one that succeeded."""
        with self._inside(path):
            outcome = await self._shell.run(
                f"{LOOKS}; {command}",
                title=title,
                cwd=checked_path("path", path or "."),
                visits=True,
                timeout=LOOK_TIMEOUT,
                yield_after=2 * LOOK_TIMEOUT,
                max_output=most,
                tail=tail,
            )
        return await self._judged(what, path, outcome)

    async def _work(
        self, what: str, title: str, path: str | None, command: str, pace: Pace
    ) -> Outcome:
        """Runs what may take long; its outcome is one that succeeded, or goes on."""
        with self._inside(path or "."):
            outcome = await self._shell.run(
                command,
                title=title,
                cwd=checked_path("path", path or ".") if path is not None else None,
                visits=True,
                timeout=WORK_TIMEOUT,
                yield_after=pace.yield_after,
                max_output=pace.max_output,
                on_output=pace.on_output,
            )
        return await self._judged(what, path, outcome)

    @contextmanager
    def _inside(self, path: str) -> Generator[None, None, None]:
        """Has a refusal to begin in a directory that is not there say so."""
        try:
            yield
        except CallRefused as refused:
            if refused.code == "not_started" and "No such file" in str(refused):
                refused.code, refused.place = "not_found", (self._shell.box, path)
            raise

    async def _judged(self, what: str, path: str | None, outcome: Outcome) -> Outcome:
        """`outcome`, unless it ended badly; raises GitFailed and NotARepository."""
        record = outcome.record
        if record.running or record.exit == 0:
            return outcome
        said = legible(outcome.head + b"\n" + outcome.tail)
        if path is not None and _NO_REPOSITORY.search(said):
            raise NotARepository(shown(path or "."), await self._nearby(path))
        raise failure(what, said, outcome)

    async def _nearby(self, path: str) -> list[str]:
        """Repositories right below `path`."""
        command = 'for d in */.git; do [ -e "$d" ] && printf "%s\\0" "$PWD/${d%/.git}"; done; :'
        outcome = await self._shell.run(
            command,
            title="ls */.git",
            cwd=checked_path("path", path or "."),
            visits=True,
            timeout=LOOK_TIMEOUT,
            yield_after=2 * LOOK_TIMEOUT,
            max_output=PAGE,
            tail=0,
        )
        found = outcome.stdout.split(b"\0")[:-1][:NEARBY]
        return [shown(one.decode(errors=ERRORS)) for one in found]

    def _parsed(self, what: str, parse: Callable[[bytes], T], said: bytes) -> T:
        try:
            return parse(said)
        except ValueError as error:
            raise GitFailed(f"answer for {what} as it should", str(error), GENERAL_ADVICE) from None

    def _page(self, outcome: Outcome, start: int, data: bytes, *, stat: bool) -> Page:
        total = outcome.record.printed
        numbers, end = None, start + len(data)
        if stat:
            lines = take_summary(data)[1]
            numbers, used = self._parsed("diff", parse_numbers, lines)
            end = start + used if outcome.skipped else total
        cursor = f"{outcome.record.id}:{end}" if end < total else None
        return Page(data, numbers, None, start, end, total, cursor)

    async def _all(self, outcome: Outcome) -> bytes:
        """All that was printed, as long as that can be read."""
        data = bytearray(outcome.head)
        while len(data) < outcome.record.printed:
            page, piece = await self._shell.output(outcome.record.id, limit=PAGE, cursor=len(data))
            if page.start != len(data) or not piece or len(data) > MOST:
                raise GitFailed("tell its status", "there is too much to tell", GENERAL_ADVICE)
            data += piece
        return bytes(data)


def failure(what: str, said: str, outcome: Outcome) -> GitFailed:
    """How git failed, by its own words."""
    record = outcome.record
    told = without_progress(said)
    if record.cause == "timeout":
        reason = f"it was not done within {record.seconds:.0f} s, and ended"
        return GitFailed(what, reason, GENERAL_ADVICE, told)
    cause = cause_of(said) or _unknown(what, outcome)
    return GitFailed(what, cause.reason, cause.advice, told)


def _unknown(what: str, outcome: Outcome) -> Cause:
    """What its exit status alone tells."""
    record = outcome.record
    if record.signal is not None:
        return Cause(f"it was killed by signal {record.signal}")
    if record.exit == 127:
        return Cause("the box has no git", 'shell_run("sudo apt-get install -y git") brings it')
    if what == "commit" and record.exit == 1:
        return Cause(
            "a hook of the repository refused it, as it seems",
            "Mend what it complains of, and commit again: what was staged still is",
        )
    return Cause(f"exit {record.exit}", GENERAL_ADVICE)


def _target(fields: Sequence[str], remote: Remote | None) -> Target:
    """What `Git.target`'s command told."""
    name, listed, *rest = fields
    remotes = listed.split()
    if not name:
        raise GitFailed(
            "push",
            "no branch is checked out",
            'If git_status tells of a rebase, shell_run("git rebase --continue") goes on with it; '
            "else name the branch, or git_checkout with create=true makes one",
        )
    records = [rest[at : at + 5] for at in range(0, len(rest) - 4, 5)]
    known = {record[0].strip("\n"): record[1:] for record in records}
    if f"refs/heads/{name}" not in known:
        raise GitFailed("push", f"there is no branch {name!r}, or it has no commit yet")
    _, tracked, upstream, usual = known[f"refs/heads/{name}"]
    if remote and not (remote in (*remotes, HOME) or "/" in remote or ":" in remote):
        there = ", ".join(remotes) or "none"
        raise GitFailed("push", f"there is no remote {remote!r}", f"Its remotes: {there}")
    chosen = remote or next((one for one in (usual, tracked, "origin") if one in remotes), "")
    chosen = chosen or (remotes[0] if len(remotes) == 1 else "")
    if not chosen:
        raise GitFailed(
            "push",
            f"its remotes are {', '.join(remotes)}" if remotes else "it has no remote",
            'Pass `remote`, or shell_run("git remote add origin URL")',
        )
    seen = known.get(f"refs/remotes/{chosen}/{name}", [None])[0]
    return Target(
        Branch(name),
        Remote(chosen),
        upstream,
        tracks=not upstream and chosen in remotes,
        lease=Lease(f"{chosen}/{name}", seen),
    )


def _diff_title(stat: bool) -> str:
    return "git diff --numstat" if stat else "git diff"


def _ended(revision: Revision | None) -> list[str]:
    """A revision that is one, whatever it is called."""
    return ["--end-of-options", shlex.quote(revision)] if revision else []


def _pathspecs(paths: Iterable[str]) -> list[str]:
    """Paths that mean themselves, whatever is in their names."""
    words = [word(f":(literal){checked_path('paths', path)}") for path in paths]
    if len(words) > MAX_PATHS:
        raise InvalidArgument("paths", f"are more than {MAX_PATHS:,}: name their directory")
    return ["--", *words]


def place(path: str) -> str:
    """A path as one word of the shell; a ``~`` at its beginning is the user's home."""
    if path == "~" or path.startswith("~/"):
        return f'"$HOME"{word(path[1:])}'
    return word(path)


def word(text: str) -> str:
    """`text` as one word of the shell; what is no UTF-8 takes bash's own quoting."""
    try:
        text.encode()
    except UnicodeEncodeError:
        pass
    else:
        return shlex.quote(text)
    quoted = "".join(
        chr(byte) if 32 <= byte < 127 and byte not in b"'\\" else f"\\{byte:03o}"
        for byte in text.encode(errors=ERRORS)
    )
    return f"$'{quoted}'"


def message_word(text: str) -> str:
    """A commit's message as one word of the shell; raises InvalidArgument for what can't be one."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidArgument("message", "has half a character, which is no text") from None
    if size > MAX_MESSAGE or "\0" in text:
        raise InvalidArgument("message", f"is over {MAX_MESSAGE:,} bytes, or has a NUL")
    return word(text)
