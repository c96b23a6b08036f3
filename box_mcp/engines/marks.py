"""The mark that all things of one state directory bear at the engine (label `box_mcp.owner`).

Usually it is a hash of the directory's path, so that what a directory left behind is known by it
when the directory is gone. In containers, and at engines of other machines, others may well have a
directory of the same path: there, a new one has a mark of its own, in a file.
"""

from __future__ import annotations

import re
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from secrets import token_hex

from box_mcp.engines.address import Address, is_in_container
from box_mcp.errors import StoreUnusable

FILE = "mark"
MARK = re.compile(r"[0-9a-f]{16}")


def mark_of(directory: Path) -> str:
    """The mark of a state directory, which need not be there; raises StoreUnusable."""
    file = directory / FILE
    try:
        said = file.read_text(encoding="ascii", errors="replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return sha256(str(directory.absolute()).encode()).hexdigest()[:16]
    except OSError as error:
        raise StoreUnusable(str(file), error.strerror or str(error)) from error
    if not MARK.fullmatch(said):
        raise StoreUnusable(str(file), "it holds no mark, which is 16 hexadecimal digits")
    return said


def path_suffices(address: Address) -> bool:
    """Whether nobody else has a directory of the same path, for all that the engine has."""
    return not address.is_remote and not is_in_container()


def settle_mark(directory: Path) -> None:
    """Gives a directory without boxes a mark of its own, for where its path is not enough.

    Of several servers that do so at the same time, the first one's counts.
    """
    file = directory / FILE
    if file.exists() or (directory / "state.db").exists():
        return
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        ours = directory / f"{FILE}.{token_hex(4)}"
        ours.write_text(f"{token_hex(8)}\n", encoding="ascii")
        with suppress(FileExistsError):
            file.hardlink_to(ours)
        ours.unlink()
    except OSError as error:
        raise StoreUnusable(str(file), error.strerror or str(error)) from error
