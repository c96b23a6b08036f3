"""The box's side of a repository that came from the user's machine: what its own git does.

Each step is one command there. What it prints is a box's word: a few bounded lines, each checked
by whoever uses it.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from secrets import token_hex

import anyio

from box_mcp.capabilities.shell import OnOutput, Outcome, Shell, unheard
from box_mcp.errors import BoxError, GitFailed

LONG = 1800.0  # s for unpacking and checking out; it goes on in the box when its call has ended
SHORT = 40.0  # s for what must be over before its call goes on; clients give that up after 60
TIDY_PATIENCE = 5.0  # s for removing what was only in transit
MAX_ANSWER = 16 * 1024  # bytes
MAX_COMPLAINT = 600  # characters of what git said there
ENV = {"GIT_LFS_SKIP_SMUDGE": "1", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
REFUSED = 41  # exit status of a step that says why in its last line

BEGIN = """
say() { printf '%s\\n' "$*"; }
refuse() { say "$*"; exit 41; }
"""

CLONE = f"""{BEGIN}
parcel=$1 path=$2 format=$3 branch=$4 commit=$5 origin=$6 upstream=$7 home=$8 proof=$9
detached=
if [ -n "$commit" ] && [ -z "$branch" ]; then
    detached=+refs/box-mcp/head:refs/remotes/host/HEAD
fi
undo() {{ rm -rf -- "$path"; }}
trap 'status=$?; rm -rf -- "$parcel"; [ $status = 0 ] || undo; exit $status' EXIT
trap 'exit 143' HUP INT TERM
if [ -e "$path" ] || [ -L "$path" ]; then
    if [ ! -d "$path" ] || [ -n "$(ls -A -- "$path")" ]; then
        undo() {{ :; }}
        refuse "there is something at $path already: choose another path"
    fi
fi
git init --quiet --object-format="$format" -- "$path"
cd -- "$path"
undo() {{ cd /; rm -rf -- "$top"; }}
top=$PWD
if [ -n "$branch" ]; then git symbolic-ref HEAD "refs/heads/$branch"; fi
if [ -s "$parcel/shallow" ]; then cp -- "$parcel/shallow" .git/shallow; fi
if [ -n "$origin" ]; then git remote add origin "$origin"; fi
git remote add host "$home"
git config remote.host.skipFetchAll true
git config remote.host.proof "$proof"
if [ -s "$parcel/bundle" ]; then
    git fetch --quiet --no-tags "$parcel/bundle" '+refs/heads/*:refs/remotes/host/*' \\
        '+refs/tags/*:refs/tags/*' '+refs/remotes/origin/*:refs/remotes/origin/*' \\
        '+refs/box-mcp/side/*:refs/heads/*' $detached
    rm -f .git/FETCH_HEAD
fi
rm -rf -- "$parcel"
if [ -z "$commit" ]; then
    :
elif [ -n "$branch" ]; then
    git update-ref "refs/heads/$branch" "$commit"
    git reset --quiet --hard
    if [ -n "$upstream" ]; then git branch --quiet --set-upstream-to="$upstream" "$branch"; fi
else
    git checkout --quiet --detach "$commit"
fi
if [ -f .gitmodules ]; then say submodules; fi
if [ -f .gitattributes ] && grep -q filter=lfs .gitattributes; then say lfs; fi
say done
"""

LOOK = f"""{BEGIN}
parcel=$1 path=$2 branch=$3 known=$4 own=$5
cd -- "$path" 2>/dev/null || refuse "there is no directory $path"
git rev-parse --git-dir >/dev/null 2>&1 || refuse "$PWD is no git repository: name the path of one"
branch=${{branch:-$(git symbolic-ref --quiet --short HEAD || :)}}
[ -n "$branch" ] || refuse "no branch is checked out in $path: name one, or make one"
tip=$(git rev-parse --quiet --verify "refs/heads/$branch^{{commit}}") ||
    refuse "there is no branch $branch with a commit in $path"
say "url $(git config --get remote.host.url || :)"
say "proof $(git config --get remote.host.proof || :)"
went=$(git config --get remote.host.branch || :)
if [ "$went" != "$branch" ] && git show-ref --verify --quiet "refs/heads/$went"; then
    own=$own+$branch
fi
say "home $own"
say "seen $(git rev-parse --quiet --verify "refs/remotes/host/$own" || :)"
say "branch $branch"
say "tip $tip"
new=$(git rev-list --count "$tip" --not $known)
say "new $new"
if [ -n "$(ls -A "$(git rev-parse --git-common-dir)/lfs/objects" 2>/dev/null)" ]; then say lfs; fi
rm -rf -- "$parcel"
[ "$new" = 0 ] || (
    mkdir -m 700 -- "$parcel"
    git bundle create --quiet "$parcel/bundle" "refs/heads/$branch" --not $known
)
"""

WENT = """
path=$1 first=$2 ref=$3 tip=$4
cd -- "$path"
git update-ref "$ref" "$tip"
if [ -n "$first" ]; then git config remote.host.branch "$first"; fi
"""

TIDY = 'rm -rf -- "$1"'


def parcel_path() -> str:
    """A directory of the box for what is in transit, by a name that nobody can guess."""
    return f"/tmp/.box-mcp-{token_hex(16)}"  # noqa: S108 - the box's


async def step(
    shell: Shell,
    what: str,
    script: str,
    *arguments: str,
    timeout: float = SHORT,
    yield_after: float = 2 * SHORT,
    on_output: OnOutput = unheard,
) -> Outcome:
    """Runs a script that does `what`, and may go on when this returns; raises GitFailed."""
    outcome = await shell.run(
        f"# {what}\n{shlex.join(('sh', '-euc', script, 'sh', *arguments))}",
        timeout=timeout,
        yield_after=yield_after,
        max_output=MAX_ANSWER,
        env=ENV,
        on_output=on_output,
    )
    record = outcome.record
    if record.running or record.exit == 0:
        return outcome
    lines = (outcome.head + outcome.tail).decode(errors="replace").strip().splitlines()
    if record.exit == REFUSED and lines:
        raise GitFailed(what, lines[-1][:MAX_COMPLAINT])
    ended = f"exit status {record.exit}"
    if record.exit is None:
        ended = f"{record.cause or 'ended'}, signal {record.signal}"
    raise GitFailed(what, ended, said="\n".join(lines)[-MAX_COMPLAINT:])


def answers(outcome: Outcome) -> Mapping[str, str]:
    """The lines that it printed, by their first words; the first of each counts."""
    told: dict[str, str] = {}
    for line in outcome.head.decode(errors="surrogateescape").splitlines():
        word, _, rest = line.partition(" ")
        told.setdefault(word, rest)
    return told


async def tidy(shell: Shell, parcel: str) -> None:
    """Removes what was in transit, whatever became of the call; fails in silence."""
    with anyio.move_on_after(TIDY_PATIENCE, shield=True):
        try:
            await step(shell, "tidy up", TIDY, parcel)
        except BoxError:
            return  # the box is gone, or it keeps a file that it may have
