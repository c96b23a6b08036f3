"""What never leaves the user's machine, and what never gets there, whatever it is disguised as."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_mcp.domain.hostfiles import (
    SECRETS,
    STARTS_CODE,
    Tree,
    canonical,
    stays_inside,
    why_not_allow,
    why_not_link,
    why_not_on_windows,
    why_not_read,
    why_not_together,
    why_not_write,
)

NEVER_WRITTEN = [
    ".git",
    ".git/hooks/pre-commit",
    "deep/below/.git/config",
    "sub/.GIT",
    ".config/box_mcp/config.toml",
    ".hg/hgrc",
    ".jj/repo/config.toml",
    ".sl/config",
    ".pre-commit-config.yaml",
    ".mcp.json",
    ".claude/settings.json",
    ".github/hooks/x.json",
    ".vscode/tasks.json",
    ".vs/app/v17/.suo",
    ".dir-locals-2.el",
    "_vimrc",
    ".mise.local.toml",
    "mise/config.toml",
    ".pdbrc",
    ".RData",
    "sitecustomize.py",
    ".cargo/config.toml",
    ".bundle/config",
    ".yarn/releases/yarn-4.0.0.cjs",
    ".cursor/mcp.json",
    ".idea/workspace.xml",
    ".codex/config.toml",
    ".gemini/settings.json",
    ".devcontainer/devcontainer.json",
    ".husky/pre-commit",
    ".envrc",
    ".bashrc",
    ".bash_profile",
    ".bash_login",
    ".bash_logout",
    ".profile",
    ".zshrc",
    ".zshenv",
    ".zprofile",
    ".zlogin",
    ".inputrc",
    ".config/fish/config.fish",
    "Documents/PowerShell/Microsoft.PowerShell_profile.ps1",
    ".gitconfig",
    ".npmrc",
    ".yarnrc.yml",
    ".pypirc",
    ".ssh/authorized_keys",
    "desktop.ini",
    "autorun.inf",
    "innocent.lnk",
    ".config/autostart/x.desktop",
    ".git.",
    ".git ",
    ".git . .",
    ".git::$INDEX_ALLOCATION",
    ".git:stream",
    "GIT~1",
    "git~2/hooks",
    "GI7EBA~1",
    "MCP~1.JSO",
    "CLAUDE~1",
    ".g\u200cit",
    "\ufeff.git",
    ".gi\u0301t",
    "\uff0e\uff47\uff49\uff54",
    ".g\u0131t",
    ".git\\hooks",
    "a\\.git\\config",
    ".git\n",
    ".\udce9git",
    ".m\u2060cp.json",
    ".ba\u017fhrc",
]

NEVER_READ = [
    ".env",
    ".ENV",
    ".env.production",
    "deploy/prod.env",
    ".netrc",
    ".ssh/config",
    "id_rsa",
    "keys/id_ed25519",
    "server.pem",
    "tls.KEY",
    "x.p12",
    "x.pfx",
    "x.jks",
    "x.keystore",
    ".aws/credentials",
    ".azure/accessTokens.json",
    ".gnupg/pubring.kbx",
    ".kube/config",
    ".docker/config.json",
    ".npmrc",
    ".pypirc",
    ".git-credentials",
    ".git",
    ".git/config",
    "sub/.git/config",
    ".config/gh/hosts.yml",
    ".config/gcloud/credentials.db",
    ".claude/.credentials.json",
    ".codex/auth.json",
    "passwords.kdbx",
    "terraform.tfstate",
    "terraform.tfstate.backup",
    "service-account-prod.json",
    ".bash_history",
    "ssh_host_ed25519_key",
    ".authinfo.gpg",
    "pip.conf",
    ".bundle/config",
    ".gradle/gradle.properties",
]

ORDINARY = [
    ".tool-versions",
    "rust-toolchain.toml",
    "",
    "main.py",
    "src/app/index.ts",
    "git",
    "gitlike/x",
    ".github/workflows/ci.yml",
    ".gitignore",
    ".gitattributes",
    ".gitmodules",
    ".editorconfig",
    ".dockerignore",
    "Makefile",
    "scripts/run.sh",
    "config/fish.py",
    "docker/config.json",
    "naïve café/Ω.txt",
    "notes:today.txt",
    "file~1.txt",
    "main.c~",
    "CLAUDE.md",
    "AGENTS.md",
    ".yarn/cache/left-pad.zip",
    "Cargo.toml",
    "pyproject.toml",
    "aux.c",
    "startup/main.py",
]


@pytest.mark.parametrize("path", NEVER_WRITTEN)
def test_what_would_act_by_itself_is_never_written(path: str):
    assert why_not_write(path)
    assert Tree("top").why_not(path)


@pytest.mark.parametrize("path", NEVER_READ)
def test_credentials_are_never_read(path: str):
    assert why_not_read(path)


@pytest.mark.parametrize("path", ORDINARY)
def test_ordinary_files_go_both_ways(path: str):
    assert why_not_read(path) == why_not_write(path) == ""
    assert Tree("top").why_not(path) == ""


@pytest.mark.parametrize("path", [".env.example", "x/.env.sample", ".env.template", "id_rsa.pub"])
def test_what_only_looks_like_a_secret_is_read(path: str):
    assert why_not_read(path) == ""


LITERAL = [
    pattern
    for patterns in STARTS_CODE.values()
    for pattern in patterns.split()
    if "*" not in pattern
]

INVISIBLE = st.text(
    st.sampled_from("\u200b\u200c\u200d\u200e\u202a\u206a\ufeff\u00ad\u0301\ufe0f\u034f\x07\u3164"),
    max_size=2,
)


@st.composite
def disguised(draw: st.DrawFn) -> str:
    """A name of the table as another file system might show it."""

    def letter(plain: str) -> str:
        wide = chr(ord(plain) + 0xFEE0) if "!" <= plain <= "~" and plain != "/" else plain
        return draw(st.sampled_from([plain, plain.upper(), wide])) + draw(INVISIBLE)

    names = draw(st.sampled_from(LITERAL)).split("/")
    tail = st.sampled_from(["", ".", " ", ". .", ":x", "::$DATA", ".:x:$DATA"])
    shown = ["".join(map(letter, name)) + draw(tail) for name in names]
    return "/".join(unicodedata.normalize("NFC", name) for name in shown)


@given(disguised(), st.sampled_from(["", "a/", "a/b c/"]), st.sampled_from(["", "/x", "/x/y"]))
def test_no_disguise_gets_a_guarded_name_through(name: str, above: str, below: str):
    assert why_not_write(above + name + below)


@given(st.text(max_size=30))
def test_the_canonical_form_of_a_path_is_its_own(path: str):
    once = canonical(path)
    assert canonical("/".join(once)) == once


def test_each_pattern_of_the_tables_matches_itself():
    for pattern in (p.replace("*", "x") for t in STARTS_CODE.values() for p in t.split()):
        assert why_not_write(pattern), pattern
    for pattern in (p.replace("*", "x") for t in SECRETS.values() for p in t.split()):
        assert why_not_read(pattern), pattern


@pytest.mark.parametrize("order", [("HEAD", "objects", "refs"), ("refs", "head.", "ObJects")])
def test_a_bare_repository_is_recognised_by_what_is_in_it(order: tuple[str, str, str]):
    tree = Tree("top")
    first, second, third = order
    assert tree.why_not(f"x/{first}") == tree.why_not(f"x/{second}") == ""
    assert tree.why_not(f"y/{third}") == ""
    assert "git repository" in tree.why_not(f"x/{third}")
    assert why_not_together(["HEAD", "x", "objects", "refs"])
    assert not why_not_together(["HEAD", "objects"])


def test_a_repository_whose_parts_are_elsewhere_is_recognised_as_well():
    tree = Tree("top")
    assert tree.why_not("x/CommonDir") == tree.why_not("y/HEAD") == ""
    assert "git repository" in tree.why_not("x/HEAD")


@pytest.mark.parametrize("top", [".git", "x/.git/hooks", ".claude", ".config/fish"])
def test_where_a_tree_goes_counts_as_well(top: str):
    assert Tree(top).why_not("")
    assert Tree(top).why_not("harmless.txt")


@pytest.mark.parametrize(
    ("path", "target"),
    [("a", "b"), ("a/b", "../c"), ("a/b/c", "../../d/e"), ("a", "./b/./c"), ("a/b", "..")],
)
def test_a_link_within_a_tree_is_kept(path: str, target: str):
    assert stays_inside(path, target)
    assert why_not_link(path, target) == ""


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("a", "/etc/passwd"),
        ("a", ".."),
        ("a", "../x"),
        ("a/b", "../../x"),
        ("a/b", "c/../../../x"),
        ("a/b/d", "e/.."),
        ("a", "C:/x"),
        ("a", "C:\\x"),
        ("a", "\\\\host\\share"),
        ("", "b"),
        ("a", "//host/share"),
    ],
)
def test_a_link_that_could_lead_out_of_its_tree_is_not(path: str, target: str):
    assert not stays_inside(path, target)
    assert why_not_link(path, target)


def test_a_link_to_what_is_never_written_is_not_made_either():
    assert why_not_link("a/innocent", "../.git/hooks/pre-commit")
    assert why_not_link("innocent", ".GIT")


@pytest.mark.parametrize(
    "directory", ["/home/u/.ssh", "/home/u/.claude", "/home/u/x/.git", "/home/u/.config/fish"]
)
def test_a_directory_of_credentials_or_settings_is_none_to_allow(directory: str):
    assert why_not_allow(directory)


@pytest.mark.parametrize(
    "directory", ["/home/u/x", "/home/u/x/.claude/worktrees/y", "/home/u/.codex/worktrees/1/x"]
)
def test_a_project_is_one_to_allow(directory: str):
    assert why_not_allow(directory) == ""


@pytest.mark.parametrize(
    "path",
    ["NUL", "a/con.txt", "COM1", "lpt9.x", "a:b", "a\\..\\..\\b", "a?", "x.", "x ", "a\x01", "aux"],
)
def test_windows_is_spared_names_that_it_takes_for_something_else(path: str):
    assert why_not_on_windows(path)
    assert Tree("top", windows=True).why_not(path)
    assert not why_not_on_windows("a/contents.txt")
