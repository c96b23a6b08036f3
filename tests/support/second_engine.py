"""A machine inside this one for a container engine of the tests' own.

Engine and containers run in namespaces (network, mounts, processes) that end with their first
process: so the engine can be stopped, stalled and killed, and the whole machine lose its power,
and nobody else's boxes notice. What it stored stays, as on a disk.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING

import psutil

from tests.support.client import docker
from tests.support.engines import IMAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

PATIENCE = 30.0
"""Seconds; an engine that shuts down gives its containers fifteen."""

POLL = 0.02
CGROUPS = Path("/sys/fs/cgroup")
FIRST_PROCESS = """
mount -t tmpfs run /run && ip link set lo up || exit
mount --bind '{0}' /mnt || exit
mount --bind /mnt/subid /etc/subuid && mount --bind /mnt/subid /etc/subgid || exit
umount /sys/fs/cgroup/unified 2>/dev/null
sleep infinity & wait
"""
"""A shell that waits for its child buries whatever else is orphaned.

Users of a remapped engine must be able to pass through all directories above its data. crun takes
no cgroups of both versions at once.
"""

REMAPPED = "daemon"  # a user whose name is a group's, too
SUBORDINATE = 100_000
"""The first of the ids that a remapped engine's containers have."""

LARGE = (
    *("*.a", "libicu*", "libnode*", "lib[at]san*", "*-lto-*", "*-12", "usr/include", "usr/share"),
    *("usr/lib/gcc", "usr/lib/git-core", "usr/lib/python3", "perl*", "var/lib/dpkg"),
)
"""What the standard image has and these tests do not need: most of it."""

NEEDS = "root on Linux, dockerd, unshare and nsenter"
usable = (
    sys.platform == "linux"
    and os.geteuid() == 0
    and all(map(shutil.which, ("dockerd", "unshare", "nsenter")))
)


class Machine:
    """Has no power before `power_on`, and no engine before `start_engine`."""

    def __init__(self, directory: Path) -> None:
        self.host = f"unix://{directory}/engine.sock"
        self.log = directory / "engine.log"
        self._directory = directory
        self._cgroup = f"box-mcp-test-{token_hex(4)}"
        self._first: psutil.Popen | None = None
        self._engine: psutil.Popen | None = None
        self._usual = True

    def docker(self, *arguments: str, check: bool = True) -> str:
        """What the engine's own command line prints."""
        return docker("--host", self.host, *arguments, check=check)

    def power_on(self) -> None:
        """A machine that has nothing but its disk."""
        self._directory.chmod(0o755)
        (self._directory / "subid").write_text(f"{REMAPPED}:{SUBORDINATE}:65536\n")
        unshare = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc"]
        script = ["sh", "-c", FIRST_PROCESS.format(self._directory)]
        self._first = psutil.Popen([*unshare, *script], stderr=subprocess.DEVNULL)
        until(lambda: self._init.children()[0].name() == "sleep", "the machine's first process")

    def power_off(self) -> None:
        """All its processes end at once, without a word."""
        if self._first is None:
            return
        self._thaw()  # what is frozen by cgroup v1 does not die
        with suppress(psutil.NoSuchProcess, IndexError):
            self._init.kill()
        for process in (self._first, self._engine):
            if process is not None:
                process.wait(PATIENCE)
        self._first = self._engine = None
        self._remove_cgroups()

    def start_engine(
        self, *, live_restore: bool = False, remapped: bool = False, tls: tuple[str, ...] = ()
    ) -> None:
        """Returns when it answers. A `remapped` one has images and containers of its own.

        `tls`: its arguments to listen for that as well.
        """
        self._usual = not live_restore and not remapped and not tls
        settings = self._directory / "daemon.json"
        settings.write_text(
            json.dumps(
                {
                    "live-restore": live_restore,
                    "userns-remap": REMAPPED if remapped else "",
                    "runtimes": {"crun": {"path": "crun"}},
                }
            )
        )
        arguments = (
            *("dockerd", "--config-file", str(settings), "--host", self.host),
            *("--data-root", "/mnt/data", "--cgroup-parent", f"/{self._cgroup}"),
            *tls,
            *("--exec-opt", "native.cgroupdriver=cgroupfs"),  # which alone takes such a parent
        )
        with self.log.open("a") as log:
            enter = ["nsenter", "--target", str(self._init.pid), "--all"]
            self._engine = psutil.Popen([*enter, *arguments], stdout=log, stderr=log)
        until(lambda: self.docker("version", check=False).count("Version:") > 1, "its engine")

    def stop_engine(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Returns when it has ended; what becomes of containers is its own affair."""
        assert self._engine is not None
        self.engine.send_signal(how)
        self._engine.wait(PATIENCE)

    def recover(self) -> None:
        """Puts right what a test left off, or other than at the beginning."""
        if self._first is None:
            self.power_on()
        if self._engine_runs and not self._usual:
            self.stop_engine()
        if not self._engine_runs:
            self.start_engine()

    @property
    def _engine_runs(self) -> bool:
        return self._engine is not None and self._engine.poll() is None

    @property
    def engine(self) -> psutil.Process:
        """The engine itself."""
        assert self._engine is not None
        return self._engine.children()[0]

    @property
    def network(self) -> tuple[str, ...]:
        """What a command has to begin with, to be run on its network."""
        return ("nsenter", "--net", "--target", str(self._init.pid))

    @contextmanager
    def stalled(self) -> Generator[None, None, None]:
        """The engine takes connections, and does nothing with them."""
        assert self._engine is not None
        nsenter, engine = self._engine, self.engine
        engine.suspend()
        try:
            # It stops itself when its child is stopped, and would not bury it either.
            until(lambda: nsenter.status() == psutil.STATUS_STOPPED, "the end of its work")
            yield
        finally:
            nsenter.resume()
            engine.resume()

    def load_image(self) -> None:
        """Brings the standard image, as far as tests need it."""
        leave = [f"--exclude={pattern}" for pattern in LARGE]
        tar = ["tar", "-C", "/", "-c", "--one-file-system", *leave, "."]
        run = ["docker", "run", "--rm", "--user", "0", "--network", "none", IMAGE, *tar]
        load = ["docker", "--host", self.host, "import", "-c", "WORKDIR /workspace", "-", IMAGE]
        with subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as packing:
            subprocess.run(
                load, stdin=packing.stdout, stdout=subprocess.DEVNULL, timeout=PATIENCE, check=True
            )
        assert packing.returncode == 0

    def containers(self) -> set[str]:
        """The names of all that there are."""
        return set(self.docker("ps", "--all", "--format", "{{.Names}}").split())

    def networks(self) -> set[str]:
        """The ids of all that boxes have."""
        ids = self.docker("network", "ls", "--filter", "label=box_mcp.box", "-q")
        return set(ids.split())

    def state(self, box: str) -> str:
        """``running``, ``paused`` or ``exited``."""
        return self.docker("inspect", "-f", "{{.State.Status}}", box)

    def await_event(self, event: str, box: str, since: float) -> None:
        """Waits for what happens to a box, or has happened since that time."""
        about = (f"--since={since}", f"--filter=event={event}", f"--filter=container={box}")
        command = ("docker", "--host", self.host, "events", *about)
        with subprocess.Popen(command, stdout=subprocess.PIPE) as telling:
            assert telling.stdout is not None
            try:
                assert select.select([telling.stdout], [], [], PATIENCE)[0], f"never came: {event}"
            finally:
                telling.kill()

    def times(self, box: str) -> tuple[str, str]:
        """When it was created and started; times that compare as text."""
        created, started = self.docker(
            "inspect", "-f", "{{.Created}} {{.State.StartedAt}}", box
        ).split()
        return created, started

    def leavings(self) -> set[str]:
        """All that boxes and snapshots left: containers, networks, images."""
        return self.containers() | self.networks() | (self.images() - {self._standard})

    def images(self) -> set[str]:
        """The ids of all that are left over when boxes and snapshots are gone."""
        return set(self.docker("images", "--all", "--quiet", "--no-trunc").split())

    def clear(self) -> None:
        """Removes containers, networks and all images but the standard one."""
        if containers := self.containers():
            self.docker("rm", "-fv", *containers, check=False)
        self.docker("network", "prune", "-f")
        while more := self.images() - {self._standard}:
            self.docker("rmi", "-f", *more, check=False)

    @property
    def _standard(self) -> str:
        return self.docker("images", "--quiet", "--no-trunc", IMAGE)

    @property
    def _init(self) -> psutil.Process:
        assert self._first is not None
        return self._first.children()[0]

    def _thaw(self) -> None:
        for state in CGROUPS.glob(f"freezer/{self._cgroup}/**/freezer.state"):
            with suppress(OSError):
                state.write_text("THAWED")

    def _remove_cgroups(self) -> None:
        def remove() -> bool:
            for group in (*CGROUPS.glob(self._cgroup), *CGROUPS.glob(f"*/{self._cgroup}")):
                for path, _, _ in os.walk(group, topdown=False):
                    with suppress(OSError):
                        Path(path).rmdir()
            return not [*CGROUPS.glob(self._cgroup), *CGROUPS.glob(f"*/{self._cgroup}")]

        until(remove, "the end of all its processes")


@contextmanager
def machine(directory: Path) -> Generator[Machine, None, None]:
    """A machine with an engine that has the standard image; nothing of it is left afterwards."""
    made = Machine(directory)
    try:
        made.power_on()
        made.start_engine()
        made.load_image()
        yield made
    finally:
        made.power_off()
        shutil.rmtree(directory)


def until(look: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Waits for `look` to be true; what is not there yet may raise."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        with suppress(psutil.NoSuchProcess, IndexError):
            if look():
                return
        time.sleep(POLL)
    raise AssertionError(f"never came: {what}")
