"""A stand-in for GitLab's REST API, since no GitLab can be had here: real HTTP, on loopback.

It does what docs.gitlab.com says of the few requests that box_mcp makes: projects by number or by
escaped path, merge requests, issues, users, pages, drafts by their titles. It knows who sends
which token, and refuses fields that the documents do not name.
"""

from __future__ import annotations

import json
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qsl, unquote

from tests.support.webserver import Exchange, Web, web

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

API = "/api/v4/"

FIELDS = {
    ("POST", "merge_requests"): {
        *("source_branch", "target_branch", "title", "description", "target_project_id"),
        *("reviewer_ids", "labels"),
    },
    ("PUT", "merge_requests"): {"reviewer_ids", "add_labels", "title", "description"},
    ("POST", "issues"): {"title", "description", "labels", "assignee_ids"},
    ("PUT", "issues"): {"assignee_ids", "add_labels", "title", "description"},
}
"""What the documents name, as far as it can be of use here."""


class Refusal(Exception):
    """A status, and what is said with it."""

    def __init__(self, status: int, **said: Any) -> None:
        super().__init__(status)
        self.status = status
        self.said = said


@dataclass
class Project:
    """A repository with what people wrote about it."""

    id: int
    path: str
    default_branch: str | None = "main"
    items: dict[str, list[dict[str, Any]]] = field(
        default_factory=lambda: {"merge_requests": [], "issues": []}
    )


class Lab:
    """The server; `tokens` are those that it accepts, each with the name of its user."""

    def __init__(
        self, listening: Web, root: str, tokens: Mapping[str, str], users: Sequence[str]
    ) -> None:
        self.web = listening
        self.root = root
        self.tokens = dict(tokens)
        self.read_only: set[str] = set()
        self.strangers: set[str] = set()
        """Users that no project takes for a reviewer or an assignee."""
        self.projects: list[Project] = []
        self.users = [*dict.fromkeys([*tokens.values(), *users])]

    @property
    def url(self) -> str:
        """Where projects are."""
        return f"{self.web.url}{self.root}"

    def add(self, path: str, default_branch: str | None = "main") -> Project:
        """A new project."""
        self.projects.append(Project(len(self.projects) + 101, path, default_branch))
        return self.projects[-1]

    def serve(self, exchange: Exchange) -> bool:
        """As a handler of `web`."""
        asked = exchange.asked
        start = f"{self.root}{API}"
        if not asked.target.startswith(start):
            return False
        body = b"".join(exchange.body())
        path, _, query = asked.target.removeprefix(start).partition("?")
        headers: dict[str, str] = {"Content-Type": "application/json"}
        try:
            self._admit(asked.method, exchange)
            steps = [unquote(step) for step in path.split("/")]
            status = {"POST": 201}.get(asked.method, 200)
            sent = json.loads(body) if body else dict(parse_qsl(query))
            said = self._answer(asked.method, steps, sent)
        except Refusal as refusal:
            status, said = refusal.status, refusal.said
        if isinstance(said, list):
            items = cast("list[Any]", said)
            said, more = self._page(items, dict(parse_qsl(query)), path)
            headers |= more
        exchange.answer(status, headers, json.dumps(said).encode())
        return True

    def _admit(self, method: str, exchange: Exchange) -> None:
        asked = exchange.asked
        bearer = asked.header("Authorization").removeprefix("Bearer ")
        token = asked.header("PRIVATE-TOKEN") or bearer
        if token not in self.tokens:
            raise Refusal(401, message="401 Unauthorized")
        if token in self.read_only and method != "GET":
            raise Refusal(403, error="insufficient_scope", error_description="needs api")
        asked.who = self.tokens[token]

    def _answer(self, method: str, steps: Sequence[str], sent: dict[str, Any]) -> Any:
        match method, steps:
            case "GET", ["users"]:
                named = [name for name in self.users if name == sent["username"].lower()]
                return [self._user(name) for name in named]
            case "GET", ["projects", name]:
                return self._shown(self._project(name))
            case "GET", ["projects", name, kind]:
                return self._listed(self._project(name), kind, sent)
            case "POST", ["projects", name, kind]:
                return self._made(self._project(name), kind, sent)
            case "PUT", ["projects", name, kind, number]:
                return self._changed(self._project(name), kind, int(number), sent)
            case _:
                raise Refusal(404, error="404 Not Found")

    def _project(self, name: str) -> Project:
        for project in self.projects:
            if name in (str(project.id), project.path):
                return project
        raise Refusal(404, message="404 Project Not Found")

    def _shown(self, project: Project) -> dict[str, Any]:
        return {
            "id": project.id,
            "path_with_namespace": project.path,
            "default_branch": project.default_branch,
            "web_url": f"{self.url}/{project.path}",
        }

    def _listed(self, project: Project, kind: str, asked: dict[str, Any]) -> list[dict[str, Any]]:
        filters = {
            name: asked[name]
            for name in ("state", "source_branch", "target_branch")
            if name in asked
        }
        return [
            item
            for item in reversed(project.items[kind])
            if all(item[name] == value for name, value in filters.items())
        ]

    def _page(
        self, items: list[Any], asked: dict[str, str], path: str
    ) -> tuple[list[Any], dict[str, str]]:
        page, size = int(asked.get("page", 1)), int(asked.get("per_page", 20))
        headers = {"X-Page": str(page), "X-Per-Page": str(size), "X-Next-Page": ""}
        if len(items) > page * size:
            following = "&".join(
                f"{key}={value}" for key, value in {**asked, "page": page + 1}.items()
            )
            headers["X-Next-Page"] = str(page + 1)
            headers["Link"] = f'<{self.url}{API}{path}?{following}>; rel="next"'
        return items[(page - 1) * size : page * size], headers

    def _made(self, project: Project, kind: str, sent: dict[str, Any]) -> dict[str, Any]:
        self._check("POST", kind, sent)
        needed = (
            ("title", "source_branch", "target_branch") if kind == "merge_requests" else ("title",)
        )
        if missing := [name for name in needed if not sent.get(name)]:
            raise Refusal(400, error=", ".join(f"{name} is missing" for name in missing))
        target = self._project(str(sent.get("target_project_id", project.id)))
        items = target.items[kind]
        same = [
            item
            for item in items
            if kind == "merge_requests"
            and item["state"] == "opened"
            and item["source_project_id"] == project.id
            and all(item[name] == sent[name] for name in ("source_branch", "target_branch"))
        ]
        if same:
            told = "Another open merge request already exists for this source branch"
            raise Refusal(409, message=[f"{told}: !{same[0]['iid']}"])
        number = len(items) + 1
        made: dict[str, Any] = {
            "iid": number,
            "state": "opened",
            "web_url": f"{self.url}/{target.path}/-/{kind}/{number}",
            "title": sent["title"],
            "description": sent.get("description"),
            "labels": [],
            "assignees": [],
            "reviewers": [],
        }
        if kind == "merge_requests":
            made |= {
                "draft": sent["title"].lower().startswith("draft:"),
                "source_branch": sent["source_branch"],
                "target_branch": sent["target_branch"],
                "source_project_id": project.id,
                "target_project_id": target.id,
            }
        items.append(made)
        return made

    def _changed(
        self, project: Project, kind: str, number: int, sent: dict[str, Any]
    ) -> dict[str, Any]:
        self._check("PUT", kind, sent)
        (item,) = [item for item in project.items[kind] if item["iid"] == number] or [None]
        if item is None:
            raise Refusal(404, message="404 Not found")
        for role in ("reviewer", "assignee"):
            if (ids := sent.get(f"{role}_ids")) is not None:
                named = [name for name in self.users if self._user(name)["id"] in ids]
                item[f"{role}s"] = [
                    self._user(name) for name in named if name not in self.strangers
                ]
        if labels := sent.get("add_labels"):
            item["labels"] = sorted({*item["labels"], *labels.split(",")})
        return item

    def _user(self, name: str) -> dict[str, Any]:
        return {"id": self.users.index(name) + 1, "username": name}

    def _check(self, method: str, kind: str, sent: dict[str, Any]) -> None:
        if unknown := sent.keys() - FIELDS[method, kind]:
            raise Refusal(400, error=f"{', '.join(unknown)}: not in the documents")


@contextmanager
def serving_gitlab(
    tokens: Mapping[str, str],
    users: Sequence[str] = (),
    root: str = "",
    beside: Web | None = None,
) -> Generator[Lab, None, None]:
    """A server; `root` is the path that it lies below.

    `beside` is one that answers for other paths, and then for these, too.
    """
    with nullcontext(beside) if beside else web() as listening:
        lab = Lab(listening, root, tokens, users)
        listening.handlers.append(lab.serve)
        yield lab
