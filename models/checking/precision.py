"""Perplexity and a greedy sample of a generation model in each precision."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..catalogue import Dtype, Quantization
from ..errors import ModelError
from ..generation.causal_lm import CausalLM
from ..generation.engine import Engine
from ..generation.load_checks import model_logits
from ..generation.types import EngineLimits, Finished, Piece, Plain, Request, Sampling
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
class PrecisionResult:
    """A model in one precision. dtype: of the computation. perplexity: of TEXT. sample: greedy completion of PROMPT.

    problem: why it cannot be loaded; the other fields are then not set.
    """

    precision: Precision
    dtype: str = ""
    weight_bytes: int = 0
    perplexity: float = math.nan
    sample: str = ""
    problem: str | None = None


def measure(load: Load) -> list[PrecisionResult]:
    """Measure each precision. load: dtype, quantization -> the model.

    Raises the first error if the model cannot be loaded in any.
    """
    found: list[PrecisionResult] = []
    errors: list[ModelError] = []
    for precision, options in PRECISIONS.items():
        try:
            found.append(_measure(precision, load(*options)))
        except ModelError as error:
            errors.append(error)
            found.append(PrecisionResult(precision, problem=str(error)))
    if len(errors) == len(found):
        raise errors[0]
    return found


def _measure(precision: Precision, loaded: CausalLM) -> PrecisionResult:
    try:
        return PrecisionResult(
            precision, loaded.facts.dtype, loaded.facts.weight_bytes, perplexity(loaded), greedy_sample(loaded)
        )
    finally:
        loaded.close()


def perplexity(loaded: CausalLM) -> float:
    """Perplexity of TEXT, up to the context length: exp of the mean negative log-likelihood of its tokens."""
    ids = list(loaded.prompts(Plain(TEXT)).ids)[: loaded.facts.max_tokens]
    likely = model_logits(loaded.facts.model, loaded.network, ids)[:-1].log_softmax(-1)
    return math.exp(-float(likely[range(len(ids) - 1), ids[1:]].mean()))


def greedy_sample(loaded: CausalLM) -> str:
    tokens = min(CACHE_TOKENS, loaded.facts.max_tokens)
    engine = Engine(loaded, EngineLimits(max_running=1, kv_bytes=2 * tokens * loaded.kv_shape.token_bytes))
    prompt = engine.prompt_tokens(Plain(PROMPT))
    left = min(SAMPLE_TOKENS, loaded.facts.max_tokens - len(prompt.ids))
    engine.add(Request("sample", prompt.ids, left, stop_ids=prompt.stop_ids, sampling=Sampling(temperature=0)))
    text = ""
    while not engine.is_idle:
        for event in engine.step():
            if isinstance(event, Piece):
                text += event.text
            elif isinstance(event, Finished) and event.error is not None:
                raise event.error
    return text
