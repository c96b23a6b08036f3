"""What .gitignore files hide, held against git itself."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from box_mcp.boxd.ignore import NOTHING, Ignore

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = [
    *(b"a", b"b", b"ab", b"abc", b"a b", b"a ", b"#a", b"!a", b"[a]", b"a*", b"-", b"a.b", b".a"),
    *("é".encode(), b"\xff", b"a\\b", b"\v", b"A", b"1", b"^", b"]", b"a\nb", b":"),
]
DIRECTORIES = [b"a", b"b", b"a/a", b"a/b", b"a/b/ab", b"ab", b"a.b", b"a/\xff"]
ALPHABET = st.sampled_from([*b"aab**//?[]!-\\ .#:^1\r\xff\x0b", *"é".encode()])
SETS = st.sampled_from([b"[[:alpha:]]", b"[!a-z]", b"[]a]", b"[[:space:]]", b"[[:x:]]", b"**/"])
LINES = st.lists(st.one_of(ALPHABET.map(lambda byte: bytes([byte])), SETS), max_size=7).map(
    b"".join
)
FILES = st.lists(LINES, max_size=5).map(b"\n".join)


@pytest.fixture(scope="module")
def tree() -> Iterator[Path]:
    """A repository with files of odd names in directories of odd names."""
    with TemporaryDirectory() as folder:
        subprocess.run(["git", "init", "-q", folder], check=True)
        top = os.fsencode(folder)
        for directory in DIRECTORIES:
            os.makedirs(top + b"/" + directory, exist_ok=True)  # noqa: PTH103 - bytes
        for directory in [b"", *DIRECTORIES]:
            for name in NAMES:
                path = os.path.join(top, directory, name)  # noqa: PTH118 - bytes
                if not os.path.lexists(path):
                    os.close(os.open(path, os.O_CREAT))
        yield Path(folder)


def by_git(tree: Path, paths: list[str]) -> set[str]:
    done = subprocess.run(
        ["git", "-c", "core.excludesFile=", "check-ignore", "--no-index", "-z", "--stdin"],
        cwd=tree,
        input=b"".join(b"./" + os.fsencode(path) + b"\0" for path in paths),
        capture_output=True,
        check=False,
    )
    assert done.returncode in {0, 1}, done.stderr
    return {os.fsdecode(path.removeprefix(b"./")) for path in done.stdout.split(b"\0") if path}


def by_us(tree: Path, ignore: Ignore = NOTHING, directory: str = "") -> Iterator[str]:
    """What a walker does not see who asks `hides`, and does not descend into what is hidden."""
    rules = tree / directory / ".gitignore"
    ignore = ignore.below(directory, rules.read_bytes() if rules.exists() else b"")
    for path in children(tree, directory):
        is_directory = (tree / path).is_dir()
        if ignore.hides(path, is_directory):
            yield from (path, *descendants(tree, path))
        elif is_directory:
            yield from by_us(tree, ignore, path)


def children(tree: Path, directory: str) -> list[str]:
    if not (tree / directory).is_dir():
        return []
    names = set(os.listdir(tree / directory)) - {".git"}  # noqa: PTH208 - names, not paths
    return sorted(os.path.join(directory, name) for name in names)  # noqa: PTH118


def descendants(tree: Path, directory: str = "") -> Iterator[str]:
    for path in children(tree, directory):
        yield from (path, *descendants(tree, path))


def agree(tree: Path, top: bytes, nested: bytes = b"") -> None:
    (tree / ".gitignore").write_bytes(top)
    (tree / "a/.gitignore").write_bytes(nested)
    assert set(by_us(tree)) == by_git(tree, list(descendants(tree)))


@pytest.mark.parametrize(
    "rules",
    [
        b"a",
        b"/a\n!/a/b",
        b"a/",
        b"*\n!*/\n!*.b",
        b"a/b",
        b"**/b",
        b"a/**",
        b"a/**/ab",
        b"a**/b",
        b"a/**b",
        b"*a*b*\n**/a*/**/*b*c",
        b"**/a/**/b/**",
        b"\\#a\n\\!a\n#b",
        b"a \nb\\ \nab \\ ",
        b"a\r\nb\r",
        b"\xef\xbb\xbfa",
        b"[[:upper:]]\n[!a]\n[]]\n[^^]\n[a-]\n[\\]]",
        b"[a\n[[:alpha:]\n[z-a]\n[[:what:]]\na\\",
        b"?\n??",
        b"!\n/\n//\n!/\n!a",
        b"a\0b",
        b"**\\/b",
        b"*b/*",
        b"\xff\n\xc3?",
    ],
    ids=ascii,
)
def test_rules_hide_what_git_says(tree: Path, rules: bytes):
    agree(tree, rules)


@settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(top=FILES, nested=FILES)
def test_any_rules_hide_what_git_says(tree: Path, top: bytes, nested: bytes):
    agree(tree, top, nested)


def test_rules_of_a_directory_hold_below_it_only():
    ignore = NOTHING.below("a", b"x\n/y")
    assert ignore.hides("a/x", False)
    assert ignore.hides("a/b/x", False)
    assert ignore.hides("a/y", False)
    assert not ignore.hides("a/b/y", False)
    assert not ignore.hides("x", False)
    assert not ignore.hides("ab/x", False)


@pytest.mark.parametrize(
    ("rule", "path"),
    [
        ("*a" * 20 + "*b", "a" * 250),
        ("*[ab]?" * 20 + "*b/c", "a" * 250),
        ("**/a/" * 20 + "b", "a/" * 250),
        ("**/*a*a/" * 20 + "b", "aaaa/" * 250),
        ("**\\/a" * 20 + "/b", "a/" * 250),
    ],
    ids=lambda text: text[:10],
)
@pytest.mark.skipif(sys.version_info < (3, 11), reason="only slower there")
def test_no_rule_is_so_wicked_that_a_path_takes_long(rule: str, path: str):
    ignore = NOTHING.below("", rule.encode())
    start = time.process_time()
    assert not ignore.hides(path, False)
    assert time.process_time() - start < 0.5


def test_fifty_thousand_paths_are_decided_in_a_moment():
    rules = b"".join(b"*.ext%d\nname%d\n/some/path%d/*.o\n" % (n, n, n) for n in range(20))
    ignore = NOTHING.below("", rules)
    paths = [f"some/path{n % 100}/file{n}.o" for n in range(50_000)]
    start = time.process_time()
    hidden = sum(ignore.hides(path, False) for path in paths)
    assert hidden == 10_000
    assert time.process_time() - start < 2
