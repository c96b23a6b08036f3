"""What takes the person's yes, in both eras of the protocol, over an engine in memory."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import anyio
import pytest
from mcp import Client

from box_mcp.app import backend
from box_mcp.domain.network import Mode, Network, parse_rules
from box_mcp.engines.fake import FakeEngine
from box_mcp.errors import InvalidArgument
from box_mcp.gateway.sites import Sites
from box_mcp.settings import DEFAULT_IMAGE, Settings
from box_mcp.surface.network import changed
from box_mcp.surface.server import make_server
from box_mcp.surface.sessions import Backend, Limits
from tests.support.client import ERAS, PATIENCE, text
from tests.support.faults import FaultyEngine, Refusal
from tests.support.person import NO, YES, Person

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from mcp.server import MCPServer
    from mcp_types import ElicitResult

CLOSED: dict[str, Any] = {
    "network": "allowlist",
    "allow": ["pypi.example"],
    "ceiling": {"allow": ["*.example.org"], "images": [], "keep_awake": False, "ports": False},
}
"""Settings that leave a tool little to decide."""


@dataclass
class Desk:
    """A client of a server."""

    client: Client

    async def say(self, tool: str, **arguments: object) -> str:
        result = await self.client.call_tool(tool, arguments)
        assert not result.is_error, text(result)
        return text(result)

    async def fail(self, tool: str, **arguments: object) -> str:
        result = await self.client.call_tool(tool, arguments)
        assert result.is_error, text(result)
        return text(result)


@asynccontextmanager
async def desk(
    directory: Path,
    era: str,
    person: Person | None = None,
    engine: FakeEngine | None = None,
    **settings: Any,
) -> AsyncGenerator[Desk, None]:
    """With `person`, the client can ask."""
    known = Settings(state_dir=directory / "state", warm_max=0, **settings)

    @asynccontextmanager
    async def lifespan(_: MCPServer[Backend]) -> AsyncGenerator[Backend, None]:
        async with backend(known, engine=engine or FakeEngine()) as running:
            yield running

    ask = person.ask if person is not None else None
    async with Client(make_server(lifespan), mode=era, elicitation_callback=ask) as client:
        with anyio.fail_after(PATIENCE):
            yield Desk(client)


@pytest.mark.parametrize("era", ERAS)
async def test_what_the_settings_allow_is_done_without_a_question(tmp_path: Path, era: str):
    person = Person(YES)
    async with desk(tmp_path, era, person, **CLOSED) as here:
        await here.say("box_create", name="a", network="none")
        answer = await here.say(
            "network_policy", box="a", network="allowlist", allow=["pypi.example"]
        )
        assert "network allowlist (pypi.example)" in answer
        answer = await here.say("network_policy", box="a", allow=["a.example.org", "pypi.example"])
        assert "network allowlist (pypi.example, a.example.org)" in answer
        assert "up to allowlist (pypi.example, *.example.org)" in answer
        assert await here.say("network_policy", box="a") == answer
    assert person.questions == []


async def test_a_change_that_failed_is_done_when_it_is_asked_for_again(tmp_path: Path):
    fault = Refusal("change the network of")
    engine = FaultyEngine(fault)
    async with desk(tmp_path, ERAS[-1], engine=engine) as here:
        await here.say("box_create", name="a")
        for _ in range(2):
            assert "does not want to" in await here.fail("network_policy", box="a", network="none")
        fault.heal()
        assert "network none" in await here.say("network_policy", box="a", network="none")
        assert [box.attached for box in engine.boxes.values()] == [False]


@pytest.mark.parametrize("era", ERAS)
async def test_a_yes_of_the_person_opens_what_was_asked_for(tmp_path: Path, era: str):
    person = Person(YES)
    async with desk(tmp_path, era, person, **CLOSED) as here:
        await here.say("box_create", name="a")
        answer = await here.say("network_policy", box="a", allow=["evil.example", "b.example.org"])
        assert "network allowlist (pypi.example, evil.example, b.example.org)" in answer
        assert len(person.questions) == 1
        assert "box a" in person.questions[0]
        assert "- evil.example\n" in person.questions[0]
        assert "example.org" not in person.questions[0]
        await here.say("network_policy", box="a", allow=["c.example.org"])
        assert len(person.questions) == 1, "nobody is asked again for what a box has"


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("answer", NO, ids=lambda answer: answer.action)
async def test_anything_but_a_yes_changes_nothing(tmp_path: Path, era: str, answer: ElicitResult):
    person = Person(answer)
    async with desk(tmp_path, era, person, **CLOSED) as here:
        await here.say("box_create", name="a")
        words = await here.fail("network_policy", box="a", network="full")
        assert "network 'full'" in words
        assert "did not allow it" in words
        assert "network allowlist (pypi.example)" in await here.say("network_policy", box="a")
    assert len(person.questions) == 1


@pytest.mark.parametrize("era", ERAS)
async def test_a_client_that_can_not_ask_is_told_of_the_setting(tmp_path: Path, era: str):
    async with desk(tmp_path, era, **CLOSED) as here:
        await here.say("box_create", name="a")
        for tool, arguments in (
            ("network_policy", {"box": "a", "network": "full"}),
            ("box_create", {"network": "full"}),
            ("port_expose", {"box": "a", "port": 80}),
        ):
            words = await here.fail(tool, **arguments)
            assert "can't be asked" in words
            assert "`ceiling`" in words


@pytest.mark.parametrize("era", ERAS)
async def test_a_box_beyond_the_ceiling_is_made_after_a_yes_only(tmp_path: Path, era: str):
    order: dict[str, object] = {
        "name": "a",
        "image": DEFAULT_IMAGE,
        "network": "allowlist",
        "allow": ["evil.example"],
        "keep_awake": True,
    }
    person = Person(NO[0])
    async with desk(tmp_path, era, person, **CLOSED) as here:
        assert "evil.example, keep_awake" in await here.fail("box_create", **order)
        assert "evil.example" not in await here.say("box_list")
        person.answer = YES
        assert "evil.example" in await here.say("box_create", **order)
        assert len(person.questions) == 2
        await here.say("box_create", **order, reuse=True)
        assert len(person.questions) == 2, "nothing is to be made"


@pytest.mark.parametrize("era", ERAS)
async def test_an_image_that_the_ceiling_does_not_name_is_asked_for(tmp_path: Path, era: str):
    person = Person(NO[1])
    async with desk(tmp_path, era, person, **CLOSED) as here:
        await here.fail("box_create", image="other\x1b[31m:1")
        assert "\x1b" not in person.questions[0]
        assert "other" in person.questions[0]


@pytest.mark.parametrize("era", ERAS)
async def test_a_port_is_exposed_and_closed(tmp_path: Path, era: str):
    async with desk(tmp_path, era) as here:
        box = json.loads(await here.say("box_create", name="a"))
        answer = await here.say("port_expose", box="a", port=8123)
        assert f"http://{box['id']}.localhost:" in answer
        assert "nobody listens on it yet" in answer
        assert f"http://{box['id']}.localhost:" in await here.say("box_info", box="a")
        assert "not reachable" in await here.say("port_close", box="a", port=8123)
        assert "exposed: none" in await here.fail("port_close", box="a", port=8123)
        assert ".localhost" not in await here.say("box_info", box="a")


@pytest.mark.parametrize("era", ERAS)
async def test_ports_beyond_the_ceiling_take_a_yes(tmp_path: Path, era: str):
    person = Person(NO[1])
    async with desk(tmp_path, era, person, **CLOSED) as here:
        await here.say("box_create", name="a")
        await here.fail("port_expose", box="a", port=8123)
        person.answer = YES
        assert ".localhost:" in await here.say("port_expose", box="a", port=8123)
        assert "port 8123" in person.questions[0]


@pytest.mark.parametrize("tool", ["network_policy", "box_create", "port_expose"])
async def test_an_agent_can_not_answer_for_the_person(tmp_path: Path, tool: str):
    yes = {"action": "accept", "data": {"allow": True}}
    async with desk(tmp_path, ERAS[-1], Person(YES), **CLOSED) as here:
        assert "there is no argument `answer`" in await here.fail(tool, answer=yes)


async def test_too_much_for_one_question_is_not_asked(tmp_path: Path):
    person = Person(YES)
    async with desk(tmp_path, ERAS[-1], person, **CLOSED) as here:
        await here.say("box_create", name="a")
        many = [f"{number}.evil.example" for number in range(21)]
        assert "20 at a time" in await here.fail("network_policy", box="a", allow=many)
    assert person.questions == []


async def test_a_shared_server_without_names_for_ports_says_what_is_missing():
    @asynccontextmanager
    async def over_http(_: MCPServer[Backend]) -> AsyncGenerator[Backend, None]:
        unused = cast("Any", None)
        yield Backend(unused, Limits(), unused, unused, ports=Sites(None))

    async with Client(make_server(over_http)) as client:
        result = await client.call_tool("port_expose", {"port": 80})
        assert result.is_error
        assert "`ports_domain` under [http]" in text(result)


FULL, NONE = Network(), Network(Mode.NONE)
SOME = Network(Mode.ALLOWLIST, parse_rules(["a.example"]))


@pytest.mark.parametrize(
    ("now", "mode", "allow", "wanted"),
    [
        (SOME, None, None, "allowlist (a.example)"),
        (SOME, None, ["b.example"], "allowlist (a.example, b.example)"),
        (SOME, None, ["a.example"], "allowlist (a.example)"),
        (SOME, "allowlist", ["b.example"], "allowlist (b.example)"),
        (SOME, "allowlist", [], "allowlist (nothing)"),
        (SOME, "none", None, "none"),
        (FULL, "allowlist", ["b.example"], "allowlist (b.example)"),
        (NONE, "full", None, "full"),
    ],
)
def test_rules_alone_are_added_and_a_mode_sets_all(
    now: Network, mode: str | None, allow: list[str] | None, wanted: str
):
    assert str(changed(now, mode, allow)) == wanted


@pytest.mark.parametrize("now", [FULL, NONE])
def test_rules_alone_do_not_narrow_a_box_down(now: Network):
    with pytest.raises(InvalidArgument, match='network="allowlist"'):
        changed(now, None, ["b.example"])
