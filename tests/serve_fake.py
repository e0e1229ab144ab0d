"""A worker process on fake models, for tests that end one: `python serve_fake.py URL [LEVEL] [--OPTION …]`.

It prints `ready` once it serves. held: no pass and no step ever ends, so that what is admitted stays in flight.
loading: other models are known, and never get loaded. hanging: once it is told to stop it does not get through, and has
a second for it.
"""

import argparse
import asyncio
import sys
from asyncio.subprocess import PIPE, Process

from fake_encoder import FakeEncoder
from fake_engine import FakeEngine
from workers import clean_environment

import service.app
from service.app import serve
from service.config import Settings
from service.endpoint import Endpoint
from service.telemetry import configure_logging


async def fake_process(url: str, *options: str, stderr: int | None = None, **variables: str) -> Process:
    """Start this file and wait until it serves."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, url, *options), env=clean_environment(**variables), stdout=PIPE, stderr=stderr
    )
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 30) == b"ready\n"
    return process


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("level", nargs="?", default="warning")
    parser.add_argument("--held", action="store_true")
    parser.add_argument("--loading", action="store_true")
    parser.add_argument("--hanging", action="store_true")
    chosen = parser.parse_args()
    configure_logging("auto", chosen.level)
    loaded = [FakeEncoder(), FakeEngine()]
    if chosen.held:
        for model in loaded:
            model.gate.clear()
    if chosen.hanging:
        service.app.LEAVING_S = 1.0
        Endpoint.drain = lambda self, grace_s: asyncio.Event().wait()
    loader = None
    if chosen.loading:
        from fake_loader import FakeLoader

        loader = FakeLoader()
        loader.gate.clear()
    catalogue = {"a": {"kind": "embedding", "folder": "weights/a"}}
    settings = Settings(nats_url=chosen.url, metrics_port=-1, catalogue=catalogue)
    ready = lambda started: print("ready", flush=True)  # noqa: E731, T201
    return asyncio.run(serve(settings, loaded=loaded, loader=loader, on_ready=ready))


if __name__ == "__main__":
    sys.exit(main())
