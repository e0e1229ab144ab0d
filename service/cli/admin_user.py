"""`mlbus admin user`: a user besides the roles of nats-server.conf, with a password and an inbox prefix of its own."""

import re
from pathlib import Path

from ..bus.credentials import FILE_NAME, add_user, inbox_prefix, variable
from ..bus.embedded import CONF
from .options import RoleName
from .output import err, out, print_json


def print_user(name: str, role: RoleName, data_dir: Path | None, *, as_json: bool) -> None:
    """Make a password and print what nats-server.conf needs. Raises BadBusSettings.

    data_dir: where passwords are kept; None: in the folder that the settings name.
    """
    from ..config import read_settings

    file = read_settings(data_dir=data_dir).data_dir / FILE_NAME
    add_user(name, file)
    block = block_of(CONF.read_text("utf-8"), role, name)
    if as_json:
        print_json({"user": name, "role": role, "block": block, "variable": variable(name), "file": str(file)})
        return
    out.print(block, markup=False, soft_wrap=True)
    where = f"{variable(name)} is in {file}, which an embedded server reads"
    said = f"Put that among the users of nats-server.conf; {where}. Then: mlbus admin context {name}"
    err.print(said, markup=False, soft_wrap=True)


def block_of(conf: str, role: RoleName, name: str) -> str:
    """The entry of a role in nats-server.conf, as one of another user."""
    found = re.search(rf"^ *{{ user: {role}, (.*}}$|[^}}]*}} }}$)", conf, re.MULTILINE)
    assert found is not None, f"nats-server.conf has no user {role}"
    block = found[0].replace(f"user: {role},", f"user: {name},").replace(variable(role), variable(name))
    return block.replace(f"{inbox_prefix(role)}.", f"{inbox_prefix(name)}.")
