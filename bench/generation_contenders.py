"""Those who generate in a measurement: how each is started and asked, and in which dtypes it takes part."""

import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from subjects.client import MLClient

from .generation_models import Prompt
from .generation_nats import generate, serving
from .generation_process import Child, child
from .generation_report import CONTINUOUS, ENGINE, GENERATE, OURS, PEER
from .generation_sample import Sample, of_arrivals
from .peers import ctranslate2

KV_BYTES = 512_000_000
"""For each model of ours, more than the streams of any measurement take."""

Ask: TypeAlias = Callable[[Sequence[Prompt], int, str], Awaitable[Sample]]
"""Prompts, tokens to make of each, a dtype -> what came of it."""


@dataclass(frozen=True, slots=True)
class Field:
    """The contenders that were started. client: of ours, engine: the process of our engine, where they take part."""

    asks: dict[str, Ask]
    client: MLClient | None
    engine: Child | None


async def entered(
    stack: AsyncExitStack, only: Sequence[str], dtypes: Sequence[str], folder: Path, scratch: Path, threads: int
) -> Field:
    """Start those of `only`, each in processes of its own that end with the stack."""
    asks: dict[str, Ask] = {}
    client = engine = None
    if OURS in only:
        client = await stack.enter_async_context(serving(folder, dtypes, threads, KV_BYTES))
        asks[OURS] = _streaming(client)
    if ENGINE in only:
        engine = await stack.enter_async_context(_python("bench.generation_engine", folder, threads, KV_BYTES))
        asks[ENGINE] = _asking(engine, "generate")
    for way in (GENERATE, CONTINUOUS):
        if way in only:
            process = await stack.enter_async_context(_python("bench.peers.transformers_child", folder, threads))
            asks[way] = _asking(process, way)
    if PEER in only and "int8" in dtypes:
        peer = ctranslate2.generating(folder, scratch / "ctranslate2", threads)
        asks[PEER] = _asking(await stack.enter_async_context(peer), "generate")
    return Field(asks, client, engine)


def _python(module: str, *arguments: object) -> AbstractAsyncContextManager[Child]:
    return child((sys.executable, "-m", module, *map(str, arguments)))


def _streaming(client: MLClient) -> Ask:
    async def ask(prompts: Sequence[Prompt], tokens: int, dtype: str) -> Sample:
        return await generate(client, prompts, tokens, dtype)

    return ask


def _asking(process: Child, command: str) -> Ask:
    """Ask a process that answers with arrivals."""

    async def ask(prompts: Sequence[Prompt], tokens: int, dtype: str) -> Sample:
        ids = [list(prompt.ids) for prompt in prompts]
        return of_arrivals(await process.ask(command, prompts=ids, tokens=tokens, dtype=dtype), tokens)

    return ask
