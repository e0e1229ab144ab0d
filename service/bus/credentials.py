"""The passwords of the embedded server's roles: made once, kept in a file that only its owner can read.

The file is `NAME=value` lines, so that a shell can source it. Knows nothing of the server.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import structlog

from .errors import BadBusSettings
from .private_file import MODE, write_private

log = structlog.get_logger(__name__)

Role = Literal["admin", "worker", "client", "system"]
ROLES: tuple[Role, ...] = get_args(Role)
FILE_NAME = "nats-credentials.env"


def passwords(path: Path) -> dict[Role, str]:
    """Each role's password from the file; those it lacks are made and added.

    A file that others may read is closed to them, with a warning. One process at a time: the caller holds the data
    directory. Raises BadBusSettings if the file cannot be read or written.
    """
    try:
        known = _read(path) if path.exists() else {}
        complete = {role: known.get(variable(role)) or _new_password() for role in ROLES}
        if set(map(variable, ROLES)) - known.keys():
            lines = (f"{name}={value}\n" for name, value in {**known, **environment(complete)}.items())
            write_private(path, "# Passwords of the embedded nats-server. Use: set -a; . this file\n" + "".join(lines))
    except (OSError, UnicodeDecodeError) as e:
        raise BadBusSettings(str(path), f"the server's passwords cannot be kept there: {e}") from None
    for role, password in complete.items():
        if password.startswith("$2"):  # the server would take it for a bcrypt hash, and we have to connect with it
            raise BadBusSettings(str(path), f"{variable(role)} must be the password itself, not its hash")
    return complete


def password(role: Role, path: Path, environ: Mapping[str, str]) -> str:
    """The role's password as a client shows it: from the environment, written as nats-server reads it, else the file.

    Raises BadBusSettings where there is none, or one that nobody can connect with.
    """
    name = variable(role)
    given = environ.get(name, "")
    if len(given) > 1 and given[0] == given[-1] and given[0] in "\"'":
        given = given[1:-1]
    try:
        found = given or (_read(path) if path.exists() else {}).get(name)
    except (OSError, UnicodeDecodeError) as e:
        raise BadBusSettings(str(path), f"cannot be read: {e}") from None
    if not found:
        raise BadBusSettings(name, f"neither set nor in {path}, where mlbus serve --embedded-nats puts it at its start")
    if found.startswith("$2"):
        raise BadBusSettings(name, "is a hash; to connect takes the password itself")
    return found


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
        if mode & ~MODE:
            os.fchmod(lines.fileno(), MODE)
            log.warning("nats_credentials.mode_repaired", path=str(path), mode=oct(mode))
        pairs = (line.strip().partition("=") for line in lines if not line.startswith("#"))
        return {name: value for name, _, value in pairs if value}
