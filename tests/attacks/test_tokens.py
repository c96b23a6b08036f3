"""From callers over HTTP at another's box: without a token, with one that is not good, with their
own, or with one of the owner's that is for less. Every tool is tried, and every request of MCP that
is about something of somebody's; afterwards it is looked whether anything was done.
"""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import anyio
import pytest
from mcp_types import (
    CLIENT_CAPABILITIES_META_KEY,
    CLIENT_INFO_META_KEY,
    PROTOCOL_VERSION_META_KEY,
)

from box_mcp.domain.access import Group, parse_scope
from box_mcp.domain.names import BoxId, BoxName, Principal
from box_mcp.domain.runs import Run, RunId
from box_mcp.domain.snapshots import tag
from box_mcp.engines.marks import mark_of
from box_mcp.engines.saving import tag_of
from box_mcp.identity.tokens import Tokens
from box_mcp.ledger import Ledger
from box_mcp.surface.server import TOOLSETS, make_server
from box_mcp.surface.tasks import TASKS
from tests.attacks.test_principals import CALLS
from tests.support.client import ERAS, LEGACY, MODERN, PATIENCE, docker, fresh_state
from tests.support.http import HttpServer, serving_http
from tests.support.issuer import AUDIENCE, CLIENT, AuthorizationServer, authorization_server
from tests.support.issuer import SECRET as CLIENT_SECRET
from tests.support.rawhttp import LEGACY as LEGACY_VERSION
from tests.support.rawhttp import routed
from tests.surface.test_access import GROUPS, READERS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from pathlib import Path

    import httpx2
    from anyio.abc import Process

    from tests.support.client import Server

ME, YOU = Principal("me"), Principal("you")
RUN, NO_RUN = "run-aaaaaaaa", "run-00000000"
NO_BOX, NO_NAME = "box-00000000", "nobodys"
SECRET = "the-secret-of-you"
TEMPLATE = {"type": "ref/resource", "uri": "box://{box}/files/{+path}"}

BOXLESS: dict[str, dict[str, Any]] = {
    "box_create": {"name": "made"},
    "box_list": {},
    "snapshot_list": {},
    "snapshot_delete": {"name": "theirs"},
    "agent_status": {"run": RUN},
    "agent_cancel": {"run": RUN},
}
"""Tools that name no box, and what is theirs for them."""

REQUESTS: dict[str, dict[str, Any]] = {
    "resources/list": {},
    "resources/read": {"uri": "box://BOX/files/workspace/secret"},
    "resources/subscribe": {"uri": "box://BOX/files/workspace/secret"},
    "resources/unsubscribe": {"uri": "box://BOX/files/workspace/secret"},
    "subscriptions/listen": {
        "notifications": {"resourceSubscriptions": ["box://BOX/files/workspace/secret"]}
    },
    "completion/complete": {
        "ref": TEMPLATE,
        "argument": {"name": "path", "value": "workspace/s"},
        "context": {"arguments": {"box": "BOX"}},
    },
    "tasks/get": {"taskId": "BOX.p1.1800000000.12000"},
    "tasks/update": {"taskId": "BOX.p1.1800000000.12000"},
    "tasks/cancel": {"taskId": "BOX.p1.1800000000.12000"},
}
"""All requests that are about something of somebody's, beside calls of tools."""

GLIMPSE = """
import hashlib, os, sys
for _ in sys.stdin:
    seen = []
    for place, directories, files in os.walk("/workspace"):
        for path in (os.path.join(place, name) for name in directories + files):
            found = os.lstat(path)
            seen.append((path, found.st_mode, found.st_size, found.st_mtime_ns))
    running = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{process}/cmdline", "rb") as command:
                running.append((process, b"sleep" in command.read()))
        except OSError:
            pass
    waiting = sorted(process for process, waits in running if waits)
    print(hashlib.sha256(repr((sorted(seen), waiting)).encode()).hexdigest(), flush=True)
"""
"""What tells in a box, for each line, of all files in it and of what waits there."""

FREE: dict[str, dict[str, Any]] = {
    "tools/list": {},
    "prompts/list": {},
    "prompts/get": {"name": "none"},
    "resources/templates/list": {},
    "server/discover": {},
    "ping": {},
    "logging/setLevel": {"level": "debug"},
    "initialize": {"protocolVersion": LEGACY_VERSION, "capabilities": {}},
}
"""Those that tell the same to all who have a token."""

OF_OLD = {"resources/subscribe", "resources/unsubscribe"}
"""Requests that current protocols do not have."""
OF_NOW = {"subscriptions/listen", "tasks/get", "tasks/update", "tasks/cancel"}
"""Those that older ones do not have."""


@dataclass(frozen=True)
class Answer:
    """What a request was answered: the status of HTTP, and MCP's own words."""

    status: int
    said: Any
    challenge: str = ""

    @property
    def words(self) -> str:
        """All that a model or a person would read of it."""
        return json.dumps(self.said, ensure_ascii=False)

    @property
    def refused(self) -> bool:
        """Whether it is an error, of the request or of the tool."""
        return "error" in self.said or bool(self.said.get("result", {}).get("isError"))

    @property
    def not_permitted(self) -> bool:
        """Whether the token is for less; current clients hear of it by HTTP, to get another."""
        by_head = self.status == 403 and 'error="insufficient_scope"' in self.challenge
        return by_head or "Your token does not let you use" in self.words


@dataclass
class Line:
    """A client that spells its requests out, with a token; `session` is for older protocols."""

    http: httpx2.AsyncClient
    session: str = ""

    async def ask(self, method: str, params: Mapping[str, Any]) -> Answer:
        """The answer to one request."""
        old = method in OF_OLD or bool(self.session)
        given = dict(params) if old else {**params, "_meta": META}
        message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": given}
        head = {"Accept": "application/json, text/event-stream"}
        if old:
            head |= {"MCP-Protocol-Version": LEGACY_VERSION, "Mcp-Session-Id": self.session}
        else:
            name, value = routed(message)
            head |= {"MCP-Protocol-Version": MODERN, "Mcp-Method": name.decode()}
            head |= {"Mcp-Name": value.decode()} if value else {}
        with anyio.fail_after(PATIENCE):
            async with self.http.stream("POST", "/mcp", json=message, headers=head) as answer:
                said = await _said(answer, first=method == "subscriptions/listen")
        return Answer(answer.status_code, said, answer.headers.get("www-authenticate", ""))

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> Answer:
        """The answer to a call."""
        return await self.ask("tools/call", {"name": tool, "arguments": dict(arguments)})

    async def begin(self) -> Line:
        """A session as older protocols have it."""
        params = {
            "protocolVersion": LEGACY_VERSION,
            "capabilities": {},
            "clientInfo": {"name": "tests", "version": "1"},
        }
        message = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
        head = {"Accept": "application/json, text/event-stream"}
        answer = await self.http.post("/mcp", json=message, headers=head)
        begun = Line(self.http, answer.headers["mcp-session-id"])
        head |= {"MCP-Protocol-Version": LEGACY_VERSION, "Mcp-Session-Id": begun.session}
        ready = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        await self.http.post("/mcp", json=ready, headers=head)
        return begun


META: dict[str, Any] = {
    PROTOCOL_VERSION_META_KEY: MODERN,
    CLIENT_INFO_META_KEY: {"name": "tests", "version": "1"},
    CLIENT_CAPABILITIES_META_KEY: {"extensions": {TASKS: {}}},
}


async def _said(answer: httpx2.Response, *, first: bool) -> Any:
    """The last message of an answer, be it plain JSON or events; the first of one without end."""
    said = ""
    async for line in answer.aiter_lines():
        said = line.removeprefix("data:").strip() if line[:5] in ("data:", '{"jso') else said
        if first and said:
            break
    return json.loads(said)


@dataclass
class Stage:
    """A server, two people's boxes, and all that is to know of them.

    `asking` is another of the same boxes, which asks the issuer about each token.
    """

    server: HttpServer
    asking: HttpServer
    issuer: AuthorizationServer
    yours: Server
    box: str
    state: Path
    watcher: Process
    before: dict[str, Any] = field(default_factory=dict[str, Any])
    """How all was that is yours."""
    glimpsed: tuple[Any, ...] = ()
    """The same, as far as it is seen at a glance."""

    @asynccontextmanager
    async def line(
        self, token: str, era: str = MODERN, *, asks: bool = False
    ) -> AsyncGenerator[Line, None]:
        """With a token, good or not, to the server, or to the one that `asks`."""
        async with (self.asking if asks else self.server).raw(token) as http:
            yield await Line(http).begin() if era == LEGACY else Line(http)

    async def refuse(self, line: Line, method: str, params: Mapping[str, Any]) -> Answer:
        """The answer to what must do nothing, and has done nothing."""
        answer = await line.ask(method, params)
        assert await self.glance() == self.glimpsed, (method, params, answer)
        return answer

    async def glance(self) -> tuple[Any, ...]:
        """What of `look` is seen in a moment: files, processes, boxes, runs."""
        assert self.watcher.stdin is not None
        assert self.watcher.stdout is not None
        with anyio.fail_after(PATIENCE):  # it says nothing while its box is frozen
            await self.watcher.stdin.send(b"\n")
            told = await self.watcher.stdout.receive()
        return told, *self._rows()

    def _rows(self) -> tuple[list[Any], list[Any]]:
        with closing(sqlite3.connect(self.state / "runs.db")) as runs:
            rows = runs.execute("SELECT id, ended, version FROM runs ORDER BY id").fetchall()
        with closing(sqlite3.connect(self.state / "state.db")) as store:
            known = store.execute("SELECT id, principal, name FROM boxes ORDER BY id").fetchall()
        return rows, known

    async def look(self) -> dict[str, Any]:
        """All that somebody could have done to your box, and to whatever is yours besides."""
        you = self.yours
        files = "find . -printf '%p %y %s %m %T@\\n' | sort; cat secret; git -C work log --oneline"
        boxes = (await you.tell("box_list"))["boxes"]
        info = await you.tell("box_info", box=self.box)
        listed = await you.say("process_list", box=self.box)
        rows, known = self._rows()
        shape = "{{.State.Status}} {{.State.StartedAt}} {{.State.Pid}} {{json .NetworkSettings}}"
        return {
            "files": (await you.run(f"{files}", box=self.box)).partition("]\n")[2],
            "box": docker("inspect", "-f", shape, self.box),
            "boxes": [(one["id"], one["name"], one["state"], one["network"]) for one in boxes],
            "ports": info["ports"],
            "snapshots": (await you.tell("snapshot_list"))["snapshots"],
            "waits": "p1 " in listed and "sleep infinity" in listed,
            "runs": rows,
            "known": known,
        }


@pytest.fixture(scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Stage, None]:
    settings = {
        "http__requests_per_minute": "off",
        "http__refusals_per_minute": "off",
        "ceiling__images": '["*"]',  # so that what is theirs is kept out by nothing else
        "oauth__audience": AUDIENCE,
    }
    with fresh_state(tmp_path_factory.mktemp("tokens")) as env, authorization_server() as issuer:
        async with (
            serving_http(env, **settings, oauth__issuer=issuer.url) as server,
            serving_http(
                {**env, "ISSUER_SECRET": CLIENT_SECRET},
                **settings,
                oauth__issuer=issuer.url,
                oauth__introspection_url=f"{issuer.url}/introspect",
                oauth__client_id=CLIENT,
                oauth__client_secret='{"variable": "ISSUER_SECRET"}',
            ) as asking,
            server.caller(YOU) as yours,
        ):
            box = str((await yours.tell("box_create", name="theirs"))["id"])
            await yours.run("sleep infinity", box=box, background=True)
            await yours.run(
                f"echo {SECRET} > secret; git init -q work; cd work; git config user.email you@a; "
                "git config user.name You; echo a > a; git add a; git commit -qm one",
                box=box,
            )
            await yours.tell("snapshot_create", name="theirs", box=box)
            await yours.say("port_expose", port=8000, box=box)
            ledger = Ledger(server.state / "runs.db")
            run = Run(RunId(RUN), YOU, BoxId(box), "key", "claude_code", time.time(), title=SECRET)
            await ledger.add(run)
            await ledger.aclose()
            watch = ["docker", "exec", "-i", box, "python3", "-c", GLIMPSE]
            async with await anyio.open_process(watch) as watcher:
                stage = Stage(server, asking, issuer, yours, box, server.state, watcher)
                stage.before, stage.glimpsed = await stage.look(), await stage.glance()
                yield stage
                watcher.terminate()


async def bad_tokens(stage: Stage) -> dict[str, list[str]]:
    """What somebody could come with, of each kind."""
    good = await stage.server.token(YOU)
    expired = await stage.server.token(YOU, expires=time.time() - 1)
    tokens = Tokens(stage.state / "tokens.db")
    made, revoked = await tokens.create(YOU, [parse_scope("boxes")], None)
    await tokens.revoke(made.id)
    await tokens.aclose()
    name, secret = good[4:12], good[13:]
    mint, issue, other = stage.issuer.mint, stage.issuer.issue, "https://other.example.org"
    inactive = issue(YOU)
    stage.issuer.revoke(inactive)
    return {
        "none": [""],
        "malformed": ["x", "bxm_", f"bxm_{name}", f"{good}x", good[:-1], good.upper(), f"{good},"],
        "unknown": [f"bxm_00000000_{secret}", f"bxm_{name}_{'A' * 43}"],
        "revoked": [revoked],
        "expired": [expired, mint(YOU, exp=int(time.time()) - 3600)],
        "another audience": [mint(YOU, aud=other), mint(YOU, aud=...)],
        "another issuer": [mint(YOU, iss=other)],
        f"{ASKED} not active": [inactive, "opaque", mint(YOU), issue(YOU, active=False)],
        f"{ASKED} expired": [issue(YOU, exp=int(time.time()) - 3600)],
        f"{ASKED} another audience": [issue(YOU, aud=other), issue(YOU, aud=...)],
        f"{ASKED} another issuer": [issue(YOU, iss=other)],
    }


ASKED = "by asking:"
"""What kinds of tokens begin with about which the issuer is asked."""
REST = ("expired", "another audience", "another issuer")
KINDS = (
    *("none", "malformed", "unknown", "revoked", *REST),
    *(f"{ASKED} {what}" for what in ("not active", *REST)),
)


def attempts(box: str, run: str = RUN, name: str = "theirs") -> list[tuple[str, dict[str, Any]]]:
    """Every request that is about something of somebody's: every tool, then the others."""
    calls = [(tool, {**arguments, "box": box}) for tool, arguments in CALLS.items()]
    calls += [(tool, placed(arguments, box, run, name)) for tool, arguments in BOXLESS.items()]
    asked = [("tools/call", {"name": tool, "arguments": given}) for tool, given in calls]
    asked += [(method, placed(params, box, run, name)) for method, params in REQUESTS.items()]
    return [*asked, *[(method, {"taskId": run}) for method in REQUESTS if "tasks" in method]]


def placed(params: Any, box: str, run: str, name: str) -> Any:
    """`params` about this box, this run, this snapshot."""
    text = json.dumps(params).replace("BOX", box).replace(RUN, run).replace("theirs", name)
    return json.loads(text)


def test_every_tool_and_every_request_is_tried():
    offered = {tool.name for toolset in TOOLSETS for tool in toolset.tools}
    assert offered == CALLS.keys() | BOXLESS.keys()
    inner = make_server(cast("Any", None))._lowlevel_server
    assert set(inner._request_handlers) <= REQUESTS.keys() | FREE.keys() | {"tools/call"}


@pytest.mark.parametrize("kind", KINDS)
async def test_without_a_good_token_nothing_is_answered_and_nothing_done(kind: str, stage: Stage):
    tokens = (await bad_tokens(stage))[kind]
    answers: set[tuple[int, str, str]] = set()
    for number, token in enumerate(tokens):
        async with stage.line(token, asks=kind.startswith(ASKED)) as line:
            every = [*attempts(stage.box), *FREE.items()]
            for method, params in every if number == 0 else every[::7]:
                answer = await stage.refuse(line, method, params)
                answers.add((answer.status, answer.words, answer.challenge))
    ((status, words, challenge),) = answers
    assert status == 401
    assert challenge.startswith("Bearer ")
    assert ('error="invalid_token"' in challenge) is (kind != "none")
    assert not any(secret in words for secret in (SECRET, stage.box, "theirs", RUN))
    assert await stage.look() == stage.before


def missing(era: str) -> set[str]:
    """The requests that a protocol does not have."""
    return OF_NOW if era == LEGACY else OF_OLD


OWN = ("box_create", "box_list", "snapshot_list", "resources/list")
"""What is about one's own alone, whatever it names."""
QUIET = ("completion/complete", "resources/unsubscribe")
"""What is answered with nothing, rather than refused."""


@pytest.mark.parametrize(
    ("era", "of"), [*((era, "ours") for era in ERAS), (MODERN, "signed"), (MODERN, "asked")]
)
async def test_what_is_anothers_is_answered_as_what_there_is_not(era: str, of: str, stage: Stage):
    tried = 0
    good = {"signed": stage.issuer.mint(ME), "asked": stage.issuer.issue(ME)}
    token = good.get(of) or await stage.server.token(ME)
    async with stage.line(token, era, asks=of == "asked") as line:
        for box, nobodys in ((stage.box, NO_BOX), ("theirs", NO_NAME)):
            made_up = attempts(nobodys, NO_RUN, NO_NAME)
            for (method, params), (_, blank) in zip(attempts(box), made_up, strict=True):
                what = str(params.get("name", method))
                if what in OWN or method in missing(era):
                    continue
                answer = await stage.refuse(line, method, params)
                empty = await line.ask(method, blank)
                as_theirs = empty.words.replace(nobodys, box).replace(NO_RUN, RUN)
                assert answer.words == as_theirs.replace(NO_NAME, "theirs"), (method, params)
                assert answer.status == empty.status
                assert answer.refused is (method not in QUIET), (method, params, answer)
                assert SECRET not in answer.words
                tried += 1
    assert tried > 2 * len(CALLS)
    assert await stage.look() == stage.before


@pytest.mark.parametrize("era", ERAS)
async def test_no_list_has_anything_of_anothers(era: str, stage: Stage):
    async with stage.line(await stage.server.token(ME), era) as line:
        box = {"ref": TEMPLATE, "argument": {"name": "box", "value": ""}}
        told = [
            await line.call("box_list", {}),
            await line.call("snapshot_list", {}),
            await line.call("agent_status", {}),
            await line.ask("resources/list", {}),
            await line.ask("completion/complete", box),
        ]
    assert [answer.status for answer in told] == [200] * len(told)
    assert not any(answer.refused for answer in told)
    for secret in (stage.box, "theirs", RUN, SECRET, YOU):
        assert not any(secret in answer.words for answer in told)


@pytest.mark.parametrize("name", ["box-mcp-snapshot:{}", "docker.io/library/box-mcp-snapshot:{}"])
async def test_anothers_snapshot_is_no_image_by_any_name(name: str, stage: Stage):
    owner = mark_of(stage.state)
    async with stage.line(await stage.server.token(ME)) as line:
        for image in (tag_of(owner, tag(YOU, BoxName("theirs"))), tag_of(owner, "0" * 32)):
            answer = await line.call("box_create", {"image": name.format(image)})
            assert f"has no image '{name.format(image)}'" in answer.words
        saved = docker("images", "-q", "--no-trunc", "--filter", "reference=box-mcp-snapshot")
        for known in saved.split():
            for image in (known, known.removeprefix("sha256:")[:12]):
                answer = await line.call("box_create", {"image": image})
                assert f"has no image '{image}'" in answer.words
        answer = await line.call("box_create", {"snapshot": "theirs"})
        assert "no snapshot 'theirs'" in answer.words
    assert saved
    assert await stage.look() == stage.before


async def test_a_session_is_its_owners_alone(stage: Stage):
    async with (
        stage.line(await stage.server.token(YOU)) as yours,
        stage.line(await stage.server.token(ME)) as mine,
    ):
        session = (await yours.begin()).session
        stolen, unknown = Line(mine.http, session), Line(mine.http, "0" * len(session))
        for method, params in (("tools/list", {}), ("tools/call", {"name": "box_list"})):
            answer = await stolen.ask(method, params)
            assert answer == await unknown.ask(method, params)
            assert answer.status == 404
        head = {"Accept": "text/event-stream", "MCP-Protocol-Version": LEGACY_VERSION}
        for verb in ("GET", "DELETE"):
            answers = [
                await mine.http.request(verb, "/mcp", headers={**head, "Mcp-Session-Id": one})
                for one in (session, unknown.session)
            ]
            assert [answer.status_code for answer in answers] == [404, 404]
            assert answers[0].content == answers[1].content
        assert (await Line(yours.http, session).call("box_list", {})).status == 200


@pytest.mark.parametrize("era", ERAS)
async def test_a_token_that_only_reads_changes_nothing(era: str, stage: Stage):
    """The owner's own: what reads is answered, all else is refused, for what it is of."""
    refused: set[str] = set()
    async with stage.line(await stage.server.token(YOU, "boxes:read"), era) as line:
        for method, params in attempts(stage.box):
            if method in missing(era):
                continue
            if (await stage.refuse(line, method, params)).not_permitted:
                refused.add(str(params.get("name", method)))
    tools = {tool.name for toolset in TOOLSETS for tool in toolset.tools}
    assert refused == (tools - READERS) | ({"tasks/update", "tasks/cancel"} - missing(era))
    assert await stage.look() == stage.before


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("group", Group)
async def test_a_token_for_other_groups_is_for_nothing_of_this_one(
    group: Group, era: str, stage: Stage
):
    others = [f"boxes:{one}" for one in Group if one is not group]
    async with stage.line(await stage.server.token(YOU, *others), era) as line:
        for method, params in attempts(stage.box):
            tool = str(params.get("name", ""))
            if method in missing(era) or (tool and GROUPS[tool.partition("_")[0]] is not group):
                continue
            if not tool and not of_group(method, params, group):
                continue
            answer = await stage.refuse(line, method, params)
            assert answer.not_permitted, (method, params, answer)
            assert answer.refused
            assert SECRET not in answer.words
    assert await stage.look() == stage.before


def of_group(method: str, params: Mapping[str, Any], group: Group) -> bool:
    """Whether a token for all other groups is not for this request."""
    if "tasks" in method:  # commands are followed by who may run them, or git
        return group is Group.AGENT and params["taskId"] == RUN
    return group is Group.FILES
