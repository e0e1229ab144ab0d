"""Questions to a worker's HTTP port."""

import asyncio
import urllib.error
import urllib.request


def probe(port: int, path: str, host: str = "127.0.0.1") -> tuple[int, str]:
    """The status and the body there."""
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/{path}", timeout=20) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def scrape(port: int) -> str:
    """The metrics there."""
    return probe(port, "metrics")[1]


async def asked(port: int, path: str) -> tuple[int, str]:
    return await asyncio.to_thread(probe, port, path)
