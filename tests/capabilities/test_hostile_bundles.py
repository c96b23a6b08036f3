"""Whatever bundle a box sends, the user's repository takes a sound branch, or nothing."""

from __future__ import annotations

import hashlib
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from box_mcp.capabilities.hostgit.find import find_repository
from box_mcp.capabilities.hostgit.going import BUNDLE, Home, MissingHistory, Said
from box_mcp.capabilities.hostgit.receive import receive
from box_mcp.capabilities.hostgit.run import Leash
from box_mcp.capabilities.hostroots import HostRoots
from box_mcp.errors import RepositoryRefused
from tests.support.usergit import contents, git, refs, repository_at

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMIT, TREE, BLOB = 1, 2, 3
OFFSET_DELTA, NAMED_DELTA = 6, 7
NAMES = {COMMIT: b"commit", TREE: b"tree", BLOB: b"blob"}
FILE, DIRECTORY, LINK, MODULE = b"100644", b"40000", b"120000", b"160000"
WHO = b"A Box <box@example.com> 1700000000 +0000"
HEAD = b"# v2 git bundle\n"
NOWHERE = "1" * 40


class Thing(NamedTuple):
    """An object as it lies in a pack; `before` goes between its header and its data."""

    kind: int
    data: bytes
    before: bytes = b""
    size: int | None = None

    @property
    def name(self) -> str:
        return hashlib.sha1(
            b"%s %d\0%s" % (NAMES[self.kind], len(self.data), self.data)
        ).hexdigest()

    def packed(self) -> bytes:
        size = len(self.data) if self.size is None else self.size
        head = bytearray([self.kind << 4 | size & 15])
        size >>= 4
        while size:
            head[-1] |= 128
            head.append(size & 127)
            size >>= 7
        return bytes(head) + self.before + zlib.compress(self.data)


def blob(data: bytes) -> Thing:
    return Thing(BLOB, data)


def tree(*entries: tuple[bytes, bytes, str]) -> Thing:
    parts = (mode + b" " + name + b"\0" + bytes.fromhex(one) for mode, name, one in entries)
    return Thing(TREE, b"".join(parts))


def commit(of: str, *parents: str, author: bytes = WHO, more: bytes = b"") -> Thing:
    above = b"".join(b"parent %s\n" % parent.encode() for parent in parents)
    lines = b"tree %s\n%sauthor %s\ncommitter %s\n" % (of.encode(), above, author, WHO)
    return Thing(COMMIT, lines + more + b"\nWork\n")


def pack(*things: Thing, count: int | None = None) -> bytes:
    body = b"PACK" + struct.pack("!II", 2, len(things) if count is None else count)
    body += b"".join(one.packed() for one in things)
    return body + hashlib.sha1(body).digest()


def bundle(tip: str, *things: Thing, needs: str = "", ref: str = "refs/heads/work") -> bytes:
    needed = f"-{needs} Subject\n" if needs else ""
    return HEAD + f"{needed}{tip} {ref}\n\n".encode() + pack(*things)


def delta(base: int, result: int, ops: bytes) -> bytes:
    def number(value: int) -> bytes:
        digits = bytearray()
        while True:
            digits.append(value & 127 | (128 if value > 127 else 0))
            value >>= 7
            if not value:
                return bytes(digits)

    return number(base) + number(result) + ops


README = blob(b"from a box\n")
SOUND = tree((FILE, b"README", README.name))
TIP = commit(SOUND.name)
ODD_NAMES = [
    b".git",
    b".GIT",
    b".Git ",
    b"git~1",
    b".g\xe2\x80\x8cit",
    b".git::$INDEX_ALLOCATION",
    b"..",
    b".",
    b"",
    b"/etc/passwd",
    b"../../escape",
]
MODULES = blob(b'[submodule "x"]\n\tpath = x\n\turl = -u./payload\n')
MODULES_UP = blob(b'[submodule "../../hooks"]\n\tpath = x\n\turl = https://example.com/x\n')
POINTER = blob(b"../../.git/config")


def of_tree(*entries: tuple[bytes, bytes, str], also: tuple[Thing, ...] = ()) -> bytes:
    """A bundle of one commit with one tree."""
    made = tree(*entries)
    top = commit(made.name)
    return bundle(top.name, top, made, README, *also)


def hostile() -> Iterator[tuple[str, bytes]]:
    """All of them, each with what it tries."""
    sound = bundle(TIP.name, TIP, SOUND, README)
    yield "nothing at all", b""
    yield "no bundle", b"GARBAGE" * 999
    yield "another version", sound.replace(b"v2", b"v9", 1)
    yield (
        "a capability that is not known",
        sound.replace(HEAD, b"# v3 git bundle\n@filter=blob:none\n", 1),
    )
    yield "another hash", sound.replace(HEAD, b"# v3 git bundle\n@object-format=sha256\n", 1)
    yield "no branch", HEAD + b"\n" + pack(TIP, SOUND, README)
    yield "two branches", sound.replace(b"\n\n", f"\n{TIP.name} refs/heads/main\n\n".encode(), 1)
    for ref in ("refs/heads/main", "refs/heads/../../config", "refs/heads/work\0x", "HEAD"):
        yield f"as {ref!r}", bundle(TIP.name, TIP, SOUND, README, ref=ref)
    yield "a head without an end", HEAD + f"-{NOWHERE} x\n".encode() * 99_999
    yield "a line without an end", HEAD + b"-" + b"1" * 9_999_999
    yield "a short hash", bundle("12", TIP, SOUND, README)
    yield "a tip that is not there", bundle(NOWHERE, TIP, SOUND, README)
    yield "a file as its tip", bundle(README.name, README)
    yield "a directory as its tip", bundle(SOUND.name, SOUND, README)
    yield "no pack", sound[: sound.index(b"PACK")]
    yield "half a pack", sound[:-30]
    yield "a broken pack", sound[:-25] + b"x" + sound[-24:]
    yield "a wrong sum", sound[:-20] + bytes(20)
    yield "more behind the pack", sound + b"x"
    yield (
        "too many objects",
        HEAD
        + f"{TIP.name} refs/heads/work\n\n".encode()
        + pack(TIP, SOUND, README, count=2**32 - 1),
    )
    yield "a missing file", bundle(TIP.name, TIP, SOUND)
    yield "a missing directory", bundle(TIP.name, TIP, README)
    orphan = commit(SOUND.name, NOWHERE)
    yield "a missing parent", bundle(orphan.name, orphan, SOUND, README)
    for name in ODD_NAMES:
        yield f"a file {name!r}", of_tree((FILE, name, README.name))
    yield "a directory '.git'", of_tree((DIRECTORY, b".git", SOUND.name), also=(SOUND,))
    yield "modules by a link", of_tree((LINK, b".gitmodules", POINTER.name), also=(POINTER,))
    yield (
        "a module with an option for a URL",
        of_tree((FILE, b".gitmodules", MODULES.name), (MODULE, b"x", NOWHERE), also=(MODULES,)),
    )
    yield (
        "a module that climbs",
        of_tree(
            (FILE, b".gitmodules", MODULES_UP.name), (MODULE, b"x", NOWHERE), also=(MODULES_UP,)
        ),
    )
    yield "two of a name", of_tree((FILE, b"x", README.name), (FILE, b"x", README.name))
    yield "no order", of_tree((FILE, b"y", README.name), (FILE, b"x", README.name))
    yield "a directory that is a file", of_tree((DIRECTORY, b"x", README.name))
    yield "a file that is a directory", of_tree((FILE, b"x", SOUND.name), also=(SOUND,))
    for told, odd in {
        "nobody": commit(SOUND.name, author=b""),
        "a bad time": commit(SOUND.name, author=b"A <a@example.com> -1 +0000"),
        "a NUL": commit(SOUND.name, more=b"x \0y\n"),
        "a file for its directory": commit(README.name),
        "no directory": Thing(COMMIT, b"author " + WHO + b"\n\nx\n"),
    }.items():
        yield f"a commit with {told}", bundle(odd.name, odd, SOUND, README)
    for told, ops, result in (
        ("four gigabytes", b"\x80" * 9, 2**32),
        ("more than it makes", b"\x01x", 99),
        ("what lies outside of its base", b"\x91\xff\xff", 0xFF),
    ):
        odd = delta(len(README.data), result, ops)
        base = bytes.fromhex(README.name)
        yield (
            f"a delta of {told}",
            bundle(TIP.name, TIP, SOUND, README, Thing(NAMED_DELTA, odd, base)),
        )
    yield (
        "a delta on nothing",
        bundle(
            TIP.name, TIP, SOUND, README, Thing(NAMED_DELTA, delta(9, 9, b"\x90\x09"), b"\x11" * 20)
        ),
    )
    yield (
        "a delta on itself",
        bundle(TIP.name, TIP, SOUND, README, Thing(OFFSET_DELTA, delta(9, 9, b"\x90\x09"), b"\0")),
    )
    yield "an object of another size", bundle(TIP.name, TIP, SOUND, README._replace(size=2**40))
    yield "an unknown kind", bundle(TIP.name, TIP, SOUND, Thing(5, b"x"))


HOSTILE = dict(hostile())


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's repository."""
    return repository_at(tmp_path_factory.mktemp("projects") / "app")


def brought(mine: Path, directory: Path, sent: bytes, tip: str = TIP.name) -> Home:
    """What becomes of a bundle."""
    (directory / BUNDLE).write_bytes(sent)
    said = Said("", "", "work", "box/fix", "", tip, 1)
    repository = find_repository(HostRoots((mine.parent,)), str(mine))
    return receive(Leash(), repository, directory, said, force=True)


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_comes_home_that_is_not_sound(mine: Path, tmp_path: Path, name: str):
    before = contents(mine)
    with pytest.raises(RepositoryRefused) as refused:
        brought(mine, tmp_path, HOSTILE[name])
    assert contents(mine) == before
    assert len(refused.value.explain()) < 5000


def test_git_has_a_limit_of_memory_for_what_comes(mine: Path, tmp_path: Path):
    with pytest.raises(RepositoryRefused, match="over limit"):
        brought(mine, tmp_path, HOSTILE["a delta of four gigabytes"])


def test_what_is_sound_comes_home(tmp_path: Path):
    mine = repository_at(tmp_path / "app")
    top = git(mine, "rev-parse", "HEAD")
    tip = commit(SOUND.name, top)
    tmp_path.joinpath("work").mkdir()
    sent = bundle(tip.name, tip, SOUND, README, needs=f"{top} {'long ' * 5000}")
    assert brought(mine, tmp_path / "work", sent).tip == tip.name
    assert refs(mine) == {"refs/heads/main": top, "refs/heads/box/fix": tip.name}
    git(mine, "fsck", "--strict")


def test_what_builds_on_something_unknown_is_told_so(mine: Path, tmp_path: Path):
    with pytest.raises(MissingHistory, match=NOWHERE):
        brought(mine, tmp_path, bundle(TIP.name, TIP, SOUND, README, needs=NOWHERE))


def test_what_would_fill_the_disk_unpacked_stays_packed(tmp_path: Path):
    mine = repository_at(tmp_path / "app")
    large = blob(bytes(80 * 1024**2))
    made = tree((FILE, b"zeros", large.name))
    tip = commit(made.name)
    tmp_path.joinpath("work").mkdir()
    brought(mine, tmp_path / "work", bundle(tip.name, tip, made, large))
    size = sum(path.stat().st_size for path in (mine / ".git").rglob("*"))
    assert size < 1024**2
    assert git(mine, "cat-file", "-s", "box/fix:zeros") == str(80 * 1024**2)
