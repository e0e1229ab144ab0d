"""The roles of nats-server.conf and further users: their passwords and inbox prefixes.

Passwords are generated once and kept in a file of `NAME=value` lines that only its owner can read and a shell can
source.
"""

import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import structlog

from .errors import BadBusSettings, refusing
from .private_file import MODE, write_private

log = structlog.get_logger(__name__)

Role = Literal["admin", "worker", "client", "gateway", "system"]
ROLES: tuple[Role, ...] = get_args(Role)
FILE_NAME = "nats-credentials.env"
WORKERS_INBOX = "_INBOX_ml.worker"
"""Below it workers answer each other, and the server tells them that nobody listens."""
_USER = re.compile(r"[a-z][a-z0-9_]{0,62}")
_TAKEN = (*ROLES, "local")


def passwords(path: Path) -> dict[Role, str]:
    """Each role's password from the file; missing ones are generated and added.

    The mode of a file that others can read is repaired, with a warning. The caller holds the data directory's lock.
    Raises BadBusSettings if the file cannot be read or written.
    """
    with refusing(path, "the server's passwords cannot be kept there"):
        known = variables(path) if path.exists() else {}
        complete = {role: known.get(variable(role)) or _new_password() for role in ROLES}
        if set(map(variable, ROLES)) - known.keys():
            _write(path, {**known, **{variable(role): password for role, password in complete.items()}})
    for role, password in complete.items():
        if password.startswith("$2"):  # the server would take it for a bcrypt hash, and we have to connect with it
            raise BadBusSettings(str(path), f"{variable(role)} must be the password itself, not its hash")
    return complete


def password(user: str, path: Path | None, environ: Mapping[str, str]) -> str:
    """The password of a role or user for connecting: from the environment, else from the file.

    A value in the environment may be quoted as nats-server reads it. path: None if the file belongs to another server.
    Raises BadBusSettings if there is none, or only a hash.
    """
    name = variable(user)
    given = environ.get(name, "")
    if len(given) > 1 and given[0] == given[-1] and given[0] in "\"'":
        given = given[1:-1]
    with refusing(path, "cannot be read"):
        found = given or (variables(path) if path and path.exists() else {}).get(name)
    if not found and path is None:
        raise BadBusSettings(name, "is not set")
    if not found:
        made = "serve --embedded-nats puts it at its start" if user in ROLES else f"admin user {user} puts it"
        raise BadBusSettings(name, f"neither set nor in {path}, where mlbus {made}")
    if found.startswith("$2"):
        raise BadBusSettings(name, "is a hash; to connect takes the password itself")
    return found


def add_user(name: str, path: Path) -> None:
    """Add a user with a generated password to the file. Raises BadBusSettings for an invalid name."""
    if not _USER.fullmatch(name) or name in _TAKEN:
        rule = f"a name is small letters, digits and _, a letter first, and none of {', '.join(_TAKEN)}"
        raise BadBusSettings(name, rule)
    with refusing(path, "the password cannot be kept there"):
        known = variables(path) if path.exists() else {}
        if variable(name) not in known:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, {**known, variable(name): _new_password()})


def variables(path: Path) -> dict[str, str]:
    """All variables of the file, of roles and users, as nats-server.conf refers to them."""
    with path.open(encoding="utf-8") as lines:
        mode = os.fstat(lines.fileno()).st_mode & 0o777
        if mode & ~MODE:
            os.fchmod(lines.fileno(), MODE)
            log.warning("nats_credentials.mode_repaired", path=str(path), mode=oct(mode))
        pairs = (line.strip().partition("=") for line in lines if not line.startswith("#"))
        return {name: value for name, _, value in pairs if value}


def variable(user: str) -> str:
    """The name of a password's variable."""
    return f"MLBUS_{user.upper()}_PASSWORD"


def inbox_prefix(user: str) -> str:
    """The prefix of a user's inboxes; nobody else may subscribe there.

    The worker's lies outside the prefixes that workers publish to: only JetStream replies there.
    """
    return "_INBOX_worker" if user == "worker" else f"_INBOX_ml.{user}"


def _new_password() -> str:
    # A letter first: nats-server and the shell misread a leading digit or dash.
    return "p" + secrets.token_urlsafe(32)


def _write(path: Path, known: Mapping[str, str]) -> None:
    lines = (f"{name}={value}\n" for name, value in known.items())
    write_private(path, "# Passwords of the embedded nats-server. Use: set -a; . this file\n" + "".join(lines))
