"""From a box, by files: at what its user may not touch, and at the user's machine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.support import liar
from tests.support.client import docker, serving, text
from tests.support.replaced import replace

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from tests.support.client import Server

ROUNDS = 60
SECRET = "root-alone-may-read-this"

FLIP = """
import os, time
os.makedirs("race", exist_ok=True)
def put(name, make):
    make("race/.new")
    os.replace("race/.new", f"race/{name}")
def plain(path):
    with open(path, "w") as file:
        file.write("mine")
end = time.monotonic() + 120
while time.monotonic() < end and not os.path.exists("stop"):
    put("file", plain)
    put("file", lambda path: os.symlink("/root/secret", path))
    for target in ("/workspace/own", "/root"):
        put("directory", lambda path: os.symlink(target, path))
"""
"""A file and a directory that become links to what is root's, and again what they were."""


@dataclass
class Stage:
    """A server, and the user's project."""

    server: Server
    project: Path

    async def ask(self, tool: str, **arguments: object) -> tuple[bool, str]:
        """Whether a call succeeds, and what it says."""
        result = await self.server.call(tool, **arguments)
        return not result.is_error, text(result)


@pytest.fixture(scope="module")
async def stage(
    shared_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Stage, None]:
    project = tmp_path_factory.mktemp("project")
    (project / "mine").write_text("mine")
    env = {**shared_env, "CLAUDE_PROJECT_DIR": str(project)}
    async with serving(env, "--session", "files") as server:
        yield Stage(server, project)


@pytest.fixture(scope="module")
async def racing(stage: Stage) -> AsyncGenerator[Stage, None]:
    """Links come and go in its box, and a directory of root's waits for what gets there."""
    hide = f"echo {SECRET} > /root/secret; chmod 600 /root/secret"
    prepare = f"mkdir -p own; echo x > own/x; sudo sh -c '{hide}'"
    await stage.server.run(prepare)
    await stage.server.say("file_write", path="flip.py", content=FLIP)
    await stage.server.run("rm -f stop; python3 flip.py", background=True)
    await stage.server.run("until test -e race/directory; do :; done")
    yield stage
    await stage.server.run("touch stop")
    assert (await stage.server.run("sudo ls -A /root")).splitlines()[1:] == INITIAL
    assert SECRET in await stage.server.run("sudo cat /root/secret")


INITIAL = [".bashrc", ".profile", "secret"]
"""What is in root's directory."""

RACES: dict[str, tuple[str, dict[str, object]]] = {
    "read": ("file_read", {"path": "race/file"}),
    "written": ("file_write", {"path": "race/file", "content": "theirs"}),
    "edited": ("file_edit", {"path": "race/file", "edits": [{"old": "mine", "new": "theirs"}]}),
    "searched": ("file_search", {"pattern": "root", "path": "race/file"}),
    "written into": ("file_write", {"path": "race/directory/x", "content": "theirs"}),
    "listed": ("file_list", {"path": "race/directory"}),
    "copied": ("file_copy", {"source": "race/file", "destination": "copy", "overwrite": True}),
    "moved into": (
        "file_move",
        {"source": "own/x", "destination": "race/directory/x", "overwrite": True},
    ),
    "uploaded to": (
        "file_upload",
        {"host_path": "mine", "destination": "race/directory/x", "overwrite": True},
    ),
    "downloaded": ("file_download", {"path": "race", "host_path": "got", "overwrite": True}),
}


@pytest.mark.parametrize("race", RACES)
async def test_what_turns_into_a_link_to_roots_is_never(race: str, racing: Stage):
    tool, arguments = RACES[race]
    for _ in range(ROUNDS):
        _, said = await racing.ask(tool, **arguments)
        assert SECRET not in said
        if race == "moved into":
            await racing.server.run("test -e own/x || echo x > own/x")
    for path in racing.project.rglob("*"):
        assert path.is_dir() or SECRET not in (path.read_text() if path.exists() else "")
    calm = json.loads(json.dumps(arguments).replace("race", "calm"))
    await racing.server.run("mkdir -p calm/directory; printf mine > calm/file; echo x > own/x")
    good, said = await racing.ask(tool, **calm)
    assert good, f"where nothing moves: {said}"


CHAINS = {
    "a link to where hooks will be": ("ln -s .git/hooks way", "way/pre-commit"),
    "a link to itself": ("ln -s . way", "way/.git/hooks/pre-commit"),
    "two links": ("ln -s two one; ln -s .claude two", "one/settings.json"),
    "a link in other letters": ("ln -s .GIT way", "way/config"),
}


@pytest.mark.parametrize("chain", CHAINS)
async def test_a_link_that_came_with_one_download_leads_the_next_nowhere(chain: str, stage: Stage):
    make, place = CHAINS[chain]
    tree = f"tree{list(CHAINS).index(chain)}"
    await stage.server.run(f"mkdir {tree}; cd {tree}; {make}; echo theirs > file")
    good, said = await stage.ask("file_download", path=tree)
    assert good, said
    here = stage.project / tree
    guarded = [here / name for name in (".git", ".claude", ".GIT")]
    (here / ".git" / "hooks").mkdir(parents=True)
    for directory in guarded[1:]:
        directory.mkdir(exist_ok=True)
    for _ in range(2):
        good, said = await stage.ask(
            "file_download", path=f"{tree}/file", host_path=f"{tree}/{place}", overwrite=True
        )
        assert not [path for top in guarded for path in top.rglob("*") if path.is_file()], said
    good, said = await stage.ask("file_download", path=f"{tree}/file", host_path=f"{tree}/harmless")
    assert good, said


DEEP = """
import os
os.mkdir("bomb")
os.chdir("bomb")
for _ in range(3000):
    os.mkdir("directory")
    os.chdir("directory")
"""
BOMBS = {
    "a file of a tebibyte": ("truncate -s 1T bomb", "disk can spare"),
    "directories that are too deep": (f"python3 -c '{DEEP}'", "transferred"),
    "a device without an end": ("ln -s /dev/zero bomb", "bomb"),
}


@pytest.mark.parametrize("bomb", BOMBS)
async def test_what_is_too_much_does_not_come_out(bomb: str, stage: Stage):
    make, words = BOMBS[bomb]
    await stage.server.run(f"rm -rf bomb; {make}")
    good, said = await stage.ask("file_download", path="bomb", host_path="bomb", overwrite=True)
    size = sum(p.lstat().st_size for p in stage.project.rglob("*") if not p.is_dir())
    assert size < 1_000_000
    assert words in said, f"{good} {said}"


ZIP = """
import zipfile
zipfile.ZipFile("bomb", "w", zipfile.ZIP_DEFLATED).writestr("../../evil", bytes(100_000_000))
"""
TAR = "head -c 100M /dev/zero > zeros; tar -czPf bomb --transform 's,^,/../../,' zeros; rm zeros"
ARCHIVES = {"zip": f"python3 -c '{ZIP}'", "tar": TAR}


@pytest.mark.parametrize("kind", ARCHIVES)
async def test_an_archive_stays_an_archive(kind: str, stage: Stage):
    await stage.server.run(f"rm -rf bomb; {ARCHIVES[kind]}")
    good, said = await stage.ask("file_download", path="bomb", host_path=f"{kind}/bomb")
    assert good, said
    assert [path.name for path in (stage.project / kind).iterdir()] == ["bomb"]
    assert (stage.project / kind / "bomb").stat().st_size < 1_000_000


NAMES = [
    b"../evil",
    b"/etc/evil",
    b"a/../../evil",
    b"..",
    b".",
    b"a//b",
    b"a/",
    b"a\0b",
    b"x" * 256,
    b"y/" * 2100 + b"y",
    b".git/hooks/pre-commit",
    b".mcp.json",
]
"""Of files in a parcel that no honest daemon packs."""


@pytest.fixture(scope="module")
async def misnaming(stage: Stage) -> tuple[Stage, str]:
    """A box whose daemon gives a file another name, and the box's id."""
    box = str((await stage.server.tell("box_create", name="misnaming"))["id"])
    await stage.server.run("mkdir tree; echo theirs > tree/name", box=box)
    await replace(stage.server, box, "names")
    return stage, box


def renamed(box: str, name: bytes) -> None:
    """The next file comes by this name."""
    write = f"open({liar.NAME!r}, 'wb').write(bytes.fromhex({name.hex()!r}))"
    docker("exec", "-u", "0", box, "python3", "-c", write)


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name[:20]))
async def test_no_daemon_names_a_file_so_that_it_lands_elsewhere(
    name: bytes, misnaming: tuple[Stage, str]
):
    stage, box = misnaming
    outside = sorted(stage.project.parent.iterdir())
    renamed(box, name)
    place = f"tree{abs(hash(name))}"
    good, said = await stage.ask("file_download", box=box, path="tree", host_path=place)
    assert not good, said
    assert not list(stage.project.rglob("*evil*"))
    assert not (stage.project / place).exists()
    assert sorted(stage.project.parent.iterdir()) == outside
    renamed(box, b"honest")
    good, said = await stage.ask("file_download", box=box, path="tree", host_path=f"{place}-good")
    assert good, said
    assert (stage.project / f"{place}-good" / "honest").read_text() == "theirs\n"
