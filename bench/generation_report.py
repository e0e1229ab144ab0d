"""What `bench.generate` prints of its samples: a table for each number of streams, then the targets."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from . import report
from .generation_sample import Sample, percentile

OURS, ENGINE, GENERATE, CONTINUOUS, PEER = "mlbus", "engine", "generate", "continuous", "ctranslate2"
NAMES = {
    OURS: "mlbus over NATS",
    ENGINE: "limit: our engine alone",
    GENERATE: "transformers: generate",
    CONTINUOUS: "transformers: continuous batching",
    PEER: "CTranslate2",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """Who generated, in which dtype, how many streams at once."""

    by: str
    dtype: str
    streams: int


Samples: TypeAlias = Mapping[Entry, Sequence[Sample]]


def print_tables(samples: Samples, floors: Mapping[str, float]) -> None:
    """floors: for each dtype the tokens/s of one stream that reading the weights allows."""
    for streams in dict.fromkeys(entry.streams for entry in samples):
        header = [f"{streams} stream{'s' * (streams > 1)}", "tokens/s", "range"]
        header += ["first p50 ms", "first p99", "gap p50 ms", "gap p99", "mlbus is x"]
        rows = [_row(samples, entry) for entry in samples if entry.streams == streams]
        if streams == 1:
            rows += [_floor_row(samples, dtype, rate) for dtype, rate in floors.items()]
        report.print_table(header, rows)


def _row(samples: Samples, entry: Entry) -> list[str]:
    taken = samples[entry]
    rates = _rates(taken)
    first = [ms for sample in taken for ms in sample.first_ms()]
    gaps = [ms for sample in taken for ms in sample.gaps_ms()]
    times = _times(samples, Entry(OURS, entry.dtype, entry.streams), entry)
    return [
        f"{NAMES[entry.by]}, {entry.dtype}",
        f"{statistics.median(rates):.1f}",
        f"{min(rates):.1f} to {max(rates):.1f}",
        *(f"{percentile(values, percent):.1f}" for values in (first, gaps) for percent in (50, 99)),
        "" if times is None else f"{times:.2f}",
    ]


def _floor_row(samples: Samples, dtype: str, rate: float) -> list[str]:
    ours = _rates(samples.get(Entry(OURS, dtype, 1), ()))
    times = f"{statistics.median(ours) / rate:.2f}" if ours else ""
    return [f"limit: weights read once a token, {dtype}", f"{rate:.1f}", "", "", "", "", "", times]


def print_targets(samples: Samples, model: str) -> None:
    """Every target for which both sides were measured."""
    for dtype in dict.fromkeys(entry.dtype for entry in samples):
        _print_single(samples, model, dtype)
        _print_crowd(samples, model, dtype)
    print(flush=True)


def _print_single(samples: Samples, model: str, dtype: str) -> None:
    """One stream, beside the peers."""
    ours = Entry(OURS, dtype, 1)
    _print(f"{model}, {dtype}, 1 stream, x CTranslate2", _times(samples, ours, Entry(PEER, dtype, 1)), 1.0)
    target = 2.0 if dtype == "int8" else 1.2
    _print(f"{model}, {dtype}, 1 stream, x generate", _times(samples, ours, Entry(GENERATE, dtype, 1)), target)


def _print_crowd(samples: Samples, model: str, dtype: str) -> None:
    """Many streams, beside one and beside continuous batching; then what the bus costs, however many there are."""
    ours = Entry(OURS, dtype, 16)
    _print(f"{model}, {dtype}, 16 streams, x 1 stream", _times(samples, ours, Entry(OURS, dtype, 1)), 4.0)
    continuous = Entry(CONTINUOUS, dtype, 16)
    _print(f"{model}, {dtype}, 16 streams, x continuous batching", _times(samples, ours, continuous), 1.3)
    for entry in samples:
        if entry.by == ENGINE and entry.dtype == dtype:
            kept = _times(samples, Entry(OURS, dtype, entry.streams), entry)
            _print(
                f"{model}, {dtype}, {entry.streams} stream{'s' * (entry.streams > 1)}, of the engine's own tokens/s",
                kept,
                0.95,
            )


def _print(name: str, value: float | None, target: float) -> None:
    if value is not None:
        report.print_target(name, value, target)


def _times(samples: Samples, ours: Entry, theirs: Entry) -> float | None:
    if ours not in samples or theirs not in samples:
        return None
    return report.ratio(_rates(samples[ours]), _rates(samples[theirs]))


def _rates(samples: Sequence[Sample]) -> list[float]:
    return [sample.rate for sample in samples]
