"""What a generation model makes of a text in each precision: how likely it finds it, and how it would go on.

Owns the texts and the precisions that are tried.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..catalogue import Dtype, Quantization
from ..errors import ModelError
from ..generation.base import EngineLimits, Plain
from ..generation.causal_lm import CausalLM
from ..generation.engine import Engine
from ..generation.load_self_test import probe_logits
from ..generation.request import Finished, Piece, Request, Sampling
from ..loading.footprint import Precision

TEXT = '''\
"""Reads measurements from a file of comma-separated values and tells their mean by day.

A line has a date, the name of a sensor and a number. Lines that cannot be read are counted, and skipped.
"""

import csv
from collections import defaultdict


def daily_means(path: str, sensor: str) -> dict[str, float]:
    """The mean of each day, in order of the days."""
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    with open(path, newline="") as file:
        for row in csv.reader(file):
            if len(row) != 3 or row[1] != sensor:
                continue
            sums[row[0]] += float(row[2])
            counts[row[0]] += 1
    return {day: sums[day] / counts[day] for day in sorted(sums)}
'''
PROMPT = "def is_palindrome(text):\n"
SAMPLE_TOKENS = 48
CACHE_TOKENS = 1024
PRECISIONS: dict[Precision, tuple[Dtype, Quantization | None]] = {
    "fp32": ("fp32", None),
    "bf16": ("bf16", None),
    "int8": ("auto", "int8"),
    "int4": ("auto", "int4"),
}
Load = Callable[[Dtype, Quantization | None], CausalLM]


@dataclass(frozen=True, slots=True)
class Measured:
    """A model in one precision. dtype: what it computes in. perplexity: of TEXT; sample: how PROMPT goes on, greedily.

    problem: why it cannot be loaded so; the rest then says nothing.
    """

    precision: Precision
    dtype: str = ""
    weight_bytes: int = 0
    perplexity: float = math.nan
    sample: str = ""
    problem: str | None = None


def measured(load: Load) -> list[Measured]:
    """The model in each precision. load: the model in a dtype, and quantised.

    Raises what the first of them raised where it can be loaded in none.
    """
    found: list[Measured] = []
    errors: list[ModelError] = []
    for precision, how in PRECISIONS.items():
        try:
            found.append(_measured(precision, load(*how)))
        except ModelError as error:
            errors.append(error)
            found.append(Measured(precision, problem=str(error)))
    if len(errors) == len(found):
        raise errors[0]
    return found


def _measured(precision: Precision, loaded: CausalLM) -> Measured:
    try:
        return Measured(precision, loaded.dtype, loaded.weight_bytes, perplexity(loaded), greedy_sample(loaded))
    finally:
        loaded.close()


def perplexity(loaded: CausalLM) -> float:
    """Of TEXT, as far as the model's context goes: the exponential of the mean surprise of its tokens, in nats."""
    ids = list(loaded.prompts(Plain(TEXT)).ids)[: loaded.max_tokens]
    likely = probe_logits(loaded.model, loaded.network, ids)[:-1].log_softmax(-1)
    return math.exp(-float(likely[range(len(ids) - 1), ids[1:]].mean()))


def greedy_sample(loaded: CausalLM) -> str:
    """How the model goes on with PROMPT where every token is the likeliest."""
    tokens = min(CACHE_TOKENS, loaded.max_tokens)
    engine = Engine(loaded, EngineLimits(max_running=1, kv_bytes=2 * tokens * loaded.kv_shape.token_bytes))
    prompt = engine.prompt_tokens(Plain(PROMPT))
    left = min(SAMPLE_TOKENS, loaded.max_tokens - len(prompt.ids))
    engine.add(Request("sample", prompt.ids, left, stop_ids=prompt.stop_ids, sampling=Sampling(temperature=0)))
    text = ""
    while not engine.is_idle:
        for event in engine.step():
            if isinstance(event, Piece):
                text += event.text
            elif isinstance(event, Finished) and event.error is not None:
                raise event.error
    return text
