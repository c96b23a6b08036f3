"""The user's own files: what is read of them, and what a hostile box can't do to them."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import closing
from pathlib import Path, PureWindowsPath
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_mcp.boxd import parcel
from box_mcp.capabilities import hostroots, hostsink
from box_mcp.capabilities.hostroots import HostRoots, Place, find_roots, is_elsewhere, is_junction
from box_mcp.capabilities.hostsink import MAX_DEPTH, HostSink
from box_mcp.capabilities.hostsource import HostSource
from box_mcp.errors import HostFailed, HostForbidden, InvalidArgument, NoHostDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator

DIRECTORY, FILE, LINK = parcel.DIRECTORY, parcel.FILE, parcel.LINK
TIME = 1_700_000_000_123_456_789


class Sent(NamedTuple):
    """An entry as a box sends it."""

    path: str
    content: bytes | None = b""
    mode: int = 0o644
    kind: int = FILE

    def packed(self) -> bytes:
        content = self.content or b""
        path = os.fsencode(self.path)
        return parcel.Entry(self.kind, self.mode, len(content), TIME, path).packed() + content


def directory(path: str, mode: int = 0o755) -> Sent:
    return Sent(path, None, mode, DIRECTORY)


def link(path: str, target: str) -> Sent:
    return Sent(path, target.encode(), 0o777, LINK)


TOP = directory("")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An allowed directory beside something that nobody may touch."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").write_text("precious")
    root = tmp_path / "project"
    root.mkdir()
    return root


@pytest.fixture(autouse=True)
def nothing_else_changes(tmp_path: Path) -> Iterator[None]:
    """Whatever a test does, the neighbour of its root stays as it is, and nothing staged stays."""
    yield
    beside = tmp_path / "outside"
    if beside.exists():
        assert [path.name for path in beside.iterdir()] == ["precious"]
        assert (beside / "precious").read_text() == "precious"
    assert not list(tmp_path.rglob(f"{hostsink.STAGING}*"))


def receive(
    root: Path, *sent: Sent, to: str = "got", overwrite: bool = False, windows: bool = False
) -> HostSink:
    """Takes a whole parcel for `to`."""
    with closing(HostSink(Place(root, to), overwrite=overwrite, windows=windows)) as sink:
        unpacker = parcel.Unpacker(sink)
        for entry in sent:
            unpacker.feed(entry.packed())
        unpacker.feed(parcel.LAST.packed())
        sink.commit()
        return sink


def names(directory: Path) -> list[str]:
    """All there is below a directory."""
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*"))


def read(content: IO[bytes] | bytes | None) -> bytes | None:
    return content.read() if content is not None and not isinstance(content, bytes) else content


def sent(source: HostSource) -> dict[str, bytes | None]:
    """What goes into the box, by path."""
    return {os.fsdecode(entry.path): read(content) for entry, content in source.entries()}


# Which directories are allowed


def roots(*named: Path, client: tuple[str, ...] = (), project: Path | None = None) -> HostRoots:
    return find_roots(named, client, str(project) if project else None)


def test_the_project_counts_only_where_nothing_else_is_named(root: Path, tmp_path: Path):
    other = tmp_path / "outside"
    assert roots(project=root).directories == (root,)
    assert roots(other, project=root).directories == (other,)
    assert roots(other, client=(root.as_uri(),)).directories == (root, other)


def test_without_any_directory_the_user_is_told_how_to_name_one():
    with pytest.raises(NoHostDirectory) as refusal:
        roots().to_read("x")
    assert "host_roots" in refusal.value.explain()


def test_neither_home_nor_what_contains_it_is_ever_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    home = tmp_path / "users" / "me"
    (home / "project").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    (tmp_path / "detour").symlink_to(home)
    found = roots(home, home.parent, tmp_path, Path("/"), tmp_path / "detour", home / "project")
    assert found.directories == (home / "project",)
    assert len(found.refused) == 5


def test_the_home_that_the_system_knows_counts_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = Path.home()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert roots(real).directories == ()


def test_what_is_no_directory_is_not_allowed(root: Path):
    (root / "file").write_text("")
    found = roots(root / "file", root / "nowhere", Path("relative"))
    assert found.directories == ()
    assert len(found.refused) == 3


def test_a_directory_of_settings_is_not_allowed_but_a_checkout_in_it_is(root: Path):
    (root / ".claude" / "worktrees" / "x").mkdir(parents=True)
    found = roots(root / ".claude", root / ".claude" / "worktrees" / "x")
    assert found.directories == (root / ".claude" / "worktrees" / "x",)


def test_a_client_can_name_directories_of_this_machine_only(root: Path):
    client = ("https://example.org/x", "file://elsewhere/x", "file:", "nonsense", root.as_uri())
    assert roots(client=client).directories == (root,)


@pytest.mark.parametrize(
    "path",
    [
        "../outside/precious",
        "sub/../../outside/precious",
        "{outside}/precious",
        "..",
        "/",
        "out/precious",
        "file",
    ],
)
def test_nothing_outside_is_read_whatever_it_is_called(root: Path, path: str):
    outside = root.parent / "outside"
    (root / "out").symlink_to(outside)
    (root / "file").symlink_to(outside / "precious")
    with pytest.raises(HostForbidden):
        roots(root).to_read(path.format(outside=outside))


@pytest.mark.parametrize(
    "path",
    ["../outside/new", "{outside}/new", "out/new", "out/sub/new", "sub/../../new", "..", "/"],
)
def test_nothing_outside_is_a_place_to_write(root: Path, path: str):
    outside = root.parent / "outside"
    (root / "out").symlink_to(outside)
    with pytest.raises((HostForbidden, InvalidArgument)):
        roots(root).to_write(path.format(outside=outside), "new", inside=False)


@pytest.mark.parametrize(
    ("path", "elsewhere"),
    [
        (r"\\evil\share\x", True),
        ("//evil/share/x", True),
        (r"\\?\UNC\evil\share\x", True),
        (r"\\FILES\Me\app\x", False),
        (r"C:\app\x", False),
        (r"D:\x", False),
    ],
)
def test_no_other_machine_is_called_on_windows(path: str, elsewhere: bool):
    known = [PureWindowsPath(r"C:\app"), PureWindowsPath(r"\\files\me\app")]
    assert is_elsewhere(PureWindowsPath(path), known) is elsewhere


def test_a_link_within_is_followed_when_it_is_read(root: Path):
    (root / "real").write_text("x")
    (root / "link").symlink_to("real")
    assert roots(root).to_read("link").path == root / "real"


def test_credentials_can_not_be_read_by_a_link_either(root: Path):
    (root / ".env").write_text("x")
    (root / "innocent").symlink_to(".env")
    with pytest.raises(HostForbidden, match="secret"):
        roots(root).to_read("innocent")


def test_a_path_may_be_a_url_for_names_that_are_no_text(root: Path):
    odd = os.fsdecode(b"caf\xe9")
    (root / odd).write_text("x")
    assert roots(root).to_read(f"{root.as_uri()}/caf%E9").path == root / odd


def test_what_is_not_there_is_told(root: Path):
    with pytest.raises(HostFailed, match="No such file"):
        roots(root).to_read("missing")


def test_a_loop_of_links_is_told(root: Path):
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    with pytest.raises(HostFailed):
        roots(root).to_read("a/x")


@pytest.mark.parametrize(
    ("text", "inside", "below"),
    [
        ("", False, "name"),
        (".", False, "name"),
        ("new", False, "new"),
        ("new/", False, "new/name"),
        ("there", False, "there"),
        ("there", True, "there/name"),
        ("there/", False, "there/name"),
        ("a/b/c", True, "a/b/c"),
        ("link", False, "link"),
    ],
)
def test_where_a_download_goes(root: Path, text: str, inside: bool, below: str):
    (root / "there").mkdir()
    (root / "link").symlink_to("elsewhere")
    assert roots(root).to_write(text, "name", inside=inside).below == below


def test_a_root_itself_is_never_replaced(root: Path):
    assert roots(root).to_write(str(root), "name", inside=False).below == "name"
    for name in ("", ".", ".."):
        with pytest.raises(InvalidArgument):
            roots(root).to_write(str(root), name, inside=False)


@pytest.mark.parametrize("path", [".git/hooks", ".git", "x/.claude/settings.json", "link/x"])
def test_a_download_has_no_place_among_settings(root: Path, path: str):
    (root / ".vscode").mkdir()
    (root / "link").symlink_to(".vscode")
    with pytest.raises(HostForbidden):
        roots(root).to_write(path, "name", inside=True)


@pytest.mark.parametrize("path", [".config/fish/config.fish", ".cargo/config.toml"])
def test_the_name_of_an_allowed_directory_counts_where_something_is_written(root: Path, path: str):
    name, _, below = path.partition("/")
    (settings := root / name).mkdir()
    with pytest.raises(HostForbidden):
        roots(settings).to_write(below, "name", inside=True)
    with pytest.raises(HostForbidden):
        receive(settings, Sent("", b"x"), to=below)


def test_the_name_of_an_allowed_directory_counts_where_something_is_read(root: Path):
    (settings := root / ".m2").mkdir()
    (settings / "settings.xml").write_text("password")
    with pytest.raises(HostForbidden):
        roots(settings).to_read("settings.xml")
    assert sorted(sent(HostSource(Place(settings, "")))) == [""]


# What is read


def test_a_tree_is_sent_in_order_with_links_modes_and_times(root: Path):
    (root / "b").mkdir()
    (root / "b" / "x").write_bytes(b"x" * 100_000)
    (root / "a").write_bytes(b"a")
    (root / "a").chmod(0o750)
    (root / "c").symlink_to("b/x")
    os.utime(root / "a", ns=(TIME, TIME))
    source = HostSource(Place(root, ""))
    assert (len(source), source.size) == (5, 100_001)
    entries = {entry.path: entry for entry, _ in source.entries()}
    assert list(entries) == [b"", b"a", b"b", b"c", b"b/x"]
    assert (entries[b"a"].mode, entries[b"a"].modified) == (0o750, TIME)
    assert sent(source)["c"] == b"b/x"
    assert sent(source)["b/x"] == b"x" * 100_000
    assert len(source.left_out) == 0


def test_a_single_file_is_sent(root: Path):
    (root / "a").write_bytes(b"content")
    assert sent(HostSource(Place(root, "a"))) == {"": b"content"}


def test_secrets_and_git_are_left_out_and_told(root: Path):
    for path in (".git/config", ".env", "sub/.env.local", "sub/id_rsa", ".env.example", "kept"):
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text("x")
    source = HostSource(Place(root, ""))
    assert sorted(sent(source)) == ["", ".env.example", "kept", "sub"]
    told = "\n".join(source.left_out.lines())
    assert len(source.left_out) == 4
    assert "sub/id_rsa" in told
    assert ".git" in told


def test_what_a_directory_above_makes_a_secret_is_one(root: Path):
    (root / ".config" / "gh").mkdir(parents=True)
    (root / ".config" / "gh" / "hosts.yml").write_text("token")
    assert sorted(sent(HostSource(Place(root, ".config")))) == [""]


def test_links_that_lead_out_of_the_tree_are_left_out(root: Path):
    (root / "tree" / "sub").mkdir(parents=True)
    (root / "tree" / "sub" / "in").symlink_to("../file")
    (root / "tree" / "absolute").symlink_to(root / "tree" / "file")
    (root / "tree" / "out").symlink_to("../secret")
    (root / "tree" / "outside").symlink_to(root.parent / "outside")
    source = HostSource(Place(root, "tree"))
    assert sorted(sent(source)) == ["", "sub", "sub/in"]
    assert len(source.left_out) == 3


def test_devices_pipes_and_sockets_are_left_out(root: Path):
    os.mkfifo(root / "pipe")
    source = HostSource(Place(root, ""))
    assert sorted(sent(source)) == [""]
    assert "neither file nor directory" in source.left_out.lines()[0]


def test_what_git_ignores_is_left_out_when_asked_for(root: Path):
    (root / "sub").mkdir()
    (root / ".gitignore").write_text("*.log\nbuilt/\n")
    (root / "sub" / ".gitignore").write_text("!kept.log\n")
    for path in ("a.log", "sub/b.log", "sub/kept.log", "a"):
        (root / path).write_text("")
    (root / "built").mkdir()
    (root / "built" / "x").write_text("")
    source = HostSource(Place(root, ""), gitignore=True)
    assert sorted(sent(source)) == ["", ".gitignore", "a", "sub", "sub/.gitignore", "sub/kept.log"]
    assert "a.log" in sent(HostSource(Place(root, "")))


def test_a_link_swapped_in_for_a_file_or_directory_is_not_followed(root: Path):
    (root / "sub").mkdir()
    (root / "sub" / "precious").write_text("harmless")
    (root / "file").write_text("harmless")
    source = HostSource(Place(root, ""))
    (root / "sub").rename(root.parent / "moved")
    (root / "file").unlink()
    (root / "sub").symlink_to(root.parent / "outside")
    (root / "file").symlink_to(root.parent / "outside" / "precious")
    assert sent(source) == {"": None}
    assert len(source.left_out) == 2


def test_a_pipe_swapped_in_for_a_file_does_not_hold_the_transfer_up(root: Path):
    (root / "file").write_text("x")
    source = HostSource(Place(root, ""))
    (root / "file").unlink()
    os.mkfifo(root / "file")
    assert sent(source) == {"": None}


def test_what_shrinks_or_goes_meanwhile_is_sent_as_it_is_then(root: Path):
    (root / "a").write_text("long content")
    (root / "b").write_text("x")
    source = HostSource(Place(root, ""))
    (root / "a").write_text("short")
    (root / "b").unlink()
    assert sent(source) == {"": None, "a": b"short"}
    assert "b" in source.left_out.lines()[0]


def test_more_files_than_can_be_meant_are_refused_at_once(root: Path):
    for number in range(5):
        (root / str(number)).write_text("")
    with pytest.raises(HostForbidden, match="more than 4 files"):
        HostSource(Place(root, ""), max_entries=4)


def test_what_takes_too_long_to_look_through_is_given_up(root: Path):
    (root / "x").write_text("")
    with pytest.raises(HostFailed, match="too much"):
        HostSource(Place(root, ""), max_seconds=-1)


def test_a_gitignore_that_is_no_file_of_the_tree_rules_nothing(root: Path):
    os.mkfifo(root / ".gitignore")
    (root / "sub").mkdir()
    (root / "sub" / ".gitignore").symlink_to(root.parent / "rules")
    (root.parent / "rules").write_text("*")
    assert sorted(sent(HostSource(Place(root, ""), gitignore=True))) == ["", "sub"]


def test_odd_names_are_sent_byte_for_byte(root: Path):
    odd = [b"caf\xe9", b"a\nb", b"x" * 255, "Ω".encode()]
    for name in odd:
        (root / os.fsdecode(name)).write_text("")
    paths = [entry.path for entry, _ in HostSource(Place(root, "")).entries()]
    assert sorted(paths) == sorted([b"", *odd])


def test_many_left_out_are_counted_and_some_named(root: Path):
    for number in range(50):
        (root / f"{number}.pem").write_text("")
    source = HostSource(Place(root, ""))
    assert len(source.left_out) == 50
    assert source.left_out.lines()[0].endswith("and 30 more")


# What is written


PARTS = ["a", "b", "A", "..", ".", "", "/", "a/..", "a/b", ".git", "\0", "\\", "c:", "x" * 255]
PATHS = st.lists(st.sampled_from(PARTS), max_size=3).map("/".join)
ENTRIES = (
    st.builds(directory, PATHS)
    | st.builds(Sent, PATHS, st.binary(max_size=3), st.just(0o6777), st.just(FILE))
    | st.builds(link, PATHS, PATHS)
)


@given(st.lists(ENTRIES, max_size=8), st.booleans())
def test_whatever_a_box_sends_stays_below_its_place(sent: list[Sent], overwrite: bool):
    with TemporaryDirectory() as temporary:
        root = Path(temporary).resolve() / "project"
        (root.parent / "outside").mkdir()
        root.mkdir()
        try:
            receive(root, TOP, *sent, overwrite=overwrite)
        except (parcel.ParcelError, HostForbidden, HostFailed):
            assert names(root) == []
        else:
            links = [path for path in (root / "got").rglob("*") if path.is_symlink()]
            assert all(followed(path).is_relative_to(root / "got") for path in links)
        assert names(root.parent / "outside") == []
        assert {path.name for path in root.parent.iterdir()} == {"outside", "project"}


def followed(link: Path) -> Path:
    """Where a link leads, or itself where it leads in a circle."""
    try:
        return link.resolve()
    except RuntimeError:
        return link


def test_a_tree_comes_with_modes_times_and_links(root: Path):
    receive(
        root,
        directory("", 0o750),
        Sent("tool", b"#!/bin/sh\n", 0o755),
        directory("sub", 0o500),
        Sent("sub/data", b"data", 0o640),
        link("sub/link", "../tool"),
        Sent("empty"),
    )
    got = root / "got"
    assert names(got) == ["empty", "sub", "sub/data", "sub/link", "tool"]
    assert (got / "sub" / "data").read_bytes() == b"data"
    assert (got / "sub" / "link").readlink() == Path("../tool")
    modes = {path: stat.S_IMODE((got / path).stat().st_mode) for path in ("", "tool", "sub/data")}
    assert modes == {"": 0o750, "tool": 0o755, "sub/data": 0o640}
    assert (got / "tool").stat().st_mtime_ns == (got / "sub").stat().st_mtime_ns == TIME
    assert os.access(got / "sub", os.W_OK), "its owner can delete it"


def test_a_single_file_comes_and_missing_parents_are_made(root: Path):
    receive(root, Sent("", b"content"), to="a/b/file")
    assert (root / "a" / "b" / "file").read_bytes() == b"content"


def test_no_bits_come_that_give_rights(root: Path):
    receive(root, directory("", 0o7777), Sent("x", b"x", 0o6757), directory("d", 0o1777))
    for path, mode in {"": 0o775, "x": 0o755, "d": 0o775}.items():
        assert stat.S_IMODE((root / "got" / path).stat().st_mode) == mode


PLANTED = [
    [directory(".git"), Sent(".git/hooks", b"x")],
    [directory("a"), directory("a/.git"), Sent("a/.git/config", b"x")],
    [Sent(".git", b"gitdir: ../elsewhere")],
    [link(".git", "a")],
    [Sent(".mcp.json", b"{}")],
    [Sent(".bashrc", b"x")],
    [Sent(".GIT", b"x")],
    [Sent(".g\u200cit", b"x")],
    [Sent("git~1", b"x")],
    [Sent(".git::$DATA", b"x")],
    [Sent("HEAD"), directory("objects"), directory("refs")],
    [Sent("HEAD"), Sent("config.worktree"), Sent("commondir", b"../y")],
]


@pytest.mark.parametrize("planted", PLANTED, ids=lambda sent: sent[-1].path)
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_would_act_by_itself_keeps_all_of_its_tree_away(
    root: Path, planted: list[Sent], overwrite: bool
):
    with pytest.raises(HostForbidden):
        receive(root, TOP, Sent("good", b"x"), *planted, overwrite=overwrite)
    assert names(root) == []


HOSTILE = [
    [Sent("../outside/precious", b"x")],
    [Sent("/etc/passwd", b"x")],
    [Sent("a/../../outside/precious", b"x")],
    [Sent("./x", b"x")],
    [Sent("no-such-directory/x", b"x")],
    [link("out", "sub"), Sent("out/precious", b"x")],
    [link("out", "../../outside"), Sent("out/precious", b"x")],
    [Sent("x", b"x"), Sent("x", b"y")],
    [link("x", "y"), Sent("x", b"y")],
    [Sent("x", b"y"), link("x", "y")],
    [Sent("x", b"y"), directory("x")],
    [link("x", "y"), directory("x"), Sent("x/precious", b"x")],
    [directory("x"), directory("x")],
    [Sent("x/", b"x")],
    [Sent("", b"x")],
    [directory("/".join(["d"] * depth)) for depth in range(1, MAX_DEPTH + 2)],
]


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda sent: sent[0].path[:30])
def test_no_archive_trick_gets_anything_anywhere(root: Path, hostile: list[Sent]):
    (root / "kept").write_text("kept")
    with pytest.raises((parcel.ParcelError, HostForbidden)):
        receive(root, TOP, *hostile)
    assert names(root) == ["kept"]


def test_links_that_lead_out_are_left_out_and_told(root: Path):
    sink = receive(
        root,
        TOP,
        link("absolute", "/etc/passwd"),
        link("up", "../outside"),
        link("hook", ".git/hooks/pre-commit"),
        link("through", "good/../.."),
        link("good", "x"),
        Sent("x", b"x"),
    )
    assert names(root) == ["got", "got/good", "got/x"]
    assert len(sink.left_out) == 4


def test_a_link_alone_is_nothing_to_bring(root: Path):
    with pytest.raises(HostForbidden, match="leads out"):
        receive(root, link("", "x"))
    assert names(root) == []


@pytest.mark.parametrize("there", ["file", "directory", "link", "dangling"])
def test_nothing_that_exists_is_replaced_unless_told_so(root: Path, there: str):
    got = root / "got"
    if there == "directory":
        got.mkdir()
    elif there == "file":
        got.write_text("mine")
    else:
        got.symlink_to(root if there == "link" else "nowhere")
    before = got.lstat()
    with pytest.raises(HostForbidden, match="exists"):
        receive(root, TOP)
    assert got.lstat() == before


def test_what_appears_meanwhile_is_not_replaced_either(root: Path):
    with closing(HostSink(Place(root, "got"), overwrite=False)) as sink:
        unpacker = parcel.Unpacker(sink)
        unpacker.feed(Sent("", b"theirs").packed() + parcel.LAST.packed())
        (root / "got").write_text("mine")
        with pytest.raises(HostForbidden, match="exists"):
            sink.commit()
    assert (root / "got").read_text() == "mine"


def test_overwrite_merges_trees_and_replaces_files(root: Path):
    (root / "got" / "sub").mkdir(parents=True)
    (root / "got" / "sub" / "mine").write_text("mine")
    (root / "got" / "old").write_text("old")
    receive(
        root, TOP, directory("sub"), Sent("sub/new", b"new"), Sent("old", b"new"), overwrite=True
    )
    assert names(root / "got") == ["old", "sub", "sub/mine", "sub/new"]
    assert (root / "got" / "old").read_text() == "new"


def test_a_link_of_the_users_is_replaced_and_never_written_through(root: Path):
    precious = root.parent / "outside" / "precious"
    (root / "got").mkdir()
    (root / "got" / "file").symlink_to(precious)
    receive(root, TOP, Sent("file", b"new"), overwrite=True)
    assert not (root / "got" / "file").is_symlink()
    (root / "alone").symlink_to(precious)
    receive(root, Sent("", b"new"), to="alone", overwrite=True)
    assert (root / "alone").read_text() == "new"


def test_a_junction_is_told_from_a_directory_by_what_windows_tells(root: Path):
    assert not is_junction(root.lstat())
    told: Any = SimpleNamespace(st_mode=root.lstat().st_mode, st_reparse_tag=0xA0000003)
    assert is_junction(told)


@pytest.mark.parametrize("top", [True, False])
def test_a_directory_behind_a_link_of_the_users_is_not_merged_with(root: Path, top: bool):
    outside = root.parent / "outside"
    if top:
        (root / "got").symlink_to(outside)
    else:
        (root / "got").mkdir()
        (root / "got" / "sub").symlink_to(outside)
    with pytest.raises(HostForbidden, match="is a directory in the box"):
        receive(root, TOP, directory("sub"), Sent("sub/precious", b"x"), overwrite=True)


def test_files_and_directories_never_replace_each_other(root: Path):
    (root / "got" / "x").mkdir(parents=True)
    (root / "got" / "y").write_text("mine")
    with pytest.raises(HostForbidden):
        receive(root, TOP, Sent("x", b"x"), overwrite=True)
    with pytest.raises(HostForbidden):
        receive(root, TOP, Sent("a", b"x"), directory("y"), overwrite=True)
    assert names(root / "got") == ["x", "y"]


@pytest.mark.parametrize("to", ["repo/config", "repo/hooks/post-update", "repo/new/file"])
def test_nothing_is_written_into_a_bare_repository(root: Path, to: str):
    bare_repository(root / "repo", "HEAD", "objects", "refs")
    with pytest.raises(HostForbidden, match="git repository"):
        receive(root, Sent("", b"x"), to=to)


@pytest.mark.parametrize("missing", ["HEAD", "objects", "refs"])
def test_no_repository_comes_about_in_several_steps(root: Path, missing: str):
    bare_repository(root / "repo", *{"HEAD", "objects", "refs"} - {missing})
    with pytest.raises(HostForbidden, match="git repository"):
        receive(root, TOP, to=f"repo/{missing}")
    with pytest.raises(HostForbidden, match="git repository"):
        receive(root, TOP, Sent(missing, b"x"), to="repo", overwrite=True)
    assert not (root / "repo" / missing).exists()


def bare_repository(directory: Path, *parts: str) -> None:
    directory.mkdir()
    for part in parts:
        (directory / part).mkdir()


def test_a_box_that_hangs_up_leaves_nothing(root: Path):
    with closing(HostSink(Place(root, "got"), overwrite=False)) as sink:
        half = (TOP.packed() + Sent("x", b"content").packed())[:-3]
        parcel.Unpacker(sink).feed(half)
        assert len(names(root)) == 3
    assert names(root) == []


def test_a_disk_that_fails_leaves_nothing_and_is_named(root: Path, monkeypatch: pytest.MonkeyPatch):
    def full(_fd: int, _data: memoryview) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as broken:
        broken.setattr(os, "write", full)
        with pytest.raises(HostFailed, match=r"project/got/x: No space left"):
            receive(root, TOP, Sent("x", b"x"))
    assert names(root) == []


@pytest.mark.parametrize(
    "bomb",
    [
        parcel.Entry(FILE, 0o644, 2**60, 0, b"huge").packed(),
        b"".join(Sent(f"{number}").packed() for number in range(100)),
    ],
    ids=["bytes", "entries"],
)
def test_a_bomb_is_refused_before_it_fills_the_disk(root: Path, bomb: bytes):
    with closing(HostSink(Place(root, "got"), overwrite=False)) as sink:
        unpacker = parcel.Unpacker(sink, max_bytes=1000, max_entries=50)
        with pytest.raises(parcel.TooMuch):
            unpacker.feed(TOP.packed() + bomb)
    assert names(root) == []


def test_odd_names_and_times_come_as_they_are(root: Path):
    odd = [os.fsdecode(b"caf\xe9"), "a\nb", "x" * 255, "Ω"]
    receive(root, TOP, *(Sent(name, b"x") for name in odd))
    assert names(root / "got") == sorted(odd)
    far = parcel.Entry(FILE, 0o644, 0, 2**63 - 1, b"").packed()
    with closing(HostSink(Place(root, "far"), overwrite=False)) as sink:
        parcel.Unpacker(sink).feed(far + parcel.LAST.packed())
        sink.commit()
    assert (root / "far").exists()


@pytest.mark.parametrize("name", ["NUL", "a:b", "a\\..\\..\\b", "com1.txt", "x."])
def test_windows_gets_no_names_that_mean_something_else_there(root: Path, name: str):
    with pytest.raises(HostForbidden, match="Windows"):
        receive(root, TOP, Sent(name, b"x"), windows=True)
    receive(root, TOP, Sent(name, b"x"), windows=False)


def test_all_that_is_sent_arrives_as_it_was(root: Path):
    tree = root / "tree"
    (tree / "deep" / "er").mkdir(parents=True)
    (tree / "deep" / "er" / "large").write_bytes(os.urandom(300_000))
    (tree / "deep" / "tool").write_text("#!/bin/sh\n")
    (tree / "deep" / "tool").chmod(0o755)
    (tree / "link").symlink_to("deep/tool")
    with closing(HostSink(Place(root, "copy"), overwrite=False)) as sink:
        unpacker = parcel.Unpacker(sink)
        for entry, content in HostSource(Place(root, "tree")).entries():
            unpacker.feed(entry.packed() + (read(content) or b""))
        unpacker.feed(parcel.LAST.packed())
        sink.commit()
    assert names(root / "copy") == names(tree)
    for path in names(tree):
        one, other = tree / path, root / "copy" / path
        assert one.lstat().st_mode == other.lstat().st_mode
        if one.is_file():
            assert one.read_bytes() == other.read_bytes()


def test_homes_that_can_not_be_told_allow_no_more(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hostroots, "_homes", list)
    assert roots(Path("/")).directories == ()
    assert roots(root).directories == (root,)
