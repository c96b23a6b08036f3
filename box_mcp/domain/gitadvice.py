"""Why git did not do what it was asked to, and what to do next: read out of its own words; pure.

git speaks English here, since `LANGUAGE` is set so.
"""

from __future__ import annotations

import re
import shlex
from typing import NamedTuple

MAX_SAID = 2000  # characters of git's own words that are told

_PROGRESS = re.compile(
    r"(remote: )?(Enumerating|Counting|Compressing|Receiving|Resolving|Writing|Updating|Unpacking|"
    r"Filtering|Checking|Total|Delta)\b.*(\d|done\.?)[^\n]*|hint:.*"
)

ROUTES = (
    "have the user give box_mcp's settings a route ([routes.NAME]) with a credential for it, "
    "which never enters the box"
)
OWN = "one on the user's machine is cloned as host:/path"


class Cause(NamedTuple):
    """Why it failed, and what to do next."""

    reason: str
    advice: str = ""


CAUSES: list[tuple[str, Cause]] = [
    (
        r"dubious ownership in repository at '(.*)'",
        Cause(
            "the repository belongs to another user",
            'shell_run("git config --global --add safe.directory {0}") trusts it, or chown it',
        ),
    ),
    (
        r"already exists and is not an empty directory|destination path '.*' already exists",
        Cause(
            "the path is there already, and is not empty",
            "Choose another `path`, or use what is there",
        ),
    ),
    (
        r"could not create (?:work tree dir|leading directories)[^\n]*Permission denied",
        Cause("the box's user may not write there", "Choose another `path`"),
    ),
    (
        r"Remote branch (.*) not found in upstream|Could not find remote branch (.*) to clone",
        Cause(
            "the remote has no branch or tag of this name",
            'shell_run("git ls-remote --heads --tags URL") lists them',
        ),
    ),
    (
        r"\[rejected\].*\(stale info\)|!.*stale info",
        Cause(
            "the lease did not hold: the remote branch is not what was last fetched",
            'Someone pushed meanwhile: shell_run("git fetch"), look at it, then decide again',
        ),
    ),
    (
        r"\[rejected\].*\((?:non-fast-forward|fetch first)\)|!.*(?:non-fast-forward|fetch first)",
        Cause(
            "the remote branch has commits that this one lacks (non-fast-forward)",
            'shell_run("git pull --rebase REMOTE BRANCH") takes them in, then push again; '
            "force=true overwrites what was last fetched, and nothing newer",
        ),
    ),
    (
        r"\[remote rejected\][^\n]*(?:protected|hook declined|GH\d+|not allowed)",
        Cause(
            "the remote's own rules refuse it (a protected branch, or a hook there)",
            "Push another branch, and open a pull request with pull_request_create",
        ),
    ),
    (
        r"\[remote rejected\][^\n]*branch is currently checked out",
        Cause("the remote is not bare, and has this branch checked out", "Push another branch"),
    ),
    (r"\[(?:remote )?rejected\]", Cause("the remote refused it; its words follow")),
    (
        r"src refspec \S+ does not match any",
        Cause("there is no such branch, or it has no commit yet", "git_status tells the branch"),
    ),
    (
        (
            r"(?:could not read Username|could not read Password|Authentication failed|"
            r"terminal prompts disabled|HTTP Basic: Access denied)"
        ),
        Cause(
            "the server wants a credential, and a box has none, by design",
            f"If it is private: {ROUTES}. If it is public, check the URL: forges answer so where "
            "there is nothing",
        ),
    ),
    (
        r"fatal: '[^']*' does not appear to be a git repository",
        Cause("there is no such repository", f"Check the URL; {OWN}"),
    ),
    (
        (
            r"Host key verification failed|Permission denied \(publickey|ssh: |cannot run ssh|"
            r"Could not read from remote repository"
        ),
        Cause(
            "it can't be reached by ssh: no SSH key is in a box, by design",
            f"Use its https URL, or {ROUTES}",
        ),
    ),
    (
        r"transport '(.*)' not allowed",
        Cause("git does not use this transport here", "Use https"),
    ),
    (
        r"The requested URL returned error: 403",
        Cause("access was refused; what the server or the route said follows"),
    ),
    (
        r"repository '(?!\w+://)[^']*' does not exist",
        Cause("there is no such repository", f"Check the URL; {OWN}"),
    ),
    (
        r"repository '.*' (?:not found|does not exist)|The requested URL returned error: 404",
        Cause("there is no such repository", "Check the URL"),
    ),
    (
        (
            r"Could not resolve (?:host|proxy)|Failed to connect|Connection (?:refused|timed out)|"
            r"Network is unreachable|response 40[37] from proxy|CONNECT tunnel failed|"
            r"Proxy CONNECT aborted"
        ),
        Cause(
            "the host can't be reached from the box",
            "box_info tells what the box may reach, network_policy asks for more",
        ),
    ),
    (
        r"early EOF|RPC failed|unexpected disconnect|Connection reset",
        Cause(
            "the connection broke",
            "Repeat the call; depth=1 fetches less",
        ),
    ),
    (
        r"No space left on device|Disk quota exceeded",
        Cause("the box's disk is full", 'shell_run("df -h; du -xhd1 /") shows what fills it'),
    ),
    (
        r"Please tell me who you are|unable to auto-detect email|empty ident name",
        Cause(
            "nobody is named as the author",
            'shell_run("git config --global user.name NAME; git config --global user.email MAIL"), '
            "or have the user set git_name and git_email in box_mcp's settings",
        ),
    ),
    (
        r"nothing to commit|nothing added to commit|no changes added to commit",
        Cause(
            "there is nothing to commit",
            "Only staged changes are: pass all=true for all changes, or paths; git_status tells "
            "what there is",
        ),
    ),
    (
        r"asked to amend the most recent commit, but doing so would make",
        Cause("the commit would be empty", 'shell_run("git reset HEAD^") takes it back'),
    ),
    (
        (
            r"you have unmerged (?:files|paths)|unmerged files|unresolved conflict|needs merge|"
            r"you need to resolve your current index first"
        ),
        Cause(
            "files are in conflict",
            "git_status names them: resolve them with file_edit, then commit with all=true; "
            'shell_run("git merge --abort") or the like gives it up',
        ),
    ),
    (
        r"cannot do a partial commit during a (?:merge|cherry-pick|rebase)",
        Cause("in the middle of a merge all is committed together", "Use all=true, without paths"),
    ),
    (
        r"[Aa]borting commit due to empty commit message",
        Cause("the message is empty", "Pass `message`"),
    ),
    (
        r"paths are ignored by one of your \.gitignore files",
        Cause("a path is one that .gitignore leaves out", 'shell_run("git add -f PATH") stages it'),
    ),
    (
        r"pathspec '(?::\(literal\))?(.*)' did not match any file",
        Cause("there is no such path, and git knew none", "git_status tells what changed"),
    ),
    (
        (
            r"would be overwritten by (?:checkout|merge)|"
            r"contains? modified files|not possible because you have unmerged"
        ),
        Cause(
            "changes that are not committed would be lost",
            'Nothing was changed: commit them with git_commit, or shell_run("git stash -u")',
        ),
    ),
    (
        r"[Aa] branch named '(.*)' already exists",
        Cause("there is a branch of this name", "Without create it is checked out"),
    ),
    (
        r"cannot lock ref '[^']*': '([^']*)' exists",
        Cause("the branch {0} stands in the way of its name", "Choose another name"),
    ),
    (
        r"is already (?:checked out|used by worktree) at '(.*)'",
        Cause("the branch is checked out in another working tree: {0}", "Use that directory"),
    ),
    (
        r"Unable to create '(.*\.lock)': File exists|Another git process seems to be running",
        Cause(
            "another git works in this repository, or died there",
            'process_list shows what runs; if nothing does, shell_run("rm {0}")',
        ),
    ),
    (
        r"does not have any commits yet",
        Cause("the branch has no commit yet"),
    ),
    (
        (
            r"ambiguous argument '([^']*)'|bad revision|unknown revision|invalid reference|"
            r"not a (?:valid object|commit)|not something we can|pathspec '([^']*)'"
        ),
        Cause(
            "git knows no such branch, tag or commit",
            'git_log or shell_run("git branch -a") tells what there is; shell_run("git fetch") '
            "brings what is new",
        ),
    ),
    (
        r"gpg failed to sign|error: gpg|cannot run gpg|Couldn't load public key",
        Cause(
            "commits are to be signed here, and the box has no key",
            'shell_run("git config commit.gpgSign false") turns that off in this repository',
        ),
    ),
    (
        r"Switched to (?:a new )?branch|HEAD is now at",
        Cause("it is checked out, but a hook of the repository failed then"),
    ),
    (
        r"No such remote '(.*)'",
        Cause(
            "there is no remote {0}", 'shell_run("git remote -v") lists them: name what is meant'
        ),
    ),
    (
        r"error: failed to push some refs",
        Cause(
            "a hook refused it before it began (pre-push, the repository's own or git-lfs's)",
            "Mend what it complains of, and push again",
        ),
    ),
    (
        r"must be run in a work tree",
        Cause("it is a bare repository, without files"),
    ),
]
"""What git says (a regular expression), and what that means; the first that is found counts."""


def cause_of(said: str) -> Cause | None:
    """What git's words mean, if that is known."""
    for pattern, cause in CAUSES:
        if found := re.search(pattern, said):
            parts = [shlex.quote(part or "") for part in found.groups()] or [""]
            return Cause(cause.reason.format(*parts), cause.advice.format(*parts))
    return None


def without_progress(said: str) -> str:
    """Git's words but for how far it was, the last of them if there are many."""
    lines = [line for line in said.splitlines() if line.strip() and not _PROGRESS.fullmatch(line)]
    text = "\n".join(lines)
    return text if len(text) <= MAX_SAID else f"... {text[-MAX_SAID:]}"
