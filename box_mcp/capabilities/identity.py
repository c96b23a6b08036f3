"""Who the user is to git: name and e-mail, by this server's settings, else by the user's own git.

Asked once, without GitPython, outside of any repository: what a repository says about its user
counts only there.
"""

from __future__ import annotations

import os
import subprocess

import anyio

from box_mcp.domain.gitconfig import Identity

TIMEOUT = 5.0  # s; it reads two small files
MAX_LENGTH = 200  # characters of either
WANTED = r"^user\.(name|email)$"
COMMAND = ("git", "config", "--global", "--includes", "-z", "--get-regexp", WANTED)


class OwnIdentity:
    """Finds out who the user is, when somebody first asks."""

    def __init__(self, name: str = "", email: str = "", *, asks_git: bool = True) -> None:
        """What the settings say, where they say something.

        `asks_git`: the rest is as the git of whoever runs this server says.
        """
        self._name, self._email = _plain(name), _plain(email)
        self._lock = anyio.Lock()
        self._asked = not asks_git or bool(self._name and self._email)

    async def get(self) -> Identity | None:
        """The user's, or None when name or e-mail is not known."""
        async with self._lock:
            if not self._asked:
                known = await _known_to_git()
                self._name = self._name or _plain(known.get("user.name", ""))
                self._email = self._email or _plain(known.get("user.email", ""))
                self._asked = True
        return Identity(self._name, self._email) if self._name and self._email else None


async def _known_to_git() -> dict[str, str]:
    """The user's settings, by lower-case names; none where git is missing or does not answer."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        with anyio.fail_after(TIMEOUT):
            done = await anyio.run_process(
                COMMAND, check=False, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=own
            )
    except (OSError, TimeoutError):
        return {}
    pairs = (one.partition("\n") for one in done.stdout.decode(errors="replace").split("\0"))
    return {key: value for key, _, value in pairs}


def _plain(text: str) -> str:
    """`text` as git takes it for a name; nothing where it is none."""
    plain = "".join(one for one in text if one.isprintable() and one not in '<>\\"').strip()
    return plain if len(plain) <= MAX_LENGTH else ""
