"""Any sequence of writes, additions, edits, moves and reads, held against a dictionary of bytes."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.support.boxd import Client, Failed, LocalBoxd

NAMES = st.sampled_from(["a", "below/b", "ö\nx", "not utf-8 \udcff", "-n", "n" * 255, "link"])
SMALL = st.one_of(
    st.binary(max_size=60),
    st.text(st.sampled_from("ab\r\nä"), max_size=40).map(str.encode),
    st.text(st.sampled_from("ab\nä"), max_size=40).map(lambda text: text.encode("utf-16")),
)
CONTENTS = st.one_of(SMALL, SMALL.map(lambda data: data * 5_000))
PARTS = st.text(st.sampled_from("ab\n"), min_size=1, max_size=2)


class Files(RuleBasedStateMachine):
    """boxd against its model."""

    @initialize()
    def begin(self) -> None:
        with contextlib.ExitStack() as stack:
            self.boxd = stack.enter_context(LocalBoxd())
            self.client: Client = stack.enter_context(self.boxd.connect())
            self.client.run("mkdir below; ln -s below/b link").result()
            self.files: dict[str, bytes] = {}
            self.versions: dict[str, str] = {}
            self.refusals: set[str] = set()
            self.leave = stack.pop_all()

    def teardown(self) -> None:
        self.leave.close()

    @rule(name=NAMES, data=CONTENTS, append=st.booleans(), version=st.sampled_from(["", "a", "!"]))
    def write(self, name: str, data: bytes, append: bool, version: str) -> None:
        """With the version of this file, of another one, or none."""
        name = real(name)
        options: dict[str, Any] = {"append": append}
        known = self.versions.get(name, "new")
        if version:
            options["if_version"] = self.versions.get(name if version == "!" else "a", "new")
        call = self.client.open("write", path=name, **options).send(data).finish()
        if options.get("if_version", known) != known:
            with pytest.raises(Failed, match=r"has changed|exists already|not exist"):
                call.result()
            return
        result = call.result()
        assert result["created"] == (name not in self.files)
        self.files[name] = self.files.get(name, b"") + data if append else data
        self.versions[name] = result["version"]
        assert result["size"] == len(self.files[name])

    @rule(name=NAMES, old=PARTS, new=PARTS, everywhere=st.booleans())
    def edit(self, name: str, old: str, new: str, everywhere: bool) -> None:
        """What is found is replaced, in whatever the file seems to be."""
        name = real(name)
        edits = json.dumps([{"old": old, "new": new, "all": everywhere}]).encode()
        call = self.client.open("edit", path=name, max_bytes=1000).send(edits).finish()
        try:
            result = call.result()
        except Failed as failed:
            self.refusals.add(failed.code)
            return
        if not result["done"]:
            assert result["matches"] != 1
            return
        assert everywhere or result["places"] == 1
        content = (self.boxd.workspace / name).read_bytes()
        assert content in replaced(self.files[name], old, new, result["encoding"])
        self.files[name] = content
        self.versions[name] = result["version"]

    @rule(source=NAMES, to=NAMES)
    def move(self, source: str, to: str) -> None:
        """As a command in the box does it."""
        source, target = real(source), real(to)
        if source in self.files and source != target:
            (self.boxd.workspace / source).rename(self.boxd.workspace / target)
            self.files[target] = self.files.pop(source)
            self.versions.pop(source)
            self.versions[target] = self.client.call("stat", path=target)["version"]

    @rule(name=NAMES, offset=st.integers(0, 100_000), length=st.integers(0, 300_000))
    def read(self, name: str, offset: int, length: int) -> None:
        call = self.client.open("read", path=name, offset=offset, length=length)
        if real(name) not in self.files:
            with contextlib.suppress(Failed):
                call.result()
                raise AssertionError(f"{name} was read")
            return
        result = call.result()
        content = self.files[real(name)]
        assert call.data == content[offset : offset + length]
        assert result["size"] == len(content)
        assert result["version"] == self.versions[real(name)]

    @invariant()
    def nothing_else_is_there(self) -> None:
        found = {
            str(path.relative_to(self.boxd.workspace))
            for path in self.boxd.workspace.rglob("*")
            if path.is_file() and not path.is_symlink()
        }
        assert found == set(self.files)
        assert self.refusals <= {"not_found", "invalid", "binary", "too_large"}


def replaced(content: bytes, old: str, new: str, encoding: str) -> list[bytes]:
    """What an edit everywhere may leave: "\\n" is one of two line ends."""
    wide = encoding.startswith("utf-16")
    text = content.decode("utf-16") if wide else content.decode("latin-1")
    left: list[bytes] = []
    for end in ("\n", "\r\n"):
        was, becomes = (part.replace("\n", end) for part in (old, new))
        after = text.replace(was, becomes)
        left.append(("\ufeff" + after).encode(encoding) if wide else after.encode("latin-1"))
    return left


def real(name: str) -> str:
    return "below/b" if name == "link" else name


TestFiles = Files.TestCase
TestFiles.settings = settings(max_examples=30, stateful_step_count=25)
