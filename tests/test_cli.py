"""The commands as a user types them, against the real engine."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.client import docker
from tests.support.commands import box_mcp


@pytest.fixture
def dead_engine(tmp_path: Path) -> dict[str, str]:
    return {"DOCKER_HOST": f"unix://{tmp_path}/nobody.sock"}


def test_doctor_finds_this_machine_fit_and_proves_it_by_a_box(server_env: dict[str, str]) -> None:
    del server_env["BOX_MCP_IMAGE"]
    said = box_mcp("doctor", env=server_env).stdout
    assert "FAILURE" not in said
    assert "ok       image: box-mcp:agent, current" in said
    assert "ok       box: made one, ran a command in it, deleted it" in said


def test_doctor_says_what_boxes_can_reach(server_env: dict[str, str]) -> None:
    said = box_mcp("doctor", env=server_env).stdout
    assert "guard: boxes reach public addresses only, by rules in DOCKER-USER" in said


def test_doctor_without_an_engine_fails_with_the_remedy(dead_engine: dict[str, str]) -> None:
    said = box_mcp("doctor", code=1, env=dead_engine).stdout
    assert "FAILURE  engine: No container engine answers at unix:///" in said
    assert "-> Start Docker" in said


def test_doctor_without_the_image_says_how_to_build_it(server_env: dict[str, str]) -> None:
    env = {**server_env, "BOX_MCP_IMAGE": "box-mcp-test:nowhere"}
    said = box_mcp("doctor", code=1, env=env).stdout
    assert "FAILURE  image: The engine has no image 'box-mcp-test:nowhere'" in said
    assert "box-mcp image build" in said


def test_doctor_says_that_authorities_can_not_be_read(server_env: dict[str, str]) -> None:
    env = {**server_env, "BOX_MCP_CA_CERTIFICATES": "/nowhere/company.pem"}
    said = box_mcp("doctor", code=1, env=env).stdout
    assert "the authorities to trust can't be read" in said
    assert "/nowhere/company.pem" in said


def test_boxes_says_so_when_there_are_none(server_env: dict[str, str]) -> None:
    assert box_mcp("boxes", env=server_env).stdout.startswith("There are no boxes.\n")


def test_demo_walks_through_a_boxs_life_and_leaves_none_behind() -> None:
    said = box_mcp("demo").stdout
    steps = ("make a box", "run it", "counting: 5", "it pauses", "wake it", "[deleted box-")
    assert [step for step in steps if step not in said] == []
    assert "claude mcp add" in said
    assert "claude-desktop" in said
    box = said[said.index("[deleted ") :].split()[1]
    assert docker("ps", "-aq", "--filter", f"name={box}") == ""


def test_demo_without_an_engine_ends_with_one_clear_message(dead_engine: dict[str, str]) -> None:
    said = box_mcp("demo", code=1, env=dead_engine).stderr
    assert "No container engine answers" in said
    assert "Traceback" not in said


def test_an_image_that_is_current_is_not_built_again() -> None:
    both = [f"box-mcp:{target} is already built and current" for target in ("base", "agent")]
    assert box_mcp("image", "build").stdout.splitlines() == both
    assert box_mcp("image", "build", "--target", "base").stdout.splitlines() == both[:1]


def test_building_without_an_engine_says_the_remedy(dead_engine: dict[str, str]) -> None:
    said = box_mcp("image", "build", code=1, env=dead_engine).stderr
    assert said.startswith("Error: No container engine answers")
    assert "Start Docker" in said


@pytest.mark.parametrize("how", [(), ("--http", "0")])
def test_a_server_whose_state_can_not_be_used_ends_with_one_clear_message(
    server_env: dict[str, str], how: tuple[str, ...]
) -> None:
    state = Path(server_env["BOX_MCP_STATE_DIR"]) / "state.db"
    state.mkdir(parents=True)
    try:
        said = box_mcp("serve", *how, code=1, env=server_env).stderr
    finally:
        state.rmdir()
    assert said.startswith(f"Error: The state file {state} can't be used")
    assert "Traceback" not in said


MODELS = """
from box_mcp import cli
cli.build_models_late()
from mcp_types import PingRequest, client_request_adapter as requests
before = PingRequest.__pydantic_complete__, requests.pydantic_complete
ping = {"method": "ping"}
print(*before, PingRequest(**ping) == requests.validate_python(ping))
"""


def test_models_of_the_sdk_are_built_when_they_are_first_used() -> None:
    said = subprocess.run(
        [sys.executable, "-c", MODELS], capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == ["False", "False", "True"]


def test_bad_settings_are_told_by_their_names() -> None:
    said = box_mcp("serve", code=1, env={"BOX_MCP_PAUSE_AFTER": "soon"}).stderr
    assert "pause_after: Input should be a valid number" in said
    assert "Traceback" not in said


def test_a_settings_file_that_is_no_toml_is_told_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("warm = = 1")
    said = box_mcp("--config", str(path), "boxes", code=1).stderr
    assert str(path) in said
    assert "Traceback" not in said
