"""Settings of a connection: the NATS_* variables and contexts, read as the `nats` command reads them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import SplitResult, unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_core import ErrorDetails

from .contexts import context_in_use, expanded, read_context
from .credentials import ROLES, inbox_prefix
from .errors import BadBusSettings

DEFAULT_URL = "nats://127.0.0.1:4222"

_VARIABLES = {
    "NATS_URL": "url",
    "NATS_CREDS": "creds",
    "NATS_NKEY": "nkey",
    "NATS_USER": "user",
    "NATS_PASSWORD": "password",
    "NATS_TOKEN": "token",
    "NATS_CA": "ca",
    "NATS_CERT": "cert",
    "NATS_KEY": "key",
    # The nats command has these two as options only.
    "NATS_TLS_FIRST": "tls_first",
    "NATS_INBOX_PREFIX": "inbox_prefix",
}
_CONTEXT_FIELDS = frozenset(_VARIABLES.values()) | {"jetstream_domain"}
_CONTEXT_UNSUPPORTED = ("nsc", "user_jwt", "socks_proxy", "jetstream_api_prefix", "windows_cert_store")
_IDENTITY = frozenset({"creds", "nkey", "user", "password", "token"})
_PLACE = re.compile(r"(data|env|file|nsc|op):", re.IGNORECASE)
_PATHS = frozenset({"creds", "nkey", "ca", "cert", "key"})


class NatsSettings(BaseModel):
    """A server or a cluster, and the identity to use there.

    url: comma-separated nats:// or tls:// addresses. A user and password in it are moved to `user` and `password` (a
    user alone to `token`), so that printing the url shows no secret. Times are in seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    url: str = DEFAULT_URL
    user: str | None = None
    password: SecretStr | None = None
    token: SecretStr | None = None
    creds: Path | None = Field(default=None, description="credentials file: a user JWT and its seed")
    nkey: Path | None = Field(default=None, description="file with the seed of a user nkey")
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    tls_first: bool = Field(default=False, description="encrypt before the server's greeting")
    inbox_prefix: str = Field(default="_INBOX", pattern=r"^[^\s.*>]+(\.[^\s.*>]+)*$")
    jetstream_domain: str | None = None
    context: str | None = Field(default=None, description="name of the context that these came from, for the logs")
    name: str = "mlbus"
    connect_timeout_s: float = Field(default=2.0, gt=0, le=60)
    reconnect_wait_s: float = Field(default=1.0, gt=0, le=60)
    pending_bytes: int = Field(
        default=16 * 2**20, ge=0, description="bytes kept to send while disconnected; two largest messages"
    )

    @classmethod
    def from_env(cls, environ: Mapping[str, str], **fixed: Any) -> Self:
        """Read the NATS_* variables over the context in use; `fixed` wins over both.

        As with the nats command, a NATS_USER without a password is a token. An identity in the environment replaces the
        context's identity and inbox prefix as a whole. A role of nats-server.conf has its own inbox prefix by default.
        Raises BadBusSettings.
        """
        named = {field: environ[var] for var, field in _VARIABLES.items() if environ.get(var)}
        context = _context(environ)
        if _IDENTITY & named.keys() or "@" in named.get("url", ""):
            context = {field: value for field, value in context.items() if field not in {*_IDENTITY, "inbox_prefix"}}
        values = {**context, **named}
        if values.get("user") and not values.get("password"):
            values["token"] = values.pop("user")
        for field in _PATHS & values.keys():
            values[field] = expanded(str(values[field]), environ)
        try:
            settings = cls(**{**values, **fixed})
        except ValidationError as e:
            raise BadBusSettings("NATS settings", "; ".join(map(_problem, e.errors()))) from None
        if settings.user in ROLES and "inbox_prefix" not in settings.model_fields_set:
            return settings.model_copy(update={"inbox_prefix": inbox_prefix(settings.user)})
        return settings

    @classmethod
    def of_user(cls, environ: Mapping[str, str], user: str, password: str, url: str | None) -> Self:
        """The server of the environment or `url`, with a role or user of ours. Raises BadBusSettings."""
        server = {var: value for var, value in environ.items() if _VARIABLES.get(var) not in _IDENTITY}
        identity = {"NATS_USER": user, "NATS_PASSWORD": password, "NATS_INBOX_PREFIX": inbox_prefix(user)}
        return cls.from_env({**server, **identity}, **({"url": url} if url else {}))

    @model_validator(mode="before")
    @classmethod
    def _separate_secrets_from_url(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        parts = [_server(server) for server in str(values.get("url") or DEFAULT_URL).split(",")]
        clean = {**values, "url": ",".join(_address(part) for part in parts)}
        identity = next((part for part in parts if part.username), None)
        if identity is not None and not any(values.get(field) for field in _IDENTITY):
            name = unquote(identity.username or "")
            secret = identity.password
            clean |= {"token": name} if secret is None else {"user": name, "password": unquote(secret)}
        return clean

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if (self.user is None) != (self.password is None):
            raise ValueError("user and password go together")
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key go together")
        return self

    def as_context(self) -> dict[str, Any]:
        """The fields of an equal context of the nats command, with secrets in the clear and absolute paths.

        Raises BadBusSettings for a password that the nats command would take for a reference.
        """
        if self.password and _PLACE.match(self.password.get_secret_value()):
            raise BadBusSettings(
                "password", "begins with data:, env:, file:, nsc: or op:, which the nats command looks up"
            )
        told = self.model_dump(include=set(_CONTEXT_FIELDS), exclude_defaults=True) | {"url": self.url}
        return {field: _plain(value) for field, value in told.items()}

    @property
    def servers(self) -> list[str]:
        """The servers' addresses, without secrets."""
        return self.url.split(",")

    @property
    def wants_tls(self) -> bool:
        """Whether to refuse an unencrypted connection."""
        return self.tls_first or self.ca is not None or self.cert is not None or "tls://" in self.url

    @property
    def anonymous(self) -> bool:
        """Whether there is no identity at all."""
        return not any(getattr(self, field) for field in _IDENTITY)

    @property
    def identity(self) -> str:
        """The identity in words, without its secret."""
        if self.creds or self.nkey:
            return f"the identity in {self.creds or self.nkey}"
        if self.user:
            return f"user {self.user!r}"
        return "the token" if self.token else "a client without credentials"


def _plain(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return str(value.absolute()) if isinstance(value, Path) else value


def _problem(error: ErrorDetails) -> str:
    where = ".".join(map(str, error["loc"]))
    return (where and f"{where}: ") + error["msg"].removeprefix("Value error, ")


def _server(text: str) -> SplitResult:
    text = text.strip()
    if any(map(str.isspace, text.rpartition("@")[2])):  # urlsplit drops tabs and line breaks, so look before it
        raise ValueError("a NATS url's host holds no white space; servers are separated by commas")
    parts = urlsplit(text if "://" in text else f"nats://{text}")
    if parts.scheme not in ("nats", "tls"):
        raise ValueError(f"a NATS url starts with nats:// or tls://, not {parts.scheme}://")
    if not parts.hostname:
        raise ValueError("a NATS url needs a host: nats://host:4222")
    if parts.port == 0:
        raise ValueError("port 0 is no port to connect to: name one from 1 to 65535, or none for 4222")
    return parts


def _address(parts: SplitResult) -> str:
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}:{parts.port or 4222}"


def _context(environ: Mapping[str, str]) -> dict[str, Any]:
    """The known fields of the context in use and its name; empty if there is none."""
    used = context_in_use(environ)
    if used is None:
        return {}
    name, path = used
    content = read_context(path)
    for field in _CONTEXT_UNSUPPORTED:
        if content.get(field):
            raise BadBusSettings(str(path), f"{field!r} is not supported here: use creds, nkey, user or token, and url")
    return {"context": name, **{field: content[field] for field in _CONTEXT_FIELDS if content.get(field)}}
