"""Which names are told where one is missing; pure functions."""

from __future__ import annotations

import pytest

from box_mcp.capabilities.missing import alike

NAMES = ["app.py", "App.tsx", "apps/", "main.py", "Makefile", "README.md", "caf\udce9", "a\nb"]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("APP.PY", ["app.py"]),
        ("makefile", ["Makefile"]),
        ("ap.py", ["app.py", "main.py"]),
        ("README", ["README.md"]),
        ("APPS", ["apps/"]),
        ("cafe", []),
        ("a b", []),
        ("setup.cfg", []),
    ],
)
def test_names_that_are_alike_are_told(name: str, found: list[str]):
    assert alike(name, NAMES) == found
