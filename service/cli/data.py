"""`mlbus data`: makes the training pairs of a codebase as a fine-tuning would, stores and shows them."""

from collections import defaultdict
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from models.catalogue import load_catalogue
from models.encoders.base import Encoder
from models.training.data.collect import build_dataset
from models.training.data.dataset import Dataset, archive_dataset
from models.training.data.records import Manifest, Pair
from models.training.run import TrainingOptions
from subjects import codec
from subjects.finetune import FinetuneOptions

from ..settings import Settings, read_settings
from .options import Config, Json, options_of
from .output import err, out, print_json, shortened, spinner

data_app = typer.Typer(help="Training data for fine-tuning, made on this machine.", no_args_is_help=True)


@data_app.command()
@options_of(FinetuneOptions, "How they are made", "hard_negatives seed")
def build(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder of the code.")],
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Where it is filed.", show_default="training_data in the data directory"
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Look for hard negatives with its vectors too.", show_default="words alone"),
    ] = None,
    show: Annotated[int, typer.Option(min=0, metavar="N", help="Print so many pairs of each kind.")] = 0,
    config: Config = None,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Make training pairs of a codebase, as a fine-tuning would, and show what they are."""
    wanted = codec.validate(options, FinetuneOptions)
    settings = read_settings(config)
    with spinner() as progress:
        progress.add_task("reading the code")
        encoder = _encoder(settings, model) if model else None
        dataset = build_dataset(path, TrainingOptions.model_validate(wanted.model_dump()), encoder=encoder)
    manifest = dataset.manifest()
    filed = archive_dataset(folder or settings.training_data_dir, date.today(), dataset.lines(), manifest)
    if as_json:
        print_json({"file": str(filed), **manifest.model_dump(mode="json")})
        return
    for note in dataset.notes:
        err.print(note, markup=False)
    _show(manifest, filed)
    _show_pairs(dataset, show)


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
