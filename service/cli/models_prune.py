"""`mlbus models prune`: give back disk space that downloads take. models/weights/hub_cache.py says what may go."""

import sys
from collections.abc import Sequence
from typing import Any

import typer
from rich.console import Console

from models.catalogue import load_catalogue
from models.weights.hub_cache import Survey, survey

from ..config import Settings
from .output import err, out, print_json


def prune_models(settings: Settings, models: Sequence[str], *, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Show what goes, ask, delete it. Raises UnknownModel, BadEntry."""
    found = _survey(settings, models)
    for reason in found.unreadable:
        err.print(f"left alone: {reason}", markup=False)
    if found.superfluous and not dry_run and not yes:
        _show(found, err)
        _confirm()
    done = bool(found.superfluous) and not dry_run
    if done:
        for one in found.superfluous:
            one.remove()
    if as_json:
        print_json({"deleted": done, "size_bytes": found.size_bytes, "repositories": _facts(found)})
        return
    _show(found, out)
    size = f"{found.size_bytes} bytes ({found.size_bytes / 1e9:.2f} GB)"
    out.print(f"deleted {size}" if done else f"would delete {size}" if found.superfluous else "nothing to delete")


def _survey(settings: Settings, models: Sequence[str]) -> Survey:
    """An entry that the user has replaced still names a repository that once was downloaded, but uses it no more."""
    catalogue = load_catalogue(settings.catalogue)
    named = [catalogue.get(model) for model in models]
    looked_at = named or [*catalogue, *load_catalogue()]
    keepers = [spec for spec in catalogue if spec.id not in models]
    return survey({spec.repository for spec in looked_at if spec.repository is not None}, keepers)


def _confirm() -> None:
    if not sys.stdin.isatty():
        raise typer.BadParameter("nobody is there to be asked: give --yes, or --dry-run")
    typer.confirm("Delete it?", abort=True, err=True)


def _facts(found: Survey) -> list[dict[str, Any]]:
    return [
        {
            "repository": one.repository,
            "revisions": one.revisions,
            "unfinished": len(one.unfinished),
            "size_bytes": one.size_bytes,
        }
        for one in found.superfluous
    ]


def _show(found: Survey, console: Console) -> None:
    for one in found.superfluous:
        parts = [f"revision {revision[:12]}" for revision in one.revisions]
        parts += [f"{len(one.unfinished)} unfinished downloads"] if one.unfinished else []
        console.print(f"{one.repository}: {', '.join(parts)}, {one.size_bytes / 1e9:.2f} GB", markup=False)
