"""The step `verify`: whether a candidate is good enough to be served, and the report on it."""

from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path

from safetensors import safe_open
from safetensors.numpy import save

from ...catalogue import ModelSpec
from ...encoders.base import Encoder
from ...errors import CorruptWeights, ModelUnavailable, SelfTestFailed
from ...loading import loader
from ...loading.device import configure_threads
from ...loading.loader import LoadOptions
from ...weights import model_files
from ...weights.durable import write_durably
from ...weights.version_history import OWN_DATA, verdict_of
from ...weights.versions import RECORD, TrainingRecord, record_of, version_name
from ..data.dataset import read_pairs
from ..data.held_out import HeldOut, held_out, split_held_out
from ..progress import Emit, Note, Verified
from ..run import RunFolder, RunSpec
from .check_texts import canary_texts, write_canary
from .compare import Findings, VersionComparison
from .report import Report, read_manifest, read_report, trainer_events, write_report

MAP = "map_from_parent.safetensors"
MAX_TOKENS = 512
"""Of a text in the comparison; more would take longer than the precision is worth."""


def verify(run: RunFolder, emit: Emit) -> None:
    """Compare `run.candidate` with the live weights, write the report and emit the verdict; if there is one, only emit.

    Raises ModelUnavailable where there is no candidate or the live weights cannot be loaded, MalformedPair,
    ModelError, OutOfDeviceMemory, OSError.
    """
    report = read_report(run.report)
    if report is None:
        report = _verify(run)
        write_report(run.report, report)
    emit(Note(text=report.verdict))
    emit(Verified(accepted=report.accepted, reasons=report.reasons, metrics=report.metrics))


def _verify(run: RunFolder) -> Report:
    spec = run.read()
    if not run.candidate.is_dir():
        raise ModelUnavailable(spec.entry.id, f"there is no candidate in {run.path}; train one first")
    configure_threads(spec.threads)
    _, evaluation = split_held_out(read_pairs(run.data), spec.options.epochs, spec.options.seed)
    held, found, candidate_weights = held_out(evaluation), Findings(), None
    judge = held_out(read_pairs(run.judge)) if spec.judge else None
    with closing(_load(spec, spec.base)) as live:
        candidate = _candidate(run, spec, found)
        if candidate is not None:
            with closing(candidate):
                candidate_weights = candidate.version
                base = _probe_base(spec)
                VersionComparison(live, candidate, held, spec.limits, spec.options.seed, base, judge).measure(found)
    _write_vectors(run, spec, found)
    return _report(run, spec, held, found, (live.version, candidate_weights))


def _candidate(run: RunFolder, spec: RunSpec, found: Findings) -> Encoder | None:
    """Load the candidate; None, with a reason in `found`, where its files cannot be served."""
    try:
        found.reasons += _check_record(run, spec)
        non_finite = _check_finite(spec, run.candidate)
        found.reasons += non_finite
        return None if non_finite else _load(spec, run.candidate)
    except (ModelUnavailable, CorruptWeights, SelfTestFailed) as error:
        found.reasons.append(f"it cannot be served: {error}")
        return None


def _probe_base(spec: RunSpec) -> float | None:
    """The original weights' probe score, from the live version's report, so that small losses do not add up."""
    with suppress(OSError, ValueError):
        verdict = verdict_of(spec.base)
        return verdict.metrics.get("probe_base") if verdict else None
    return None


def _judged(spec: RunSpec) -> str:
    if spec.judge is not None:
        return "by the operator's own pairs too"
    return "by code that was held out" if spec.codebase is not None else OWN_DATA


def _load(spec: RunSpec, folder: Path) -> Encoder:
    """Load the weights of a folder as they would be served, with shorter texts."""
    max_tokens = min(MAX_TOKENS, spec.entry.max_tokens or MAX_TOKENS)
    entry = _entry(spec, folder).model_copy(update={"max_tokens": max_tokens})
    return loader.load(entry, LoadOptions(spec.device, folder=folder, threads=spec.threads))


def _entry(spec: RunSpec, folder: Path) -> ModelSpec:
    """The entry with the folder as its source, without the digests of other weights."""
    return spec.entry.model_copy(update={"folder": folder, "package": None, "repository": None, "sha256": {}})


def _check_finite(spec: RunSpec, folder: Path) -> list[str]:
    """Whether all weights are finite, also those no text here uses, such as the embedding of a rare token."""
    found: list[str] = []
    for name in model_files.weight_files(_entry(spec, folder), folder):
        if name.endswith(".safetensors"):
            with safe_open(folder / name, "pt") as file:
                found += [tensor for tensor in file.offset_keys() if not file.get_tensor(tensor).isfinite().all()]
    if not found:
        return []
    return [f"its weights have values that are no finite numbers, in {len(found)} tensors, such as {found[0]}"]


def _check_record(run: RunFolder, spec: RunSpec) -> list[str]:
    record = _record(run)
    if record is None:
        return [f"its {RECORD} cannot be read"]
    if record.weights_sha256 != _digest(spec, run.candidate):
        return [f"its {RECORD} tells of other weights than those beside it"]
    return []


def _record(run: RunFolder) -> TrainingRecord | None:
    with suppress(OSError, ValueError):
        return record_of(run.candidate)
    return None


def _digest(spec: RunSpec, folder: Path) -> str:
    return model_files.check_weights(_entry(spec, folder), folder)


def _write_vectors(run: RunFolder, spec: RunSpec, found: Findings) -> None:
    """Write the vectors of the canary check, and the map from stored vectors to the candidate's."""
    run.report.mkdir(exist_ok=True)
    if found.canary is not None:
        write_canary(run.report, canary_texts(), found.canary)
    if found.map is not None:
        digests = {"from_weights_sha256": _digest(spec, spec.base), "to_weights_sha256": _digest(spec, run.candidate)}
        write_durably(run.report / MAP, save({"map": found.map}, {"model": spec.entry.id, **digests}))


def _report(run: RunFolder, spec: RunSpec, held: HeldOut, found: Findings, versions: tuple[str, str | None]) -> Report:
    """versions: of the live and the candidate's weights, as in replies."""
    record = _record(run)
    accepted = not found.reasons
    return Report(
        accepted=accepted,
        judged=_judged(spec),
        verdict=f"accepted: {found.summary}" if accepted else f"rejected: {found.reasons[0]}",
        reasons=found.reasons,
        metrics=found.metrics,
        model=spec.entry.id,
        job=spec.job,
        created_at=datetime.now(UTC),
        parent=spec.parent,
        parent_weights=versions[0],
        version=version_name(record.created_at, record.weights_sha256) if record else None,
        weights=versions[1],
        queries=len(held.queries),
        documents=len(held.documents),
        retrieval=found.retrieval,
        drift=found.drift,
        reindex=found.reindex,
        examples=found.examples,
        history=trainer_events(run.history),
        data=read_manifest(run.manifest),
        options=spec.options,
        limits=spec.limits,
    )
