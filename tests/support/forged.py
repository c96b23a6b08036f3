"""Tokens that no server may believe, by what is wrong with each.

Most are what somebody could make who has no key of the issuer's; others bear its signature, but
are for somebody or something else, or not good at this time.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support.issuer import AUDIENCE, AuthorizationServer, Signer, compact, segment

Forgery = Callable[[AuthorizationServer], str]

ELSEWHERE = "/attacker/keys"
"""A path at the issuer's own host where an attacker could have put keys."""

DEEP = b"[" * 2500 + b"]" * 2500


def _unsigned(algorithm: object) -> Forgery:
    return lambda issuer: compact(issuer.head(alg=algorithm), issuer.claims(), lambda _: b"")


def _by_public_key(form: PublicFormat, encoding: Encoding) -> Forgery:
    """What a verifier believes that takes a public key for a shared secret."""

    def forge(issuer: AuthorizationServer) -> str:
        secret = issuer.signer.private.public_key().public_bytes(encoding, form)
        return compact(issuer.head(alg="HS256"), issuer.claims(), _mac(secret))

    return forge


def _mac(secret: bytes) -> Callable[[bytes], bytes]:
    return lambda data: hmac.new(secret, data, hashlib.sha256).digest()


def _by_stranger(algorithm: str = "ES256", **head: Any) -> Forgery:
    """With a key of the attacker's, whatever its head says of that key."""

    def forge(issuer: AuthorizationServer) -> str:
        signer = Signer.new(algorithm)
        told = {
            name: value(issuer, signer) if callable(value) else value
            for name, value in head.items()
        }
        return compact(issuer.head(**told), issuer.claims(), signer.sign)

    return forge


def _said(**claims: Any) -> Forgery:
    """Well signed, with other claims."""
    return lambda issuer: issuer.mint(**claims)


def _signed(payload: object, **head: Any) -> Forgery:
    """Well signed, whatever it says."""
    return lambda issuer: issuer.signed(payload, **head)


def _headed(**head: Any) -> Forgery:
    """Well signed, with another head."""
    return lambda issuer: issuer.signed(issuer.claims(), **head)


def _changed(change: Callable[[str], str]) -> Forgery:
    """A good token, changed afterwards."""
    return lambda issuer: change(issuer.mint())


def _late(**claims: float) -> Forgery:
    """With times that are so many seconds from now."""
    return lambda issuer: issuer.mint(**{k: int(time.time() + v) for k, v in claims.items()})


def _worded(end: bytes) -> Forgery:
    """With an `exp` that JSON has no word for."""
    return lambda issuer: issuer.signed(
        json.dumps(issuer.claims(exp=0)).encode().replace(b'"exp": 0', b'"exp": ' + end)
    )


def _parts(token: str) -> list[str]:
    return token.split(".")


def _as_another(token: str) -> str:
    head, _, signature = _parts(token)
    claims = {
        "iss": "x",
        "sub": "root",
        "aud": AUDIENCE,
        "exp": time.time() + 999,
        "scope": "boxes",
    }
    return ".".join((head, segment(claims), signature))


def _raw_head(head: bytes) -> Forgery:
    return lambda issuer: compact(head, issuer.claims(), issuer.signer.sign)


def _own_name(_: AuthorizationServer, signer: Signer) -> str:
    return signer.name


def _own_jwk(_: AuthorizationServer, signer: Signer) -> Mapping[str, Any]:
    return signer.jwk()


def _place(issuer: AuthorizationServer, _: Signer) -> str:
    return f"{issuer.web.url}{ELSEWHERE}"


FORGED: Mapping[str, Forgery] = {
    # Without a key of the issuer's.
    "no signature, alg none": _unsigned("none"),
    "no signature, alg None": _unsigned("None"),
    "no signature, alg nOnE": _unsigned("nOnE"),
    "no signature, alg empty": _unsigned(""),
    "no signature, alg null": _unsigned(None),
    "no signature, alg left out": _unsigned(...),
    "no signature, alg a list": _unsigned(["ES256", "none"]),
    "no signature, alg right": _unsigned("ES256"),
    "public key (PEM) as a secret": _by_public_key(PublicFormat.SubjectPublicKeyInfo, Encoding.PEM),
    "public key (DER) as a secret": _by_public_key(PublicFormat.SubjectPublicKeyInfo, Encoding.DER),
    "public key (point) as a secret": _by_public_key(PublicFormat.UncompressedPoint, Encoding.X962),
    "empty secret": lambda issuer: compact(issuer.head(alg="HS256"), issuer.claims(), _mac(b"")),
    "signature of zeros": lambda issuer: compact(
        issuer.head(), issuer.claims(), lambda _: bytes(64)
    ),
    "stranger's key under the issuer's name": _by_stranger(),
    "stranger's key without a name": _by_stranger(kid=...),
    "stranger's key under its own name": _by_stranger(kid=_own_name),
    "stranger's RSA key": _by_stranger("RS256", alg="RS256"),
    "stranger's Ed25519 key": _by_stranger("EdDSA", alg="EdDSA"),
    "key brought along (jwk)": _by_stranger(jwk=_own_jwk),
    "key brought along, under its own name": _by_stranger(jwk=_own_jwk, kid=_own_name),
    "key set elsewhere (jku)": _by_stranger(jku=_place, kid=_own_name),
    "certificate elsewhere (x5u)": _by_stranger(x5u=_place, kid=...),
    "certificate brought along (x5c)": _by_stranger(x5c=["MIIB"], kid=...),
    "key's name is a path": _by_stranger(kid="../../../../dev/null"),
    "key's name is a URL": _by_stranger(kid=_place),
    "key's name is SQL": _by_stranger(kid="' UNION SELECT 'key' --"),
    "key's name is a list": lambda issuer: issuer.signed(issuer.claims(), kid=[issuer.signer.name]),
    "key's name is a number": _headed(kid=1),
    "key's name is an object": _headed(kid={"kid": "1"}),
    "key's name is long": _headed(kid="k" * 2000),
    "key's name has a NUL": _headed(kid="\0"),
    "key's name is half a character": _headed(kid="\ud800"),
    "another algorithm than the key's": _headed(alg="RS256"),
    "an algorithm of no standard": _headed(alg="ES256K"),
    # Changed afterwards.
    "signature left out": _changed(lambda token: ".".join(_parts(token)[:2])),
    "signature emptied": _changed(lambda token: ".".join((*_parts(token)[:2], ""))),
    "signature cut short": _changed(lambda token: token[:-8]),
    "claims replaced": _changed(_as_another),
    "parts added": _changed(lambda token: f"{token}.{token}"),
    "padded": _changed(lambda token: f"{token}=="),
    "space inside": _changed(lambda token: token.replace(".", ". ", 1)),
    "line end behind": _changed(lambda token: f"{token}\n"),
    "not ASCII": _changed(lambda token: token.replace(".", "\u2024")),
    # Signed by the issuer, but no access token of this server's.
    "another server's": _said(aud="https://other.example.org/mcp"),
    "other servers'": _said(aud=["https://other.example.org", "https://boxes.example.org"]),
    "a longer URL's": _said(aud=f"{AUDIENCE}/more"),
    "a shorter URL's": _said(aud=AUDIENCE.removesuffix("/mcp")),
    "nobody's": _said(aud=...),
    "nobody's, as a list": _said(aud=[]),
    "audience an object": _said(aud={AUDIENCE: True}),
    "audience in a list in a list": _said(aud=[[AUDIENCE]]),
    "audience null": _said(aud=None),
    "another issuer's": _said(iss="https://other.example.org"),
    "issuer with a slash": lambda issuer: issuer.mint(iss=f"{issuer.url}/"),
    "issuer in a list": lambda issuer: issuer.mint(iss=[issuer.url]),
    "issuer left out": _said(iss=...),
    "for a proof of possession": _headed(typ="dpop+jwt"),
    "for a logout": _headed(typ="logout+jwt"),
    "type a number": _headed(typ=1),
    "bound to a key": _said(cnf={"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}),
    "demands what nobody understands": _headed(crit=["exp"]),
    "demands an unencoded payload": _headed(crit=["b64"], b64=False),
    # Not good at this time.
    "expired": _late(exp=-61),
    "expired long ago": _said(exp=0),
    "expired before the epoch": _said(exp=-1e300),
    "without an end": _said(exp=...),
    "end null": _said(exp=None),
    "end a text": _said(exp="9999999999"),
    "end a boolean": _said(exp=True),
    "end a list": _said(exp=[9999999999]),
    "end beyond all numbers": _said(exp=10**400),
    "end infinite": _worded(b"1e999"),
    "end not a number": _worded(b"NaN"),
    "not good yet": _late(nbf=90),
    "beginning a text": _said(nbf="0"),
    "beginning a boolean": _said(nbf=True),
    "issued in the future": _late(iat=90),
    # Of nobody.
    "without a subject": _said(sub=...),
    "subject empty": _said(sub=""),
    "subject null": _said(sub=None),
    "subject a number": _said(sub=1),
    "subject a list": _said(sub=["alice"]),
    "subject very long": _said(sub="a" * 1001),
    # No JSON object, or one that is hard to read.
    "claims a list": _signed([]),
    "claims a text": _signed("alice"),
    "claims null": _signed(None),
    "claims empty": _signed({}),
    "claims deeply nested": _signed(DEEP),
    "claims deep objects": _signed(b'{"a":' * 900 + b"1" + b"}" * 900),
    "claims no UTF-8": _signed(b'{"sub":"\xff"}'),
    "claims in UTF-16": lambda issuer: issuer.signed(str(issuer.claims()).encode("utf-16")),
    "claims half": _signed(b'{"sub":"alice"'),
    "claims a huge number": _signed(b"9" * 5000),
    "head deeply nested": _raw_head(DEEP),
    "head a list": _raw_head(b"[]"),
    "head no JSON": _raw_head(b"{"),
    "head nothing": _raw_head(b""),
    "longer than 8 KiB": _said(more="m" * 7000),
}
"""Each makes a token of its kind."""
