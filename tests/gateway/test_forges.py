"""Forges over real HTTP: GitHub's API by an emulator, GitLab's by a stand-in of our own."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import pytest

from box_mcp.domain.box import Box, BoxSpec
from box_mcp.domain.names import LOCAL, BoxId
from box_mcp.domain.remotes import Way
from box_mcp.domain.routes import Access, Credential, Forge, Route, api_of, parse_upstream
from box_mcp.errors import (
    ForgeError,
    ForgeRefused,
    ForgeUnreachable,
    InvalidArgument,
    NoCredential,
    NoForge,
)
from box_mcp.events import Event, RouteUsed
from box_mcp.gateway import credentials
from box_mcp.gateway.credentials import Secrets
from box_mcp.gateway.forges.asking import TIMEOUT, Forges
from box_mcp.gateway.forges.base import (
    Made,
    Proposal,
    Report,
    called,
    checked,
    found_way,
    named_way,
    way_to,
)
from tests.support.github import API, serving_github
from tests.support.gitlab import serving_gitlab
from tests.support.webserver import Exchange, Trouble, echoed, redirect, web

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from box_mcp.gateway.forges.base import Client
    from tests.support.github import Hub
    from tests.support.gitlab import Lab
    from tests.support.webserver import Web

T = TypeVar("T")

SECRET, OTHERS = "tok_0nlyTheHostKnows", "tok_of-somebody-else"
TOKENS = {SECRET: "me", OTHERS: "you"}
USERS = ("ada", "bob")
ODD = "fix/ä#1%2B&x=y?"

BOX = Box(BoxId("box-aaaaaaaa"), BoxSpec("image", 1, 2**30), created=0, principal=LOCAL)

numbers = count(1)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    directory = tmp_path_factory.mktemp("hub")
    own, public = ["me/it", "me/it-2"], ["team/tool"]
    with serving_github(directory, TOKENS, own, USERS, public=public) as made:
        made.ask("/repos/team/tool/forks", "POST", default_branch_only=True)
        yield made


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with serving_gitlab(TOKENS, USERS, root="/lab") as made:
        for path in ("me/it", "team/it", "me/group/it", "me/it-fork"):
            made.add(path)
        made.add("me/empty", default_branch=None)
        yield made


@dataclass
class Place:
    """A forge with a credential for it, and what it has by number and kind."""

    server: Web
    route: Route
    items: Any
    secrets: Secrets = field(default_factory=Secrets)
    authorities: Path | None = None
    timeout: float = TIMEOUT
    heard: list[Event] = field(default_factory=list["Event"])

    async def ask(self, method: str, repository: str, question: Callable[[Client], T]) -> T:
        forges = Forges(self.secrets, self.heard.append, self.authorities, self.timeout)
        return await forges.ask(BOX, Way(self.route, repository), method, question)

    async def default_branch(self, repository: str = "me/it") -> str:
        return await self.ask("read", repository, lambda forge: forge.default_branch(repository))

    async def propose(self, wanted: Proposal) -> Made:
        return await self.ask("propose", wanted.repository, lambda forge: forge.propose(wanted))

    async def report(self, wanted: Report) -> Made:
        return await self.ask("report", wanted.repository, lambda forge: forge.report(wanted))

    async def fail(self, wanted: Proposal) -> ForgeError:
        with pytest.raises(ForgeError) as failure:
            await self.propose(wanted)
        assert SECRET not in repr(failure.value) + failure.value.explain()
        return failure.value


def route_to(url: str, forge: Forge | None, api: str = "", **more: Any) -> Route:
    upstream = parse_upstream(url)
    return Route(
        name="work",
        upstream=upstream,
        credential=Credential(variable="FORGE_TOKEN"),
        access=Access.WRITE,
        forge=forge,
        api=api or api_of(forge, upstream),
        **more,
    )


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGE_TOKEN", SECRET)


@pytest.fixture
def github(hub: Hub) -> Iterator[Place]:
    def items(number: int, kind: str = "pulls") -> dict[str, Any]:
        found = hub.ask(f"/repos/me/it/{kind}/{number}")
        names = {
            "labels": [one["name"] for one in found["labels"]],
            "people": [
                one["login"] for one in found.get("requested_reviewers", found["assignees"])
            ],
        }
        if kind == "pulls":
            names |= {"base": found["base"]["ref"], "head": found["head"]["ref"]}
        return names | {key: found.get(key) for key in ("title", "body", "draft")}

    route = route_to(hub.url, Forge.GITHUB)
    yield Place(hub.web, route, items)
    hub.web.heal()


@pytest.fixture
def gitlab(lab: Lab) -> Iterator[Place]:
    def items(number: int, kind: str = "pulls") -> dict[str, Any]:
        kinds = {"pulls": ("merge_requests", "reviewers"), "issues": ("issues", "assignees")}
        name, role = kinds[kind]
        found = lab.projects[0].items[name][number - 1]
        names: dict[str, Any] = {
            "labels": found["labels"],
            "people": [one["username"] for one in found[role]],
        }
        if kind == "pulls":
            names |= {"base": found["target_branch"], "head": found["source_branch"]}
        title = found["title"].removeprefix("Draft: ")
        return names | {
            "title": title,
            "body": found["description"],
            "draft": found.get("draft"),
        }

    route = route_to(lab.url, Forge.GITLAB)
    yield Place(lab.web, route, items)
    lab.web.heal()


@pytest.fixture(params=["github", "gitlab"])
def place(request: pytest.FixtureRequest) -> Place:
    """Each of the forges in turn."""
    return request.getfixturevalue(request.param)


def wanted(**more: Any) -> Proposal:
    """A pull request of a branch that has none."""
    plain = Proposal(
        "me/it", "main", "me/it", f"branch-{next(numbers)}", "Mend it", "Since it broke."
    )
    return replace(plain, **more)


async def test_a_pull_request_is_opened_with_all_that_was_asked_for(place: Place):
    proposal = wanted(draft=True, reviewers=("ada", "bob"), labels=("bug", "good first"))
    made = await place.propose(proposal)
    assert (made.existed, made.undone) == (False, ())
    assert made.url.startswith(f"{place.server.url}/")
    assert made.url.endswith(f"/{made.number}")
    there = place.items(made.number)
    assert there == {
        "title": "Mend it",
        "body": "Since it broke.",
        "draft": True,
        "base": "main",
        "head": proposal.head,
        "people": ["ada", "bob"],
        "labels": ["bug", "good first"],
    }


async def test_a_branch_that_has_one_gets_no_second_but_what_it_lacks(place: Place):
    proposal = wanted(reviewers=("ada",), labels=("bug",))
    first = await place.propose(proposal)
    again = replace(proposal, title="Another", body="", reviewers=("bob",), labels=("new",))
    second = await place.propose(again)
    assert (second.existed, second.number, second.url) == (True, first.number, first.url)
    there = place.items(first.number)
    assert (there["title"], there["body"]) == ("Mend it", "Since it broke.")
    assert (there["people"], there["labels"]) == (["ada", "bob"], ["bug", "new"])


async def test_one_into_another_base_is_another_unless_any_will_do(place: Place):
    proposal = wanted()
    first = await place.propose(proposal)
    anywhere = await place.propose(replace(proposal, base="next", anywhere=True))
    assert (anywhere.existed, anywhere.number) == (True, first.number)
    second = await place.propose(replace(proposal, base="next"))
    assert (second.existed, place.items(second.number)["base"]) == (False, "next")


async def test_branches_with_signs_of_urls_in_their_names_are_those_branches(place: Place):
    proposal = wanted(head=ODD, base="release/1.0#x")
    made = await place.propose(proposal)
    assert place.items(made.number)["head"] == ODD
    assert (await place.propose(proposal)).number == made.number
    assert (await place.propose(wanted(head="fix/ä", base="release/1.0#x"))).number != made.number


async def test_who_and_what_can_not_be_added_is_told_and_undoes_nothing(place: Place, lab: Lab):
    lab.strangers.add("bob")
    proposal = wanted(reviewers=("ada", "nobody"), labels=("bug",))
    made = await place.propose(proposal)
    lab.strangers.clear()
    assert [one.partition(":")[0] for one in made.undone] == ["reviewer nobody"]
    there = place.items(made.number)
    assert (there["people"], there["labels"]) == (["ada"], ["bug"])


async def test_labels_that_are_refused_are_told_each(place: Place):
    place.server.fail(Trouble("/labels", 403, body=b'{"message": "Labels are not yours"}', times=9))
    place.server.fail(Trouble("PUT ", 403, body=b'{"message": "Labels are not yours"}', times=9))
    made = await place.propose(wanted(labels=("bug", "new")))
    assert made.undone == ("label bug: Labels are not yours", "label new: Labels are not yours")


async def test_an_issue_is_opened_once(place: Place):
    report = Report("me/it", f"It broke {next(numbers)}", "Like this:\n\n1. so", ("bug",), ("ada",))
    made = await place.report(report)
    assert (made.existed, made.undone) == (False, ())
    there = place.items(made.number, "issues")
    assert (there["title"], there["body"]) == (report.title, report.body)
    assert (there["labels"], there["people"]) == (["bug"], ["ada"])
    again = await place.report(replace(report, body="Like this:\r\n\r\n1. so", labels=("new",)))
    assert (again.existed, again.number) == (True, made.number)
    assert place.items(made.number, "issues")["labels"] == ["bug", "new"]
    other = await place.report(replace(report, body="Like that."))
    assert (other.existed, other.number == made.number) == (False, False)


async def test_an_assignee_that_is_not_taken_is_told(place: Place):
    report = Report("me/it", f"It broke {next(numbers)}", assignees=("nobody", "bob"))
    made = await place.report(report)
    assert [one.partition(":")[0] for one in made.undone] == ["assignee nobody"]
    assert place.items(made.number, "issues")["people"] == ["bob"]


async def test_the_default_branch_is_the_forges_word(place: Place):
    assert await place.default_branch() == "main"


async def test_one_that_somebody_else_opened_meanwhile_is_found(place: Place):
    proposal = wanted()
    made = await place.propose(proposal)
    place.server.fail(Trouble(f"GET {_path(place, 'pulls')}?", 200, body=b"[]"))
    refusal = b'{"message": "Validation Failed", "errors": [{"message": "there is one"}]}'
    if place.route.forge is Forge.GITHUB:
        place.server.fail(Trouble(f"POST {_path(place, 'pulls')}", 422, body=refusal))
    again = await place.propose(proposal)
    assert (again.existed, again.number) == (True, made.number)


def _path(place: Place, kind: str) -> str:
    if place.route.forge is Forge.GITHUB:
        return f"{API}/repos/me/it/{kind}"
    return "/lab/api/v4/projects/101/merge_requests"


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "does not accept the credential of the route 'work'"),
        (403, "does not let the credential of the route 'work' open a"),
        (404, "it finds no such thing, or hides it from the route 'work'"),
        (409, "refuses to open a"),
        (422, "refuses to open a"),
        (429, "takes no more requests of the credential of the route 'work'"),
    ],
)
async def test_a_refusal_says_who_refused_and_what_to_do(place: Place, status: int, words: str):
    body = json.dumps({"message": "It is so", "errors": [{"field": "head", "code": "invalid"}]})
    place.server.fail(Trouble(f"POST {_path(place, 'pulls')}", status, body=body.encode()))
    error = await place.fail(wanted())
    assert isinstance(error, ForgeRefused)
    assert (error.status, error.route) == (status, "work")
    assert words in str(error)
    assert "It is so" in str(error)
    assert "Nothing was made there" in error.explain()
    assert error.advice


async def test_what_validation_complains_about_is_told(github: Place):
    errors = [
        {"resource": "PullRequest", "field": "head", "code": "invalid"},
        {"message": "No commits"},
    ]
    body = json.dumps({"message": "Validation Failed", "errors": errors}).encode()
    github.server.fail(Trouble(f"POST {_path(github, 'pulls')}", 422, body=body))
    error = await github.fail(wanted())
    assert error.detail == "Validation Failed PullRequest head invalid No commits"


async def test_a_rate_limit_of_github_is_told_as_one(github: Place):
    body = b'{"message": "API rate limit exceeded for user ID 1."}'
    github.server.fail(Trouble("/repos/me/it", 403, {"x-ratelimit-remaining": "0"}, body, times=9))
    error = await github.fail(wanted())
    assert isinstance(error, ForgeRefused)
    assert error.status == 429


async def test_a_token_that_is_none_any_more_is_told(place: Place, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FORGE_TOKEN", "tok_of_yesterday")
    error = await place.fail(wanted())
    assert isinstance(error, ForgeRefused)
    assert (error.status, "tok_of" in error.explain()) == (401, False)
    assert "routes.work.credential" in error.advice


async def test_a_token_that_changed_is_fetched_anew(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(credentials, "TRIED", 0.0)  # as if it had been a while
    token = tmp_path / "token"
    token.write_text("tok_of_yesterday")
    route = replace(place.route, credential=Credential(command=("cat", str(token))))
    secrets = Secrets()
    await secrets.of(route)
    token.write_text(SECRET)
    assert (await replace(place, route=route, secrets=secrets).propose(wanted())).number


async def test_what_is_asked_is_on_record_without_its_secret(
    place: Place, monkeypatch: pytest.MonkeyPatch
):
    await place.propose(wanted())
    place.server.fail(Trouble(f"POST {_path(place, 'pulls')}", 422, body=echoed))
    await place.fail(wanted())
    monkeypatch.delenv("FORGE_TOKEN")
    with pytest.raises(NoCredential):
        await place.default_branch()
    events = [event for event in place.heard if isinstance(event, RouteUsed)]
    told = [(event.method, event.path, event.status, event.route) for event in events]
    asked = ("propose", "/me/it", 200, "work"), ("propose", "/me/it", 422, "work")
    assert told == [*asked, ("read", "/me/it", 502, "work")]
    assert (events[0].box, events[0].principal, events[0].refused) == (BOX.id, LOCAL, "")
    assert "refuses" in events[1].refused
    assert SECRET not in repr(events)


async def test_no_token_at_all_is_told_before_anybody_is_asked(
    place: Place, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("FORGE_TOKEN")
    place.server.forget()
    with pytest.raises(NoCredential):
        await place.propose(wanted())
    assert place.server.asked == []


async def test_a_server_that_tells_what_it_was_sent_does_not_tell_the_secret(place: Place):
    place.server.fail(Trouble(f"POST {_path(place, 'pulls')}", 422, body=echoed, times=9))
    error = await place.fail(wanted())
    assert "uthorization: " in error.detail
    assert len(error.explain()) < 1000


@pytest.mark.parametrize("status", [500, 502, 503])
async def test_a_server_that_fails_may_have_done_it_all_the_same(place: Place, status: int):
    place.server.fail(Trouble(f"POST {_path(place, 'pulls')}", status, body=b"<html>Oh no</html>"))
    error = await place.fail(wanted())
    assert isinstance(error, ForgeUnreachable)
    assert str(status) in str(error)
    assert "may have been done" in error.survived


async def test_answers_that_are_none_are_told(place: Place):
    for body in (b"<html>", b"[1, 2]", b"{}", b'{"number": "x", "html_url": 7}', b"null"):
        place.server.fail(Trouble(f"POST {_path(place, 'pulls')}", 201, body=body))
        place.server.fail(Trouble(f"GET {_path(place, 'pulls')}?", 200, body=b"[]"))
        assert isinstance(await place.fail(wanted()), ForgeUnreachable), body
    place.server.fail(Trouble(f"GET {_path(place, 'pulls')}?", 200, body=b'[{"head": 1}, 7]'))
    assert isinstance(await place.fail(wanted()), ForgeUnreachable)


async def test_a_server_that_breaks_off_is_told(place: Place):
    place.server.fail(Trouble(f"POST {_path(place, 'pulls')}", after=5))
    assert isinstance(await place.fail(wanted()), ForgeUnreachable)


async def test_nobody_waits_longer_than_a_call_may_take(place: Place):
    trouble = place.server.fail(Trouble(_path(place, "pulls"), stall=True))
    for patience in (0.3, 3, 12):  # it asks later where much else is done
        error = await replace(place, timeout=patience).fail(wanted())
        assert f"not done within {patience} s" in str(error)
        if trouble.met.is_set():
            break
    assert trouble.met.is_set()


async def test_who_cancels_does_not_wait_and_others_threads_are_not_taken(place: Place):
    trouble = place.server.fail(Trouble(_path(place, "pulls"), stall=True))
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(place.propose, wanted())
            await anyio.to_thread.run_sync(trouble.met.wait)
            assert anyio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
            group.cancel_scope.cancel()
    (event,) = place.heard
    assert isinstance(event, RouteUsed)
    assert event.refused == "nobody waited for the answer"


async def test_nobody_at_the_address_is_told(place: Place):
    with web() as gone:
        url = gone.url
    error = await replace(place, route=route_to(url, place.route.forge)).fail(wanted())
    assert isinstance(error, ForgeUnreachable)
    assert url in str(error)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_no_redirect_takes_the_secret_elsewhere(place: Place, status: int):
    with web() as elsewhere:
        to = f"{elsewhere.url}{_path(place, 'pulls')}"
        place.server.fail(redirect("POST ", to, status))
        await place.fail(wanted())
        place.server.fail(redirect("GET ", to, status, times=9))
        await place.fail(wanted())
        heard = [SECRET in str(asked.headers) for asked in elsewhere.asked]
    assert not any(heard)


async def test_a_repository_that_moved_is_found(place: Place):
    path = _path(place, "").removesuffix("/").removesuffix("/merge_requests")
    where = "/me/old" if place.route.forge is Forge.GITHUB else "/me%2Fold"
    place.server.fail(redirect(where, f"{place.server.url}{path}", 301))
    made = await place.propose(wanted(repository="me/old", source="me/old"))
    assert place.items(made.number)["title"] == "Mend it"


async def test_the_next_page_is_not_asked_for_elsewhere(place: Place):
    with web() as elsewhere:
        headers = {
            "Link": f'<{elsewhere.url}{_path(place, "pulls")}?page=2>; rel="next"',
            "Content-Type": "application/json",
        }
        path = _path(place, "pulls")
        place.server.fail(Trouble(f"GET {path}?", 200, headers, b"[]"))
        try:
            await place.propose(wanted())
        except ForgeUnreachable:
            assert place.route.forge is Forge.GITHUB
        assert elsewhere.asked == []


async def test_a_certificate_is_believed_where_the_settings_say_so(tmp_path: Path):
    with web(tls=tmp_path) as server:
        assert server.certificate is not None
        server.handlers.append(_branches)
        for forge in Forge:
            route = route_to(server.url, forge)
            place = Place(server, route, None)
            believing = replace(place, authorities=server.certificate)
            assert await believing.default_branch() == "trunk"
            with pytest.raises(ForgeUnreachable, match="CERTIFICATE_VERIFY_FAILED"):
                await place.default_branch()
            with pytest.raises(ForgeUnreachable, match="authorities to believe can't be read"):
                await replace(place, authorities=tmp_path / "gone.pem").default_branch()


def _branches(exchange: Exchange) -> bool:
    """Any repository of any forge, by a stand-in that knows no more than its default branch."""
    said = {"id": 1, "default_branch": "trunk", "url": "https://x.invalid/api/v3/x"}
    exchange.answer(200, {"Content-Type": "application/json"}, json.dumps(said).encode())
    return True


async def test_a_forks_branch_is_named_with_its_owner(github: Place, hub: Hub):
    hub.said.clear()
    proposal = wanted(repository="team/tool", source="me/tool")
    made = await github.propose(proposal)
    assert hub.said[0][1]["head"] == f"me:{proposal.head}"
    assert "head_repo" not in hub.said[0][1]
    assert "/team/tool/pull/" in made.url
    assert (await github.propose(proposal)).number == made.number


async def test_of_two_repositories_of_one_owner_the_right_one_is_meant(github: Place, hub: Hub):
    """GitHub's pages by a stand-in: the emulator knows no forks of one's own."""
    proposal = wanted(source="me/it-2")
    path = f"{API}/repos/me/it/pulls"

    def pages(exchange: Exchange) -> bool:
        asked = exchange.asked
        if not asked.target.startswith(f"{path}?") or asked.method != "GET":
            return False
        second = "page=2" in asked.target.replace("per_page", "")
        source = {"full_name": "Me/It-2", "url": f"{github.route.api}/repos/me/it-2"}
        theirs = {"ref": proposal.head, "repo": None}
        ours = {"ref": proposal.head, "repo": source}
        url = f"{github.route.api}/repos/me/it/pulls/7"
        pull = {"number": 7, "url": url, "html_url": "https://x.invalid/7"}
        page = [{**pull, "head": ours}] if second else [{**pull, "head": theirs}] * 100
        link = f'<{hub.url}{asked.target}&page=2>; rel="next"'
        headers = {"Content-Type": "application/json"} | ({} if second else {"Link": link})
        exchange.answer(200, headers, json.dumps(page).encode())
        return True

    hub.web.handlers.insert(0, pages)
    try:
        made = await github.propose(proposal)
    finally:
        hub.web.handlers.remove(pages)
    assert (made.existed, made.number) == (True, 7)
    hub.said.clear()
    await github.propose(replace(proposal, head="new"))
    assert hub.said[0][1]["head"] == "me:new"
    assert hub.said[0][1]["head_repo"] == "it-2"


async def test_an_open_merge_request_is_found_on_the_second_page(gitlab: Place, lab: Lab):
    proposal = wanted(repository="team/it", source="me/it")
    made = await gitlab.propose(proposal)
    (team, fork) = (lab.projects[1], lab.projects[3])
    theirs = dict(team.items["merge_requests"][-1], source_project_id=fork.id)
    team.items["merge_requests"] += [theirs | {"iid": made.number + at} for at in range(1, 120)]
    again = await gitlab.propose(proposal)
    assert (again.existed, again.number) == (True, made.number)


async def test_a_fork_on_gitlab_asks_the_project_that_it_comes_from(gitlab: Place, lab: Lab):
    made = await gitlab.propose(wanted(repository="me/group/it", source="me/it-fork"))
    (merge,) = lab.projects[2].items["merge_requests"]
    assert (merge["iid"], merge["source_project_id"]) == (made.number, lab.projects[3].id)


async def test_a_draft_on_gitlab_is_marked_once(gitlab: Place, lab: Lab):
    await gitlab.propose(wanted(title="draft: try it", draft=True))
    assert lab.projects[0].items["merge_requests"][-1]["title"] == "draft: try it"


async def test_a_token_for_reading_is_told_as_such(gitlab: Place, lab: Lab):
    lab.read_only.add(SECRET)
    error = await gitlab.fail(wanted())
    lab.read_only.clear()
    assert isinstance(error, ForgeRefused)
    assert (error.status, error.detail) == (403, "insufficient_scope")


async def test_who_asks_to_wait_is_not_waited_for(gitlab: Place):
    headers = {"Retry-After": "3600", "RateLimit-Reset": "9999999999"}
    gitlab.server.fail(Trouble("/projects/", 429, headers, b"Retry later", times=9))
    with anyio.fail_after(5):
        error = await gitlab.fail(wanted())
    assert error.detail == "Retry later"


async def test_a_team_is_asked_for_its_review_as_a_team(github: Place, hub: Hub):
    hub.said.clear()
    made = await github.propose(wanted(reviewers=("ada", "team/core")))
    asked = [sent for target, sent in hub.said if target.endswith("/requested_reviewers")]
    assert asked[0] == {"reviewers": ["ada"], "team_reviewers": ["core"]}
    assert made.undone == (  # here people own the repositories, and these have no teams
        "reviewer team/core: Team reviewers are only supported for organization repositories.",
    )
    assert github.items(made.number)["people"] == ["ada"]


async def test_github_has_owners_and_no_groups(github: Place):
    with pytest.raises(InvalidArgument, match="OWNER/NAME"):
        await github.propose(wanted(repository="me/group/it"))


async def test_a_repository_without_a_branch_has_no_default(gitlab: Place):
    assert await gitlab.default_branch("me/empty") == ""


@pytest.mark.parametrize(
    ("upstream", "forge", "api", "name"),
    [
        ("https://github.com", Forge.GITHUB, "https://api.github.com", "me/it"),
        ("https://github.com/team", Forge.GITHUB, "https://api.github.com", "team/me/it"),
        ("https://git.x.org/team", Forge.GITHUB, "https://git.x.org/api/v3", "team/me/it"),
        ("https://gitlab.com/team", Forge.GITLAB, "https://gitlab.com", "team/me/it"),
        ("https://git.x.org/lab", Forge.GITLAB, "https://git.x.org/lab", "me/it"),
    ],
)
def test_a_path_of_the_upstream_is_an_owners_or_the_servers(
    upstream: str, forge: Forge, api: str, name: str
):
    route = route_to(upstream, forge)
    assert route.api == api
    assert called(Way(route, "me/it")) == name


@pytest.mark.parametrize("api", ["https://git.x.org/lab/api/v4/", "https://git.x.org/lab/"])
def test_gitlabs_api_may_be_given_with_its_version(api: str):
    route = route_to("https://git.x.org/lab/group", Forge.GITLAB, api)
    assert called(Way(route, "it")) == "group/it"


HUB = route_to("https://github.com", Forge.GITHUB, repositories=("me/*",))


@pytest.mark.parametrize(
    "url",
    [
        *("https://github.com/me/it.git", "git@github.com:me/it.git"),
        *("ssh://git@github.com:22/me/it", "http://127.0.0.1:3129/work/me/it.git"),
    ],
)
def test_a_remote_leads_to_its_forge_by_whatever_way_git_goes(url: str):
    assert found_way(url, [HUB]) == Way(HUB, "me/it")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://github.com/you/it", "leads to me/* only"),
        ("https://elsewhere.org/me/it", "no route of this box leads there"),
        ("http://127.0.0.1:3129/other/me/it", "no route of this box leads there"),
        ("/workspace/it", "on no server"),
        ("ext::sh -c boo", "on no server"),
        ("https://me:hush@github.com/../x", "on no server"),
        ("https://me:hush@github.com/you/it", "leads to me/* only"),
        ("https://github.com/me/%2e%2e", "only git"),
    ],
)
def test_a_remote_that_no_route_may_write_to_is_refused_without_its_password(url: str, reason: str):
    with pytest.raises(NoForge) as refusal:
        found_way(url, [HUB])
    told = refusal.value.explain()
    assert reason in told
    assert "hush" not in told


def test_of_several_routes_the_one_that_may_write_is_taken():
    reading = replace(HUB, name="reading", access=Access.READ)
    assert found_way("https://github.com/me/it", [reading, HUB]).route is HUB
    with pytest.raises(NoForge, match="'reading' is for reading only"):
        found_way("https://github.com/me/it", [reading])


def test_a_route_to_a_server_of_an_unknown_kind_says_what_is_missing():
    plain = route_to("https://git.x.org", None)
    with pytest.raises(NoForge) as refusal:
        checked(Way(plain, "me/it"))
    assert "routes.work.forge" in refusal.value.advice


LAB = route_to("https://gitlab.com/team", Forge.GITLAB)


def test_a_repository_is_named_as_its_forge_names_it_or_by_its_url():
    assert named_way("me/it", [HUB]) == Way(HUB, "me/it")
    assert named_way("team/a/it", [LAB]) == Way(LAB, "a/it")
    assert named_way("git@gitlab.com:team/a/it.git", [HUB, LAB]) == Way(LAB, "a/it")
    assert named_way("me/it", [LAB, HUB]) == Way(HUB, "me/it")
    assert called(way_to(LAB, "team/a/it")) == "team/a/it"


def test_a_name_that_is_nowhere_or_may_be_at_two_forges_is_refused():
    both = [replace(HUB, repositories=("*",)), LAB]
    with pytest.raises(NoForge, match=r"may be on https://\S+ or on https://gitlab"):
        named_way("team/it", both)
    with pytest.raises(NoForge, match="leads to me/\\* only, not to team/it"):
        named_way("team/it", [HUB])
    with pytest.raises(NoForge, match="leads to team only"):
        named_way("me/it", [LAB])
    with pytest.raises(NoForge, match="has no routes"):
        named_way("me/it", [])
    for odd in ("", "..", "me/../it", "me/it?x=1", "me/%2e%2e/it", "me/ it"):
        with pytest.raises(NoForge):
            named_way(odd, both)
