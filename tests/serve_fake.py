"""A worker process on a fake encoder, for tests that kill one: `python serve_fake.py URL` prints `ready`."""

import asyncio
import sys

from fake_encoder import FakeEncoder

from service.app import serve
from service.config import Settings
from service.telemetry import configure_logging

if __name__ == "__main__":
    configure_logging("auto", sys.argv[2] if len(sys.argv) > 2 else "warning")
    settings = Settings(nats_url=sys.argv[1], metrics_port=-1)
    ready = lambda started: print("ready", flush=True)  # noqa: E731, T201
    sys.exit(asyncio.run(serve(settings, encoders=[FakeEncoder()], on_ready=ready)))
