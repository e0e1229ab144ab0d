"""`mlbus data`: what can be typed below it. What a sub-command does is in its own module, imported when it runs."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Config, Json

data_app = typer.Typer(help="Training data for fine-tuning, made on this machine.", no_args_is_help=True)


@data_app.command()
def build(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder of the code.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where it is filed.", show_default="training_data in the data directory"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Look for hard negatives with its vectors too.", show_default="words alone"),
    ] = None,
    hard_negatives: Annotated[int, typer.Option(min=0, max=8, metavar="N", help="For each pair.")] = 1,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, metavar="N", help="Of the split and of random negatives.")
    ] = 0,
    show: Annotated[int, typer.Option(min=0, metavar="N", help="Print so many pairs of each kind.")] = 0,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Make training pairs of a codebase, as a fine-tuning would, and show what they are."""
    from ..config import read_settings
    from .data import Wanted, build_data

    build_data(read_settings(config), Wanted(path, out, model, hard_negatives, seed, show), as_json=as_json)
