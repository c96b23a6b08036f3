"""What a container holds of memory, by the kernel's files and by the engine's word."""

from __future__ import annotations

from pathlib import Path

import pytest

from box_mcp.engines import memory
from box_mcp.engines.docker import DockerEngine
from tests.support.client import docker
from tests.support.engines import MEBI, Workshop, channel_to, said, workshop


@pytest.mark.parametrize(
    ("group", "files"),
    [
        (
            "docker/abc",
            {"memory.current": "5000", "memory.stat": "anon 1\ninactive_file 2000"},
        ),
        (
            "memory/system.slice/docker-abc.scope",
            {"memory.usage_in_bytes": "5000", "memory.stat": "cache 9\ntotal_inactive_file 2000"},
        ),
    ],
)
def test_memory_is_counted_without_what_the_kernel_can_take_back(
    group: str, files: dict[str, str], tmp_path: Path
):
    (tmp_path / group).mkdir(parents=True)
    for name, content in files.items():
        (tmp_path / group / name).write_text(content)
    assert memory.counted("abc", tmp_path) == 3000
    assert memory.counted("other", tmp_path) is None


async def test_kernel_and_engine_agree_on_what_a_box_holds(shop: Workshop):
    box = await shop.running()
    async with channel_to(shop.engine, box) as channel:
        hog = "python3 -c 'import time; x = b\"x\" * 50_000_000; print(flush=True); time.sleep(99)'"
        await said(channel, f"(nohup {hog} 2>&1 &) | head -n 1")
    await shop.engine.freeze(box)
    key = docker("inspect", "-f", "{{.Id}}", box)
    async with workshop(DockerEngine()) as other:
        assert isinstance(other.engine, DockerEngine)
        asked = memory.asked(other.engine.api, key)
        held = memory.held(other.engine.api, key)
        assert memory.asked(other.engine.api, "no-such-container") is None
    assert asked is not None
    assert held is not None
    assert asked > 45_000_000
    assert abs(held - asked) < 2 * MEBI
