"""Repositories as a user has them, on this machine; and what is in them, to the last byte."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

Contents = dict[str, tuple[int, int, bytes]]

ENV = {
    **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    "GIT_AUTHOR_NAME": "A User",
    "GIT_AUTHOR_EMAIL": "user@example.com",
    "GIT_COMMITTER_NAME": "A User",
    "GIT_COMMITTER_EMAIL": "user@example.com",
}


def git(where: Path, *arguments: str, stdin: bytes = b"", code: int = 0) -> str:
    """What the user's own git prints."""
    return git_bytes(where, *arguments, stdin=stdin, code=code).decode().strip()


def git_bytes(where: Path, *arguments: str, stdin: bytes = b"", code: int = 0) -> bytes:
    """As it prints it."""
    done = subprocess.run(
        ["git", *arguments], cwd=where, env=ENV, input=stdin, capture_output=True, check=False
    )
    assert done.returncode == code, (arguments, done.stderr)
    return done.stdout


def commit(repository: Path, name: str, text: str = "x\n") -> str:
    """The commit that writes one file."""
    (repository / name).parent.mkdir(parents=True, exist_ok=True)
    (repository / name).write_text(text)
    git(repository, "add", "--force", "--", name)
    git(repository, "commit", "-qm", f"Write {name}")
    return git(repository, "rev-parse", "HEAD")


def repository_at(path: Path, *options: str) -> Path:
    """One with a single commit, on the branch main."""
    path.mkdir(parents=True)
    git(path, "init", "-qb", "main", *options)
    commit(path, "README")
    return path


def refs(repository: Path) -> dict[str, str]:
    """All of a repository's refs."""
    said = git(repository, "for-each-ref", "--format=%(refname) %(objectname)")
    pairs = (line.split() for line in said.splitlines())
    return {name: commit for name, commit in pairs}  # noqa: C416 - pairs are lists


def contents(directory: Path) -> Contents:
    """Mode, time of change, and content of all that is below a directory, git's own too."""
    found: Contents = {}
    for path in sorted(directory.rglob("*")):
        seen = path.lstat()
        content = b""
        if stat.S_ISREG(seen.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(seen.st_mode):
            content = os.fsencode(path.readlink())
        found[str(path.relative_to(directory))] = (seen.st_mode, seen.st_mtime_ns, content)
    return found
