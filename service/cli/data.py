"""`mlbus data build`: training pairs of a codebase, filed and shown. How they are made is models/training's."""

from collections import defaultdict
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from rich.table import Table

from models.catalogue import load_catalogue
from models.encoders.base import Encoder
from models.training.data.collect import build_dataset
from models.training.data.dataset import Dataset, file_dataset
from models.training.data.records import Manifest, Pair
from models.training.options import TrainingOptions

from ..config import Settings
from .output import err, out, print_json, shortened, spinner


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was typed. folder: where it is filed; show: pairs of each kind to print."""

    path: Path
    folder: Path | None
    model: str | None
    hard_negatives: int
    seed: int
    show: int


def build_data(settings: Settings, wanted: Wanted, *, as_json: bool) -> None:
    """Make the pairs, file them under today's date, print what they are. Raises ModelError, OSError."""
    options = TrainingOptions(hard_negatives=wanted.hard_negatives, seed=wanted.seed)
    with spinner() as progress:
        progress.add_task("reading the code")
        encoder = _encoder(settings, wanted.model) if wanted.model else None
        dataset = build_dataset(wanted.path, options, encoder=encoder)
    manifest = dataset.manifest()
    filed = file_dataset(wanted.folder or settings.training_data_dir, date.today(), dataset.lines(), manifest)
    if as_json:
        print_json({"file": str(filed), **manifest.model_dump(mode="json")})
        return
    for note in dataset.notes:
        err.print(note, markup=False)
    _show(manifest, filed)
    _show_pairs(dataset, wanted.show)


def _encoder(settings: Settings, model: str) -> Encoder:
    from models.loading.device import configure_threads, default_threads
    from models.loading.loader import LoadOptions, load
    from models.weights.versions import version_folder

    spec = load_catalogue(settings.catalogue).get(model)
    threads = settings.threads or default_threads()
    configure_threads(threads)
    folder = version_folder(settings.checkpoints_dir, spec.id)
    return load(spec, LoadOptions(settings.device, folder=folder, threads=threads))


def _show(manifest: Manifest, filed: Path) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    counts = {"pairs": manifest.pairs, "held out": manifest.held_out, "files": manifest.files}
    for name, number in counts.items():
        table.add_row(name, str(number))
    for heading, parts in (("kind", manifest.kinds), ("language", manifest.languages), ("left out", manifest.skipped)):
        for name, number in parts.items():
            table.add_row(f"{heading}: {name}", str(number))
    if manifest.secrets:
        table.add_row("functions and classes left out for a secret", str(manifest.secrets))
    out.print(table)
    out.print(f"commit  {manifest.commit or 'none: not in git'}", markup=False)
    out.print(f"file    {filed}", markup=False)


def _show_pairs(dataset: Dataset, count: int) -> None:
    by_kind: dict[str, list[Pair]] = defaultdict(list)
    for pair in dataset.pairs:
        by_kind[pair.kind].append(pair)
    for kind, pairs in by_kind.items():
        for pair in pairs[:: max(1, len(pairs) // count)][:count] if count else ():
            out.print(f"\n{kind}, {pair.language}, {pair.file}, {pair.split}", markup=False)
            for name, text in (("+", pair.anchor), ("=", pair.positive), *(("-", text) for text in pair.negatives)):
                out.print(f"{name} {shortened(text, 160)}", markup=False)
    if count:
        err.print("+ anchor  = what belongs to it  - what does not", markup=False)
