"""Shows the modules of box_mcp what Python has on Windows, as far as names tell.

``python -m tests.support.windows imports`` imports all that a server may; with another module's
name and arguments, runs that. Libraries see what there is.
"""

from __future__ import annotations

import asyncio
import builtins
import importlib
import os
import pkgutil
import re
import runpy
import select
import signal
import socket
import sys
import time
from types import ModuleType
from typing import Any

import box_mcp

MISSING = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
LACKING = {
    os: r"p(read|write)v?2?|readv|writev|sendfile|lockf|O_(?!RDONLY|WRONLY|RDWR|APPEND|CREAT|EXCL"
    r"|TRUNC).*|[gs]et(e|re|res)?[ug]id|(get|set|init)groups|fork.*|killpg|[gs]etp?gid|[gs]etsid"
    r"|[gs]etpgrp|tc[gs]etpgrp|[fl]?chown|[fl]chmod|mkfifo|mknod|uname|(sys|path|fpath)conf|confstr"
    r"|f?statvfs|wait[34]?|waitid|W[A-Z]+|P_(PID|ALL|PGID)|EX_.*|nice|[gs]etpriority|sched_.*"
    r"|register_at_fork|openpty|login_tty|pipe2|fdatasync|[gs]et_blocking|.*xattr|XATTR_.*|memfd_.*"
    r"|MFD_.*|eventfd.*|pidfd_open|getloadavg|chroot|fchdir|posix_.*|POSIX_.*|sync|splice|getrandom"
    r"|copy_file_range|fwalk|environb|getenvb|ttyname|ctermid|major|minor|makedev|RTLD_.*|SCHED_.*",
    signal: r"SIG(?!_DFL|_IGN|ABRT|FPE|ILL|INT|SEGV|TERM).*|alarm|pause|[gs]etitimer|ITIMER_.*"
    r"|pthread_.*|sig(wait.*|timedwait|pending|interrupt)|Signals",
    socket: r"AF_(UNIX|NETLINK|VSOCK|PACKET|ALG|CAN)|SCM_.*|SO_(PEERCRED|PASSCRED|REUSEPORT|DOMAIN)"
    r"|MSG_(DONTWAIT|NOSIGNAL|CMSG_.*)|send_fds|recv_fds|CMSG_.*",
    select: r"e?poll|kqueue|EPOLL.*|POLL.*",
    time: r"clock_.*|CLOCK_.*|pthread_.*|tzset",
}
"""What there is not of modules that there are."""


def narrowed(module: ModuleType, **otherwise: object) -> ModuleType:
    """A copy without what is lacking."""
    made, lacking = ModuleType(module.__name__), re.compile(LACKING.get(module, "(?!)"))
    known = {name: value for name, value in vars(module).items() if not lacking.fullmatch(name)}
    vars(made).update(known | otherwise)
    return made


def no_handlers(*_: object) -> None:
    """As event loops of Windows."""
    raise NotImplementedError


def pretend() -> None:
    """Windows it is, from now on, for what is imported of box_mcp."""
    shown = {module.__name__: narrowed(module) for module in LACKING}
    shown["os"] = narrowed(os, name="nt")
    shown["sys"] = narrowed(sys, platform="win32")
    really = builtins.__import__

    def import_for(name: str, globals: Any = None, *rest: Any, **more: Any) -> Any:  # noqa: A002
        importer: object = globals["__name__"] if globals and "__name__" in globals else ""
        if str(importer).startswith("box_mcp"):
            if name.partition(".")[0] in MISSING:
                raise ModuleNotFoundError(name)
            if name in shown:
                return shown[name]
        return really(name, globals, *rest, **more)

    builtins.__import__ = import_for
    asyncio.SelectorEventLoop.add_signal_handler = no_handlers  # type: ignore[method-assign]


def import_all() -> None:
    """All but what runs in boxes and is needed nowhere else."""
    for module in pkgutil.walk_packages(box_mcp.__path__, "box_mcp."):
        if not module.name.startswith(("box_mcp.boxd.", "box_mcp.__main__")):
            importlib.import_module(module.name)


if __name__ == "__main__":
    pretend()
    what, *sys.argv[1:] = sys.argv[1:]
    if what == "imports":
        import_all()
    else:
        runpy.run_module(what, run_name="__main__", alter_sys=True)
