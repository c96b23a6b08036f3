"""What clients' models are told of the server as a whole, by what it offers, and to whom."""

from __future__ import annotations

from collections.abc import Collection

from box_mcp.domain.access import Group

PARAGRAPHS: tuple[tuple[Group | None, str], ...] = (
    (
        None,
        """\
box_mcp gives you boxes: isolated Linux containers (Debian, bash, python3, node, git, build \
tools) in which you may run anything without risk to the user's machine. Files and processes \
in a box are not the user's: nothing there is visible on the user's machine, and the other way \
round.""",
    ),
    (
        None,
        """\
Just call shell_run, file_read or file_write. Without `box` they act in this session's own \
box, which is made by the first call and remembered. Work in /workspace. If several \
conversations share this session, or you want separate work kept apart, make a box of your own \
with box_create(name=...) and pass box=<name> in every call.""",
    ),
    (
        Group.SHELL,
        """\
Commands run as user `box` with passwordless sudo. Each shell_run is a new shell: use cwd and \
env, chain with &&, or pass session="main" to keep one bash between calls. A call returns after \
45 s at the latest: a longer command goes on in the box, and the reply gives its process id. \
process_output waits for more output, for a pattern or for the end, process_input answers \
questions, process_signal ends it. Start servers with background=true, and programs that ask or \
draw (vim, sudo, installers) with tty=true. Long output is cut in the middle; nothing is lost: \
process_output reads any part of it.""",
    ),
    (
        Group.FILES,
        """\
Prefer file_edit (exact replacements, returns a diff) and file_search (ripgrep) to sed and \
grep. file_upload and file_download are the only way to and from the user's machine, within the \
directories that the user allows. Where a name can't be written as text, its path is shown as a \
file:// URL, and taken as one.""",
    ),
    (
        Group.GIT,
        """\
git_clone, git_status, git_diff, git_log, git_commit, git_checkout and git_push do most of git, \
shell_run("git ...") the rest. A box has no credentials or SSH keys, and needs none: git in it is \
let in wherever the user's settings have a route to. git_clone("host:/path") brings a repository \
of the user's machine, and git_push(remote="host") takes your branch home to it. \
pull_request_create pushes first, and opens one at GitHub or GitLab; issue_create opens issues.""",
    ),
    (
        Group.AGENT,
        """\
agent_run has a coding agent (Claude Code, Codex) do a task in a box by itself: tell it all that \
it must know. It needs no key, max_cost and timeout bound it, and it goes on when the call has \
returned: agent_status waits for it, agent_cancel ends it. agent_run(resume=RUN) goes on in its \
conversation. To have several ways tried: box_fork, and an agent in each box.""",
    ),
    (
        Group.NETWORK,
        """\
port_expose gives the user's browser an address for a server in a box: tell it to them. Where a \
reply says that connections were refused, network_policy shows what the box may reach and changes \
it, as far as the settings or the user allow.""",
    ),
    (
        Group.LIFECYCLE,
        """\
Before something risky: snapshot_create, and box_create(snapshot=...) brings it back. To try \
several ways from one state: box_fork.""",
    ),
    (
        None,
        """\
Idle boxes pause by themselves and wake at the next call; frozen ones keep their processes, \
stopped ones their files. A reply in [brackets] at the top is from box_mcp, everything below \
is the command's or the file's own.""",
    ),
)
"""Each with the group of tools that it tells of; None for what holds for all."""

AT_HOME = {
    "file_upload and file_download are the only way to and from the user's machine, within the "
    "directories that the user allows.": (
        "This server is not on the user's machine and can't touch it: files come as resources "
        "(box://BOX/files/PATH) and by file_read, and go by file_write."
    ),
    ' git_clone("host:/path") brings a repository of the user\'s machine, and '
    'git_push(remote="host") takes your branch home to it.': "",
}
"""What is said of the user's machine, and what instead where that is another than the server's."""

ONLY_READS = "This server only shows what there is: it has no tool that makes or changes anything."


def instructions(
    groups: Collection[Group] = tuple(Group), *, read_only: bool = False, remote: bool = False
) -> str:
    """Of a server with the tools of `groups`; `remote` callers are at other machines."""
    told = [text for group, text in PARAGRAPHS if group in (None, *groups)]
    text = "\n\n".join([*told, *([ONLY_READS] if read_only else [])])
    for here, elsewhere in AT_HOME.items() if remote else ():
        text = text.replace(here, elsewhere)
    return text
