"""Stands in for the nats command 0.5.0 where there is none: `nats req`, which prints and waits as that does.

Its settings are read as ours are, so that a context means the same to both. It ends with 0 on error replies and when
nothing comes, as the command does.
"""

import argparse
import asyncio
import os
import re
import sys
import time

from service.bus.causes import Denied
from service.bus.connection import connected
from service.bus.settings import NatsSettings
from service.cli.ask import silence_logs


def seconds(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(ms|s|m)", text).groups()
    return int(number) * {"ms": 0.001, "s": 1, "m": 60}[unit]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nats", allow_abbrev=False)
    parser.add_argument("command", choices=["req"])
    parser.add_argument("subject")
    parser.add_argument("body")
    parser.add_argument("--context")
    parser.add_argument("-H", dest="headers", action="append", default=[])
    parser.add_argument("--timeout", type=seconds, default=5.0)
    parser.add_argument("--reply-timeout", type=seconds, default=0.3)
    parser.add_argument("--replies", type=int, default=1)
    for flag in ("--raw", "--wait-for-empty", "--no-templates"):
        parser.add_argument(flag, action="store_true")
    chosen = parser.parse_args()
    if "{{" in chosen.body and not chosen.no_templates:
        parser.error("a body with {{ needs --no-templates here")
    return chosen


def say(line: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")


def show(data: bytes) -> None:
    """Two empty lines follow a body; only one if it ends with a line break of its own."""
    text = data.decode() or "nil body"
    sys.stdout.write(f"{text}\n" if text.endswith("\n") else f"{text}\n\n\n")
    sys.stdout.flush()


def complain(denied: Denied) -> None:
    violation = f'Permissions Violation for {denied.operation.capitalize()} to "{denied.subject}"'
    say(f">>> Unexpected NATS error: nats: permissions violation: {violation}")


async def request(chosen: argparse.Namespace) -> None:
    context = {"NATS_CONTEXT": chosen.context} if chosen.context else {}
    async with connected(NatsSettings.from_env({**os.environ, **context}), on_denied=complain) as nc:
        replies = await nc.subscribe(nc.new_inbox())
        headers = dict(header.split(":", 1) for header in chosen.headers)
        if not chosen.raw:
            say(f'Sending request on "{chosen.subject}"')
        begun = time.perf_counter()
        await nc.publish(chosen.subject, chosen.body.encode(), reply=replies.subject, headers=headers or None)
        wanted = sys.maxsize if chosen.wait_for_empty else chosen.replies
        timeout, total, count = chosen.timeout, 0.0, 0
        while True:
            try:
                reply = await replies.next_msg(timeout)
            except TimeoutError:
                return
            took = time.perf_counter() - begun
            told = reply.headers or {}
            if told.get("Status") == "503":
                say("No responders are available")
                return
            if not chosen.raw:
                say(f"Received with rtt {took * 1000:.6f}ms")
                for line in [f"{name}: {value}" for name, value in told.items()] + [""] * bool(told):
                    say(line)
            show(reply.data)
            total, count = total + took, count + 1
            if count == wanted or (wanted and not reply.data):
                return
            timeout = total / count + chosen.reply_timeout if wanted else chosen.timeout - took


silence_logs()
asyncio.run(request(options()))
