"""The step `verify`: is a candidate good enough, and not strange, so that it may be served?

Owns the way from a run's files to its report: loads both versions, has them compared, files what came of it.
"""

from collections.abc import Callable
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
from ..progress import Event, Note, Verified
from ..run import RunFolder, RunSpec
from .canary import live_round_texts, write_live_round
from .compare import Comparing, Findings
from .held_out import HeldOut, held_out, parted
from .report import Report, read_history, read_manifest, read_report, write_report

MAP = "map_from_parent.safetensors"
MAX_TOKENS = 512
"""Of a text that is compared; a longer one costs more than it tells."""


def verify(run: RunFolder, say: Callable[[Event], None]) -> None:
    """Examine `run.candidate` beside the live weights, write its report and say the verdict; or say it again.

    Raises ModelUnavailable where there is no candidate or the live weights cannot be loaded, MalformedPair,
    ModelError, OutOfDeviceMemory, OSError.
    """
    report = read_report(run.report)
    if report is None:
        report = _examined(run)
        write_report(run.report, report)
    say(Note(text=report.verdict))
    say(Verified(accepted=report.accepted, reasons=report.reasons, metrics=report.metrics))


def _examined(run: RunFolder) -> Report:
    spec = run.read()
    if not run.candidate.is_dir():
        raise ModelUnavailable(spec.entry.id, f"there is no candidate in {run.path}; train one first")
    configure_threads(spec.threads)
    _, judging = parted(read_pairs(run.data), spec.options.epochs, spec.options.seed)
    held, found, candidate_weights = held_out(judging), Findings(), None
    operators = held_out(read_pairs(run.judge)) if spec.judge else None
    with closing(_load(spec, spec.base)) as live:
        candidate = _candidate(run, spec, found)
        if candidate is not None:
            with closing(candidate):
                candidate_weights = candidate.version
                compared = Comparing(
                    live, candidate, held, spec.limits, spec.options.seed, _probe_base(spec), operators
                )
                compared.into(found)
    _write_vectors(run, spec, found)
    return _report(run, spec, held, found, (live.version, candidate_weights))


def _candidate(run: RunFolder, spec: RunSpec, found: Findings) -> Encoder | None:
    """The candidate, loaded; None where it cannot be, for a reason that is its own fault."""
    try:
        found.reasons += _unlike_its_record(run, spec)
        infinite = _infinite(spec, run.candidate)
        found.reasons += infinite
        return None if infinite else _load(spec, run.candidate)
    except (ModelUnavailable, CorruptWeights, SelfTestFailed) as error:
        found.reasons.append(f"it cannot be served: {error}")
        return None


def _probe_base(spec: RunSpec) -> float | None:
    """What the live version's report hands down: compared with that version alone, each night might lose a little."""
    with suppress(OSError, ValueError):
        verdict = verdict_of(spec.base)
        return verdict.metrics.get("probe_base") if verdict else None
    return None


def _judged(spec: RunSpec) -> str:
    if spec.judge is not None:
        return "by the operator's own pairs too"
    return "by code that was held out" if spec.codebase is not None else OWN_DATA


def _load(spec: RunSpec, folder: Path) -> Encoder:
    """The weights of a folder as they would be served, but for the length of texts."""
    max_tokens = min(MAX_TOKENS, spec.entry.max_tokens or MAX_TOKENS)
    entry = _entry(spec, folder).model_copy(update={"max_tokens": max_tokens})
    return loader.load(entry, LoadOptions(spec.device, folder=folder, threads=spec.threads))


def _entry(spec: RunSpec, folder: Path) -> ModelSpec:
    """The entry as if the folder were its source: its own pins are of other weights, and so is its Hub repository."""
    return spec.entry.model_copy(update={"folder": folder, "package": None, "repository": None, "sha256": {}})


def _infinite(spec: RunSpec, folder: Path) -> list[str]:
    """Weights of which no text of the examination may make use, such as the embedding of a rare token, count too."""
    found: list[str] = []
    for name in model_files.weight_files(_entry(spec, folder), folder):
        if name.endswith(".safetensors"):
            with safe_open(folder / name, "pt") as file:
                found += [tensor for tensor in file.offset_keys() if not file.get_tensor(tensor).isfinite().all()]
    if not found:
        return []
    return [f"its weights have values that are no finite numbers, in {len(found)} tensors, such as {found[0]}"]


def _unlike_its_record(run: RunFolder, spec: RunSpec) -> list[str]:
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
    """What others compute with: vectors for the live round, and what brings stored vectors to the candidate's."""
    run.report.mkdir(exist_ok=True)
    if found.live_round is not None:
        write_live_round(run.report, live_round_texts(), found.live_round)
    if found.map is not None:
        digests = {"from_weights_sha256": _digest(spec, spec.base), "to_weights_sha256": _digest(spec, run.candidate)}
        write_durably(run.report / MAP, save({"map": found.map}, {"model": spec.entry.id, **digests}))


def _report(run: RunFolder, spec: RunSpec, held: HeldOut, found: Findings, versions: tuple[str, str | None]) -> Report:
    """versions: of the live and the candidate's weights, as replies name them."""
    record = _record(run)
    accepted = not found.reasons
    return Report(
        accepted=accepted,
        judged=_judged(spec),
        verdict=f"accepted: {found.praise}" if accepted else f"rejected: {found.reasons[0]}",
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
        history=read_history(run.history),
        data=read_manifest(run.manifest),
        options=spec.options,
        limits=spec.limits,
    )
