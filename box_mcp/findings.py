"""What `box-mcp doctor` found, each with its remedy."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How bad a finding is: only failures keep boxes, or the server, from working."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    verdict: Verdict
    subject: str
    detail: str
    remedy: str = ""


def ok(subject: str, detail: str) -> Finding:
    """Nothing to do."""
    return Finding(Verdict.OK, subject, detail)


def warning(subject: str, detail: str, remedy: str) -> Finding:
    """It works, but the user should know."""
    return Finding(Verdict.WARNING, subject, detail, remedy)


def failure(subject: str, detail: str, remedy: str) -> Finding:
    """It won't work before this is mended."""
    return Finding(Verdict.FAILURE, subject, detail, remedy)
