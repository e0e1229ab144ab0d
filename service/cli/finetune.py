"""`mlbus finetune`: submits a job, and watches it if asked to; and `mlbus data`: makes its training pairs here."""

import io
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from typing import Annotated, Any, BinaryIO, cast

import orjson
import typer

from models.catalogue import load_catalogue
from models.encoders.base import Encoder
from models.training.data.dataset import Dataset, archive_dataset
from models.training.data.records import Manifest, Pair
from models.training.run import TrainingOptions
from subjects import codec
from subjects.client.jobs import FinetuneCallOptions
from subjects.errors import Conflict, MLError
from subjects.finetune import MAX_PAIRS, FinetuneOptions, FinetuneReply, FinetuneRequest, TrainingPair
from subjects.message import MAX_TEXT_CHARS

from ..bus.errors import BusError
from ..settings import Settings, read_settings
from .ask import Connection, ask_worker
from .files import STDIN
from .jobs import next_steps, watch_job
from .options import Config, Json, NatsUrl, Timeout, options_of
from .output import err, out, print_json, shortened, spinner, table_of

_MAX_LINE_BYTES = 64 * MAX_TEXT_CHARS


@options_of(FinetuneRequest, "Options", "model id")
@options_of(
    FinetuneOptions,
    "How it is trained",
    "epochs batch_size learning_rate method loss matryoshka max_tokens hard_negatives seed",
)
def finetune(
    path: Annotated[
        Path | None, typer.Argument(metavar="PATH", help="A codebase on the worker's machine, below finetune.roots.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help='Pairs of your own instead, a JSON line each: {"anchor": …, "positive": …, "negatives": […]}; '
            "- reads standard input.",
        ),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch/--no-watch", help="Show how it goes on, until it is over.")] = False,
    promote: Annotated[
        bool, typer.Option("--promote", help="Serve the new version once it has passed; needs the role admin.")
    ] = False,
    as_json: Json = False,
    nats_url: NatsUrl = None,
    timeout: Timeout = 30.0,
    **options: Any,
) -> None:
    """Train an embedding model on your own code and verify the outcome, as a job on a worker.

    What passes is kept as a candidate. With --promote, or `mlbus models promote`, it is served.

    With --watch the exit code is 1 unless it is done; Ctrl-C leaves the job running. With --json as well, each state is
    an object on a line of its own.
    """
    if (path is None) == (data is None):
        raise typer.BadParameter("give the path of a codebase, or --data FILE", param_hint="PATH")
    connection = Connection(nats_url, timeout)
    pairs = None if data is None else read_pairs(data)
    codebase = None if path is None else path.absolute()
    call = cast(FinetuneCallOptions, options)
    reply = ask_worker(connection, lambda ml: ml.finetune(path=codebase, pairs=pairs, **call))
    if promote:
        if reply.duplicate and "id" in options:
            raise _another(reply.job)
        _promote(reply.job, connection)
    if watch:
        if reply.duplicate and not as_json:
            out.print(_queued(reply))
        raise typer.Exit(watch_job(reply.job, connection, as_json=as_json))
    if as_json:
        print_json(reply.model_dump())
    else:
        out.print(f"{_queued(reply)}\n{next_steps(reply.job)}")


def _another(job: str) -> Conflict:
    """A job with a typed id that exists already may be somebody else's, with other data, so it is not promoted.

    A generated id that exists already is the same job, which was submitted twice.
    """
    return Conflict(
        f"job {job} was there already, perhaps another's with other data: nothing new begins, and nothing is "
        f"promoted. See `mlbus jobs get {job}`; if it is yours, `mlbus models promote --job {job}`"
    )


def _promote(job: str, connection: Connection) -> None:
    """Serve the version of the job once it has passed. If that is refused the job still runs, and the user is told."""
    try:
        ask_worker(connection, lambda ml: ml.models.promote(job=job))
    except (BusError, MLError):
        err.print(f"job {job} goes on, and what passes is kept as a candidate:")
        raise


def _queued(reply: FinetuneReply) -> str:
    return f"job {reply.job} was there already: nothing new begins" if reply.duplicate else f"job {reply.job} is queued"


def read_pairs(file: str) -> list[TrainingPair]:
    """The pairs of a file of JSON lines, `-` for standard input. Raises BadParameter, which names the line."""
    try:
        with nullcontext(sys.stdin.buffer) if file == STDIN else Path(file).open("rb") as lines:
            pairs = list(_pairs(lines, file))
    except OSError as error:
        raise _bad(f"{file} cannot be read: {error}") from None
    if not pairs:
        raise _bad(f"{file} holds no pairs")
    return pairs


def _pairs(lines: BinaryIO | io.BufferedIOBase, file: str) -> Iterator[TrainingPair]:
    number = count = 0
    while line := lines.readline(_MAX_LINE_BYTES + 1):
        number += 1
        if line.isspace():
            continue
        count += 1
        if count > MAX_PAIRS:
            raise _bad(f"{file} holds more than {MAX_PAIRS} pairs; leave some out")
        yield _pair(line, f"line {number} of {file} is no pair")


def _pair(line: bytes, complaint: str) -> TrainingPair:
    if len(line) > _MAX_LINE_BYTES:
        raise _bad(f"{complaint}: it is longer than {_MAX_LINE_BYTES} bytes")
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise _bad(f"{complaint}: unreadable JSON: {error}") from None
    if not isinstance(fields, dict):
        raise _bad(f'{complaint}: write it as {{"anchor": …, "positive": …, "negatives": […]}}')
    try:
        return codec.validate(fields, TrainingPair)
    except MLError as error:
        raise _bad(f"{complaint}: {error.message}") from None


def _bad(reason: str) -> typer.BadParameter:
    return typer.BadParameter(reason, param_hint="--data")


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
    from models.training.data.collect import build_dataset  # imports scipy

    wanted = codec.validate(options, FinetuneOptions)
    settings = read_settings(config)
    with spinner() as progress:
        progress.add_task("reading the code")
        encoder = _encoder(settings, model) if model else None
        dataset = build_dataset(path, TrainingOptions.model_validate(wanted.model_dump()), encoder=encoder)
    manifest = dataset.manifest
    filed = archive_dataset(folder or settings.training_data_dir, date.today(), dataset.lines(), manifest)
    if as_json:
        print_json({"file": str(filed), **manifest.model_dump(mode="json")})
        return
    for note in dataset.notes:
        err.print(note)
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
    counts = {"pairs": manifest.pairs, "held out": manifest.held_out, "files": manifest.files}
    for heading, parts in (("kind", manifest.kinds), ("language", manifest.languages), ("left out", manifest.skipped)):
        counts |= {f"{heading}: {name}": number for name, number in parts.items()}
    if manifest.secrets:
        counts["functions and classes left out for a secret"] = manifest.secrets
    out.print(table_of(("", ""), [(name, str(number)) for name, number in counts.items()]))
    out.print(f"commit  {manifest.commit or 'none: not in git'}")
    out.print(f"file    {filed}")


def _show_pairs(dataset: Dataset, count: int) -> None:
    by_kind: dict[str, list[Pair]] = defaultdict(list)
    for pair in dataset.pairs:
        by_kind[pair.kind].append(pair)
    for kind, pairs in by_kind.items():
        for pair in pairs[:: max(1, len(pairs) // count)][:count] if count else ():
            out.print(f"\n{kind}, {pair.language}, {pair.file}, {pair.split}")
            for name, text in (("+", pair.anchor), ("=", pair.positive), *(("-", text) for text in pair.negatives)):
                out.print(f"{name} {shortened(text, 160)}")
    if count:
        err.print("+ anchor  = what belongs to it  - what does not")
