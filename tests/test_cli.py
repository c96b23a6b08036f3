"""The commands as a user types them, against the real engine."""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.thin import ThinClient

RUN_TIMEOUT = 60.0  # s; the longest, the demo, takes ten
PROGRAM = str(Path(sys.executable).with_name("box-mcp"))


def box_mcp(
    *arguments: str, code: int = 0, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """What `box-mcp ARGUMENTS` printed; it must exit with `code`."""
    done = subprocess.run(
        [PROGRAM, *arguments],
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT,
        check=False,
    )
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture
def dead_engine(tmp_path: Path) -> dict[str, str]:
    return {"DOCKER_HOST": f"unix://{tmp_path}/nobody.sock"}


def test_doctor_finds_this_machine_fit_and_proves_it_by_a_box(server_env: dict[str, str]) -> None:
    said = box_mcp("doctor", env=server_env).stdout
    assert "FAILURE" not in said
    assert "ok       box: made one, ran a command in it, deleted it" in said


def test_doctor_says_honestly_what_boxes_can_reach(server_env: dict[str, str]) -> None:
    assert (
        "warning  guard: boxes can't reach each other, but"
        in box_mcp("doctor", env=server_env).stdout
    )


def test_doctor_without_an_engine_fails_with_the_remedy(dead_engine: dict[str, str]) -> None:
    said = box_mcp("doctor", code=1, env=dead_engine).stdout
    assert "FAILURE  engine: No container engine answers at unix:///" in said
    assert "-> Start Docker" in said


def test_doctor_without_the_image_says_how_to_build_it(server_env: dict[str, str]) -> None:
    env = {**server_env, "BOX_MCP_IMAGE": "box-mcp-test:nowhere"}
    said = box_mcp("doctor", code=1, env=env).stdout
    assert "FAILURE  image: The engine has no image 'box-mcp-test:nowhere'" in said
    assert "box-mcp image build" in said


def test_boxes_says_so_when_there_are_none(server_env: dict[str, str]) -> None:
    assert box_mcp("boxes", env=server_env).stdout == "There are no boxes.\n"


def test_prune_deletes_what_is_nobodys_and_nothing_else(server_env: dict[str, str]) -> None:
    """A box whose record is gone is what a server leaves behind that died while making it."""
    mine = made_box(server_env)
    orphan = made_box(server_env)
    try:
        forget(orphan, server_env)
        docker("kill", orphan)
        assert box_mcp("prune", env=server_env, code=1).stdout.startswith(f"{orphan}: nobody's")
        assert "Deleted 1." in box_mcp("prune", "--yes", env=server_env).stdout
        assert docker("inspect", orphan).returncode != 0
        assert docker("network", "inspect", f"{orphan}-net").returncode != 0
        assert docker("inspect", mine).returncode == 0
        assert "nothing to delete" in box_mcp("prune", "--yes", env=server_env).stdout
    finally:
        docker("rm", "--force", orphan)
        docker("network", "rm", f"{orphan}-net")


def test_prune_leaves_the_boxes_of_other_state_directories_alone(
    server_env: dict[str, str], tmp_path: Path
) -> None:
    theirs = made_box(server_env)
    docker("kill", theirs)
    other = {**server_env, "BOX_MCP_STATE_DIR": str(tmp_path / "other")}
    assert "nothing to delete" in box_mcp("prune", "--yes", env=other).stdout
    assert docker("inspect", theirs).returncode == 0


def test_boxes_shows_what_servers_made(server_env: dict[str, str]) -> None:
    box = made_box(server_env)
    (head, row) = box_mcp("boxes", env=server_env).stdout.splitlines()
    assert head.split() == ["ID", "NAME", "STATE", "SIZE", "IMAGE", "CREATED", "USED"]
    assert row.split()[:5] == [box, "-", "running", "medium", "box-mcp:base"]


def made_box(env: dict[str, str]) -> str:
    """A running box that a server made which has ended since."""
    server = [sys.executable, "-m", "box_mcp", "serve"]
    with ThinClient(server, {**os.environ, **env}, Path(env["BOX_MCP_STATE_DIR"] + ".log")) as it:
        return str(json.loads(it.call("box_create"))["id"])


def forget(box: str, env: dict[str, str]) -> None:
    with closing(sqlite3.connect(Path(env["BOX_MCP_STATE_DIR"], "state.db"))) as database:
        database.execute("DELETE FROM boxes WHERE id = ?", (box,))
        database.commit()


def docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["docker", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_demo_walks_through_a_boxs_life_and_leaves_none_behind() -> None:
    said = box_mcp("demo").stdout
    steps = ("make a box", "run it", "counting: 5", "it pauses", "wake it", "[deleted box-")
    assert [step for step in steps if step not in said] == []
    assert "claude mcp add" in said
    assert "claude-desktop" in said
    box = said[said.index("[deleted ") :].split()[1]
    assert docker("inspect", box).returncode != 0


def test_demo_without_an_engine_ends_with_one_clear_message(dead_engine: dict[str, str]) -> None:
    said = box_mcp("demo", code=1, env=dead_engine).stderr
    assert "No container engine answers" in said
    assert "Traceback" not in said


def test_an_image_that_is_current_is_not_built_again() -> None:
    assert "already built and current" in box_mcp("image", "build").stdout


def test_building_without_an_engine_says_the_remedy(dead_engine: dict[str, str]) -> None:
    said = box_mcp("image", "build", code=1, env=dead_engine).stderr
    assert said.startswith("Error: No container engine answers")
    assert "Start Docker" in said


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
