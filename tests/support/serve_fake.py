"""A worker process on fake models, for tests that end one: `python serve_fake.py URL [LEVEL] [--OPTION …]`.

It prints `ready` once it serves. held: no pass and no step ever ends, so that what is admitted stays in flight.
loading: other models are known, and never get loaded. hangs: what does not end once it serves, or once it is told to
stop; it has a second for that. mute: its client sends nothing any more, as after an error while nats-py flushes.
"""

import argparse
import asyncio
import re
import sys
import threading
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from contextlib import suppress

from fake_encoder import FakeEncoder
from fake_engine import FakeEngine
from workers import clean_environment

import service.app
import service.runtime.self_watch
from service.app import Started, serve
from service.endpoint.endpoint import Endpoint
from service.settings import Settings
from service.telemetry import configure_logging


def hang_a_task() -> None:
    async def stay() -> None:
        while True:
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    loop = asyncio.get_running_loop()
    loop.kept = loop.create_task(stay())


def hang_a_thread() -> None:
    asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)


def hang_the_loop() -> None:
    while True:
        pass


def hang_in_a_pattern() -> None:
    """No other thread gets a turn meanwhile."""
    re.fullmatch("(a+)+b", "a" * 99)


HANGS: dict[str, Callable[[], None]] = {
    "drain": lambda: None,
    "task": hang_a_task,
    "thread": hang_a_thread,
    "loop": hang_the_loop,
    "pattern": hang_in_a_pattern,
}


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
    parser.add_argument("--hangs", choices=HANGS)
    parser.add_argument("--mute", action="store_true")
    chosen = parser.parse_args()
    configure_logging("auto", chosen.level)
    loaded = [FakeEncoder(), FakeEngine()]
    if chosen.held:
        for model in loaded:
            model.gate.clear()
    if chosen.hangs:
        service.app.LEAVING_S = 1.0
    if chosen.hangs == "drain":
        Endpoint.drain = lambda self, grace_s: asyncio.Event().wait()
    if chosen.mute:
        service.runtime.self_watch.EVERY_S = 0.2
    loader = None
    if chosen.loading:
        from fake_loader import FakeLoader

        loader = FakeLoader()
        loader.gate.clear()
    catalogue = {"a": {"kind": "embedding", "folder": "weights/a"}}
    settings = Settings(nats_url=chosen.url, metrics_port=-1, catalogue=catalogue)

    def ready(_: Started) -> None:
        print("ready", flush=True)  # noqa: T201
        if chosen.hangs in HANGS:
            HANGS[chosen.hangs]()
        if chosen.mute:
            next(task for task in asyncio.all_tasks() if "_flusher" in repr(task)).cancel()

    return asyncio.run(serve(settings, loaded=loaded, loader=loader, on_ready=ready))


if __name__ == "__main__":
    sys.exit(main())
