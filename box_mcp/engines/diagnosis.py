"""Whose failure was it? Exceptions of docker-py and of its HTTP library become ours, here alone."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TypeVar

from box_mcp.errors import (
    BoxError,
    EngineError,
    EngineForbidden,
    EngineRefused,
    EngineStalled,
    EngineUnreachable,
    ImageMissing,
    ImageUnusable,
)

E = TypeVar("E", bound=BaseException)


@contextmanager
def diagnosed(
    operation: str, address: str, timeout: float, image: str = ""
) -> Generator[None, None, None]:
    """Turns whatever `operation` raises into one of our errors."""
    import requests
    from docker import errors

    try:
        yield
    except BoxError:
        raise
    except errors.ImageNotFound:
        raise ImageMissing(image) from None
    except (errors.DockerException, requests.exceptions.RequestException, OSError) as error:
        refusal = _first(errors.APIError, error)
        if refusal is not None:
            raise _refusal(operation, image, str(refusal.explanation or refusal)) from error
        raise _silence(operation, address, timeout, error) from error


def _refusal(operation: str, image: str, detail: str) -> BoxError:
    if "No such image" in detail:
        return ImageMissing(image)
    if image and "python3" in detail and "executable file not found" in detail:
        return ImageUnusable(image, "it has no python3")
    return EngineRefused(operation, detail)


def _silence(operation: str, address: str, timeout: float, error: Exception) -> EngineError:
    """No answer came: for want of patience, of rights, or of an engine."""
    import requests
    import urllib3

    stalls = (
        TimeoutError,
        requests.exceptions.ReadTimeout,
        urllib3.exceptions.ReadTimeoutError,
    )
    connected = _first(requests.exceptions.ConnectTimeout, error) is None
    if connected and any(_first(kind, error) for kind in stalls):
        return EngineStalled(operation, timeout)
    kind = EngineUnreachable if _first(PermissionError, error) is None else EngineForbidden
    return kind(address, _word(error))


def _word(error: Exception) -> str:
    """The system's own reason, if any: docker-py wraps "Connection refused" four times."""
    reasons = [cause.strerror for cause in _causes(error) if isinstance(cause, OSError)]
    return next((reason for reason in reversed(reasons) if reason), str(error))


def _first(kind: type[E], error: BaseException) -> E | None:
    return next((cause for cause in _causes(error) if isinstance(cause, kind)), None)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """`error` and all that led to it, the outermost first."""
    seen: list[BaseException] = []
    cause: object = error
    while isinstance(cause, BaseException) and cause not in seen:
        yield cause
        seen.append(cause)
        wrapped = next((arg for arg in cause.args if isinstance(arg, BaseException)), None)
        cause = cause.__cause__ or cause.__context__ or getattr(cause, "reason", None) or wrapped
