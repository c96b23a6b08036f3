"""GitLab's REST API, by python-gitlab."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, Self

from box_mcp.gateway.forges import base
from box_mcp.gateway.forges.base import Made, Proposal, Report, Said

if TYPE_CHECKING:
    from gitlab.v4.objects import Project

    from box_mcp.domain.routes import Route

CONFLICT = 409  # how GitLab says that there is one already
MAX_REDIRECTS = 3  # what moved leads on to where it is
DRAFT = "Draft: "  # a title that begins so makes a draft
ONCE: dict[str, Any] = {"obey_rate_limit": False}  # else it would sleep for as long as it is told


class GitLab:
    """As `Client`; a pull request is a merge request here, and its number is of the project."""

    def __init__(self, route: Route, secret: str, verify: bool | str) -> None:
        from gitlab import Gitlab

        self._route, self._secret = route, secret
        # As a bearer's, tokens of all kinds are taken, and requests drops the header before it
        # follows to another host. Pages that follow are asked for at the same place.
        self._lab = Gitlab(
            base.address(route),
            oauth_token=secret,
            ssl_verify=verify,
            timeout=base.REQUEST_TIMEOUT,
            per_page=base.PAGE,
            keep_base_url=True,
        )
        self._lab.session.max_redirects = MAX_REDIRECTS

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lab.session.close()

    def default_branch(self, repository: str, /) -> str:
        """As `Client`."""
        with self._telling(f"read {repository}"):
            return self._lab.projects.get(repository, **ONCE).default_branch or ""

    def propose(self, wanted: Proposal, /) -> Made:
        """As `Client`."""
        with self._telling(f"open a merge request in {wanted.repository}"):
            target = self._lab.projects.get(wanted.repository, **ONCE)
            source = self._lab.projects.get(wanted.source, **ONCE) if wanted.forked else target
            if found := self._open(target, source, wanted):
                return self._finished(target, found, wanted, existed=True)
            merge, existed = self._created(target, source, wanted)
            return self._finished(target, merge, wanted, existed=existed)

    def report(self, wanted: Report, /) -> Made:
        """As `Client`."""
        with self._telling(f"open an issue in {wanted.repository}"):
            project = self._lab.projects.get(wanted.repository, lazy=True)
            found = self._alike(project, wanted)
            text = {"title": wanted.title, "description": wanted.body}
            issue = found or project.issues.create(text, **ONCE)

            undone = base.attempted("label", wanted.labels, self._labels(project.issues, issue))
            assign = self._people(project.issues, issue, "assignee")
            undone += base.attempted("assignee", wanted.assignees, assign)
            return base.made(issue.web_url, issue.iid, found is not None, undone)

    def _open(self, target: Project, source: Project, wanted: Proposal) -> Any:
        """The open merge request of the same branch, or None."""
        asked = {"state": "opened", "source_branch": wanted.head}
        if not wanted.anywhere:
            asked["target_branch"] = wanted.base
        merges = target.mergerequests.list(iterator=True, query_parameters=asked, **ONCE)
        for merge in islice(merges, base.LOOKED_AT):
            if merge.source_branch == wanted.head and merge.source_project_id == source.id:
                return merge
        return None

    def _created(self, target: Project, source: Project, wanted: Proposal) -> tuple[Any, bool]:
        """The new merge request, or the one that somebody opened since we looked, and which."""
        from gitlab import GitlabError

        draft = wanted.draft and not wanted.title.lower().startswith(DRAFT.lower())
        asked = {
            "source_branch": wanted.head,
            "target_branch": wanted.base,
            "target_project_id": target.id,
            "title": DRAFT + wanted.title if draft else wanted.title,
            "description": wanted.body,
        }
        try:
            return source.mergerequests.create(asked, **ONCE), False
        except GitlabError as error:
            if error.response_code == CONFLICT and (found := self._open(target, source, wanted)):
                return found, True
            raise

    def _finished(self, target: Project, merge: Any, wanted: Proposal, *, existed: bool) -> Made:
        """With reviewers and labels, as far as they can be had."""
        merges = target.mergerequests
        review = self._people(merges, merge, "reviewer")
        undone = base.attempted("reviewer", wanted.reviewers, review)
        undone += base.attempted("label", wanted.labels, self._labels(merges, merge))
        return base.made(merge.web_url, merge.iid, existed, undone)

    def _alike(self, project: Project, wanted: Report) -> Any:
        """A new issue that is open, and says the same, or None."""
        asked = {"state": "opened"}
        for issue in islice(
            project.issues.list(iterator=True, query_parameters=asked, **ONCE), base.PAGE
        ):
            if wanted.says(issue.title, issue.description):
                return issue
        return None

    def _people(self, items: Any, item: Any, role: str) -> Callable[[Sequence[str]], list[str]]:
        """Adds users in a role, by their names; GitLab keeps quiet about whom it did not take."""
        present = [int(user["id"]) for user in getattr(item, f"{role}s")]

        def add(names: Sequence[str]) -> list[str]:
            with self._telling(f"add a {role}"):
                ids = {name: self._user(name) for name in names}
                new = [number for number in ids.values() if number is not None]
                if new:
                    asked = {f"{role}_ids": [*present, *new]}
                    users = items.update(item.iid, asked, **ONCE)[f"{role}s"]
                    present[:] = [int(user["id"]) for user in users]
            return [name for name, number in ids.items() if number not in present]

        return add

    def _user(self, name: str) -> int | None:
        users = self._lab.users.list(iterator=True, query_parameters={"username": name}, **ONCE)
        return next((user.id for user in users if user.username.lower() == name.lower()), None)

    def _labels(self, items: Any, item: Any) -> Callable[[Sequence[str]], list[str]]:
        """Adds labels."""

        def add(names: Sequence[str]) -> list[str]:
            with self._telling("add labels"):
                items.update(item.iid, {"add_labels": ",".join(names)}, **ONCE)
            return []

        return add

    @contextmanager
    def _telling(self, operation: str) -> Generator[None, None, None]:
        """Makes ForgeError of what python-gitlab raises."""
        from gitlab import GitlabError
        from requests import RequestException

        try:
            yield
        except GitlabError as error:
            said = Said(error.response_code, base.plain(error.error_message))
        except (RequestException, *base.NONSENSE) as error:
            said = Said(None, f"{type(error).__name__}: {error}")
        else:
            return
        raise said.error(self._route, self._secret, operation)
