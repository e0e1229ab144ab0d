"""The step `collect`: from a codebase, or given pairs, to a run's file of pairs."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from ...encoders.base import Encoder
from ...errors import OutOfDeviceMemory
from ...sandbox.limits import memory_limit
from ...weights.durable import clear_leftovers, write_durably
from ..errors import NoPairs, TrainingError
from ..progress import Collected, Emit, Note
from ..run import RunFolder, RunSpec, TrainingOptions
from .codebase import Codebase, read_codebase
from .dataset import Dataset, archive_dataset, read_given, to_json_lines, write_dataset
from .negatives import with_negatives
from .pairs import PairSource, pair_sources
from .records import Manifest, Pair, Symbol
from .secrets import REDACTED, redact_secrets
from .split import MAX_HELD_OUT, Parts, split, without_duplicates
from .symbols import symbols_of

AddNegatives: TypeAlias = Callable[[list[PairSource]], list[PairSource]]


def collect(run: RunFolder, emit: Emit) -> None:
    """Write `run.data` and `run.manifest`, and archive the pairs of a codebase; if they exist, only emit the event.

    Given pairs are not archived: the caller has them, and could fill the disk with them.
    Raises PathRefused, NoPairs, MalformedPair, ModelError, OSError.
    """
    clear_leftovers(run.path)
    spec = run.read()
    if run.manifest.is_file():
        manifest = Manifest.model_validate_json(run.manifest.read_bytes())
    else:
        if spec.judge is not None:
            write_durably(run.judge, to_json_lines(_judge_pairs(spec.judge, spec.roots)))
        dataset = _dataset(spec)
        for note in (*_left_out(dataset.manifest.skipped), *_secret(dataset.manifest.secrets), *dataset.notes):
            emit(Note(text=note))
        manifest = write_dataset(run, dataset)
    if spec.codebase is not None:
        archive_dataset(spec.training_data, spec.day, run.data.read_bytes(), manifest)
    emit(Collected(pairs=manifest.pairs, held_out=manifest.held_out, digest=manifest.digest))


def build_dataset(
    codebase: Path, options: TrainingOptions, *, roots: tuple[Path, ...] = (), encoder: Encoder | None = None
) -> Dataset:
    """The pairs of a codebase below one of the roots, or anywhere. encoder: for negatives with similar vectors.

    Raises PathRefused, NoPairs, OutOfDeviceMemory.
    """
    count, seed = options.hard_negatives, options.seed
    return _build(codebase, options, roots, lambda sources: with_negatives(sources, count, seed, encoder))


def _build(codebase: Path, options: TrainingOptions, roots: Sequence[Path], add_negatives: AddNegatives) -> Dataset:
    code = read_codebase(codebase, roots)
    files = (replace(file, text=redact_secrets(file.text)) for file in code.files)
    found = [symbol for file in files for symbol in symbols_of(file)]
    symbols = [symbol for symbol in found if REDACTED not in symbol.code]
    parts = _split(code, symbols, options.seed)
    return Dataset.of(
        [source.pair for source in add_negatives(parts.sources)],
        source=os.fsencode(codebase).decode("utf-8", "replace"),
        digest=code.digest,
        seed=options.seed,
        commit=code.commit,
        files=len(code.files),
        skipped=code.skipped,
        secrets=len(found) - len(symbols),
        notes=tuple(_notes(code, parts)),
    )


def _judge_pairs(judge: Path, roots: Sequence[Path]) -> list[Pair]:
    """The operator's evaluation pairs: a file's, all held out; or a codebase's, split as usual.

    They do not depend on the job's options, such as the seed. Raises TrainingError.
    """
    try:
        if judge.is_dir():
            return build_dataset(judge, TrainingOptions(hard_negatives=0), roots=tuple(roots)).pairs
        given = read_given(judge, seed=0).pairs
    except (TrainingError, OSError) as error:
        raise TrainingError(f"finetune.judge, {judge}, cannot be judged by: {error}") from None
    return [replace(pair, split="held_out") for pair in given[:MAX_HELD_OUT]]


def _dataset(spec: RunSpec) -> Dataset:
    if spec.codebase is None:
        if spec.given is None:
            raise NoPairs("neither a codebase nor pairs were given")
        return read_given(spec.given, spec.options.seed)
    notes: list[str] = []

    def add_negatives(sources: list[PairSource]) -> list[PairSource]:
        try:
            return _negatives_by_model(sources, spec) if spec.options.hard_negatives else sources
        except OutOfDeviceMemory:
            notes.append("memory was short: hard negatives were found by words alone")
            return with_negatives(sources, spec.options.hard_negatives, spec.options.seed)

    dataset = _build(spec.codebase, spec.options, spec.roots, add_negatives)
    return replace(dataset, notes=(*dataset.notes, *notes))


def _negatives_by_model(sources: list[PairSource], spec: RunSpec) -> list[PairSource]:
    """Add negatives by the vectors of the model to be trained. Raises OutOfDeviceMemory.

    Only this step has a memory limit: a parser without memory ends the process.
    """
    from ...loading.device import configure_threads, device_errors, pick_device
    from ...loading.loader import LoadOptions, load

    configure_threads(spec.threads)
    device = pick_device(spec.device).type
    encoder = load(spec.entry, LoadOptions(spec.device, folder=spec.base, threads=spec.threads))
    with device_errors(device), memory_limit(spec.memory_bytes if device == "cpu" else None):
        return with_negatives(sources, spec.options.hard_negatives, spec.options.seed, encoder)


def _split(code: Codebase, symbols: Sequence[Symbol], seed: int) -> Parts:
    try:
        return split(without_duplicates(pair_sources(symbols)), seed)
    except NoPairs as error:
        documented = sum(1 for symbol in symbols if symbol.docstring)
        found = f"{len(code.files)} files of code with {len(symbols)} functions and classes, {documented} documented"
        raise NoPairs("; ".join([found, *_left_out(code.skipped), error.reason])) from None


def _notes(code: Codebase, parts: Parts) -> Iterator[str]:
    if not parts.by_file:
        one = "there is one file alone" if len(code.files) == 1 else "too little would be left of whole files"
        yield f"{one}: other functions of the same files are held out, which says little of code elsewhere"


def _left_out(skipped: Mapping[str, int]) -> list[str]:
    """The files left out, counted by reason, as a clause; or nothing."""
    if not skipped:
        return []
    reasons = sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
    return ["files left out: " + ", ".join(f"{number} {reason}" for reason, number in reasons)]


def _secret(symbols: int) -> list[str]:
    """The functions and classes left out because of a secret, as a clause; or nothing."""
    return [f"functions and classes left out, since what looks like a secret stands in them: {symbols}"] * bool(symbols)
