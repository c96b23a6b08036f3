"""Where an engine is looked for, and which of its files this process believes to see."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from box_mcp.engines.address import Address, Tls, find_engine, seen_from_here
from box_mcp.engines.ssh import Destination, destination
from tests.support.second_engine import NEEDS, usable

if TYPE_CHECKING:
    from collections.abc import Iterator


def context(home: Path, name: str, endpoint: dict[str, Any], *, tls: bool = False) -> None:
    """As `docker context create` leaves it."""
    key = sha256(name.encode()).hexdigest()
    meta = home / "contexts" / "meta" / key
    meta.mkdir(parents=True)
    described = {"Name": name, "Metadata": {}, "Endpoints": {"docker": endpoint}}
    (meta / "meta.json").write_text(json.dumps(described))
    if tls:
        (home / "contexts" / "tls" / key / "docker").mkdir(parents=True)


def files(home: Path, *, verify: bool) -> Tls:
    return Tls(home / "ca.pem", home / "cert.pem", home / "key.pem", verify)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory of docker's settings with three contexts, of which `far` was chosen."""
    context(tmp_path, "far", {"Host": "ssh://me@far.example.net"})
    context(tmp_path, "tls", {"Host": "tcp://far.example.net:2376"}, tls=True)
    context(tmp_path, "odd", {})
    (tmp_path / "config.json").write_text('{"currentContext": "far"}')
    return tmp_path


def test_the_engine_is_the_one_that_dockers_command_line_uses(home: Path):
    config = {"DOCKER_CONFIG": str(home)}
    assert find_engine(config) == Address("ssh://me@far.example.net")
    assert find_engine({**config, "DOCKER_CONTEXT": "default"}) == Address()
    assert find_engine({**config, "DOCKER_HOST": "tcp://x:1", "DOCKER_CONTEXT": "tls"}) == Address(
        "tcp://x:1"
    )
    (tls,) = (home / "contexts" / "tls").glob("*/docker")
    assert find_engine({**config, "DOCKER_CONTEXT": "tls"}) == Address(
        "tcp://far.example.net:2376", files(tls, verify=True)
    )


@pytest.mark.parametrize("chosen", ["", "{", "[]", '{"currentContext": ""}'])
def test_without_a_choice_that_can_be_read_it_is_the_usual_socket(tmp_path: Path, chosen: str):
    if chosen:
        (tmp_path / "config.json").write_text(chosen)
    assert find_engine({"DOCKER_CONFIG": str(tmp_path), "DOCKER_HOST": ""}) == Address()


@pytest.mark.parametrize(
    ("name", "why"), [("gone", "there is no such context"), ("odd", "can't be read")]
)
def test_a_context_that_can_not_be_used_is_told_and_never_passed_over(
    home: Path, name: str, why: str
):
    found = find_engine({"DOCKER_CONFIG": str(home), "DOCKER_CONTEXT": name})
    assert found.url == f"context {name!r}"
    assert why in found.trouble


@pytest.mark.parametrize(
    ("variables", "verify"),
    [
        ({"DOCKER_TLS_VERIFY": "1"}, True),
        ({"DOCKER_TLS_VERIFY": "0"}, True),  # any word is a yes, for docker, too
        ({"DOCKER_TLS_VERIFY": ""}, False),
        ({}, False),
    ],
)
def test_certificates_are_used_and_checked_as_the_variables_say(
    tmp_path: Path, variables: dict[str, str], verify: bool
):
    named = {"DOCKER_HOST": "tcp://x:2376", "DOCKER_CERT_PATH": str(tmp_path), **variables}
    assert find_engine(named).tls == files(tmp_path, verify=verify)
    del named["DOCKER_CERT_PATH"]
    expected = files(Path.home() / ".docker", verify=True) if verify else None
    assert find_engine(named).tls == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("ssh://far", Destination("far", None, None, "/var/run/docker.sock")),
        ("ssh://me@far:2222/", Destination("far", "me", 2222, "/var/run/docker.sock")),
        (
            "ssh://me@[::1]:22/run/user/1000/podman/podman.sock",
            Destination("::1", "me", 22, "/run/user/1000/podman/podman.sock"),
        ),
    ],
)
def test_an_address_of_ssh_names_user_host_port_and_socket(url: str, expected: Destination):
    assert destination(url) == expected


@pytest.mark.parametrize(
    "url",
    ["ssh://", "ssh:///run/x", "ssh://me:secret@far", "ssh://far:x", "ssh://far/a:b", "ssh://f/$A"],
)
def test_what_is_no_address_of_ssh_is_refused(url: str):
    with pytest.raises(ValueError, match=r"."):
        destination(url)


def test_a_host_can_not_be_taken_for_an_option_of_ssh():
    arguments = destination("ssh://-oProxyCommand=x").arguments(Path("/s"))
    assert arguments[arguments.index("--") + 1] == "-oProxyCommand=x"


# Whose files are seen

LISTENING = """\
import os, socket, sys
line = socket.socket(socket.AF_UNIX)
line.bind(sys.argv[1]); line.listen(); print(flush=True); sys.stdin.read()
"""


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Address]:
    """An engine's socket whose process is this one."""
    with closing(socket.socket(socket.AF_UNIX)) as line:
        line.bind(str(tmp_path / "s"))
        line.listen()
        yield Address(f"unix://{tmp_path}/s")


@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere engines live in a machine of their own"
)
def test_files_of_an_engine_on_this_machine_are_seen(listener: Address, tmp_path: Path):
    seen = seen_from_here(listener, str(tmp_path))
    assert seen is not None
    assert Path(seen).samefile(tmp_path)
    assert seen_from_here(listener, f"{tmp_path}/none") is None
    assert seen_from_here(listener, "") is None


@pytest.mark.parametrize("url", ["tcp://127.0.0.1:2375", "ssh://localhost", "unix:///no/such.sock"])
def test_what_has_the_same_name_here_is_not_the_engines(url: str):
    assert seen_from_here(Address(url), "/") is None


@pytest.mark.skipif(not usable, reason=f"namespaces take {NEEDS}")
def test_an_engine_outside_of_this_container_is_not_believed_to_have_its_files(tmp_path: Path):
    """The process that listens is of another pid namespace than who looks."""
    path = tmp_path / "s"
    look = (
        "from box_mcp.engines.address import *\n"
        f"print(seen_from_here(Address('unix://{path}'), '/'))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", LISTENING, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as engine:
        assert engine.stdout is not None
        engine.stdout.readline()
        inside = ["unshare", "--pid", "--fork", sys.executable, "-c", look]
        seen = [
            subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
            for command in (inside, inside[3:])
        ]
        engine.communicate()
    assert seen == ["None\n", f"/proc/{engine.pid}/root/\n"]
