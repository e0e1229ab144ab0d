"""Generation over the bus, beside our engine alone, transformers and CTranslate2, all with the same weights.

    python -m bench.generate [--models llama,starcoder,tiny_coder] [--rounds 3] [--only mlbus,ctranslate2] [--quick]

Greedy, prompts of about 64 tokens that nobody has seen before, the same number of tokens made by everybody. Each
contender has a process of its own with as many compute threads, and they take turns; the others idle meanwhile.
`generate` gets the prompts as one batch; one after the other they take it as long as one stream does. Tokens a second
count from the request to the last token, prompt included; a gap is the time between two pieces of a text. Unless --full
is given, only what the targets need is measured (see PLAN).
"""

import argparse
import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from models.loading.device import default_threads

from . import generation_arrivals, report
from .generation_contenders import Field, entered
from .generation_models import MODELS, prompts_of, token_bytes
from .generation_report import CONTINUOUS, ENGINE, GENERATE, NAMES, OURS, PEER, Entry, print_tables, print_targets
from .generation_sample import Sample

PACKAGES = ("torch", "torchao", "transformers", "nats-py")
DTYPES = ("fp32", "bf16", "int8")
STREAMS = (1, 4, 16)
PLAN: Mapping[str, Mapping[str, Sequence[int]]] = {
    OURS: {"fp32": (1,), "bf16": (1, 16), "int8": STREAMS},
    ENGINE: {"int8": STREAMS},
    GENERATE: {"fp32": (1,), "bf16": (1, 16), "int8": STREAMS},
    CONTINUOUS: {"bf16": (16,), "int8": (16,)},
    PEER: {"int8": STREAMS},
}
"""What the targets need: for each contender its dtypes, and at how many streams."""
WARM_UP_TOKENS = 4
ARRIVAL_TOKENS = 128


def parse() -> argparse.Namespace:
    """The command line."""

    def names(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(prog="python -m bench.generate")
    parser.add_argument("--models", type=names, default=list(MODELS))
    parser.add_argument("--only", type=names, default=list(NAMES), help=f"contenders: {', '.join(NAMES)}")
    parser.add_argument("--dtypes", type=names, default=list(DTYPES))
    parser.add_argument("--streams", type=lambda text: [int(n) for n in text.split(",")], default=list(STREAMS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64, help="made of each prompt")
    parser.add_argument("--words", type=int, default=64, help="of each prompt, a token each")
    parser.add_argument("--threads", type=int, default=default_threads(), help="of every contender")
    parser.add_argument("--skip-arrivals", action="store_true", help="leave out the prompts that keep arriving")
    parser.add_argument("--full", action="store_true", help="every contender in every dtype at every number of streams")
    parser.add_argument("--quick", action="store_true", help="the last model, one round, few tokens: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.models, options.rounds, options.tokens = options.models[-1:], 1, 8
    return options


def entries(options: argparse.Namespace) -> list[Entry]:
    """What is measured, in the order of the tables."""
    return [
        Entry(by, dtype, streams)
        for streams in options.streams
        for dtype in options.dtypes
        for by in NAMES
        if by in options.only and (by != PEER or dtype == "int8")
        if options.full or streams in PLAN[by].get(dtype, ())
    ]


async def sampled(
    field: Field, folder: Path, chosen: Sequence[Entry], options: argparse.Namespace
) -> dict[Entry, list[Sample]]:
    """Every entry in turn, round after round, after one turn that warms up."""
    samples: dict[Entry, list[Sample]] = {entry: [] for entry in chosen}
    for turn in range(-1, options.rounds):
        for entry in chosen if turn % 2 else reversed(chosen):
            prompts = prompts_of(folder, entry.streams, options.words, (turn + 1,))
            tokens = WARM_UP_TOKENS if turn < 0 else options.tokens
            sample = await field.asks[entry.by](prompts, tokens, entry.dtype)
            if turn >= 0:
                samples[entry].append(sample)
    return samples


async def measure(model: str, options: argparse.Namespace) -> None:
    """One model: write it, start everybody, take turns, print."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, chosen = MODELS[model](Path(scratch) / "model"), entries(options)
        async with AsyncExitStack() as stack:
            only = {entry.by: None for entry in chosen}
            field = await entered(stack, list(only), options.dtypes, folder, Path(scratch), options.threads)
            samples = await sampled(field, folder, chosen, options)
            rate = float(await field.engine.ask("read_rate")) if field.engine else 0.0
            print(f"{model}: {token_bytes(folder, 'fp32') / 4e6:.0f} million weights read for a token", flush=True)
            floors = {dtype: rate / token_bytes(folder, dtype) for dtype in options.dtypes if rate}
            if rate:
                print(f"read at {rate / 1e9:.1f} GB/s, which the second limit is of\n")
            print_tables(samples, floors)
            print_targets(samples, model)
            if field.client and not options.skip_arrivals:
                dtype, tokens = options.dtypes[-1], options.tokens if options.quick else ARRIVAL_TOKENS
                gaps = await generation_arrivals.measure(field.client, folder, dtype, tokens)
                generation_arrivals.print_gaps(gaps, model, dtype)


async def main() -> None:
    """Each model in turn."""
    options = parse()
    facts = {"prompts": f"{options.words} words", "tokens": options.tokens, "threads": options.threads}
    report.print_setting("bench.generate", PACKAGES, **facts, rounds=options.rounds)
    for model in options.models:
        await measure(model, options)


if __name__ == "__main__":
    asyncio.run(main())
