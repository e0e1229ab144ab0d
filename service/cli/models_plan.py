"""`mlbus models plan`: which models fit into a memory budget, at which precision. Needs neither weights nor NATS."""

import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from models.catalogue import ModelSpec, load_catalogue
from models.errors import UnknownArchitecture
from models.loading.plan import (
    KV_TOKENS,
    MEGABYTE,
    WORKING_BYTES,
    Candidate,
    Placement,
    Plan,
    Reserve,
    candidate,
)
from models.loading.plan import plan as plan_of

from ..settings import BadSettings, Settings, read_settings
from .options import Config, Json
from .output import err, out, print_json, shortened

if TYPE_CHECKING:
    from models.loading.footprint import Precision

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT])(i?)B", re.IGNORECASE)
_POWERS = {"K": 1, "M": 2, "G": 3, "T": 4}
_COLUMNS: "dict[str, tuple[Precision, ...]]" = {
    "fp32": ("fp32",),
    "16 bit": ("bf16", "fp16"),
    "int8": ("int8",),
    "int4": ("int4",),
}


def plan(
    model: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="Least recently used first; none: the whole catalogue."),
    ] = None,
    budget: Annotated[str, typer.Option(metavar="SIZE", help="Memory of the device: 16GB, 15.5GiB.")] = "16GB",
    reduce: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Embedding model that may go below its own precision; repeat."),
    ] = None,
    working: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Kept free for work.", show_default="1.5GB")
    ] = None,
    kv_tokens: Annotated[
        int, typer.Option(min=0, max=10**9, metavar="N", help="Tokens in flight of each generation model.")
    ] = KV_TOKENS,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show which models fit into a budget of memory, at which precision, and what would be evicted."""
    settings, reducible = read_settings(config), reduce or []
    budget_bytes = parse_size(budget, "budget")
    working_bytes = WORKING_BYTES if working is None else parse_size(working, "working memory")
    if working_bytes >= budget_bytes:
        kept = f"the {_gb(working_bytes)} that are kept free for work"
        raise BadSettings(f"budget: {budget} is no more than {kept}; give more, or a smaller --working")
    known, unknown = _candidates(_chosen(settings, model or [], reducible), reducible)
    planned = plan_of(known, budget_bytes, Reserve(working_bytes, kv_tokens))
    if as_json:
        print_json(_document(planned, unknown))
        return
    out.print(_table(planned))
    out.print(_totals(planned))
    if lines := settings_lines(planned):
        out.print(f"\nIn the settings file:\n\n{lines}")
    for error in unknown:
        err.print(f"left out: {error}")


def parse_size(text: str, what: str) -> int:
    """Bytes of a size with a unit, decimal (16GB) or binary (15.5GiB). Raises BadSettings."""
    match = _SIZE.fullmatch(text.strip())
    size = 0.0
    if match is not None:
        number, prefix, binary = match.groups()
        size = float(number) * (1024 if binary else 1000) ** _POWERS[prefix.upper()]
    if not 1 <= size < math.inf:
        raise BadSettings(f"{what}: {shortened(text)!r} is no size; give one such as 16GB, 15.5GiB or 800MB")
    return int(size)


def settings_lines(planned: Plan) -> str:
    """The part of a settings file with the budget, and the precision and cache of each model that fits.

    The budget is for weights and caches. There is no newline at the end.
    """
    if not planned.fitting:
        return ""
    room = planned.budget_bytes - planned.reserve.working_bytes
    tables = [f"[memory]\nbudget_gb = {room // MEGABYTE / 1000:.3f}"]
    tables += [
        "\n".join([f"[catalogue.{placement.model}]", *lines])
        for placement in planned.fitting
        if (lines := [*_lines(placement)])
    ]
    return "\n\n".join(tables)


def _lines(placement: Placement) -> Iterator[str]:
    """The settings of one model."""
    quantized = placement.precision in ("int8", "int4")
    if placement.reduced and (not quantized or placement.candidate.steps[0] == "fp32"):
        yield f'dtype = "{"bf16" if quantized else placement.precision}"'
    if placement.reduced and quantized:
        yield f'quantization = "{placement.precision}"'
        if not placement.candidate.generates:
            yield "# Refused below cosine 0.999 to its fp32 vectors, unless `min_cosine` here says otherwise."
    if placement.kv_bytes:
        yield f"kv_gb = {placement.kv_bytes / 1e9:.3f}"


def _chosen(settings: Settings, models: Sequence[str], reduce: Sequence[str]) -> list[ModelSpec]:
    """The named models, or else all with a source of weights."""
    catalogue = load_catalogue(settings.catalogue)
    named = [catalogue.get(model) for model in dict.fromkeys(models)]
    specs = named or [spec for spec in catalogue if spec.has_source]
    for spec in map(catalogue.get, reduce):
        if spec not in specs:
            raise typer.BadParameter(f"{spec.id} is none of the models to be planned", param_hint="--reduce")
        if spec.served_by == "onnx":
            raise typer.BadParameter(
                f"{spec.id} is served by ONNX graphs, as precise as they are", param_hint="--reduce"
            )
    return specs


def _candidates(
    specs: Iterable[ModelSpec], reduce: Collection[str]
) -> tuple[list[Candidate], list[UnknownArchitecture]]:
    """The models whose size is known, and for the others the reason why it is not."""
    from models.loading.footprint import footprint  # imports torch

    known: list[Candidate] = []
    unknown: list[UnknownArchitecture] = []
    for spec in specs:
        try:
            known.append(candidate(spec, footprint(spec), spec.kind == "generation" or spec.id in reduce))
        except UnknownArchitecture as error:
            unknown.append(error)
    return known, unknown


def _table(planned: Plan) -> Table:
    """A row a model; the column of the precision at which it is served is marked."""
    table = Table(box=None, pad_edge=False)
    for heading in ("model", "result", "precision", "weights", "KV cache"):
        table.add_column(heading, no_wrap=True, justify="left" if heading in ("model", "result") else "right")
    for heading in _COLUMNS:
        table.add_column(f"at {heading}", no_wrap=True, justify="right", style="dim")
    for placement in planned.placements:
        sizes = placement.candidate.footprint.sizes
        table.add_row(
            placement.model,
            placement.fate,
            placement.precision + (" (reduced)" if placement.reduced else ""),
            _gb(placement.weight_bytes),
            _gb(placement.kv_bytes) if placement.kv_bytes else "-",
            *(next((_gb(sizes[p]) for p in column if p in sizes), "-") for column in _COLUMNS.values()),
        )
    return table


def _totals(planned: Plan) -> str:
    reserve = planned.reserve
    return (
        f"\n{_gb(planned.used_bytes)} of {_gb(planned.budget_bytes)}: weights {_gb(planned.weight_bytes)}, "
        f"KV cache for {reserve.kv_tokens} tokens a generation model {_gb(planned.kv_bytes)}, "
        f"kept free for work {_gb(reserve.working_bytes)}"
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


def _document(planned: Plan, unknown: Sequence[UnknownArchitecture]) -> dict[str, Any]:
    return {
        "budget_bytes": planned.budget_bytes,
        "used_bytes": planned.used_bytes,
        "weight_bytes": planned.weight_bytes,
        "kv_bytes": planned.kv_bytes,
        "reserve": asdict(planned.reserve),
        "models": [
            {
                "model": placement.model,
                "result": placement.fate,
                "precision": placement.precision,
                "reduced": placement.reduced,
                "weight_bytes": placement.weight_bytes,
                "kv_bytes": placement.kv_bytes,
                "sizes": dict(placement.candidate.footprint.sizes),
            }
            for placement in planned.placements
        ],
        "unknown": [{"model": error.model, "reason": error.reason} for error in unknown],
        "settings": settings_lines(planned),
    }
