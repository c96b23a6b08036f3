"""Who runs commands in this box, and how file work is done with that user's rights."""

from __future__ import annotations

import contextlib
import os
import pwd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator

WORKSPACE = "/workspace"


class Account:
    """Somebody whom commands can run as: ids, groups, home, shell."""

    def __init__(self, entry: pwd.struct_passwd) -> None:
        self.uid = entry.pw_uid
        self.gid = entry.pw_gid
        self.name = entry.pw_name
        self.home = entry.pw_dir or "/"
        self.shell = "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh"
        self.groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
        own = {"HOME": self.home, "USER": self.name, "LOGNAME": self.name, "SHELL": self.shell}
        self.environment = {"LC_CTYPE": "C.UTF-8", "TERM": "dumb", **os.environ, **own}
        """The variables that every command starts with, before its own."""


class User(Account):
    """The user of all file work, and of all commands that name no other."""

    def __init__(self, root: str, preferred: list[str]) -> None:
        super().__init__(_find(preferred if os.geteuid() == 0 else [str(os.geteuid())]))
        present = (path for path in (WORKSPACE, self.home, "/") if os.path.isdir(root + path))
        self.workspace = next(present, "/")
        if os.geteuid() == 0:
            os.setgroups(self.groups)  # for boxd's file work; root itself needs none

    def path(self, root: str, path: str) -> str:
        """`path` as the user means it, below `root`: from the workspace on, ``~`` is home."""
        if path == "~" or path.startswith("~/"):
            path = self.home + path[1:]
        return root.rstrip("/") + os.path.normpath(os.path.join(self.workspace, path))

    @contextlib.contextmanager
    def rights(self) -> Generator[None, None, None]:
        """Inside, the kernel checks file access against this user instead of root.

        Only the effective ids change, so the user can't send signals to boxd meanwhile.
        """
        if os.geteuid() != 0:
            yield
            return
        os.setegid(self.gid)
        os.seteuid(self.uid)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(0)


def become(uid: int, gid: int, groups: list[int]) -> None:
    """Turns this process into somebody else for good; without root it is who it was."""
    if os.geteuid() == 0:
        os.setgroups(groups)
        os.setgid(gid)
        os.setuid(uid)


def _find(preferred: list[str]) -> pwd.struct_passwd:
    """The first of `preferred` (names or numbers) that exists in the image, else a bare entry."""
    for name in preferred:
        with contextlib.suppress(KeyError):
            return pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
    uid = next((int(name) for name in preferred if name.isdigit()), 0)
    return pwd.struct_passwd((str(uid), "x", uid, uid, "", "/", "/bin/sh"))
