"""`mlbus models`: what can be typed below it. What a sub-command does is in its own module, imported when it runs."""

from typing import TYPE_CHECKING, Annotated

import typer

from .models_promote import promote
from .options import (
    Config,
    DtypeName,
    GraphName,
    Json,
    KindName,
    NatsUrl,
    QuantizationName,
    RuntimeName,
    Timeout,
    UseName,
)
from .subcommands import require_none_given

if TYPE_CHECKING:
    from .models_remote import Change

models_app = typer.Typer(
    help="The catalogue and the weights on this machine. Alone: the list.", invoke_without_command=True
)

_WORKERS = "Ask workers; what changes them needs the role admin"
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would go, and delete nothing.")]
ModelId = Annotated[str, typer.Argument(metavar="MODEL", help="Id of the catalogue.")]
WorkerId = Annotated[
    str | None, typer.Option("--worker", metavar="ID", help="A worker of `mlbus ping`.", show_default="every worker")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@models_app.callback()
def models(
    context: typer.Context,
    config: Config = None,
    as_json: Json = False,
    nats_url: NatsUrl = None,
    timeout: Timeout = 30.0,
) -> None:
    """Show the catalogue: which models there are, which are here, and which worker has them loaded. Or one of these:"""
    if context.invoked_subcommand is None:
        show_list(config, as_json, nats_url, timeout)
    else:
        require_none_given(context)


@models_app.command("list")
def show_list(config: Config = None, as_json: Json = False, nats_url: NatsUrl = None, timeout: Timeout = 30.0) -> None:
    """Show the catalogue: which models there are, which are here, and which worker has them loaded."""
    from ..config import read_settings
    from .models import print_models

    print_models(read_settings(config, nats_url=nats_url), timeout, as_json=as_json)


@models_app.command()
def pull(
    model: Annotated[list[str], typer.Argument(metavar="MODEL", help="Ids of the catalogue.")],
    dtype: Annotated[
        GraphName | None,
        typer.Option(help="For ONNX models: which graph.", show_default="the entry's own"),
    ] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Fetch models from the Hub, as far as they are not here, and verify their files; show their licences."""
    from ..config import read_settings
    from .models_pull import pull_models

    pull_models(read_settings(config), model, dtype, as_json=as_json)


@models_app.command()
def info(
    model: ModelId,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show all that is known of a model: its entry, where its weights are and which, its versions."""
    from ..config import read_settings
    from .models_info import print_info

    print_info(read_settings(config), model, as_json=as_json)


@models_app.command()
def history(
    model: ModelId,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show a model's versions on this machine, newest first: what they came of, their verdicts, which one is live."""
    from ..config import read_settings
    from .models_history import print_history

    print_history(read_settings(config), model, as_json=as_json)


@models_app.command()
def prune(
    model: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="Models whose downloaded weights go; none: what no entry uses."),
    ] = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Free disk space: delete downloads that no entry uses any more, or those of the models named.

    Touches nothing but the catalogue's repositories in the Hub's cache: no folder of yours, no package.
    """
    from ..config import read_settings
    from .models_prune import prune_models

    prune_models(read_settings(config), model or [], yes=yes, dry_run=dry_run, as_json=as_json)


@models_app.command()
def add(
    model: Annotated[str, typer.Argument(metavar="ID", help="How it will be called.")],
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A folder, or OWNER/NAME on the Hub.")],
    kind: Annotated[KindName, typer.Option(help="What it does.")] = "embedding",
    served_by: Annotated[
        RuntimeName | None,
        typer.Option(help="What runs it.", show_default="onnx where it is given a graph or finds only that"),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="REV", help="Commit, tag or branch.", show_default="main")
    ] = None,
    onnx_file: Annotated[
        list[str] | None,
        typer.Option(metavar="[DTYPE=]PATH", help="Graph, by its path in the folder; fp16=PATH for one in fp16."),
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(metavar="NAME=TEXT", help="Named prompt; repeat.")] = None,
    default_prompt: Annotated[
        str | None, typer.Option(metavar="NAME", help="The one that is used where none is named.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(metavar="N", help="Tokens that it takes at most.")] = None,
    pooling: Annotated[
        str | None, typer.Option(metavar="NAME", help="mean, cls, lasttoken …; absent: the folder says.")
    ] = None,
    licence: Annotated[str | None, typer.Option(metavar="NAME", help="Its licence.")] = None,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Fetch it if need be, and load it first.")] = True,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Add a model of your own to the settings file, once it has been loaded and has passed its tests."""
    from .models_add import add_model

    given = {
        "kind": kind,
        "served_by": served_by,
        "revision": revision,
        "max_tokens": max_tokens,
        "pooling": pooling,
        "default_prompt": default_prompt,
        "licence": licence,
        "onnx_files": onnx_file or [],
        "prompts": prompt or [],
    }
    add_model(config, model, source, given, check=check, as_json=as_json)


@models_app.command()
def check(model: ModelId, config: Config = None, as_json: Json = False) -> None:
    """Show how well a model does: an embedding model finds code, under each mask and end token that it allows.

    Of a generation model the perplexity of a text and a greedy sample, in fp32, bf16, int8 and int4.
    """
    from ..config import read_settings
    from .models_check import check_model

    check_model(read_settings(config), model, as_json=as_json)


@models_app.command()
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
    from ..config import read_settings
    from .plan import PlanOptions, print_plan

    options = PlanOptions(budget, model or [], reduce or [], working, kv_tokens)
    print_plan(read_settings(config), options, as_json=as_json)


@models_app.command(rich_help_panel=_WORKERS)
def load(
    model: ModelId,
    dtype: Annotated[
        DtypeName | None,
        typer.Option(help="To compute in; auto alone: as the model's entry says.", show_default="as chosen before"),
    ] = None,
    quantization: Annotated[
        QuantizationName | None, typer.Option(help="To store the weights in.", show_default="as chosen before")
    ] = None,
    pin: Annotated[
        bool | None, typer.Option("--pin/--no-pin", help="Never evict it, nor unload it when idle.", show_default=False)
    ] = None,
    worker: WorkerId = None,
    as_json: Json = False,
    nats_url: NatsUrl = None,
    timeout: Timeout = 300.0,
) -> None:
    """Have workers load a model, downloaded first where it is not on their machine."""
    _change(
        lambda models, name: models.load(model, dtype=dtype, quantization=quantization, pin=pin, worker=name),
        worker,
        nats_url,
        timeout,
        as_json=as_json,
    )


@models_app.command(rich_help_panel=_WORKERS)
def unload(
    model: ModelId,
    force: Annotated[bool, typer.Option("--force", help="Although requests use it; they finish first.")] = False,
    worker: WorkerId = None,
    as_json: Json = False,
    nats_url: NatsUrl = None,
    timeout: Timeout = 60.0,
) -> None:
    """Have workers take a model out of memory."""
    _change(
        lambda models, name: models.unload(model, force=force, worker=name),
        worker,
        nats_url,
        timeout,
        as_json=as_json,
    )


@models_app.command(rich_help_panel=_WORKERS)
def reload(
    model: ModelId,
    version: Annotated[
        str | None,
        typer.Option("--version", metavar="NAME", help="As `info` names it, or base.", show_default="the live one"),
    ] = None,
    worker: WorkerId = None,
    as_json: Json = False,
    nats_url: NatsUrl = None,
    timeout: Timeout = 300.0,
) -> None:
    """Have workers swap a model's weights, without a request that fails.

    A version that is named is then the live one in the whole fleet; with --worker it is served there alone.
    """
    if worker is None:
        from .ask import Connection
        from .models_remote import reload_everywhere

        reload_everywhere(model, version, Connection(nats_url, timeout), as_json=as_json)
        return
    _change(
        lambda models, name: models.reload(model, version=version, worker=name),
        worker,
        nats_url,
        timeout,
        as_json=as_json,
    )


def _change(change: "Change", worker: str | None, nats_url: str | None, timeout: float, *, as_json: bool) -> None:
    from .ask import Connection
    from .models_remote import change_workers

    change_workers(change, worker, Connection(nats_url, timeout), as_json=as_json)


models_app.command(rich_help_panel=_WORKERS)(promote)


@models_app.command(rich_help_panel=_WORKERS)
def recommended(
    use: Annotated[
        UseName | None,
        typer.Argument(metavar="USE", help="code, general: embedding; production, dev: generation."),
    ] = None,
    as_json: Json = False,
    nats_url: NatsUrl = None,
    timeout: Timeout = 30.0,
) -> None:
    """Show the model for each use, and what to take where it is not on the worker's machine."""
    from .ask import Connection
    from .models_remote import print_recommended

    print_recommended(use, Connection(nats_url, timeout), as_json=as_json)
