"""Why git did not do it: its own words, read."""

from __future__ import annotations

import re

import pytest

from box_mcp.domain.gitadvice import CAUSES, MAX_SAID, cause_of, without_progress
from box_mcp.settings import Settings

SAID = [
    ("fatal: Remote branch x not found in upstream origin", "no branch or tag of this name"),
    ("fatal: could not read Username for 'https://h': terminal prompts disabled", "credential"),
    ("remote: HTTP Basic: Access denied\nfatal: Authentication failed for 'x'", "credential"),
    ("git@h: Permission denied (publickey).\nfatal: Could not read from remote", "no SSH key"),
    ("Host key verification failed.\nfatal: Could not read from remote repository.", "no SSH key"),
    ("remote: no\nfatal: unable to access 'x': The requested URL returned error: 403", "refused"),
    ("fatal: repository 'https://h/x/' not found", "no such repository"),
    ("fatal: '/x' does not appear to be a git repository\nCould not read from remote", "no such"),
    ("fatal: could not create work tree dir '/x': Permission denied", "may not write there"),
    ("error: No such remote 'origin'", "there is no remote origin"),
    ("tests fail\nerror: failed to push some refs to 'https://h/x'", "a hook refused it"),
    ("fatal: unable to access 'x': Could not resolve host: h", "can't be reached"),
    ("fatal: unable to access 'x': CONNECT tunnel failed, response 403", "can't be reached"),
    ("! [rejected] main -> main (fetch first)", "non-fast-forward"),
    ("!\trefs/heads/x:refs/heads/x\t[rejected] (stale info)", "the lease did not hold"),
    ("!\ta:b\t[remote rejected] (protected branch hook declined)", "the remote's own rules"),
    ("!\ta:b\t[remote rejected] (pre-receive hook declined)", "the remote's own rules"),
    ("fatal: transport 'ext' not allowed", "transport"),
    ("error: RPC failed; curl 92\nfatal: early EOF", "the connection broke"),
    ("fatal: unable to write file: No space left on device", "disk is full"),
    ("fatal: Unable to create '/w/.git/index.lock': File exists.", "another git works"),
    ("fatal: a branch named 'x' already exists", "there is a branch of this name"),
    ("fatal: detected dubious ownership in repository at '/w'", "belongs to another user"),
]


@pytest.mark.parametrize(("said", "reason"), SAID)
def test_what_git_says_is_explained(said: str, reason: str):
    cause = cause_of(said)
    assert cause is not None
    assert reason in cause.reason


def test_what_is_not_known_has_no_explanation():
    assert cause_of("fatal: the moon is in the wrong phase") is None


def test_advice_names_what_git_named():
    cause = cause_of("fatal: detected dubious ownership in repository at '/w {0}'")
    assert cause is not None
    assert "safe.directory '/w {0}'" in cause.advice


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("fatal: repository '/home/me/app' does not exist", True),
        ("fatal: '/home/me/app' does not appear to be a git repository", True),
        ("fatal: repository 'https://h/x/' not found", False),
    ],
)
def test_who_clones_a_path_is_told_how_users_own_repositories_are_called(said: str, told: bool):
    cause = cause_of(said)
    assert cause is not None
    assert ("host:/path" in cause.advice) is told


def test_settings_that_are_advised_are_there():
    advised = re.findall(r"\bgit_(?:name|email)\b|\buser_\w+", str(CAUSES))
    assert advised
    assert set(advised) <= Settings.model_fields.keys()


def test_every_pattern_is_one_and_no_placeholder_has_no_group():
    for pattern, cause in CAUSES:
        groups = re.compile(pattern).groups or 1
        needed = [int(number) for number in re.findall(r"\{(\d)\}", cause.reason + cause.advice)]
        assert all(number < groups for number in needed)


def test_progress_is_no_part_of_what_git_said():
    said = (
        "Cloning into 'x'...\nremote: Counting objects: 100% (3/3), done.\n"
        "Receiving objects: 40% (4/10), 1.2 MiB | 1 MiB/s\nTotal 3 (delta 0), reused 0 (delta 0)\n"
        "remote: See https://h/pull\nhint: Updates were rejected\nfatal: early EOF"
    )
    assert without_progress(said).splitlines() == [
        "Cloning into 'x'...",
        "remote: See https://h/pull",
        "fatal: early EOF",
    ]
    assert len(without_progress("x" * 2 * MAX_SAID)) <= MAX_SAID + 4
