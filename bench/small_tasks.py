"""Which sampling suits a small chat model: how many of thirty short Python tasks it solves, over ways to sample.

    python -m bench.small_tasks [--model smollm2] [--samples 5] [--threads N] [--data-dir var]

pass@1 is the share of all answers that are right, pass@5 the share of tasks of whose five answers one is. Each answer
runs in a process of its own, with two seconds and half a gigabyte.
"""

import argparse
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from models.catalogue import load_catalogue
from models.generation.engine import Engine
from models.generation.types import Chat, EngineLimits, Message, Piece, Request, Sampling
from models.loading.device import configure_threads, default_threads
from models.loading.load_cache import LoadCache
from models.loading.loader import LoadOptions, load_generator

from .report import print_setting, print_table
from .small_tasks_list import TASKS

MAX_TOKENS = 160
RUN_S = 2
RUN_BYTES = 512 * 2**20


@dataclass(frozen=True, slots=True)
class Score:
    """Shares from 0 to 1."""

    sampling: Sampling
    pass_at_1: float
    pass_at_5: float


def main() -> None:
    asked = _arguments()
    configure_threads(asked.threads)
    engine = _engine(asked.model, asked.data_dir)
    facts = engine.facts
    print_setting(
        "bench.small_tasks",
        ("torch", "transformers"),
        model=f"{facts.model} {facts.version}",
        tasks=f"{len(TASKS)}, {asked.samples} answers each, of {MAX_TOKENS} tokens at most",
    )
    scores = []
    for sampling in _ways():
        scores.append(_score(engine, sampling, asked.samples))
        print(*_row(scores[-1]), file=sys.stderr)
    print_table(("temperature", "top_p", "repetition penalty", "pass@1", f"pass@{asked.samples}"), map(_row, scores))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--data-dir", type=Path, default=Path("var"))
    return parser.parse_args()


def _engine(model: str, data_dir: Path) -> Engine:
    options = LoadOptions(device="cpu", cache=LoadCache(data_dir / "cache"))
    return Engine(load_generator(load_catalogue().get(model), options), EngineLimits())


def _ways() -> Iterator[Sampling]:
    """Greedy, and temperature by nucleus, each with and without a repetition penalty."""
    for penalty in (1.0, 1.1):
        yield Sampling(temperature=0, repetition_penalty=penalty)
    for temperature, top_p, penalty in product((0.2, 0.4, 0.7, 1.0), (0.9, 1.0), (1.0, 1.1)):
        yield Sampling(temperature=temperature, top_p=top_p, repetition_penalty=penalty)


def _score(engine: Engine, sampling: Sampling, samples: int) -> Score:
    answers = _answers(engine, sampling, 1 if sampling.temperature == 0 else samples)
    with ThreadPoolExecutor(2) as pool:
        right = [
            list(pool.map(_is_right, each, [check] * len(each)))
            for each, (_, check) in zip(answers, TASKS, strict=True)
        ]
    return Score(
        sampling,
        sum(sum(each) / len(each) for each in right) / len(right),
        sum(map(any, right)) / len(right),
    )


def _answers(engine: Engine, sampling: Sampling, samples: int) -> list[list[str]]:
    """For each task the code of each sample."""
    texts = {f"{task}.{sample}": "" for task in range(len(TASKS)) for sample in range(samples)}
    for name in texts:
        task, _, sample = name.partition(".")
        tokens = engine.prompt_tokens(Chat((Message("user", f"Write a Python function {TASKS[int(task)][0]}."),)))
        engine.add(
            Request(
                name,
                tokens.ids,
                MAX_TOKENS,
                stop_ids=tokens.stop_ids,
                stop=("```\n",),
                sampling=replace(sampling, seed=int(sample)),
            )
        )
    while not engine.is_idle:
        for event in engine.step():
            if isinstance(event, Piece):
                texts[event.request] += event.text
    return [[_code(texts[f"{task}.{sample}"]) for sample in range(samples)] for task in range(len(TASKS))]


def _code(answer: str) -> str:
    """What stands in the first block of code, or all of it where there is none."""
    _, fence, block = answer.partition("```python\n")
    return (block if fence else answer).partition("```")[0]


def _is_right(code: str, check: str) -> bool:
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", f"{code}\n{check}\n"],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=RUN_S,
            preexec_fn=_bound,
        )
    except (subprocess.TimeoutExpired, ValueError):  # it holds a NUL
        return False
    return done.returncode == 0


def _bound() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (RUN_BYTES, RUN_BYTES))


def _row(score: Score) -> Sequence[str]:
    way = score.sampling
    return (
        f"{way.temperature:g}",
        f"{way.top_p:g}",
        f"{way.repetition_penalty:g}",
        f"{score.pass_at_1:.2f}",
        f"{score.pass_at_5:.2f}",
    )


if __name__ == "__main__":
    main()
