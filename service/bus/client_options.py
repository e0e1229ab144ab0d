"""The options of a nats-py client made from settings: TLS context, keys, signatures. Reads files, so it may block."""

import base64
import ssl
from pathlib import Path
from typing import Any

import nkeys
from nats.errors import Error

from .errors import BadBusSettings, refusing
from .settings import NatsSettings

FLUSH_TIMEOUT_S = 10.0
"""How long a publish waits for a server that does not read; nats-py's default is for ever."""


def client_options(settings: NatsSettings) -> dict[str, Any]:
    """The keyword arguments of `Client.connect`. Raises BadBusSettings for a missing or unusable file."""
    return {
        "servers": settings.servers,
        "name": settings.name,
        "inbox_prefix": settings.inbox_prefix,
        "connect_timeout": settings.connect_timeout_s,
        "reconnect_time_wait": settings.reconnect_wait_s,
        "pending_size": settings.pending_bytes,
        "flush_timeout": FLUSH_TIMEOUT_S,
        "tls_handshake_first": settings.tls_first,
        **_tls(settings),
        **_identity(settings),
    }


def _tls(settings: NatsSettings) -> dict[str, Any]:
    if not settings.wants_tls:
        return {}
    with refusing(f"NATS_CA {settings.ca}"):
        context = ssl.create_default_context(cafile=settings.ca)
    if settings.cert is not None:
        with refusing(f"NATS_CERT {settings.cert}, NATS_KEY {settings.key}"):
            context.load_cert_chain(settings.cert, settings.key)
    return {"tls": context}


def _identity(settings: NatsSettings) -> dict[str, Any]:
    """One identity: the credentials file, else the nkey, else user and password, else the token."""
    if settings.creds is not None:
        return _credentials(settings.creds)
    if settings.nkey is not None:
        _, seed = _key_pair(settings.nkey)
        return {"nkeys_seed_str": seed}
    if settings.user is not None and settings.password is not None:
        return {"user": settings.user, "password": settings.password.get_secret_value()}
    return {} if settings.token is None else {"token": settings.token.get_secret_value()}


def _credentials(path: Path) -> dict[str, Any]:
    """Callbacks that read the file at every connect, so that a renewed JWT is used.

    nats-py's own reader never returns for a file without a JWT.
    """

    def user_jwt() -> bytes:
        try:
            return _jwt(path)
        except BadBusSettings as e:
            raise Error(str(e)) from None  # nats-py retries only after errors of its own

    def signature(nonce: str) -> bytes:
        try:
            return base64.b64encode(_key_pair(path)[0].sign(nonce.encode()))
        except BadBusSettings as e:
            raise Error(str(e)) from None

    _jwt(path)
    _key_pair(path)
    return {"user_jwt_cb": user_jwt, "signature_cb": signature}


def _jwt(path: Path) -> bytes:
    lines = _lines(path)
    start = next((i for i, line in enumerate(lines) if "BEGIN NATS USER JWT" in line), None)
    if start is None or start + 1 >= len(lines):
        raise BadBusSettings(str(path), "holds no user JWT: it is no NATS credentials file")
    return lines[start + 1].encode()


def _key_pair(path: Path) -> tuple[nkeys.KeyPair, str]:
    """The first user seed in a seed file or a credentials file."""
    seed = next((line for line in _lines(path) if line.startswith("SU")), "")
    try:
        return nkeys.from_seed(bytearray(seed.encode())), seed
    except (nkeys.NkeysError, ValueError):
        raise BadBusSettings(str(path), "holds no seed of a user nkey (a line that starts with SU)") from None


def _lines(path: Path) -> list[str]:
    with refusing(path):
        return [line.strip() for line in path.read_text().splitlines()]
