"""The proof that a repository in a box came from the user's own: by it, work may go home there.

It is told to boxes, so it is no secret of a box's; nobody but this user's servers can make one.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from contextlib import suppress
from pathlib import Path

from box_mcp.domain.names import Principal

KEY_LENGTH = 32  # bytes, as long as the hash that they go into
KEY_NAME = "home.key"
OWNER_ONLY = 0o600


def proof_of(key: bytes, principal: Principal, path: Path) -> str:
    """That `principal` may bring work home to the repository at this resolved path."""
    text = b"\0".join((b"box_mcp home", principal.encode(), os.fsencode(path)))
    return hmac.new(key, text, hashlib.sha256).hexdigest()


def is_proof(said: str, key: bytes, principal: Principal, path: Path) -> bool:
    """Whether a box says the right one."""
    return hmac.compare_digest(
        said.encode(errors="replace"), proof_of(key, principal, path).encode()
    )


def key_in(state_dir: Path) -> bytes:
    """The key of all servers that share `state_dir`, made by the first; raises OSError."""
    path = state_dir / KEY_NAME
    with suppress(FileNotFoundError):
        return _read(path)
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_suffix(f".{secrets.token_hex(8)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY)
        with open(descriptor, "wb") as file:  # noqa: PTH123 - of a descriptor
            file.write(secrets.token_bytes(KEY_LENGTH))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):  # another server was faster: its key is everybody's
            _put(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return _read(path)


def _put(draft: Path, path: Path) -> None:
    """Gives a file its name, unless there is one of that name; on some disks there are no links."""
    try:
        path.hardlink_to(draft)
    except FileExistsError:
        raise
    except OSError:
        if not path.exists():
            draft.rename(path)


def _read(path: Path) -> bytes:
    key = path.read_bytes()
    if len(key) != KEY_LENGTH:
        raise OSError(0, "it is not as long as this server's keys are: remove it")
    return key
