"""`mlbus models plan`: which models fit into a memory budget, at which precision. Needs neither weights nor NATS."""

import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
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


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """The budget and the models of a plan.

    budget, working: sizes such as "16GB" or "15.5GiB"; see models.loading.plan.Reserve for working memory. models: ids,
    the least recently used first; empty: the whole catalogue. reduce: embedding models that may go below their own
    precision.
    """

    budget: str
    models: Sequence[str] = ()
    reduce: Collection[str] = ()
    working: str | None = None
    kv_tokens: int = KV_TOKENS


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
    ] = 4096,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show which models fit into a budget of memory, at which precision, and what would be evicted."""
    options = PlanOptions(budget, model or [], reduce or [], working, kv_tokens)
    print_plan(read_settings(config), options, as_json=as_json)


def print_plan(settings: Settings, options: PlanOptions, *, as_json: bool) -> None:
    """Print the plan and the settings for it.

    Raises BadSettings for an unusable size, BadParameter, BadEntry, UnknownModel.
    """
    budget_bytes = parse_size(options.budget, "budget")
    working_bytes = WORKING_BYTES if options.working is None else parse_size(options.working, "working memory")
    if working_bytes >= budget_bytes:
        kept = f"the {_gb(working_bytes)} that are kept free for work"
        raise BadSettings(f"budget: {options.budget} is no more than {kept}; give more, or a smaller --working")
    specs = _chosen(settings, options)
    known, unknown = _candidates(specs, options.reduce)
    planned = plan_of(known, budget_bytes, Reserve(working_bytes, options.kv_tokens))
    if as_json:
        print_json(_document(planned, unknown))
        return
    out.print(_table(planned))
    out.print(_totals(planned), markup=False)
    if lines := settings_lines(planned):
        out.print(f"\nIn the settings file:\n\n{lines}", markup=False)
    for error in unknown:
        err.print(f"left out: {error}", markup=False)


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
        if (lines := [*_precision_lines(placement), *_kv_lines(placement)])
    ]
    return "\n\n".join(tables)


def _precision_lines(placement: Placement) -> Iterable[str]:
    if not placement.reduced:
        return
    if placement.precision not in ("int8", "int4"):
        yield f'dtype = "{placement.precision}"'
        return
    if placement.candidate.steps[0] == "fp32":
        yield 'dtype = "bf16"'
    yield f'quantization = "{placement.precision}"'
    if not placement.candidate.generates:
        yield "# Refused below cosine 0.999 to its fp32 vectors, unless `min_cosine` here says otherwise."


def _kv_lines(placement: Placement) -> Iterable[str]:
    if placement.kv_bytes:
        yield f"kv_gb = {placement.kv_bytes / 1e9:.3f}"


def _chosen(settings: Settings, options: PlanOptions) -> list[ModelSpec]:
    """The named models, or else all with a source of weights."""
    catalogue = load_catalogue(settings.catalogue)
    named = [catalogue.get(model) for model in dict.fromkeys(options.models)]
    specs = named or [spec for spec in catalogue if spec.has_source]
    for spec in map(catalogue.get, options.reduce):
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
