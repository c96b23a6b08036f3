"""Whose failure was it? Exceptions of docker-py and of its HTTP library become ours, here alone."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from box_mcp.errors import (
    BoxError,
    EngineForbidden,
    EngineRefused,
    EngineStalled,
    EngineUnreachable,
    ImageMissing,
    ImageUnusable,
)


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
    except errors.APIError as error:
        raise _refusal(operation, image, str(error.explanation or error)) from error
    except (requests.exceptions.ReadTimeout, TimeoutError) as error:
        raise EngineStalled(operation, timeout) from error
    except (errors.DockerException, requests.exceptions.RequestException, OSError) as error:
        cause = _root_cause(error)
        kind = EngineForbidden if isinstance(cause, PermissionError) else EngineUnreachable
        raise kind(address, getattr(cause, "strerror", None) or str(cause)) from error


def _refusal(operation: str, image: str, detail: str) -> BoxError:
    if "No such image" in detail:
        return ImageMissing(image)
    if "python3" in detail and ("executable file not found" in detail or "no such file" in detail):
        return ImageUnusable(image, "it has no python3")
    if "unable to find user" in detail:
        return ImageUnusable(
            image, f"without sudo its commands run as a user that it lacks ({detail})"
        )
    return EngineRefused(operation, detail)


def _root_cause(error: BaseException) -> BaseException:
    """The innermost reason: docker-py wraps "Connection refused" four times."""
    reason = next((arg for arg in error.args if isinstance(arg, BaseException)), None)
    inner = error.__cause__ or error.__context__ or getattr(error, "reason", None) or reason
    if isinstance(inner, BaseException) and inner is not error:
        return _root_cause(inner)
    return error
