"""Searches all that a box is made of for secrets, in every form that they usually take."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import tarfile
import zlib
from typing import IO, TYPE_CHECKING
from urllib.parse import quote

from tests.support.client import docker
from tests.support.engines import IMAGE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

PIECE = 1 << 20
GZIP = 31  # as zlib calls it

SEARCH = r"""
import itertools, os, stat, subprocess, sys

needles = sys.stdin.buffer.read()
own = str(os.getpid())

def grep(name, *more, feed=()):
    given, kept = os.pipe()
    os.write(kept, needles)
    os.close(kept)
    command = ["grep", "-aFo", "-D", "skip", "-f", f"/dev/fd/{given}", *more]
    with subprocess.Popen(command, env={"LC_ALL": "C", "PATH": os.environ["PATH"]},
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, pass_fds=[given]) as program:
        os.close(given)
        if not os.fork():
            program.stdout.close()
            try:
                for piece in feed:
                    program.stdin.write(piece)
                program.stdin.close()
            except (FileNotFoundError, ProcessLookupError):  # it has ended
                os._exit(0)
            except BaseException as error:
                print(name, repr(error), flush=True)
            os._exit(0)
        program.stdin.close()
        for line in set(program.stdout):
            print(name, line.decode(errors="replace").strip(), flush=True)
        os.wait()

def whole(path):
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            yield piece
    yield b"\n"

def memory(pid):
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as mem:
        for line in maps:
            place, rights, *_ = line.split()
            at, end = (int(part, 16) for part in place.split("-"))
            while "r" in rights and "[v" not in line and at < end:
                try:
                    mem.seek(at)
                    yield mem.read(min(end - at, 1 << 20))
                except (OSError, OverflowError):
                    pass
                at += 1 << 20
            yield b"\n"

def opened(pid):
    for fd in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{fd}"
        yield os.fsencode(os.readlink(path)) + b"\n"
        about = os.stat(path)
        if stat.S_ISREG(about.st_mode) and about.st_nlink == 0:
            yield from whole(path)

for pid in filter(str.isdigit, os.listdir("/proc")):
    if pid != own:
        for name in ("environ", "cmdline"):
            grep(f"{name} of {pid}", feed=whole(f"/proc/{pid}/{name}"))
        grep(f"open files of {pid}", feed=opened(pid))
        grep(f"memory of {pid}", feed=memory(pid))
top = [entry.path for entry in os.scandir("/proc/1/root")
       if entry.name not in ("proc", "sys") and not entry.is_symlink()]
grep("file", "-r", *top)
for place, folders, files in itertools.chain(*map(os.walk, top)):
    if "objects" in folders and "HEAD" in files:
        show = ["git", "-c", "safe.directory=*", "--git-dir", place, "cat-file", "--batch",
                "--batch-all-objects"]
        with subprocess.Popen(show, stdout=subprocess.PIPE) as program:
            grep(f"git objects in {place}", feed=program.stdout)
print("searched")
"""
"""Runs among the box's processes, with rights that these do not have; it leaves nothing there."""


def forms(secret: str) -> set[str]:
    """How a secret may be written."""
    raw = secret.encode()
    found = {secret, quote(secret), raw.hex(), raw.hex().upper()}
    quoted = quote(secret, safe="")
    found |= {quoted, re.sub("%..", lambda escape: escape[0].lower(), quoted)}
    found.add(json.dumps(secret).strip('"').replace("/", "\\/"))
    for before in range(3):  # so it is found behind a user's name, too
        coded = base64.b64encode(bytes(before) + raw).decode().rstrip("=")
        whole = coded[-(-before * 8 // 6) : (before + len(raw)) * 8 // 6]
        found |= {whole, whole.replace("+", "-").replace("/", "_")}
    return found


def leaks(text: str, secrets: Iterable[str]) -> set[str]:
    """The forms of secrets that a text has."""
    return {form for secret in secrets for form in forms(secret) if form in text}


def search_box(box: str, secrets: Iterable[str]) -> list[str]:
    """Where in a running box a secret is: variables, memory and files of all processes, all files.

    What git has compressed in any repository there is looked into.
    """
    beside = ("--pid", f"container:{box}", "--network", "none", "--cap-add", "SYS_PTRACE")
    done = subprocess.run(
        ["docker", "run", "--rm", "-i", *beside, "-u", "root", IMAGE, "python3", "-c", SEARCH],
        input=_needles(secrets),
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    said = done.stdout.decode(errors="replace").splitlines()
    assert said[-1:] == ["searched"], said
    return said[:-1]


def search_image(image: str, secrets: Iterable[str]) -> list[str]:
    """Where in an image, all of its layers and its description a secret is."""
    with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        found = search(_contents(program.stdout), secrets)
    return found + search([docker("inspect", image).encode()], secrets)


def search_tree(directory: Path, secrets: Iterable[str]) -> list[str]:
    """Which files below a directory of this machine have a secret."""
    done = subprocess.run(
        ["grep", "-raFl", "-f", "-", directory],
        input=_needles(secrets),
        capture_output=True,
        check=False,
    )
    return done.stdout.decode().splitlines()


def search(pieces: Iterable[bytes], secrets: Iterable[str]) -> list[str]:
    """The forms of secrets in a stream."""
    given, kept = os.pipe()
    os.write(kept, _needles(secrets))
    os.close(kept)
    with subprocess.Popen(
        ["grep", "-aFo", "-f", f"/dev/fd/{given}"],
        env={"LC_ALL": "C", "PATH": os.environ["PATH"]},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[given],
    ) as program:
        os.close(given)
        assert program.stdin is not None
        assert program.stdout is not None
        with program.stdin:
            for piece in pieces:
                program.stdin.write(piece)
        return sorted({line.decode().strip() for line in program.stdout})


def _needles(secrets: Iterable[str]) -> bytes:
    return "\n".join(sorted(form for secret in secrets for form in forms(secret))).encode()


def _contents(archive: IO[bytes]) -> Iterator[bytes]:
    """All bytes of an archive, and of what is compressed in it, as some engines do with layers."""
    with tarfile.open(fileobj=archive, mode="r|") as members:
        for member in members:
            yield member.name.encode() + b"\n"
            file = members.extractfile(member) if member.isfile() else None
            piece = file.read(PIECE) if file else b""
            plain = zlib.decompressobj(GZIP) if piece.startswith(b"\x1f\x8b") else None
            while file and piece:
                yield piece
                if plain:
                    yield plain.decompress(piece)
                piece = file.read(PIECE)
