"""`mlbus gateway`: runs the HTTP gateway."""

import os
from typing import Any

import typer

from ..bus.settings import NatsSettings
from ..settings import Settings, read_settings
from ..settings.gateway import HttpSettings
from ..telemetry import configure_logging
from .options import NATS, Config, options_of

HTTP = "HTTP"


@options_of(HttpSettings, HTTP, "listen insecure")
@options_of(Settings, NATS, "nats_url")
@options_of(Settings, "Logs", "log_format log_level")
def gateway(config: Config = None, **flags: Any) -> None:
    """Answer over HTTP what workers answer over NATS, until Ctrl-C or SIGTERM, which finish what is in flight.

    Connects as the `nats` command would: NATS_USER=gateway is the role of nats-server.conf for it.
    """
    settings = read_settings(config, **with_http(flags))
    from ..gateway import listening, process  # what they import is not needed for the help

    configure_logging(settings.log_format, settings.log_level)
    nats = NatsSettings.from_env(os.environ, **({"url": settings.nats_url} if settings.nats_url else {}))
    listener = listening.listening(settings.http)
    raise typer.Exit(process.run(listener, nats, settings.http, settings.grace_s))


def with_http(flags: dict[str, Any]) -> dict[str, Any]:
    """Flags, those of the gateway in the group of settings that they belong to."""
    own = {name: flags.pop(name) for name in HttpSettings.model_fields if name in flags}
    return {**flags, **({"http": own} if own else {})}
