"""X.509 certificates for the TLS tests, made with nothing but the Ed25519 keys that nkeys brings along.

Just enough DER for a CA, a server at 127.0.0.1 and a client.
"""

from __future__ import annotations

import base64
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from nacl.signing import SigningKey

_ED25519 = bytes.fromhex("300506032b6570")  # AlgorithmIdentifier 1.3.101.112
_PKCS8_HEAD = bytes.fromhex("302e020100300506032b657004220420")
_COMMON_NAME = bytes.fromhex("0603550403")
_BASIC_CONSTRAINTS = bytes.fromhex("0603551d13")
_ALTERNATIVE_NAME = bytes.fromhex("0603551d11")
_KEY_USAGE = bytes.fromhex("0603551d0f")
_SUBJECT_KEY_ID = bytes.fromhex("0603551d0e")
_AUTHORITY_KEY_ID = bytes.fromhex("0603551d23")
_TRUE = b"\x01\x01\xff"


def _der(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    size = len(body)
    if size < 128:
        return bytes([tag, size]) + body
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + body


def _pem(kind: str, body: bytes) -> str:
    return f"-----BEGIN {kind}-----\n{base64.encodebytes(body).decode()}-----END {kind}-----\n"


def _extension(name: bytes, value: bytes, *, critical: bool = False) -> bytes:
    return _der(0x30, name, _TRUE if critical else b"", _der(0x04, value))


@dataclass(frozen=True)
class Certificate:
    """Paths of a PEM certificate and of its key, and what is needed to sign others with it."""

    cert: Path
    key: Path
    name: bytes
    signing: SigningKey


def certificate(folder: Path, name: str, signed_by: Certificate | None = None) -> Certificate:
    """Write `<name>.pem` and `<name>.key`. A CA without `signed_by`, else good for 127.0.0.1 and for clients."""
    key = SigningKey.generate()
    subject = _der(0x30, _der(0x31, _der(0x30, _COMMON_NAME, _der(0x0C, name.encode()))))
    issuer_name, issuer_key = (signed_by.name, signed_by.signing) if signed_by else (subject, key)
    body = _der(
        0x30,
        _der(0xA0, _der(0x02, b"\x02")),
        _der(0x02, b"\x01" + os.urandom(15)),
        _ED25519,
        issuer_name,
        _der(0x30, _der(0x17, b"200101000000Z"), _der(0x17, b"491231235959Z")),
        subject,
        _der(0x30, _ED25519, _der(0x03, b"\x00" + bytes(key.verify_key))),
        _der(0xA3, _der(0x30, *_extensions(key, issuer_key, is_ca=signed_by is None))),
    )
    signed = _der(0x30, body, _ED25519, _der(0x03, b"\x00" + issuer_key.sign(body).signature))
    made = Certificate(folder / f"{name}.pem", folder / f"{name}.key", subject, key)
    made.cert.write_text(_pem("CERTIFICATE", signed))
    made.key.write_text(_pem("PRIVATE KEY", _PKCS8_HEAD + bytes(key)))
    return made


def _extensions(key: SigningKey, issuer: SigningKey, *, is_ca: bool) -> list[bytes]:
    address = ipaddress.ip_address("127.0.0.1").packed
    usage = b"\x02\x04" if is_ca else b"\x07\x80"  # keyCertSign; digitalSignature
    return [
        _extension(_BASIC_CONSTRAINTS, _der(0x30, _TRUE if is_ca else b""), critical=True),
        _extension(_KEY_USAGE, _der(0x03, usage), critical=True),
        _extension(_SUBJECT_KEY_ID, _der(0x04, bytes(key.verify_key)[:20])),
        _extension(_AUTHORITY_KEY_ID, _der(0x30, _der(0x80, bytes(issuer.verify_key)[:20]))),
        *([] if is_ca else [_extension(_ALTERNATIVE_NAME, _der(0x30, _der(0x87, address)))]),
    ]
