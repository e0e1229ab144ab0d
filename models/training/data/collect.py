"""The step `collect`: from a codebase, or the pairs that were given, to a run's file of pairs.

Owns the order: read, take apart, pair, split, look for negatives, write.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ...errors import OutOfDeviceMemory
from ...weights.durable import clear_leftovers, write_durably
from ..errors import BadJudge, NoPairs, TrainingError
from ..options import TrainingOptions
from ..progress import Collected, Event, Note
from ..run import RunFolder, RunSpec
from .chunks import symbols_of
from .dataset import Dataset, dumped, file_dataset, read_given, write_dataset
from .pairs import PairSource, links_of
from .records import Manifest, Pair, Symbol
from .secrets import TAKEN_OUT, without_secrets
from .sources import Codebase, read_codebase
from .split import MOST_HELD_OUT, Parts, split, without_clones

if TYPE_CHECKING:
    from ...encoders.base import Encoder

AddNegatives: TypeAlias = Callable[[list[PairSource]], list[PairSource]]


def collect(run: RunFolder, say: Callable[[Event], None]) -> None:
    """Write `run.data` and `run.manifest`, and file the same under the run's day; where they are, only say so.

    Pairs that were given are not filed: the caller has them, and might else fill the disk with them.
    Raises PathRefused, NoPairs, MalformedPair, ModelError, OSError.
    """
    clear_leftovers(run.path)
    spec = run.read()
    if run.manifest.is_file():
        manifest = Manifest.model_validate_json(run.manifest.read_bytes())
    else:
        if spec.judge is not None:
            write_durably(run.judge, dumped(_judging(spec.judge, spec.roots)))
        dataset = _dataset(spec)
        for note in (*_left_out(dataset.skipped), *_secret(dataset.secrets), *dataset.notes):
            say(Note(text=note))
        manifest = write_dataset(run, dataset)
    if spec.codebase is not None:
        file_dataset(spec.training_data, spec.day, run.data.read_bytes(), manifest)
    say(Collected(pairs=manifest.pairs, held_out=manifest.held_out, digest=manifest.digest))


def build_dataset(
    codebase: Path,
    options: TrainingOptions,
    *,
    roots: tuple[Path, ...] = (),
    encoder: "Encoder | None" = None,
) -> Dataset:
    """The pairs of a codebase below one of the roots, or anywhere. encoder: for negatives that are near in meaning.

    Raises PathRefused, NoPairs, OutOfDeviceMemory.
    """
    return _built(codebase, options, roots, lambda links: _with_negatives(links, options, encoder))


def _built(codebase: Path, options: TrainingOptions, roots: Sequence[Path], add_negatives: AddNegatives) -> Dataset:
    source = read_codebase(codebase, roots)
    files = (replace(file, text=without_secrets(file.text)) for file in source.files)
    found = [symbol for file in files for symbol in symbols_of(file)]
    symbols = [symbol for symbol in found if TAKEN_OUT not in symbol.code]
    parts = _split(source, symbols, options.seed)
    links = add_negatives(parts.links)
    return Dataset(
        pairs=[link.pair for link in links],
        source=os.fsencode(codebase).decode("utf-8", "replace"),
        digest=source.digest,
        seed=options.seed,
        commit=source.commit,
        files=len(source.files),
        skipped=source.skipped,
        secrets=len(found) - len(symbols),
        notes=tuple(_notes(source, parts)),
    )


def _judging(judge: Path, roots: Sequence[Path]) -> list[Pair]:
    """The operator's pairs, to be held against any candidate; of code those that would be held out, beside the others.

    Nothing of it is the caller's to choose, such as the seed. Raises BadJudge.
    """
    try:
        if judge.is_dir():
            return build_dataset(judge, TrainingOptions(hard_negatives=0), roots=tuple(roots)).pairs
        given = read_given(judge, seed=0).pairs
    except (TrainingError, OSError) as error:
        raise BadJudge(str(judge), str(error)) from None
    return [replace(pair, split="held_out") for pair in given[:MOST_HELD_OUT]]


def _dataset(spec: RunSpec) -> Dataset:
    if spec.codebase is None:
        if spec.given is None:
            raise NoPairs("neither a codebase nor pairs were given")
        return read_given(spec.given, spec.options.seed)
    notes: list[str] = []

    def add_negatives(links: list[PairSource]) -> list[PairSource]:
        try:
            return _near_by_the_model(links, spec)
        except OutOfDeviceMemory:
            notes.append("memory was short: hard negatives were found by words alone")
            return _with_negatives(links, spec.options)

    dataset = _built(spec.codebase, spec.options, spec.roots, add_negatives)
    return replace(dataset, notes=(*dataset.notes, *notes))


def _near_by_the_model(links: list[PairSource], spec: RunSpec) -> list[PairSource]:
    """With negatives by the vectors of the model that is to be trained, as it is. Raises OutOfDeviceMemory.

    The ceiling is for these alone: a parser that lacks memory ends the process.
    """
    if not spec.options.hard_negatives:
        return links
    from ...loading.device import configure_threads, memory_errors, pick_device
    from ...loading.loader import LoadOptions, load
    from ...sandbox.limits import memory_limit
    from .negatives import with_negatives

    configure_threads(spec.threads)
    device = pick_device(spec.device).type
    encoder = load(spec.entry, LoadOptions(spec.device, folder=spec.base, threads=spec.threads))
    with memory_errors(device), memory_limit(spec.memory_bytes if device == "cpu" else None):
        return with_negatives(links, spec.options.hard_negatives, spec.options.seed, encoder)


def _with_negatives(
    links: list[PairSource], options: TrainingOptions, encoder: "Encoder | None" = None
) -> list[PairSource]:
    """Imports what it needs only where negatives are asked for."""
    if not options.hard_negatives:
        return links
    from .negatives import with_negatives

    return with_negatives(links, options.hard_negatives, options.seed, encoder)


def _split(source: Codebase, symbols: Sequence[Symbol], seed: int) -> Parts:
    try:
        return split(without_clones(links_of(symbols)), seed)
    except NoPairs as error:
        documented = sum(1 for symbol in symbols if symbol.docstring)
        found = f"{len(source.files)} files of code with {len(symbols)} functions and classes, {documented} documented"
        raise NoPairs("; ".join([found, *_left_out(source.skipped), error.reason])) from None


def _notes(source: Codebase, parts: Parts) -> Iterator[str]:
    if not parts.by_file:
        one = "there is one file alone" if len(source.files) == 1 else "too little would be left of whole files"
        yield f"{one}: other functions of the same files are held out, which says little of code elsewhere"


def _left_out(skipped: Mapping[str, int]) -> list[str]:
    """How many files were left out for which reason, as a clause, or none."""
    if not skipped:
        return []
    reasons = sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
    return ["files left out: " + ", ".join(f"{number} {reason}" for reason, number in reasons)]


def _secret(symbols: int) -> list[str]:
    """How many functions and classes were left out for a secret in them, as a clause, or none."""
    return [f"functions and classes left out, since what looks like a secret stands in them: {symbols}"] * bool(symbols)
