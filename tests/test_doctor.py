"""What the doctor says of engines, disks and directories; no engine is asked."""

from dataclasses import replace
from pathlib import Path

import pytest

from box_mcp.doctor import Verdict, disk, engine, keyed, no_models, place, state_directory
from box_mcp.domain.models import Dialect, ModelRoute
from box_mcp.domain.routes import Credential, Route, parse_upstream
from box_mcp.engines.address import Address, Tls
from box_mcp.engines.survey import Survey
from box_mcp.settings import GIB

GOOD = Survey(
    address=Address("unix:///run/engine.sock"),
    version="27.1",
    api=(1, 46),
    system="linux",
    missing_limits=(),
    seccomp=True,
    remapped=True,
    runtimes=frozenset({"runc", "runsc"}),
    data="/var/lib/docker",
    free=50 * GIB,
)


def test_it_is_told_whether_root_in_a_box_is_nobody_outside() -> None:
    told = [
        finding.detail
        for remapped in (True, False)
        for finding in engine(replace(GOOD, remapped=remapped), None)
        if finding.subject == "users"
    ]
    assert [detail.startswith("root in a box is nobody") for detail in told] == [True, False]


def test_of_a_good_engine_there_is_nothing_bad_to_say() -> None:
    assert {finding.verdict for finding in engine(GOOD, "runsc")} == {Verdict.OK}
    assert disk(GOOD).verdict is Verdict.OK


@pytest.mark.parametrize(
    ("found", "runtime", "subject", "verdict"),
    [
        (replace(GOOD, api=(1, 40)), None, "engine", Verdict.FAILURE),
        (replace(GOOD, system="windows"), None, "engine", Verdict.FAILURE),
        (replace(GOOD, podman=True), None, "engine", Verdict.WARNING),
        (replace(GOOD, missing_limits=("memory",)), None, "limits", Verdict.WARNING),
        (replace(GOOD, seccomp=False), None, "seccomp", Verdict.WARNING),
        (GOOD, "kata", "runtime", Verdict.FAILURE),
    ],
)
def test_each_lack_of_an_engine_is_named_with_its_remedy(
    found: Survey, runtime: str | None, subject: str, verdict: Verdict
) -> None:
    (bad,) = [f for f in engine(found, runtime) if f.verdict is not Verdict.OK]
    assert (bad.subject, bad.verdict) == (subject, verdict)
    assert bad.remedy


TLS = Tls(Path("ca"), Path("cert"), Path("key"), verify=True)


@pytest.mark.parametrize(
    ("address", "verdict", "words"),
    [
        (Address(), Verdict.OK, "on this machine"),
        (Address("ssh://far"), Verdict.OK, "on another machine"),
        (Address("tcp://far:2376", TLS), Verdict.OK, "on another machine"),
        (Address("tcp://far:2375"), Verdict.WARNING, "is root on its machine"),
        (Address("tcp://far:2376", replace(TLS, verify=False)), Verdict.WARNING, "is not checked"),
    ],
)
def test_it_is_told_where_the_engine_is_and_what_that_means(
    address: Address, verdict: Verdict, words: str
) -> None:
    finding = place(replace(GOOD, address=address))
    assert finding.verdict is verdict
    assert words in finding.detail
    assert finding.remedy or verdict is Verdict.OK


def test_an_engine_whose_files_are_hidden_by_a_container_is_told() -> None:
    assert "its files are not" in place(replace(GOOD, free=None)).detail


@pytest.mark.parametrize(
    ("free", "verdict"),
    [(GIB // 2, Verdict.FAILURE), (2 * GIB, Verdict.WARNING), (None, Verdict.OK)],
)
def test_a_full_disk_is_told_before_it_hurts(free: int | None, verdict: Verdict) -> None:
    assert disk(replace(GOOD, free=free)).verdict is verdict


def test_a_state_directory_is_made_for_its_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state"
    assert state_directory(path).verdict is Verdict.OK
    assert path.stat().st_mode & 0o777 == 0o700


def test_a_state_directory_that_can_not_be_made_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    finding = state_directory(tmp_path / "file" / "state")
    assert finding.verdict is Verdict.FAILURE
    assert "Not a directory" in finding.detail


async def test_routes_are_told_with_whether_their_credential_can_be_had_and_never_what_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FORGE_TOKEN", "hush")
    (tmp_path / "token").write_text("hush\n")
    sources = [
        Credential(variable="FORGE_TOKEN"),
        Credential(file=str(tmp_path / "token")),
        Credential(variable="NO_TOKEN"),
        Credential(command=("sh", "-c", "echo hush; exit 3")),
    ]
    upstream = parse_upstream("https://example.org")
    found = [Route(f"r{at}", upstream, source) for at, source in enumerate(sources)]
    told = [finding async for finding in keyed("route", found)]
    assert [finding.verdict for finding in told] == [*[Verdict.OK] * 2, *[Verdict.WARNING] * 2]
    assert all(f"r{at}: read * at https://example.org. " in f.detail for at, f in enumerate(told))
    assert "NO_TOKEN is not set" in told[2].detail
    assert "`routes.r3.credential`" in told[3].remedy
    assert "hush" not in str(told)


async def test_models_are_told_as_routes_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_KEY", "hush")
    upstream = parse_upstream("https://llm.example.org/v1")
    found = [
        ModelRoute(
            variable.lower(), Dialect.OPENAI, upstream, Credential(variable=variable), ("a*",)
        )
        for variable in ("MODEL_KEY", "NO_KEY")
    ]
    there, missing = [finding async for finding in keyed("model", found)]
    assert there.verdict is Verdict.OK
    assert there.detail.startswith("model_key: openai, a* at https://llm.example.org/v1. ")
    assert missing.verdict is Verdict.WARNING
    assert "NO_KEY is not set" in missing.detail
    assert "`models.no_key.credential`" in missing.remedy
    assert "hush" not in str([there, missing])


def test_who_wants_no_models_is_not_told_how_to_get_some() -> None:
    alone = no_models(wanted=True, shared=False)
    assert "set ANTHROPIC_API_KEY or OPENAI_API_KEY" in alone.detail
    assert "API_KEY" not in no_models(wanted=False, shared=False).detail


def test_who_serves_others_is_not_told_of_keys_that_would_be_for_himself_alone() -> None:
    told = no_models(wanted=True, shared=True)
    assert "`models`" in told.detail
    assert "API_KEY" not in told.detail
