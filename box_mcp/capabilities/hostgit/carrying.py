"""The user's own repositories: into a box with their history, and the work home as a branch.

    clone    user's ── bundle, from a scratch repository ──▶ box; nothing is written to the user's
    home     box ── bundle of what is new ──▶ scratch repository, checked ── pack ──▶ user's

Where work may go home to is what the box's repository says, with a proof that only this user's
servers can make, and only while that place is still where tools may look. What comes is one
branch, `box/<name of the box>`; no other ref of the user's is touched, and no file but git's own.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

import anyio
from anyio import to_thread
from anyio.lowlevel import checkpoint_if_cancelled

from box_mcp.boxd import parcel
from box_mcp.capabilities.calls import checked_path
from box_mcp.capabilities.crossing import OnProgress
from box_mcp.capabilities.hostgit.box import (
    CLONE,
    LONG,
    LOOK,
    WENT,
    answers,
    parcel_path,
    step,
    tidy,
)
from box_mcp.capabilities.hostgit.find import Repository, find_repository
from box_mcp.capabilities.hostgit.going import (
    BUNDLE,
    SPARED,
    Bundle,
    Going,
    Home,
    MissingHistory,
    OneFile,
    Said,
)
from box_mcp.capabilities.hostgit.proof import is_proof, key_in, proof_of
from box_mcp.capabilities.hostroots import HostRoots
from box_mcp.capabilities.shell import OnOutput, Outcome, Shell
from box_mcp.capabilities.transfer import Transfers
from box_mcp.domain.box import Box
from box_mcp.domain.names import Principal
from box_mcp.domain.paths import parse, shown
from box_mcp.domain.refs import FROM_BOXES, HOST, parse_branch
from box_mcp.errors import (
    BoxBroken,
    BoxError,
    HostFailed,
    HostForbidden,
    InvalidArgument,
    RepositoryRefused,
)

if TYPE_CHECKING:
    from box_mcp.capabilities.hostgit.run import Leash

T = TypeVar("T")

MAX_HOME = 2 * 1024**3  # bytes of one bundle from a box
STALE_AFTER = 86400.0  # s; who left a workspace that is older was killed
BEAT = 10.0  # s between two signs of life
NO_GIT = "Ask the user to install git, 2.31 or newer, on their machine"
PORTABLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+@=-]{0,99}")
"""Names that a disk of any system takes for a file of git's."""

NEW, ALL = "--remotes=host", ""
"""What a bundle leaves out, as git says it: what came from the user's, or nothing."""

OnBeat = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class HostGit:
    """Between the user's repositories, as far as `roots` allow, and one box of a principal's.

    All methods raise HostForbidden, HostFailed, NoHostDirectory, InvalidArgument, GitFailed where
    the box's git can't, and what transfers raise. Cancelled, nothing is left at either end.
    """

    roots: HostRoots
    state_dir: Path
    principal: Principal
    box: Box
    shell: Shell
    transfers: Transfers
    on_progress: OnProgress
    on_beat: OnBeat

    async def clone(
        self,
        text: str,
        path: str,
        branch: str | None = None,
        *,
        uncommitted: bool = False,
        yield_after: float,
        on_output: OnOutput,
    ) -> tuple[Going, Outcome]:
        """Makes the repository at `text` anew in the box, at `path` or below its own name.

        Only nothing or an empty directory may be there. It may go on in the box when this returns.
        """
        wanted = parse_branch("branch", branch) if branch else ""
        where = checked_path("path", path) if path else ""
        there = parcel_path()
        over = False
        async with workspace(self.state_dir) as directory:
            going = await self._pack(text, directory, wanted, uncommitted=uncommitted)
            try:
                await self.transfers.upload(Bundle(directory), there, on_progress=self.on_progress)
                outcome = await step(
                    self.shell,
                    f"clone {going.home}",
                    CLONE,
                    *(there, where or going.name, going.object_format, going.branch, going.commit),
                    *(going.origin, going.upstream, going.home, going.proof),
                    timeout=LONG,
                    yield_after=yield_after,
                    on_output=on_output,
                )
                over = True
            finally:
                if not over:
                    await tidy(self.shell, there)
        return going, outcome

    async def push(
        self, path: str, branch: str | None = None, *, force: bool = False
    ) -> tuple[Said, Home]:
        """Brings a branch of the repository at `path` in the box into the one that it came from.

        Raises RepositoryRefused too.
        """
        wanted = parse_branch("branch", branch) if branch else ""
        path = checked_path("path", path)
        there = parcel_path()
        try:
            try:
                said, home = await self._bring(there, path, wanted, NEW, force=force)
            except MissingHistory:  # the user may have deleted what came from there
                said, home = await self._bring(there, path, wanted, ALL, force=force)
            first = said.branch if home.branch == own_branch(self.box) else ""
            ref = f"refs/remotes/host/{home.branch}"
            with suppress(BoxError):  # it is at home, whatever becomes of the box
                await step(self.shell, "note what is at home", WENT, path, first, ref, home.tip)
        except MissingHistory as missing:
            raise RepositoryRefused(
                "The user's repository",
                f"it lacks the commit {missing}, on which the box's branch builds",
            ) from None
        finally:
            await tidy(self.shell, there)
        return said, home

    async def _bring(
        self, there: str, path: str, wanted: str, known: str, *, force: bool
    ) -> tuple[Said, Home]:
        said = await self._look(there, path, wanted, known)
        repository = await self._home_of(said)
        return said, await self._take(there, repository, said, force=force)

    async def _pack(self, text: str, directory: Path, wanted: str, *, uncommitted: bool) -> Going:
        def work(leash: Leash) -> Going:
            from box_mcp.capabilities.hostgit.pack import pack

            repository = find_repository(self.roots, text)
            proof = proof_of(key_in(self.state_dir), self.principal, repository.path)
            return pack(leash, repository, directory, wanted, proof, uncommitted=uncommitted)

        return await leashed(text, work, self.on_beat)

    async def _look(self, there: str, path: str, wanted: str, known: str) -> Said:
        own = own_branch(self.box)
        what = "bring a branch home"
        outcome = await step(self.shell, what, LOOK, there, path, wanted, known, own)
        try:
            said = Said.of(answers(outcome))
            parse_branch("branch", said.branch)
        except (ValueError, InvalidArgument):
            raise BoxBroken(self.box.id, "its git says nothing of use") from None
        if said.home == own:
            return said
        if said.home == f"{own}+{said.branch}" and PORTABLE.fullmatch(said.branch):
            return said
        raise InvalidArgument("branch", f"is {said.branch!r}, no name for every disk: rename it")

    async def _home_of(self, said: Said) -> Repository:
        """The user's repository that the box's came from, if the box can prove it."""
        text = said.url.removeprefix(HOST)

        def work(_: Leash) -> Repository | None:
            key = key_in(self.state_dir)
            path = Path(parse(text)) if text not in ("", said.url) else None
            if path is None or not is_proof(said.proof, key, self.principal, path):
                return None
            repository = find_repository(self.roots, text)
            return repository if repository.path == path else None

        with suppress(ValueError):  # what can't be a path is none
            if (repository := await leashed(shown(text), work, self.on_beat)) is not None:
                return repository
        raise RepositoryRefused(
            "The user's machine",
            "this repository of the box did not come from there",
            f'Only what `git_clone` brought from "{HOST}PATH" can go home, to where it was; '
            "`file_download` brings files",
        )

    async def _take(self, there: str, repository: Repository, said: Said, *, force: bool) -> Home:
        async with workspace(self.state_dir) as directory:
            if said.new:
                await self._download(f"{there}/{BUNDLE}", directory / BUNDLE, repository)

            def work(leash: Leash) -> Home:
                from box_mcp.capabilities.hostgit.receive import receive

                return receive(leash, repository, directory, said, force=force)

            return await leashed(str(repository), work, self.on_beat)

    async def _download(self, path: str, file: Path, repository: Repository) -> None:
        room = min(MAX_HOME, shutil.disk_usage(file.parent).free - SPARED)
        too_much = HostForbidden(
            str(repository),
            f"what is new in the box is more than {max(room, 0) / 1024**2:,.0f} MiB",
            "Push it in parts: an earlier commit first, as a branch",
        )
        try:
            with file.open("wb") as opened:
                await self.transfers.download(
                    path,
                    OneFile(opened),
                    max_bytes=max(room, 0),
                    max_entries=1,
                    on_progress=self.on_progress,
                )
        except parcel.TooMuch:
            raise too_much from None
        except OSError as error:
            raise HostFailed(str(file), str(error.strerror or error)) from error


def own_branch(box: Box) -> str:
    """What the first branch that goes home from a box is called at the user's.

    Others have ``+`` and their own name behind: that is in no box's name, so two boxes never have
    the same.
    """
    try:
        return FROM_BOXES + parse_branch("name", box.name or box.id)
    except InvalidArgument:  # boxes may be called what branches may not
        return FROM_BOXES + box.id


async def unheard() -> None:
    """Where nobody wants to know."""


async def leashed(what: str, work: Callable[[Leash], T], on_beat: OnBeat = unheard) -> T:
    """Runs `work` in a thread; cancelled, all that it runs is ended before this returns.

    Raises what it raises, and HostFailed about `what` where git or the disk failed.
    """
    try:
        door = await to_thread.run_sync(_door)
    except ImportError as error:
        raise _no_git(what, str(error)) from None
    leash = door.Leash()
    outcome: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            outcome.append(work(leash))
        except Exception as error:  # noqa: BLE001 - it is raised below
            errors.append(error)

    async def beat() -> None:
        try:
            while True:
                await anyio.sleep(BEAT)
                await on_beat()
        finally:
            leash.cut()

    async with anyio.create_task_group() as group:
        group.start_soon(beat)
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(run)
        group.cancel_scope.cancel()
    await checkpoint_if_cancelled()
    for error in errors:
        if isinstance(error, door.GitCommandNotFound):
            raise _no_git(what, "there is no git") from None
        if isinstance(error, door.GitCommandError):
            raise HostFailed(what, f"git says: {door.complaint(error)}") from error
        if isinstance(error, OSError):
            raise HostFailed(what, str(error.strerror or error)) from error
        raise error
    return outcome[0]


@asynccontextmanager
async def workspace(state_dir: Path) -> AsyncGenerator[Path, None]:
    """An empty directory for the length of the block; raises HostFailed."""
    above = state_dir / "git"
    try:
        directory = await to_thread.run_sync(_make_workspace, above)
    except OSError as error:
        raise HostFailed(shown(str(above)), str(error.strerror or error)) from error
    try:
        yield Path(directory.name)
    finally:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(directory.cleanup)


def _door() -> ModuleType:
    from box_mcp.capabilities.hostgit import run

    return run


def _no_git(what: str, detail: str) -> HostFailed:
    failed = HostFailed(what, f"git can't be run: {detail.strip().partition(chr(10))[0]}")
    failed.advice = NO_GIT
    return failed


def _make_workspace(above: Path) -> tempfile.TemporaryDirectory[str]:
    above.mkdir(parents=True, exist_ok=True, mode=0o700)
    for left in above.iterdir():
        with suppress(FileNotFoundError):  # another server was faster
            if time.time() - left.stat().st_mtime > STALE_AFTER:
                shutil.rmtree(left, ignore_errors=True)
    return tempfile.TemporaryDirectory(dir=above, ignore_cleanup_errors=True)
