"""Imports go downwards only; this draws the layers and holds every module to them.

Imports inside functions and those for type checkers count too.
"""

from __future__ import annotations

import ast
import re
import sys
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import box_mcp

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(box_mcp.__file__).parent

# Each layer may import from those below it, and from its own.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"demo", "doctor", "http_doctor", "findings"},
    {"clients", "app", "httpd"},
    {"surface"},
    {"identity"},
    {"capabilities", "gateway"},
    {"listing"},
    {"lifecycle", "inventory"},
    {"pool"},
    {"janitor"},
    {"worker"},
    {"roster"},
    {"slots"},
    {"services"},
    {"channel", "store", "ledger", "settings"},
    {"database", "records", "disk"},
    {"tickets"},
    {"engines"},
    {"domain"},
    {"errors", "events", "boxd", "observe"},
]
FREE = {"__init__"}  # the version, which anybody may read
SETTINGS_READERS = {"http_doctor", "app", "httpd", "cli", "doctor", "demo"}

HOMES = {
    "mcp": ("surface", "app", "httpd", "demo"),
    "docker": ("engines",),
    "git": ("capabilities",),
    "github": ("gateway",),
    "gitlab": ("gateway",),
    "jwt": ("identity",),
}
IMPURE = {"anyio", "asyncio", "time", "os", "socket", "subprocess", "threading", "sqlite3"}


def module_name(path: Path) -> str:
    """The dotted name of a module."""
    parts = ("box_mcp", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports(module: str) -> Iterator[str]:
    """The dotted names of all that a module imports, with those of ours as modules."""
    path = MODULES[module]
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            source = ".".join(filter(None, (base, node.module)))
            for alias in node.names:
                name = f"{source}.{alias.name}"
                yield name if name in MODULES else source


def part(module: str) -> str:
    """The module or package right below box_mcp that `module` is in."""
    return [*module.split("."), "__init__"][1]


def ours(module: str) -> set[str]:
    return {name for name in imports(module) if name.partition(".")[0] == "box_mcp"}


def others(module: str) -> set[str]:
    top = {name.partition(".")[0] for name in imports(module)}
    return top - {"box_mcp", "__future__"}


def layer(name: str) -> int:
    """How high it lies."""
    found = [height for height, layer in enumerate(reversed(LAYERS)) if name in layer]
    assert found, f"box_mcp.{name} is in no layer: draw it into the picture"
    return found[0]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_nothing_that_lies_above_it(module: str):
    if part(module) in FREE:
        assert not ours(module)
        return
    for name in ours(module):
        if part(name) not in FREE:
            assert layer(part(name)) <= layer(part(module)), f"{module} imports {name}"


def test_no_imports_go_in_circles():
    TopologicalSorter({module: ours(module) - {module} for module in MODULES}).prepare()


@pytest.mark.parametrize("library", HOMES)
def test_a_library_is_imported_where_it_belongs_only(library: str):
    strangers = [
        module
        for module in MODULES
        if library in others(module) and part(module) not in HOMES[library]
    ]
    assert strangers == []


def test_settings_are_read_at_the_top_only():
    readers = {part(module) for module in MODULES if "box_mcp.settings" in ours(module)}
    assert readers <= SETTINGS_READERS


def test_sinks_know_events_only_and_are_known_at_the_top_only():
    sinks = [module for module in MODULES if part(module) == "observe"]
    for module in sinks:
        assert ours(module) <= {"box_mcp.events", *sinks}
    users = {part(module) for module in MODULES if ours(module) & set(sinks)}
    assert users <= {"app", "httpd", "cli", "observe"}


def test_channel_and_store_see_the_interface_of_engines_only():
    for module in ("box_mcp.channel", "box_mcp.pool"):
        engines = {name for name in ours(module) if part(name) == "engines"}
        assert engines <= {"box_mcp.engines.base"}
    assert not {name for name in ours("box_mcp.store") if part(name) == "engines"}


@pytest.mark.parametrize("module", [name for name in MODULES if part(name) == "domain"])
def test_the_domain_is_pure(module: str):
    assert not others(module) & IMPURE
    assert others(module) <= set(sys.stdlib_module_names)
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef)]


@pytest.mark.parametrize("module", [name for name in MODULES if part(name) == "boxd"])
def test_boxd_imports_the_standard_library_and_itself_only(module: str):
    assert others(module) <= set(sys.stdlib_module_names)
    assert {part(name) for name in ours(module)} <= {"boxd"}
    text = MODULES[module].read_text(encoding="utf-8")
    froms = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    assert all(node.level <= 1 for node in froms)
    assert "import box_mcp" not in text, "a box knows boxd by another name"
    assert "from box_mcp" not in text


def test_the_picture_of_the_layers_is_held_to():
    assert layer("cli") > layer("app") > layer("surface") > layer("lifecycle") > layer("pool")
    with pytest.raises(AssertionError, match="draw it into the picture"):
        layer("something_new")


def test_the_attacks_that_security_md_names_are_there():
    repository = ROOT.parent
    named = re.findall(r"`(tests/[\w/.]+)`", (repository / "docs" / "security.md").read_text())
    assert len(named) > 10
    assert [path for path in named if not (repository / path).exists()] == []
