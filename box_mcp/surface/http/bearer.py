"""Tokens as requests bring them, and what clients are told who have none that is good."""

from __future__ import annotations

import json
from collections.abc import Mapping
from urllib.parse import urlsplit

from box_mcp.identity.verifying import ProtectedResource
from box_mcp.surface.http.answers import Refused, Said

REALM = "box_mcp"
METADATA = "/.well-known/oauth-protected-resource"

NOT_SENT = (
    "No token was sent. Whoever runs this server of box_mcp makes one by `box-mcp token create`; "
    "it goes into the header `Authorization: Bearer TOKEN`"
)
NOT_GOOD = (
    "The token is not good here: it expired, was revoked, or is none of this server's. Whoever "
    "runs this server of box_mcp makes another by `box-mcp token create`"
)


def bearer(headers: Mapping[bytes, bytes], resource: ProtectedResource | None) -> str:
    """The token of a request; raises Refused where it has none."""
    kind, _, token = headers.get(b"authorization", b"").strip().partition(b" ")
    if kind.lower() != b"bearer" or not token:
        raise Refused(401, "no token", NOT_SENT, [challenge(resource)])
    return token.strip().decode("latin-1")


def bad_token(resource: ProtectedResource | None) -> Refused:
    """For a token that grants nothing, whyever. Some clients show the header alone."""
    challenged = challenge(resource, error="invalid_token", description=NOT_GOOD)
    return Refused(401, "bad token", NOT_GOOD, [challenged])


def challenge(
    resource: ProtectedResource | None, *, error: str = "", description: str = "", scope: str = ""
) -> tuple[bytes, bytes]:
    """The header that says what kind of token is wanted, and where one gets it."""
    parts = {
        "realm": REALM,
        "error": error,
        "error_description": description,
        "scope": scope or " ".join(resource.scopes if resource else ()),
        "resource_metadata": metadata_url(resource) if resource else "",
    }
    said = ", ".join(f'{name}="{value}"' for name, value in parts.items() if value)
    return b"www-authenticate", f"Bearer {said}".encode()


def metadata_url(resource: ProtectedResource) -> str:
    """Where the metadata of `resource` are (RFC 9728, 3.1)."""
    url = urlsplit(resource.url)
    return f"{url.scheme}://{url.netloc}{metadata_path(resource)}"


def metadata_path(resource: ProtectedResource) -> str:
    """The same without the server's name."""
    return METADATA + urlsplit(resource.url).path.rstrip("/")


def metadata(resource: ProtectedResource) -> Said:
    """What clients need to know to get a token (RFC 9728, 2)."""
    about: dict[str, str | list[str]] = {
        "resource": resource.url,
        "authorization_servers": [resource.issuer],
        "bearer_methods_supported": ["header"],
        "resource_name": REALM,
    }
    if resource.scopes:  # else its issuer gives them unasked
        about["scopes_supported"] = list(resource.scopes)
    return Said(200, json.dumps(about).encode(), b"application/json")
