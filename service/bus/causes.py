"""Classifies what nats-py reports: which BusError it is, and which permission was refused.

nats-py passes the server's text on in lower case.
"""

import re
import ssl
from dataclasses import dataclass
from typing import Literal

from nats.errors import AuthorizationError, SecureConnWantedError, UnexpectedEOF

from .errors import BadCredentials, BusError, TlsFailed, Unreachable
from .settings import NatsSettings

_PERMISSION = re.compile(r'permissions violation for (publish|subscription)[^"]*"([^"]*)"', re.IGNORECASE)
_REFUSAL = re.compile(r"authoriz|authentication|credentials|user jwt|nkey", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Denied:
    """The server refused a publish or a subscription. `subject` is in lower case."""

    operation: Literal["publish", "subscription"]
    subject: str


def denied(error: Exception) -> Denied | None:
    """The permission that was refused, if the error is about one."""
    found = _PERMISSION.search(str(error))
    if found is None:
        return None
    return Denied("publish" if found[1].lower() == "publish" else "subscription", found[2])


def cause(settings: NatsSettings, error: Exception) -> BusError:
    """The reason why there is no connection."""
    if isinstance(error, SecureConnWantedError):
        return TlsFailed(settings.url, "the server offers no TLS")
    if isinstance(error, ssl.SSLError):
        return TlsFailed(settings.url, reason(settings, error))
    if settings.wants_tls and isinstance(error, UnexpectedEOF | ConnectionResetError | BrokenPipeError):
        return TlsFailed(settings.url, "the server hung up after the handshake; it may ask for a client certificate")
    if isinstance(error, AuthorizationError) or _REFUSAL.search(str(error)):
        return BadCredentials(settings.url, settings.identity, reason(settings, error))
    hint = "; one that encrypts first needs NATS_TLS_FIRST=1" if settings.wants_tls and not settings.tls_first else ""
    return Unreachable(settings.url, reason(settings, error) + hint)


def reason(settings: NatsSettings, error: Exception) -> str:
    """The error in a few words."""
    if isinstance(error, TimeoutError):
        return f"no answer within {settings.connect_timeout_s:g} s"
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError):
        return error.reason or str(error)
    text = str(getattr(error, "strerror", None) or error or type(error).__name__)
    return text.removeprefix("nats: ").strip("'")
