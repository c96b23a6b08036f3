"""A small OAuth authorization server on loopback: metadata, keys, introspection, and tokens.

Clients may register, and get tokens by a code (PKCE): whoever asks is alice, who agrees.
It mints whatever a test wants of it, good or not; `forged.py` has what others could try.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, parse_qsl, unquote_plus, urlencode, urlsplit
from uuid import uuid4

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt import get_algorithm_by_name

from tests.support.webserver import Exchange, Web, web

AUDIENCE = "https://boxes.example.org/mcp"
CLIENT, SECRET = "box mcp", "open:sesame/1234"
"""Who may ask about tokens. Both have characters that must be escaped in HTTP's Basic."""

LIFETIME = 3600  # s

_CURVES: Mapping[str, ec.EllipticCurve] = {
    "ES256": ec.SECP256R1(),
    "ES384": ec.SECP384R1(),
    "ES512": ec.SECP521R1(),
}


@cache
def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    """One for all tests: making it takes a tenth of a second."""
    return rsa.generate_private_key(65537, bits)


def new_key(algorithm: str) -> Any:
    """A private key that signs by `algorithm`."""
    if algorithm in _CURVES:
        return ec.generate_private_key(_CURVES[algorithm])
    return ed25519.Ed25519PrivateKey.generate() if algorithm == "EdDSA" else rsa_key()


@dataclass(frozen=True)
class Signer:
    """A private key, its name, and how it signs."""

    name: str
    algorithm: str
    private: Any = field(repr=False)

    @classmethod
    def new(cls, algorithm: str = "ES256") -> Signer:
        """With a name that no other has."""
        return cls(uuid4().hex[:12], algorithm, new_key(algorithm))

    def sign(self, data: bytes) -> bytes:
        """As JWS wants it."""
        return get_algorithm_by_name(self.algorithm).sign(data, self.private)

    def jwk(self, **more: Any) -> dict[str, Any]:
        """Its public key as it is published."""
        made = get_algorithm_by_name(self.algorithm).to_jwk(self.private.public_key(), as_dict=True)
        made.pop("key_ops", None)
        return {**made, "kid": self.name, "alg": self.algorithm, "use": "sig", **more}


def segment(data: object) -> str:
    """A part of a token: bytes as they are, other things as JSON."""
    raw = data if isinstance(data, bytes) else json.dumps(data, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def compact(head: object, payload: object, sign: Callable[[bytes], bytes]) -> str:
    """A token in JWS's compact form, whatever sense it makes."""
    text = f"{segment(head)}.{segment(payload)}"
    return f"{text}.{segment(sign(text.encode()))}"


class AuthorizationServer:
    """An issuer at `web`, below `path`, with one key at first."""

    def __init__(self, site: Web, path: str = "") -> None:
        self.web = site
        self.url = f"{site.url}{path}"
        self.signers = [Signer.new()]
        self.keys: dict[str, Any] | None = None
        """What is published instead of the signers' keys."""
        self.metadata: dict[str, Any] = {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "jwks_uri": f"{self.url}/keys?of=all",
            "registration_endpoint": f"{self.url}/register",
            "introspection_endpoint": f"{self.url}/introspect",
            "response_types_supported": ["code"],
            "code_challenge_methods_supported": ["S256"],
        }
        self.metadata_at = f"/.well-known/oauth-authorization-server{path}"
        self._opaque: dict[str, dict[str, Any]] = {}
        self._asked_for: dict[str, dict[str, str]] = {}
        """What was asked for by whoever got a code."""
        self._path = path
        site.handlers.append(self._answer)

    @property
    def signer(self) -> Signer:
        """Whose signatures its tokens bear."""
        return self.signers[-1]

    def rotate(self, algorithm: str = "ES256", *, keep: bool = True) -> Signer:
        """A new key; earlier ones are withdrawn unless they are kept."""
        self.signers = [*(self.signers if keep else ()), Signer.new(algorithm)]
        return self.signer

    def claims(self, subject: str = "alice", /, **claims: Any) -> dict[str, Any]:
        """What it says of a good token, but for `claims`; those that are ... are left out."""
        now = int(time.time())
        said = {
            "iss": self.url,
            "sub": subject,
            "aud": AUDIENCE,
            "iat": now,
            "exp": now + LIFETIME,
            "jti": uuid4().hex,
            "client_id": "an agent",
            "scope": "boxes",
            **claims,
        }
        return {name: value for name, value in said.items() if value is not ...}

    def head(self, **head: Any) -> dict[str, Any]:
        """The head of a good token, but for `head`; what is ... is left out."""
        known = {"typ": "at+jwt", "alg": self.signer.algorithm, "kid": self.signer.name, **head}
        return {name: value for name, value in known.items() if value is not ...}

    def mint(self, subject: str = "alice", /, **claims: Any) -> str:
        """A signed token."""
        return self.signed(self.claims(subject, **claims))

    def signed(self, payload: object, **head: Any) -> str:
        """A token with its own signature, whatever is in it."""
        return compact(self.head(**head), payload, self.signer.sign)

    def issue(self, subject: str = "alice", /, **claims: Any) -> str:
        """A token that tells nothing by itself."""
        token = f"opaque-{uuid4().hex}"
        self._opaque[token] = {"active": True, **self.claims(subject, **claims)}
        return token

    def revoke(self, token: str) -> None:
        """An opaque token is good no more."""
        del self._opaque[token]

    def asked(self, where: str) -> int:
        """How often it was asked for a path that ends so."""
        return sum(asked.path.endswith(where) for asked in self.web.asked)

    def _answer(self, exchange: Exchange) -> bool:
        path = exchange.asked.path
        if path == self.metadata_at:
            return _json(exchange, self.metadata)
        if path == f"{self._path}/keys":
            keys = self.keys or {"keys": [signer.jwk() for signer in self.signers]}
            return _json(exchange, keys)
        more = {
            f"{self._path}/introspect": self._introspect,
            f"{self._path}/register": self._register,
            f"{self._path}/authorize": self._authorize,
            f"{self._path}/token": self._token,
        }
        return path in more and more[path](exchange)

    def _introspect(self, exchange: Exchange) -> bool:
        form = parse_qs(b"".join(exchange.body()).decode())
        kind, _, proof = exchange.asked.header("Authorization").partition(" ")
        pair = base64.b64decode(proof).decode().split(":") if kind == "Basic" else []
        if [unquote_plus(one) for one in pair] != [CLIENT, SECRET]:
            return _json(exchange, {"error": "invalid_client"}, HTTPStatus.UNAUTHORIZED)
        return _json(exchange, self._opaque.get(form["token"][0], {"active": False}))

    def _register(self, exchange: Exchange) -> bool:
        client = json.loads(b"".join(exchange.body()))
        return _json(exchange, {**client, "client_id": uuid4().hex}, HTTPStatus.CREATED)

    def _authorize(self, exchange: Exchange) -> bool:
        """The person is alice, and says yes."""
        asked = dict(parse_qsl(urlsplit(exchange.asked.target).query))
        code = uuid4().hex
        self._asked_for[code] = asked
        back = urlencode({"code": code, "state": asked["state"], "iss": self.url})
        exchange.answer(HTTPStatus.FOUND, {"Location": f"{asked['redirect_uri']}?{back}"})
        return True

    def _token(self, exchange: Exchange) -> bool:
        form = dict(parse_qsl(b"".join(exchange.body()).decode()))
        asked = self._asked_for.pop(form["code"])
        verifier = hashlib.sha256(form["code_verifier"].encode()).digest()
        if segment(verifier) != asked["code_challenge"] or form["resource"] != asked["resource"]:
            return _json(exchange, {"error": "invalid_grant"}, HTTPStatus.BAD_REQUEST)
        token = self.mint(aud=asked["resource"], scope=asked["scope"])
        said = {"access_token": token, "token_type": "Bearer", "scope": asked["scope"]}
        return _json(exchange, {**said, "expires_in": LIFETIME})


@contextmanager
def authorization_server(path: str = "") -> Generator[AuthorizationServer, None, None]:
    """One for as long as the block."""
    with web() as site:
        yield AuthorizationServer(site, path)


def _json(exchange: Exchange, said: object, status: int = HTTPStatus.OK) -> bool:
    exchange.answer(status, {"Content-Type": "application/json"}, json.dumps(said).encode())
    return True
