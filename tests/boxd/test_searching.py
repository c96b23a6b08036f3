"""Searches, by ripgrep where this machine has it, and always by Python: with one answer."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.boxd import Client, Failed, LocalBoxd, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

NOWHERE = "/nonexistent"
PATH = "PATH=/usr/bin:/bin"
ENGINES = ["python", *(["ripgrep"] if shutil.which("rg") else [])]
ASKED: dict[str, Any] = {"path": ".", "gitignore": True, "limit": 1000, "max_bytes": 10**6}
FILES = {
    "a/one.py": b"import os\nfoo = 1\n\nprint(foo)\n",
    "a/two.PY": b"FOO\n",
    "a/b/three.txt": b"food\r\nfo(o\n\nbar foo",
    "a.txt": b"foo\n" * 3,
    "a-b/x.rs": b"fn foo() {}\n",
    ".hidden/foo.py": b"foo\n",
    "long.js": b"y" * 5000 + b"foo\n" + b"z" * 390 + b"foo\nfoo" + "ä".encode() * 300,
    "binary": b"\0foo\n",
    "utf16.txt": "foo ä\nbar\n".encode("utf-16"),
    "bom.txt": b"\xef\xbb\xbffoo\n",
    "latin.txt": b"caf\xe9 foo\n",
    "new\nline.txt": b"foo\n",
    "ignored.log": b"foo\n",
    "keep.log": b"foo\n",
    "build/x.py": b"foo\n",
    ".gitignore": b"*.log\n!keep.log\nbuild/\n# foo\n",
    "a/.gitignore": b"/b/*.no\n",
    "a/b/x.no": b"foo\n",
}


@pytest.fixture(params=ENGINES)
def boxd(request: pytest.FixtureRequest) -> Iterator[LocalBoxd]:
    with LocalBoxd(path=NOWHERE if request.param == "python" else None) as boxd:
        yield boxd


def plant(workspace: Path, files: dict[str, bytes] = FILES) -> None:
    for path, content in files.items():
        (workspace / path).parent.mkdir(parents=True, exist_ok=True)
        (workspace / path).write_bytes(content)


def search(
    client: Client, pattern: str = "foo", **request: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    call = client.open("search", pattern=pattern, **{**ASKED, **request})
    end = call.result()
    return [json.loads(line) for line in call.data.splitlines()], end


def places(client: Client, pattern: str = "foo", **request: Any) -> list[str]:
    found, _ = search(client, pattern, **request)
    return [f"{one['path']}{':' if one['hit'] else '-'}{one['line']}" for one in found]


def files(client: Client, pattern: str = "foo", **request: Any) -> list[str]:
    return [one["path"] for one in search(client, pattern, mode="files", **request)[0]]


def refused(client: Client, pattern: str = "foo", **request: Any) -> Failed:
    with pytest.raises(Failed) as caught:
        search(client, pattern, **request)
    return caught.value


def test_lines_that_match_are_found_in_the_order_of_their_paths(client: Client, boxd: LocalBoxd):
    plant(boxd.workspace)
    found, end = search(client)
    assert [f"{one['path']}:{one['line']}" for one in found] == [
        "a/b/three.txt:1",
        "a/b/three.txt:4",
        "a/one.py:2",
        "a/one.py:4",
        "a-b/x.rs:1",
        "a.txt:1",
        "a.txt:2",
        "a.txt:3",
        "bom.txt:1",
        "keep.log:1",
        "latin.txt:1",
        "long.js:1",
        "long.js:2",
        "long.js:3",
        "new\nline.txt:1",
        "utf16.txt:1",
    ]
    texts = {one["path"]: one["text"] for one in found}
    assert texts["a/b/three.txt"] == "bar foo"
    assert texts["latin.txt"] == "café foo"
    assert texts["utf16.txt"] == "foo ä"
    assert (end["matches"], end["files"], end["more"], end["unreadable"]) == (16, 10, False, False)
    assert end["directory"] == str(boxd.workspace)


@pytest.mark.parametrize("spaces", ["", " "])
def test_a_long_line_is_told_in_part_and_no_character_of_it_is_broken(
    client: Client, boxd: LocalBoxd, spaces: str
):
    line = f"foo{spaces}{'ä' * 2000}"
    (boxd.workspace / "long.txt").write_text(line)
    (found,), _ = search(client)
    assert found["text"] == line[:400] + "…"


REQUESTS: list[dict[str, Any]] = [
    {},
    {"context": 1},
    {"mode": "count"},
    {"mode": "files"},
    {"hidden": True},
    {"gitignore": False},
    {"hidden": True, "gitignore": False},
    {"case": "ignore"},
    {"case": "smart"},
    {"case": "smart", "pattern": "FOO"},
    {"pattern": "fo(o", "literal": True},
    {"pattern": "^foo$"},
    {"pattern": r"\bfoo\b"},
    {"pattern": r"[a-z]+\(", "glob": "a/**"},
    {"glob": "*.py"},
    {"glob": "*.{py,rs}"},
    {"glob": "!*.txt"},
    {"glob": "*.log"},
    {"glob": "**/*.txt"},
    {"type": "py"},
    {"type": "rust"},
    {"path": "a"},
    {"path": "a/b"},
    {"path": "build"},
    {"path": "a/one.py", "context": 2},
    {"path": "ignored.log"},
    {"limit": 3},
    {"limit": 3, "after": "a/one.py", "after_line": 2},
    {"max_bytes": 100},
]


@pytest.mark.skipif(len(ENGINES) == 1, reason="needs ripgrep here; see test_trees_on_docker.py")
def test_both_engines_give_one_answer():
    with LocalBoxd() as one, LocalBoxd(path=NOWHERE) as other:
        answers: list[list[Any]] = []
        for boxd in (one, other):
            plant(boxd.workspace)
            with boxd.connect() as client:
                answers.append([search(client, **request) for request in REQUESTS])
    assert answers[0][0][1].pop("engine") == "ripgrep"
    for request, first, second in zip(REQUESTS, *answers, strict=True):
        for _, end in (first, second):
            end.pop("directory")
            end.pop("engine", None)
        assert first == second, request


def test_lines_around_a_match_are_told_once(client: Client, boxd: LocalBoxd):
    lines = b"".join(b"foo\n" if n in (3, 5, 10) else b"%d\n" % n for n in range(1, 13))
    plant(boxd.workspace, {"f": lines})
    assert places(client, context=2) == [
        *("f-1", "f-2", "f:3", "f-4", "f:5", "f-6", "f-7"),
        *("f-8", "f-9", "f:10", "f-11", "f-12"),
    ]
    assert search(client, context=2)[1]["matches"] == 3


def test_files_and_counts_are_told_instead(client: Client, boxd: LocalBoxd):
    plant(boxd.workspace)
    assert files(client, "foo", path="a") == ["b/three.txt", "one.py"]
    found, end = search(client, mode="count", path="a", context=3)
    assert found == [{"path": "b/three.txt", "count": 2}, {"path": "one.py", "count": 2}]
    assert (end["matches"], end["files"]) == (4, 2)


def test_hidden_and_ignored_files_are_searched_on_demand(client: Client, boxd: LocalBoxd):
    plant(boxd.workspace)
    (boxd.workspace / ".git").mkdir()
    (boxd.workspace / ".git/config").write_text("foo\n")
    everyday = set(files(client))
    assert set(files(client, hidden=True)) - everyday == {".hidden/foo.py", ".gitignore"}
    assert set(files(client, gitignore=False)) - everyday == {
        "a/b/x.no",
        "build/x.py",
        "ignored.log",
    }
    everything = set(files(client, hidden=True, gitignore=False))
    assert ".git/config" in everything
    assert files(client, hidden=True, glob="**/*.py", path="a") == ["one.py"]


def test_a_glob_shows_nothing_that_is_hidden_or_ignored(client: Client, boxd: LocalBoxd):
    plant(boxd.workspace)
    assert files(client, glob="*.log") == ["keep.log"]
    assert ".hidden/foo.py" not in files(client, glob="**")
    assert files(client, glob=".hidden/**") == []


@pytest.mark.parametrize("limit", [1, 3, 7])
@pytest.mark.parametrize("mode", ["matches", "files", "count"])
def test_pages_hold_each_match_once(client: Client, boxd: LocalBoxd, limit: int, mode: str):
    plant(boxd.workspace)
    whole, _ = search(client, mode=mode, context=1)
    found: list[dict[str, Any]] = []
    more = True
    while more:
        last: dict[str, Any] = found[-1] if found else {"path": ""}
        after, line = last["path"], last.get("line", 0)
        page, end = search(client, mode=mode, context=1, limit=limit, after=after, after_line=line)
        found += page
        more = end["more"]
    assert found == whole


def test_more_than_can_be_sorted_comes_in_order_all_the_same(client: Client, boxd: LocalBoxd):
    plant(boxd.workspace, {f"d{n % 7}/f{n}": b"foo %d\n" % n * 60 for n in range(100)})
    expected = sorted(
        ((f"d{n % 7}/f{n}", line) for n in range(100) for line in range(1, 61)),
        key=lambda one: (one[0].split("/"), one[1]),
    )
    found, end = search(client, limit=2000)
    assert (end["more"], end["matches"], end["files"]) == (True, None, None)
    path, line = expected[4999]
    rest, end = search(client, limit=2000, after=path, after_line=line)
    assert (end["more"], end["matches"]) == (False, None)
    assert [(one["path"], one["line"]) for one in found] == expected[:2000]
    assert [(one["path"], one["line"]) for one in rest] == expected[5000:]


def test_long_lines_are_cut(client: Client, boxd: LocalBoxd):
    plant(boxd.workspace)
    found, _ = search(client, path="long.js")
    assert [len(one["text"]) for one in found] == [401, 393, 303]
    assert found[0]["text"] == "y" * 400 + "…"


def test_names_of_any_bytes_are_found_and_pages_go_on_behind_them(client: Client, boxd: LocalBoxd):
    names = sorted([b"\xff", b"-e", b"a\nb", b"x: WARNING", b"n" * 255, "ü".encode()])
    for name in names:
        with open(os.fsencode(boxd.workspace) + b"/" + name, "wb") as file:  # noqa: PTH123
            file.write(b"foo\n")
    found, _ = search(client)
    assert [os.fsencode(one["path"]) for one in found] == names
    for number, one in enumerate(found):
        rest, _ = search(client, after=one["path"], after_line=1)
        assert [os.fsencode(one["path"]) for one in rest] == names[number + 1 :]
        assert search(client, path="./" + one["path"])[0] == [one]


def test_a_file_that_turns_out_binary_behind_its_matches_garbles_nothing(
    client: Client, boxd: LocalBoxd
):
    late = b"foo\n" + b"x\n" * 50_000 + b"\0\n"
    plant(boxd.workspace, {"a": b"foo\n", "b": late, "c": b"foo\n"})
    assert [place for place in places(client) if not place.startswith("b")] == ["a:1", "c:1"]


def test_symlinks_and_pipes_are_left_out(client: Client, boxd: LocalBoxd):
    plant(boxd.workspace, {"f": b"foo\n"})
    client.run(f"{PATH}; ln -s f link; ln -s . loop; ln -s none broken; mkfifo pipe").result()
    found, end = search(client)
    assert [one["path"] for one in found] == ["f"]
    assert end["unreadable"] is False
    found, end = search(client, path="link")
    assert [one["path"] for one in found] == ["f"]
    assert end["one_file"] is True


def test_what_cannot_be_read_is_told_and_the_rest_searched(client: Client, boxd: LocalBoxd):
    client.run(f"{PATH}; echo foo > a; echo foo > b; chmod 0 a; mkdir d; chmod 0 d").result()
    found, end = search(client)
    assert [one["path"] for one in found] == ["b"]
    assert end["unreadable"] is True
    client.run(f"{PATH}; chmod 755 a d").result()


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        ({"pattern": "fo(o"}, "bad_pattern", "regex parse error"),
        ({"pattern": "a\nb"}, "invalid", "line break"),
        ({"path": "none"}, "not_found", "No such file"),
        ({"type": "nonsense"}, "bad_type", "unrecognized file type: nonsense"),
        ({"glob": "{a,b}" * 20}, "invalid", "no glob pattern"),
        ({"mode": "matches", "case": "odd"}, "failed", "odd"),
    ],
)
def test_what_cannot_be_searched_for_is_refused(
    client: Client, boxd: LocalBoxd, request_: dict[str, Any], code: str, words: str
):
    plant(boxd.workspace)
    failure = refused(client, **request_)
    assert failure.code == code
    assert words in str(failure)


def test_a_search_given_up_leaves_no_process(client: Client, boxd: LocalBoxd):
    plant(boxd.workspace, {f"f{n}": b"foo\n" * 1000 for n in range(300)})
    for _ in range(3):
        with pytest.raises(Failed):
            client.open("search", pattern="(a*)*b", **ASKED).cancel().result()
    eventually(boxd.at_rest, "workers are gone")


@pytest.mark.skipif(len(ENGINES) == 1, reason="needs ripgrep")
def test_a_settings_file_of_the_user_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "ripgreprc").write_text("--invert-match\n")
    monkeypatch.setenv("RIPGREP_CONFIG_PATH", str(tmp_path / "ripgreprc"))
    with LocalBoxd() as boxd, boxd.connect() as client:
        plant(boxd.workspace, {"f": b"foo\nbar\n"})
        assert places(client) == ["f:1"]


def test_a_ripgrep_that_gets_no_threads_is_told_as_what_it_is():
    said = "panicked at 'failed to spawn scoped thread: Os { code: 11, kind: WouldBlock }"
    with TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        program = Path(directory, "rg")
        program.write_text(f'#!/bin/sh\necho "{said}" >&2\nexit 101\n')
        program.chmod(0o755)
        with LocalBoxd(path=f"{directory}:{os.defpath}") as boxd, boxd.connect() as client:
            plant(boxd.workspace, {"f": b"foo\n"})
            failed = refused(client)
    assert (failed.code, str(failed)) == ("not_started", "the box's process table is full")
