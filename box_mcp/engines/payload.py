"""boxd as it travels into a box: one tar archive with the zipped program and its directories."""

from __future__ import annotations

import hashlib
import io
import marshal
import tarfile
import zipfile
from functools import cache, lru_cache
from importlib import resources
from importlib.util import MAGIC_NUMBER, source_hash

from box_mcp.engines.isolation import FILES, HOME, LOGS, SOCKET

_MAIN = """\
import sys
if sys.version_info < (3, 9):
    sys.exit("boxd needs Python 3.9 or newer, and this image has %d.%d" % sys.version_info[:2])
from boxd.main import main
main()
"""


UNCHECKED_HASH = (1).to_bytes(4, "little")


@lru_cache(maxsize=8)
def boxd_archive(owner: int, more: tuple[tuple[str, bytes], ...] = ()) -> bytes:
    """A tar archive for the root of a box; `owner` is the uid that boxd will run as.

    `more` are paths and contents of other files, which all in the box may read.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, mode, uid in (
            (HOME, 0o755, 0),
            (_parent(SOCKET), 0o700, owner),
            (FILES, 0o755, owner),
            (LOGS, 0o755, owner),
        ):
            directory = tarfile.TarInfo(path.lstrip("/"))
            directory.type = tarfile.DIRTYPE
            directory.mode, directory.uid, directory.gid = mode, uid, uid
            tar.addfile(directory)
        for path, content in ((f"{HOME}/boxd.pyz", _boxd_zip()), *more):
            file = tarfile.TarInfo(path.lstrip("/"))
            file.mode, file.size = 0o644, len(content)
            tar.addfile(file, io.BytesIO(content))
    return buffer.getvalue()


@cache
def boxd_digest() -> str:
    """Tells this version of boxd from all others.

    By its sources: bytecode of the same source differs with what else a process has imported.
    """
    digest = hashlib.sha256(MAGIC_NUMBER)
    for name, source in _programs().items():
        digest.update(b"%s %d\n%s" % (name.encode(), len(source), source))
    return digest.hexdigest()[:16]


@cache
def connector_source() -> str:
    """The program that joins a byte stream to boxd; see `boxd/connector.py`."""
    return (resources.files("box_mcp.boxd") / "connector.py").read_text(encoding="utf-8")


@cache
def _programs() -> dict[str, bytes]:
    """The sources by their names in the archive, always in the same order."""
    modules = {
        f"boxd/{file.name}": file.read_bytes()
        for file in resources.files("box_mcp.boxd").iterdir()
        if file.name.endswith(".py") and file.name != "connector.py"
    }
    return {"__main__.py": _MAIN.encode(), **dict(sorted(modules.items()))}


@cache
def _boxd_zip() -> bytes:
    files: dict[str, bytes] = {}
    for name, text in _programs().items():
        files[name] = text
        if name != "__main__.py":
            files[f"{name}c"] = _compiled(text, name)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # stored: unpacking would cost start-up time
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)  # of no date: the same bytes always
    return buffer.getvalue()


def _compiled(source: bytes, name: str) -> bytes:
    """A module's bytecode, which a Python of this server's version takes, all others pass over.

    It halves the time until boxd listens. Its layout is PEP 552's, of an unchecked hash.
    """
    code = marshal.dumps(compile(source, name, "exec", dont_inherit=True))
    return MAGIC_NUMBER + UNCHECKED_HASH + source_hash(source) + code


def _parent(path: str) -> str:
    return path.rpartition("/")[0]
