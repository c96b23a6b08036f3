"""Settings: the documented file, variables over it, and what is refused."""

import re
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from box_mcp.cli import main
from box_mcp.domain.catalogue import Catalogue, Order
from box_mcp.domain.models import Price
from box_mcp.settings import Settings, load

DOCUMENTED = Path(__file__).parent.parent / "configs" / "local.toml"
COMMENTED = re.compile(r"^# (\w+) = ", re.MULTILINE)
COMMENTED_TABLE = re.compile(r"^# \[(\w+)\]$", re.MULTILINE)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only what a test sets itself counts."""
    others = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "ANTHROPIC_API_KEY", "OPENAI_API_KEY")
    for name in ("BOX_MCP_CONFIG", "BOX_MCP_WARM_MAX", *others):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


def written(directory: Path, text: str) -> Path:
    path = directory / "settings.toml"
    path.write_text(text)
    return path


def test_local_toml_documents_every_setting_and_no_other() -> None:
    text = DOCUMENTED.read_text()
    top = text[: text.index("[env]")]
    commented = {*COMMENTED.findall(top), *COMMENTED_TABLE.findall(text)}
    named = set(tomllib.loads(text)) | commented
    assert named == set(Settings.model_fields)


def test_local_toml_says_the_defaults() -> None:
    assert load(DOCUMENTED).model_dump() == Settings().model_dump()


def test_each_setting_in_local_toml_has_words_above_it() -> None:
    paragraphs = DOCUMENTED.read_text().split("\n\n")
    bare = [p for p in paragraphs if not p.lstrip().startswith(("#", "stop_after"))]
    assert bare == []


def test_a_variable_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "warm_max = 3\nmax_boxes = 7\n")
    monkeypatch.setenv("BOX_MCP_WARM_MAX", "2")
    assert (load(path).warm_max, load(path).max_boxes) == (2, 7)


@pytest.mark.parametrize("step", ["pause_after", "stop_after", "delete_after"])
def test_a_step_of_the_ladder_can_be_switched_off(step: str, tmp_path: Path) -> None:
    settings = load(written(tmp_path, f'{step} = "off"\n'))
    assert getattr(settings.policy(), step) is None


def test_who_shares_a_server_names_no_image_but_those_of_its_settings(tmp_path: Path) -> None:
    text = 'image = "own:1"\n[profiles.web]\nimage = "node:22"\n'
    settings = load(written(tmp_path, text))

    def named(catalogue: Catalogue) -> list[str]:
        images = ("own:1", "node:22", "python:3", "box-mcp:server", "sha256:0123", "", "own:11")
        return [image for image in images if not catalogue.beyond(Order(image=image))]

    assert len(named(settings.catalogue())) == 7, "it is theirs who started the server"
    assert named(settings.catalogue(shared=True)) == ["own:1", "node:22", ""]
    ((told),) = settings.catalogue(shared=True).beyond(Order(image="python:3"))
    assert told == "image 'python:3' (allowed: own:1, node:22)"
    more = load(written(tmp_path, f'{text}[ceiling]\nimages = ["python:*"]\n'))
    for shared in (False, True):
        assert named(more.catalogue(shared=shared)) == ["own:1", "python:3", ""]
    assert more.catalogue(shared=True).spec(Order(profile="web")).image == "node:22"


def test_one_size_can_be_changed_by_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOX_MCP_SIZES", '{"tiny": {"cpus": 0.5, "memory": 0.25}}')
    monkeypatch.setenv("BOX_MCP_SIZE", "tiny")
    spec = load().spec()
    assert (spec.cpus, spec.memory) == (0.5, 256 * 1024**2)


ROUTE = """
[routes.work]
upstream = "https://example.org/base"
credential = { variable = "TOKEN" }
"""


@pytest.mark.parametrize(
    "text",
    [
        "no_such_setting = 1",
        "pause_after = 0",
        "warm_min = -1",
        '[profiles.it]\nsize = "gigantic"',
        'size = "gigantic"',
        'subnets = "10.213.0.0/99"',
        'log_level = "LOUD"',
        "[sizes]\nsmall = { cpus = 1, memory = 1, disk = 5 }",
        '[profiles.it]\nroutes = ["work"]',
        ROUTE.replace("work", "'../work'"),
        ROUTE.replace("https", "ssh"),
        ROUTE.replace("https", "http"),
        ROUTE.replace("example.org", "me:secret@example.org"),
        ROUTE.replace('variable = "TOKEN"', ""),
        ROUTE.replace('"TOKEN"', '"TOKEN", helper = true'),
        f'{ROUTE}access = "everything"',
        'harness = "nobody\'s"',
        '[profiles.it]\nharness = "nobody\'s"',
        '[harnesses.codex]\ncommand = ["it"]',
        "[harnesses.mine]\ncommand = []",
        '[models.it]\napi = "vertex"\ncredential = { variable = "TOKEN" }',
        '[models.it]\napi = "openai"\nupstream = "http://a.b"\ncredential = { variable = "K" }',
        "[prices]\nit = { input = -1, output = 1 }",
    ],
)
def test_what_can_not_be_meant_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        load(written(tmp_path, text))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("repositories = []", "at least 1"),
        ('repositories = ["https://example.org/me/app"]', "OWNER/NAME"),
        ('repositories = ["me/app.git"]', "OWNER/NAME"),
        ('repositories = ["/me/*"]', "OWNER/NAME"),
        ('api = "example.org/api"', "'api' is no URL"),
        ('api = "http://example.org/api"', "'api' is .* in clear"),
    ],
)
def test_a_route_that_could_lead_nowhere_is_refused(more: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=rf"routes\.work(?s:.)*{words}"):
        load(written(tmp_path, ROUTE + more))


def test_a_password_in_an_upstream_is_not_told(tmp_path: Path) -> None:
    path = written(tmp_path, ROUTE.replace("example.org", "me:hush@example.org"))
    done = CliRunner().invoke(main, ["--config", str(path), "doctor"])
    assert done.exit_code == 1
    assert "\n  routes.work: The argument 'upstream' must be a URL" in done.output
    assert "hush" not in done.output


def test_a_file_that_was_named_must_exist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nowhere.toml")


def test_settings_can_not_be_changed_afterwards() -> None:
    with pytest.raises(ValidationError):
        load().warm_max = 5  # pyright: ignore[reportAttributeAccessIssue]


def test_paths_may_start_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load(written(tmp_path, 'state_dir = "~/state"')).state_dir == tmp_path / "state"


def test_images_trust_what_this_machine_was_told_to_trust(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert load().authorities() is None
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "bundle.pem"))
    assert load().authorities() == tmp_path / "bundle.pem"
    own = written(tmp_path, 'ca_certificates = "/etc/own.pem"')
    assert load(own).authorities() == Path("/etc/own.pem")


@pytest.mark.parametrize(
    ("upstream", "more", "forge", "api"),
    [
        ("https://github.com", "", "github", "https://api.github.com"),
        ("https://gitlab.com/", "", "gitlab", "https://gitlab.com"),
        ("https://example.org", "", None, ""),
        ("http://127.0.0.1:8080", "", None, ""),
        ("http://[::1]:8080", "", None, ""),
        ("http://localhost", "", None, ""),
        ("https://example.org", 'forge = "github"', "github", "https://example.org/api/v3"),
        (
            "https://example.org",
            'forge = "gitlab"\napi = "https://x.org"',
            "gitlab",
            "https://x.org",
        ),
    ],
)
def test_a_route_finds_the_api_of_its_forge(
    upstream: str, more: str, forge: str | None, api: str, tmp_path: Path
) -> None:
    text = ROUTE.replace("https://example.org/base", upstream) + more
    (route,) = load(written(tmp_path, text)).credential_routes()
    assert (route.name, route.forge, route.api) == ("work", forge, api)


def test_a_route_reads_and_no_more_unless_it_is_told_to(tmp_path: Path) -> None:
    text = ROUTE + 'repositories = ["me/*", "team/app"]'
    (route,) = load(written(tmp_path, text)).credential_routes()
    assert str(route) == "work: read me/*, team/app at https://example.org/base"
    assert "TOKEN" not in str(route)


def test_without_settings_of_models_there_are_those_that_the_environment_has_keys_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Settings().model_routes() == ()
    monkeypatch.setenv("ANTHROPIC_API_KEY", "it")
    (route,) = Settings().model_routes()
    assert (route.name, str(route.upstream)) == ("anthropic", "https://api.anthropic.com")
    assert route.serves("local")
    assert not route.serves("alice"), "the environment is of whoever started the server"
    monkeypatch.setenv("OPENAI_API_KEY", "it")
    assert [route.name for route in Settings().model_routes()] == ["anthropic", "openai"]


def test_models_can_be_switched_off_or_named_whatever_keys_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "it")
    assert load(written(tmp_path, 'models = "off"\n')).model_routes() == ()
    own = '[models.own]\napi = "openai"\ncredential = {variable = "OWN_KEY"}\n'
    assert [route.name for route in load(written(tmp_path, own)).model_routes()] == ["own"]


def test_caches_cost_as_input_does_unless_it_is_said(tmp_path: Path) -> None:
    text = (
        '[prices]\n"a-*" = {input = 1, output = 2, cache_read = 0.1}\na-b = {input = 9, output = 9}'
    )
    prices = load(written(tmp_path, text)).model_prices()
    assert prices.of("a-b") == Price(input=1, output=2, cache_read=0.1, cache_write=1.25)
    assert prices.of("nobody's") is None


ISSUER = """
[oauth]
issuer = "https://id.example.org/realms/team"
"""


def test_an_issuer_is_believed_for_this_server_unless_another_audience_is_named(
    tmp_path: Path,
) -> None:
    named = load(written(tmp_path, ISSUER)).oauth
    assert named is not None
    assert named.described("https://here/mcp").audience == "https://here/mcp"
    other = load(written(tmp_path, f'{ISSUER}audience = "api://boxes"\n')).oauth
    assert other is not None
    assert other.described("https://here/mcp").audience == "api://boxes"


def test_the_documented_issuer_can_be_used(tmp_path: Path) -> None:
    shown = DOCUMENTED.read_text().partition("# [oauth]\n")[2].splitlines()
    lines = [line.removeprefix("# ") for line in shown if line.startswith("# ")]
    introspected = [line for line in lines if not line.startswith("jwks_url")]
    by_keys = [line for line in lines if not line.startswith("introspection_url")]
    for chosen in (introspected, by_keys):
        settings = load(written(tmp_path, "\n".join(["[oauth]", *chosen])))
        assert settings.oauth is not None
        assert settings.oauth.described("").scopes.keys() == {"developers", "auditors"}


@pytest.mark.parametrize(
    "line",
    [
        'issuer = "http://id.example.org"',
        'issuer = "https://id.example.org/?a=b"',
        'issuer = "https://me:secret@id.example.org"',
        'jwks_url = "http://keys.example.org"',
        'introspection_url = "https://id.example.org/i"',
        'introspection_url = "https://id.example.org/i"\nclient_id = "me"',
        'principal_claim = ""',
        'scopes = { developers = ["everything"] }',
        'scopes = { "all developers" = ["boxes"] }',
        'scopes = { "" = ["boxes"] }',
        'scopes = { \'a"b\' = ["boxes"] }',
        'default_scopes = ["boxes:all"]',
    ],
)
def test_an_issuer_that_could_not_be_believed_is_refused_at_start(
    line: str, tmp_path: Path
) -> None:
    issuer = "" if line.startswith("issuer") else 'issuer = "https://id.example.org"\n'
    with pytest.raises(ValidationError):
        load(written(tmp_path, f"[oauth]\n{issuer}{line}\n"))


def test_tokens_are_judged_in_one_way(tmp_path: Path) -> None:
    client = 'client_id = "a"\nclient_secret = { variable = "B" }\n'
    urls = 'jwks_url = "https://a.example.org"\nintrospection_url = "https://a.example.org/i"\n'
    with pytest.raises(ValidationError, match="not by both"):
        load(written(tmp_path, f"{ISSUER}{urls}{client}"))


@pytest.mark.parametrize(
    "domain", ["https://ports.example.org", ".example.org", "a..b", "a/b", "*"]
)
def test_ports_are_exposed_below_what_is_a_name(domain: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        load(written(tmp_path, f'[http]\nports_domain = "{domain}"\n'))
    named = load(written(tmp_path, '[http]\nports_domain = "ports.example.org"\n'))
    assert named.http.ports_domain == "ports.example.org"
