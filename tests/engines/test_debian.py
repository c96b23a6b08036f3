from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from box_mcp.engines import debian
from box_mcp.engines.debian import AptSource, CannotBootstrap, sources_of, suite_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize(
    ("image", "suite"),
    [
        ("debian:bookworm-slim", "bookworm"),
        ("debian:trixie", "trixie"),
        ("mirror.example:5000/library/debian:sid-slim", "sid"),
        ("debian:stable-20250520-slim", "stable"),
        ("debian", None),
        ("debian:12-slim", None),
        ("debian:latest", None),
        ("debian:", None),
        ("ubuntu:noble", None),
        ("mydebian:bookworm", None),
        ("debian@sha256:abcdef", None),
    ],
)
def test_only_debians_releases_can_be_made_here(image: str, suite: str | None):
    assert suite_of(image) == suite


def apt(folder: Path, **files: str) -> Path:
    """A folder like /etc/apt."""
    (folder / "sources.list.d").mkdir()
    for name, text in files.items():
        stem, _, kind = name.rpartition("_")
        (folder / "sources.list.d" / f"{stem}.{kind}").write_text(text)
    return folder


def written(folder: Path, suite: str = "bookworm") -> list[str]:
    return [str(source) for source in sources_of(folder, suite)]


def test_a_host_without_apt_has_no_sources(tmp_path: Path):
    assert sources_of(tmp_path / "none", "bookworm") == ()


def test_entries_of_one_line_are_read_with_options_and_comments_left_out(tmp_path: Path):
    (apt(tmp_path) / "sources.list").write_text(
        "# deb http://old.example/debian bookworm main\n"
        "deb http://a.example/debian bookworm main contrib # the usual\n"
        "deb-src http://a.example/debian bookworm main\n"
        "  deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] "
        "http://b.example/debian bookworm-updates main\n"
        "deb cdrom:[Debian GNU/Linux 12 _Bookworm_]/ bookworm main\n"
        "deb http://c.example/debian trixie main\n"
        "\n"
    )
    assert written(tmp_path) == [
        "deb http://a.example/debian bookworm main contrib",
        "deb http://b.example/debian bookworm-updates main",
    ]


def test_stanzas_are_read_each_place_and_suite_for_itself(tmp_path: Path):
    stanza = (
        "Types: deb deb-src\n"
        "# a note between\n"
        "URIs: http://a.example/debian http://b.example/debian\n"
        "Suites: bookworm-updates bookworm\n"
        "Components: main contrib\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    )
    assert written(apt(tmp_path, debian_sources=stanza)) == [
        "deb http://a.example/debian bookworm main contrib",
        "deb http://b.example/debian bookworm main contrib",
        "deb http://a.example/debian bookworm-updates main contrib",
        "deb http://b.example/debian bookworm-updates main contrib",
    ]


def test_fields_may_go_on_in_indented_lines(tmp_path: Path):
    stanza = "Types: deb\nURIs:\n http://a.example/debian\nSuites: bookworm\n\tbookworm-updates\n"
    assert written(apt(tmp_path, debian_sources=stanza + "Components: main\n")) == [
        "deb http://a.example/debian bookworm main",
        "deb http://a.example/debian bookworm-updates main",
    ]


@pytest.mark.parametrize("off", ["Enabled: no", "Enabled: False", "enabled: off"])
def test_stanzas_that_are_switched_off_are_left_out(off: str, tmp_path: Path):
    stanza = "Types: deb\nURIs: http://{}.example/\nSuites: bookworm\nComponents: main\n{}\n"
    text = stanza.format("a", off) + "\n" + stanza.format("b", "Enabled: yes")
    assert written(apt(tmp_path, debian_sources=text)) == ["deb http://b.example/ bookworm main"]


def test_what_other_vendors_sign_is_left_out(tmp_path: Path):
    stanza = "Types: deb\nURIs: http://vendor.example/\nSuites: bookworm\nComponents: main\n"
    key = "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBF\n"
    line = "deb [signed-by=/usr/share/keyrings/vendor.gpg] http://vendor.example/ bookworm main\n"
    folder = apt(
        tmp_path,
        file_sources=stanza + "Signed-By: /usr/share/keyrings/vendor.gpg\n",
        key_sources=stanza + key,
        line_list=line,
        note_txt="deb http://a.example/debian bookworm main\n",
    )
    assert written(folder) == []


def test_the_suite_itself_comes_first_and_nothing_twice(tmp_path: Path):
    line = "deb http://a.example/debian bookworm{} main\n"
    text = line.format("-security") + line.format("") + line.format("")
    assert sources_of(apt(tmp_path, a_list=text, b_list=text), "bookworm") == (
        AptSource("http://a.example/debian", "bookworm", ("main",)),
        AptSource("http://a.example/debian", "bookworm-security", ("main",)),
    )


def test_a_system_that_is_no_linux_is_told_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(debian.sys, "platform", "darwin")
    with (
        pytest.raises(CannotBootstrap, match="only be made without a registry on Linux"),
        debian.bootstrapped("bookworm", print),
    ):
        pytest.fail("it can't be made here")


def stand_in(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `program` be this host's debootstrap, for a user who needs no sudo."""

    def find(as_root: list[str], report: Callable[[str], None]) -> str:
        return str(program)

    monkeypatch.setattr(debian, "_find_debootstrap", find)
    monkeypatch.setattr(debian, "_root_prefix", list[str])


def test_a_failed_bootstrap_says_what_failed_and_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    program = tmp_path / "debootstrap"
    program.write_text("#!/bin/sh\nseq 1 20\necho E: no such suite >&2\nexit 3\n")
    program.chmod(0o755)
    stand_in(program, monkeypatch)
    monkeypatch.setattr(debian.tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    reports: list[str] = []
    with (
        pytest.raises(
            CannotBootstrap, match="status 3: 17 / 18 / 19 / 20 / E: no such suite"
        ) as failed,
        debian.bootstrapped("nonesuch", reports.append),
    ):
        pytest.fail("there is no such suite")
    assert "nonesuch" in str(failed.value)
    assert list((tmp_path / "tmp").iterdir()) == []
    assert reports == ["installing Debian nonesuch into a folder (debootstrap, about 30 s)"]


def test_a_bootstrapped_folder_is_packed_slim_with_the_hosts_own_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    program = tmp_path / "debootstrap"
    program.write_text(
        '#!/bin/sh -e\nshift 2; mkdir -p "$2/usr/share/man" "$2/var/log" "$2/etc/apt"\n'
        'echo "$@" > "$2/asked"; touch "$2/usr/share/man/page" "$2/var/log/install.log"\n'
    )
    program.chmod(0o755)
    apt(tmp_path, a_list="deb http://a.example/debian bookworm main\n")
    stand_in(program, monkeypatch)
    monkeypatch.setattr(debian, "APT_SOURCES", tmp_path)
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    with debian.bootstrapped("bookworm", print) as stream:
        unpack = ["tar", "-x", "--no-same-owner", "-C", str(unpacked)]
        subprocess.run(unpack, input=stream.read(), check=True)
    suite, _, mirror = (unpacked / "asked").read_text().split()
    assert (suite, mirror) == ("bookworm", "http://a.example/debian")
    assert (unpacked / "etc/apt/sources.list").read_text() == (
        "deb http://a.example/debian bookworm main\n"
    )
    assert (unpacked / "usr/sbin/policy-rc.d").read_text() == debian.NO_SERVICES
    assert "path-exclude /usr/share/man" in (unpacked / "etc/dpkg/dpkg.cfg.d/docker").read_text()
    assert not list((unpacked / "usr/share/man").iterdir())
    assert not list((unpacked / "var/log").iterdir())
