"""What is never read and never written on the user's machine, by name, and why.

Everything else about the user's files is `capabilities.host`'s. Names are compared as the most
forgiving file system would read them: whatever some disk takes for ``.git`` is ``.git`` here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import translate
from functools import lru_cache

SECRETS: Mapping[str, str] = {
    "variables that are often secret": ".env .env.* *.env .envrc .dev.vars",
    "version control's own data": ".git .hg .svn .jj",
    "a private key": """
        id_rsa id_dsa id_ecdsa id_ecdsa_sk id_ed25519 id_ed25519_sk *.pem *.key *.p8 *.p12 *.pfx
        *.pkcs12 *.ppk *.jks *.keystore *.keytab *.ovpn *.agekey secring.* ssh_host_*_key""",
    "passwords": """
        .netrc _netrc .authinfo .authinfo.gpg .pgpass pgpass.conf .my.cnf .mylogin.cnf .htpasswd
        .vault-token .vault_pass .git-credentials .smbcredentials *.kdb *.kdbx .password-store
        keyrings keychains .mozilla .thunderbird wallet.dat""",
    "credentials of a service": """
        .ssh .aws .azure .gnupg .kube .s3cfg .boto .oci .databrickscfg .dockercfg
        .docker/config.json kubeconfig *.kubeconfig .config/gh .config/hub .config/glab-cli
        .config/gcloud .config/rclone rclone.conf .config/op .config/doctl .config/sops
        .config/git/credentials .config/github-copilot auth.json kaggle.json credentials.json
        .credentials .credentials.json client_secret*.json service-account*.json
        service_account*.json serviceaccount*.json *firebase-adminsdk*.json
        application_default_credentials.json local.settings.json secrets.toml secrets.yml
        secrets.yaml secrets.json""",
    "credentials of a package registry": """
        .npmrc .yarnrc .yarnrc.yml .pypirc pip.conf pip.ini .gem/credentials .bundle/config
        .cargo/credentials .cargo/credentials.toml .m2/settings.xml .gradle/gradle.properties
        .terraformrc credentials.tfrc.json""",
    "credentials of an agent": ".claude.json .gemini/oauth_creds.json .config/claude",
    "secrets in clear text": "*.tfstate *.tfstate.*",
    "what was typed": ".*_history fish_history .histfile .zhistory",
}
"""Left out of uploads: what the names hold, in the words that tell so."""

HARMLESS = """
    .env.example .env.sample .env.template .env.dist .env.defaults
    example.env sample.env template.env"""
"""Names as in SECRETS that hold no secret."""

STARTS_CODE: Mapping[str, str] = {
    "version control runs programs that it names": """
        .git .gitconfig .config/git .hg .hgrc .config/hg .sl .jj .config/jj .bzr _darcs .repo""",
    "git hooks are kept or named in it": """
        .husky .githooks .pre-commit-config.yaml lefthook.yml lefthook-local.yml .lefthook.yml
        .lefthook-local.yml""",
    "coding agents take orders from it": """
        .claude .claude.json .mcp.json .codex .gemini .cursor .windsurf .continue .roo .kiro
        .amazonq .opencode opencode.json opencode.jsonc .aider.conf.yml .agents .amp .clinerules
        crush.json .crush.json .junie .qwen .kilocode .trae .qoder .continuerc.json
        .github/hooks""",
    "editors run what it says": """
        .vscode *.code-workspace .vs *.suo .idea .ideavimrc .fleet .zed .nova .helix
        .lite_project.lua *.sublime-project .devcontainer .devcontainer.json .config/nvim .vim
        .vimrc .gvimrc .exrc _vimrc _gvimrc _exrc .nvimrc .nvim.lua .ycm_extra_conf.py
        .emacs .emacs.d .dir-locals.el .dir-locals-2.el""",
    "shells run it": """
        .envrc .bashrc .bash_profile .bash_login .bash_logout .bash_aliases .bash_completion
        .profile .zshrc .zshenv .zprofile .zlogin .zlogout .kshrc .mkshrc .cshrc .tcshrc .login
        .logout .inputrc .config/fish .config/powershell *profile.ps1 .xinitrc .xprofile .xsession
        .xsessionrc .pam_environment .screenrc .tmux.conf""",
    "it says which programs a name starts": """
        mise.toml mise.*.toml .mise.toml .mise.*.toml .mise mise/config.toml .config/mise.toml
        .config/mise""",
    "interpreters and debuggers run it": """
        .gdbinit .lldbinit .pdbrc .perldb .rprofile .renviron .rdata .irbrc .pryrc .ghci .ocamlinit
        .iex.exs sitecustomize.py usercustomize.py""",
    "package managers take orders and addresses from it": """
        .npmrc .yarnrc .yarnrc.yml .yarn/releases .yarn/plugins .pnpmfile.cjs .pnpmfile.mjs
        bunfig.toml .pypirc .bundle/config .cargo/config .cargo/config.toml .netrc _netrc .curlrc
        .wgetrc""",
    "this server takes its settings from it": "box_mcp/config.toml box_mcp/state.db",
    "it says who may log in, and how": """
        .ssh .gnupg .aws .azure .kube .docker/config.json .git-credentials .rhosts .forward""",
    "desktops run it, or reach out to other machines for it": """
        desktop.ini autorun.inf *.lnk *.scf *.url *.library-ms *.searchconnector-ms
        autostart launchagents launchdaemons programs/startup
        .config/systemd .config/environment.d""",
}
"""Never written: what acts on the user's machine without being run.

Only what a person starts on purpose is a file like any other: a script, a Makefile, a program, the
project's code and how its tools are set up. So is text for agents to read (CLAUDE.md, AGENTS.md):
it can ask for something, but what is then done, the client lets the user decide. What runs
elsewhere, as .github/workflows do, is reviewed there.
"""

REPOSITORIES = (frozenset({"head", "objects", "refs"}), frozenset({"head", "commondir"}))
"""Together in a directory they make it a git repository, without any .git."""

CHECKOUTS = re.compile(r"\.(claude|codex|cursor)/worktrees/")
"""Agents keep checkouts of whole projects there: what is below is none of their settings."""

FILLERS = str.maketrans("", "", "\u115f\u1160")
"""Letters that some file systems ignore, beside all controls, marks and formatting."""

SHORT_NAME = re.compile(r"(.{1,6})~\d+(\..{0,3})?", re.DOTALL)
HASHED = re.compile(r"..[0-9a-f]{4}", re.DOTALL)
DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\..*)?", re.DOTALL)
NOT_ON_WINDOWS = re.compile(r'[<>:"|?*\\\x00-\x1f]|[. ]$')
NAMES_REMEMBERED = 65_536  # so many different names cost their comparison only once


class Rules:
    """A table from reasons to patterns, for paths of any depth; `but` are harmless after all.

    With `short`, a name that Windows may take for the short one of such a thing (GIT~1) is none
    to touch either.
    """

    def __init__(self, table: Mapping[str, str], *, but: str = "", short: bool = False) -> None:
        self._but = frozenset(but.split())
        self._short = short
        self._names: dict[str, str] = {}
        self._runs: dict[str, list[tuple[tuple[str, ...], str]]] = {}
        globs: list[tuple[str, str]] = []
        for why, pattern in _patterns(table):
            *above, name = pattern.split("/")
            if above:
                self._runs.setdefault(name, []).append((tuple(above), why))
            elif "*" in name:
                globs.append((translate(name), why))
            else:
                self._names[name] = why
        self._globs = [(re.compile(glob), why) for glob, why in globs]
        literal = (part for _, pattern in _patterns(table) for part in pattern.split("/"))
        self._bare = {part.replace(".", "") for part in literal if "*" not in part}
        self._about: Callable[[str], str] = lru_cache(NAMES_REMEMBERED)(self._why)

    def why(self, path: str) -> str:
        """Why `path`, or a directory that it goes through, is none to touch; or nothing."""
        parts = canonical(path)
        for place, name in enumerate(parts):
            if why := self._about(name):
                return why
            for above, why in self._runs.get(name, ()):
                if parts[max(place - len(above), 0) : place] == above:
                    return why
        return ""

    def _why(self, name: str) -> str:
        if name in self._but:
            return ""
        if found := self._names.get(name):
            return found
        if self._short and self._is_short(name):
            return "Windows may take it for the short name of another"
        return next((why for glob, why in self._globs if glob.match(name)), "")

    def _is_short(self, name: str) -> bool:
        if not (found := SHORT_NAME.fullmatch(name)):
            return False
        stem = found[1]
        stems = [stem, stem[:2]] if HASHED.fullmatch(stem) else [stem]
        return any(known.startswith(one) for one in stems for known in self._bare)


def canonical(path: str) -> tuple[str, ...]:
    """The parts of `path` as the most forgiving file systems read them.

    Those know no case (all but Linux's), no difference between ways to write a letter, nor
    characters that nobody sees (Apple's, ext4 with casefold); they drop dots and spaces from the
    end, and take ``x:y`` for a part of ``x`` (Windows).
    """
    return tuple(part for name in path.split("/") for part in _canonical(name))


@lru_cache(NAMES_REMEMBERED)
def _canonical(name: str) -> tuple[str, ...]:
    if not name.isascii() or not name.isprintable():
        plain = unicodedata.normalize("NFKD", name).upper().casefold()
        plain = unicodedata.normalize("NFKD", plain).translate(FILLERS)
        name = "".join(c for c in plain if unicodedata.category(c)[0] not in "CM")
    parts = re.split(r"[/\\]", name.casefold())
    return tuple(part.partition(":")[0].rstrip(". ") for part in parts)


def why_not_read(path: str) -> str:
    """What `path`, as it is below an allowed directory, holds that must stay there; or nothing."""
    return _SECRETS.why(path)


def why_not_write(path: str) -> str:
    """Why `path`, as it is below an allowed directory, must not come out of a box; or nothing."""
    return _STARTS_CODE.why(path)


def why_not_allow(directory: str) -> str:
    """Why a directory can't be an allowed one, by its absolute path; or nothing."""
    path = CHECKOUTS.sub("", "/".join(canonical(directory)))
    return why_not_read(path) or why_not_write(path)


def why_not_on_windows(path: str) -> str:
    """Why Windows has no file of this name; or nothing."""
    for name in path.split("/"):
        if DEVICES.fullmatch(name.casefold()):
            return "Windows takes it for a device"
        if NOT_ON_WINDOWS.search(name):
            return "Windows has no such names"
    return ""


def stays_inside(path: str, target: str) -> bool:
    """Whether a link at `path` below the top of a tree to `target` surely stays in that tree.

    It may only climb first, from the directory that it is in, and not above the top: then it stays
    inside whatever other such links it goes through.
    """
    names = [name for name in target.split("/") if name not in ("", ".")]
    climbs = next((place for place, name in enumerate(names) if name != ".."), len(names))
    outside = not path or target.startswith("/") or ":" in target or "\\" in target
    return not (outside or climbs > path.count("/") or ".." in names[climbs:])


def why_not_link(path: str, target: str) -> str:
    """Why a link at `path` below the top of a tree must not come out of a box; or nothing."""
    if not stays_inside(path, target):
        return "it is a link that leads out of what is transferred"
    where = path.split("/")[:-1]
    for name in target.split("/"):
        where = where[:-1] if name == ".." else [*where, name]
    return why_not_write("/".join(where))


class Tree:
    """Looks at the names of one tree as they come out of a box, each after its directory."""

    def __init__(self, top: str, *, windows: bool = False) -> None:
        self._top = top
        self._windows = windows
        self._repositories: dict[str, set[str]] = {}

    def why_not(self, path: str) -> str:
        """Why the entry at `path`, below the top, must not be written; or nothing."""
        why = why_not_write(f"{self._top}/{path}" if path else self._top)
        if not why and self._windows:
            why = why_not_on_windows(path)
        return why or (self._completes_repository(path) if path else "")

    def _completes_repository(self, path: str) -> str:
        directory, _, name = path.rpartition("/")
        (*_, plain) = canonical(name)
        if not any(plain in together for together in REPOSITORIES):
            return ""
        parts = self._repositories.setdefault(directory, set())
        parts.add(plain)
        return why_not_together(parts)


def why_not_together(names: Iterable[str]) -> str:
    """Why a directory must not have all of these; or nothing."""
    parts = {part for name in names for part in canonical(name)}
    if any(together <= parts for together in REPOSITORIES):
        return "it makes its directory a git repository, whose settings run programs"
    return ""


def _patterns(table: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for why, patterns in table.items():
        for pattern in patterns.split():
            yield why, pattern


_SECRETS = Rules(SECRETS, but=HARMLESS)
_STARTS_CODE = Rules(STARTS_CODE, short=True)
