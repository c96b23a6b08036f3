"""GitHub's REST API, also of Enterprise servers, by PyGithub."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Self, cast

from box_mcp.errors import InvalidArgument
from box_mcp.gateway.forges import base
from box_mcp.gateway.forges.base import Made, Proposal, Report, Said

if TYPE_CHECKING:
    from github.Issue import Issue
    from github.PullRequest import PullRequest
    from github.Repository import Repository

    from box_mcp.domain.routes import Route

UNPROCESSABLE = 422  # how GitHub says that there is one already, among other things
RATE_LIMITED = 429


class GitHub:
    """As `Client`."""

    def __init__(self, route: Route, secret: str, verify: bool | str) -> None:
        from github import Auth, Github

        self._route, self._secret = route, secret
        self._hub = Github(
            auth=Auth.Token(secret),
            base_url=base.address(route),
            timeout=base.REQUEST_TIMEOUT,
            per_page=base.PAGE,
            verify=verify,
            retry=None,
            seconds_between_requests=None,
            seconds_between_writes=None,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._hub.close()

    def default_branch(self, repository: str, /) -> str:
        """As `Client`."""
        with self._telling(f"read {repository}"):
            return self._repository(repository).default_branch

    def propose(self, wanted: Proposal, /) -> Made:
        """As `Client`."""
        with self._telling(f"open a pull request in {wanted.repository}"):
            target = self._repository(wanted.repository)
            source = self._repository(wanted.source) if wanted.forked else target
            if found := _open(target, source, wanted):
                return self._finished(found, wanted, existed=True)
            pull, existed = _created(target, source, wanted)
            return self._finished(pull, wanted, existed=existed)

    def report(self, wanted: Report, /) -> Made:
        """As `Client`."""
        with self._telling(f"open an issue in {wanted.repository}"):
            repository = self._repository(wanted.repository)
            found = _alike(repository, wanted)
            issue = found or repository.create_issue(wanted.title, wanted.body)

            def assign(names: Sequence[str]) -> Iterable[str]:
                with self._telling("add an assignee"):
                    issue.add_to_assignees(*names)
                taken = {user.login.lower() for user in issue.assignees}
                return [name for name in names if name.lower() not in taken]

            undone = base.attempted("label", wanted.labels, self._labels(issue))
            undone += base.attempted("assignee", wanted.assignees, assign)
            return base.made(issue.html_url, issue.number, found is not None, undone)

    def _repository(self, name: str) -> Repository:
        """What is called so, or was before it moved."""
        if name.count("/") != 1:
            raise InvalidArgument("repository", f"is {name!r}, but GitHub's are OWNER/NAME")
        return self._hub.get_repo(name)

    def _finished(self, pull: PullRequest, wanted: Proposal, *, existed: bool) -> Made:
        """With reviewers and labels, as far as they can be had."""

        def review(names: Sequence[str]) -> Iterable[str]:
            with self._telling("add a reviewer"):
                teams = [name.partition("/")[2] for name in names if "/" in name]
                users = [name for name in names if "/" not in name]
                pull.create_review_request(reviewers=users, team_reviewers=teams)
            return ()

        undone = base.attempted("reviewer", wanted.reviewers, review)
        undone += base.attempted("label", wanted.labels, self._labels(pull))
        return base.made(pull.html_url, pull.number, existed, undone)

    def _labels(self, item: Issue | PullRequest) -> Callable[[Sequence[str]], Iterable[str]]:
        """Adds labels."""

        def add(names: Sequence[str]) -> Iterable[str]:
            with self._telling("add labels"):
                item.add_to_labels(*names)
            return ()

        return add

    @contextmanager
    def _telling(self, operation: str) -> Generator[None, None, None]:
        """Makes ForgeError of what PyGithub raises."""
        from github import BadAttributeException, GithubException, RateLimitExceededException
        from requests import RequestException

        try:
            yield
        except RateLimitExceededException as error:
            said = Said(RATE_LIMITED, base.plain(error.data))
        except GithubException as error:
            said = Said(error.status, base.plain(error.data))
        except (RequestException, BadAttributeException, *base.NONSENSE) as error:
            said = Said(None, f"{type(error).__name__}: {error}")
        else:
            return
        raise said.error(self._route, self._secret, operation)


def _open(target: Repository, source: Repository, wanted: Proposal) -> PullRequest | None:
    """The open pull request of the same branch."""
    from github.GithubObject import NotSet

    head = f"{_owner(source)}:{wanted.head}"
    into = NotSet if wanted.anywhere else wanted.base
    for pull in islice(target.get_pulls("open", base=into, head=head), base.LOOKED_AT):
        found = cast("Repository | None", pull.head.repo)  # a fork may be gone
        same = found is not None and found.full_name.lower() == source.full_name.lower()
        if same and pull.head.ref == wanted.head:
            return pull
    return None


def _created(target: Repository, source: Repository, wanted: Proposal) -> tuple[PullRequest, bool]:
    """The new pull request, or the one that somebody opened since we looked, and which."""
    from github import GithubException
    from github.GithubObject import NotSet

    # Of two repositories of one owner, the owner does not say which.
    doubt = wanted.forked and _owner(source).lower() == _owner(target).lower()
    try:
        pull = target.create_pull(
            wanted.base,
            f"{_owner(source)}:{wanted.head}" if wanted.forked else wanted.head,
            title=wanted.title,
            body=wanted.body,
            draft=wanted.draft,
            head_repo=source.name if doubt else NotSet,
        )
    except GithubException as error:
        if error.status == UNPROCESSABLE and (found := _open(target, source, wanted)):
            return found, True
        raise
    return pull, False


def _alike(repository: Repository, wanted: Report) -> Issue | None:
    """A new issue that is open, and says the same."""
    for issue in islice(repository.get_issues(state="open"), base.PAGE):
        if wanted.says(issue.title, issue.body):
            return issue
    return None


def _owner(repository: Repository) -> str:
    return repository.full_name.partition("/")[0]
