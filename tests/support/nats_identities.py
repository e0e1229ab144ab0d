"""NATS identities for the tests: nkeys, and the chain of JWTs behind a credentials file."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import nkeys


def key_pair(prefix: int = nkeys.PREFIX_BYTE_USER) -> nkeys.KeyPair:
    return nkeys.from_seed(bytearray(nkeys.encode_seed(os.urandom(32), prefix)))


def public(keys: nkeys.KeyPair) -> str:
    return keys.public_key.decode()


def seed(keys: nkeys.KeyPair) -> str:
    return bytes(keys.seed).decode()


def _encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).decode().rstrip("=")


def _jwt(kind: str, subject: nkeys.KeyPair, issuer: nkeys.KeyPair, rules: dict[str, Any]) -> str:
    claims = {"iss": public(issuer), "sub": public(subject), "name": kind, "iat": 1_600_000_000}
    claims["nats"] = {"type": kind, "version": 2, **rules}
    claims["jti"] = base64.b32encode(hashlib.sha256(json.dumps(claims).encode()).digest()).decode().rstrip("=")
    head = _encoded(json.dumps({"typ": "JWT", "alg": "ed25519-nkey"}).encode())
    body = f"{head}.{_encoded(json.dumps(claims).encode())}"
    return f"{body}.{_encoded(issuer.sign(body.encode()))}"


class Operator:
    """An operator with one account: a server configuration that trusts it, and credentials for users of it."""

    def __init__(self) -> None:
        operator = key_pair(nkeys.PREFIX_BYTE_OPERATOR)
        self._account = key_pair(nkeys.PREFIX_BYTE_ACCOUNT)
        self._operator_jwt = _jwt("operator", operator, operator, {})
        unlimited = {"subs": -1, "conn": -1, "leaf": -1, "imports": -1, "exports": -1, "data": -1, "payload": -1}
        self._account_jwt = _jwt("account", self._account, operator, {"limits": {**unlimited, "wildcards": True}})

    def configure(self, path: Path) -> Path:
        path.write_text(
            f"operator: {self._operator_jwt}\nresolver: MEMORY\n"
            f"resolver_preload: {{ {public(self._account)}: {self._account_jwt} }}\n"
        )
        return path

    def credentials(self, path: Path) -> Path:
        """A file with a new user's JWT and seed."""
        user = key_pair()
        jwt = _jwt("user", user, self._account, {"subs": -1, "data": -1, "payload": -1})
        path.write_text(
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{seed(user)}\n------END USER NKEY SEED------\n"
        )
        return path
