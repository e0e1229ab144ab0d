"""`mlbus serve --embedded-nats --gateway` on fake models: `python serve_fake_gateway.py DATA_DIR`."""

import asyncio
import sys
from pathlib import Path

from fake_encoder import FakeEncoder
from fake_engine import FakeEngine

from service.app import serve
from service.settings import Settings
from service.settings.gateway import HttpSettings
from service.telemetry import configure_logging

if __name__ == "__main__":
    configure_logging("json", "info")
    settings = Settings(
        embedded_nats=True,
        nats_port=0,
        data_dir=Path(sys.argv[1]),
        metrics_port=-1,
        gateway=True,
        http=HttpSettings(listen="127.0.0.1:0"),
        log_format="json",
        grace_s=10,
    )
    sys.exit(asyncio.run(serve(settings, loaded=[FakeEncoder(), FakeEngine()])))
