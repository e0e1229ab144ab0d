"""The passwords of the embedded server's roles: made once, kept in a file that only its owner can read.

The file is `NAME=value` lines, so that a shell can source it. Knows nothing of the server.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Literal, get_args

import structlog

from .errors import BadBusSettings

log = structlog.get_logger(__name__)

Role = Literal["admin", "worker", "client", "system"]
ROLES: tuple[Role, ...] = get_args(Role)
FILE_NAME = "nats-credentials.env"
_MODE = 0o600


def passwords(path: Path) -> dict[Role, str]:
    """Each role's password from the file; those it lacks are made and added.

    A file that others may read is closed to them, with a warning. One process at a time: the caller holds the data
    directory. Raises BadBusSettings if the file cannot be read or written.
    """
    try:
        known = _read(path) if path.exists() else {}
        complete = {role: known.get(variable(role)) or _new_password() for role in ROLES}
        if set(map(variable, ROLES)) - known.keys():
            _write(path, {**known, **environment(complete)})
    except (OSError, UnicodeDecodeError) as e:
        raise BadBusSettings(str(path), f"the server's passwords cannot be kept there: {e}") from None
    for role, password in complete.items():
        if password.startswith("$2"):  # the server would take it for a bcrypt hash, and we have to connect with it
            raise BadBusSettings(str(path), f"{variable(role)} must be the password itself, not its hash")
    return complete


def environment(by_role: dict[Role, str]) -> dict[str, str]:
    """The variables that nats-server.conf takes the passwords from."""
    return {variable(role): password for role, password in by_role.items()}


def variable(role: Role) -> str:
    """The name that a role's password has in the file and in the environment."""
    return f"MLBUS_{role.upper()}_PASSWORD"


def _new_password() -> str:
    # A letter first: nats-server and the shell would read a leading digit or dash as something else than a word.
    return "p" + secrets.token_urlsafe(32)


def _read(path: Path) -> dict[str, str]:
    with path.open(encoding="utf-8") as lines:
        mode = os.fstat(lines.fileno()).st_mode & 0o777
        if mode & ~_MODE:
            os.fchmod(lines.fileno(), _MODE)
            log.warning("nats_credentials.mode_repaired", path=str(path), mode=oct(mode))
        pairs = (line.strip().partition("=") for line in lines if not line.startswith("#"))
        return {name: value for name, _, value in pairs if value}


def _write(path: Path, variables: dict[str, str]) -> None:
    """Whole or not at all, and never readable by others, not even for a moment."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE), "w", encoding="utf-8") as out:
        out.write("# Passwords of the embedded nats-server. Use: set -a; . this file\n")
        out.writelines(f"{name}={value}\n" for name, value in variables.items())
        out.flush()
        os.fsync(out.fileno())
    draft.replace(path)
