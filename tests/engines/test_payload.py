from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from importlib.util import MAGIC_NUMBER
from pathlib import Path

import pytest

import box_mcp
from box_mcp.engines.payload import boxd_archive

SHOW = "import sys; sys.path.insert(0, sys.argv[1]); import boxd.run; print(boxd.run.__file__)"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """boxd's program, as it lies in a box."""
    with tarfile.open(fileobj=io.BytesIO(boxd_archive(0))) as archive:
        (name,) = (name for name in archive.getnames() if name.endswith(".pyz"))
        content = archive.extractfile(name)
        assert content is not None
        path = tmp_path / "boxd.pyz"
        path.write_bytes(content.read())
    return path


def imported_from(program: Path, python: str) -> str:
    command = [python, "-I", "-S", "-c", SHOW, str(program)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_a_python_of_the_servers_version_takes_the_bytecode(program: Path):
    assert imported_from(program, sys.executable).endswith("/boxd/run.pyc")


def test_any_other_python_takes_the_source(program: Path):
    content = program.read_bytes()
    assert content.count(MAGIC_NUMBER) > 5
    program.write_bytes(content.replace(MAGIC_NUMBER, b"\0\1\r\n"))
    assert imported_from(program, sys.executable).endswith("/boxd/run.py")


def test_what_goes_into_a_box_names_no_path_of_this_machine(program: Path):
    assert os.fsencode(Path(box_mcp.__file__).parent) not in program.read_bytes()


def test_whatever_a_server_has_imported_its_boxd_has_the_same_digest():
    """Else servers of one version would exchange each other's boxd, and a killed one half of it."""
    show = "from box_mcp.engines.payload import boxd_digest; print(boxd_digest())"
    others = "import docker, mcp.server, box_mcp.boxd.processes, box_mcp.boxd.files"
    digests = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
        for code in (show, f"{others}; {show}")
    }
    assert len(digests) == 1
