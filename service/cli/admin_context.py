"""`mlbus admin context`: a role of nats-server.conf, or a user besides, as a context of the nats command."""

import os
from pathlib import Path

from ..bus.contexts import select_context, write_context
from ..bus.credentials import FILE_NAME, ROLES, password
from ..bus.settings import NatsSettings
from .ask import silence_logs
from .output import out, print_json

_ASK = "nats --context {name} req ml.embed hello"
_TRY = {
    "worker": "NATS_CONTEXT={name} mlbus serve",
    "admin": "nats --context {name} stream ls",
    "system": "nats --context {name} server list",
}


def write(
    user: str, name: str | None, url: str | None, data_dir: Path | None, *, select: bool, force: bool, as_json: bool
) -> None:
    """Write the user's context and say how to use it.

    data_dir: where its password is; None: in the environment, or else in the folder that the settings name.
    Raises BadBusSettings.
    """
    from ..config import read_settings

    silence_logs()
    name = name or f"mlbus-{user}"
    mine = read_settings(data_dir=data_dir, nats_url=url)
    secret = password(user, mine.data_dir / FILE_NAME, {} if data_dir else os.environ)
    own = mine.embedded_nats and "NATS_URL" not in os.environ
    server = mine.nats_url or (f"nats://127.0.0.1:{mine.nats_port}" if own else None)
    settings = NatsSettings.of_user(os.environ, user, secret, server)
    what = "role" if user in ROLES else "user"
    content = {"description": f"mlbus: the {what} {user}", **settings.as_context()}
    path = write_context(os.environ, name, content, force=force)
    if select:
        select_context(os.environ, name)
    if as_json:
        print_json({"context": name, "file": str(path), "url": settings.url, "user": user, "selected": select})
        return
    out.print(f"{path}: {user} at {settings.url}", markup=False, soft_wrap=True)
    out.print(f"Try: {_TRY.get(user, _ASK).format(name=name)}", markup=False, soft_wrap=True)
