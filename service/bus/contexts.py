"""Contexts of the nats command (NATS ADR-21): JSON files with a url and an identity. Read, written, selected."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import BadBusSettings, refusing
from .private_file import write_private


def expanded(path: str, environ: Mapping[str, str]) -> Path:
    """The path, with a leading `~/` replaced by the environment's HOME."""
    return Path(environ.get("HOME", "~") + path[1:] if path.startswith("~/") else path)


def context_in_use(environ: Mapping[str, str]) -> tuple[str, Path] | None:
    """Name and file of the context in NATS_CONTEXT, else of the selected one, else None."""
    root = _root(environ)
    name = environ.get("NATS_CONTEXT") or _selected(root / "context.txt")
    return (name, _path(root, name)) if name else None


def read_context(path: Path) -> dict[str, Any]:
    """The fields of a context. Raises BadBusSettings, whose message shows nothing of the content."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise BadBusSettings("NATS_CONTEXT", f"no context {path.stem!r}: there is no {path}") from None
    except (OSError, ValueError) as e:
        raise BadBusSettings(str(path), f"cannot be read as a context: {e}") from None
    if not isinstance(content, dict):
        raise BadBusSettings(str(path), "a context is a JSON object")
    return content


def write_context(environ: Mapping[str, str], name: str, content: Mapping[str, Any], *, force: bool = False) -> Path:
    """Write a context that only its owner can read -> its file.

    A context of the same name is replaced if it has the same description, or with `force`. Raises BadBusSettings.
    """
    path = _path(_root(environ), name)
    with refusing(path, "the context cannot be written"):
        if not force and path.exists() and not _is_of_kind(path, content):
            raise BadBusSettings(str(path), "is another context; choose another --name, or replace it with --force")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return path


def select_context(environ: Mapping[str, str], name: str) -> None:
    """Select a context as the default, and record the one before for `nats context previous`."""
    root = _root(environ)
    previous = _selected(root / "context.txt")
    with refusing(root, "the context cannot be selected"):
        if previous not in ("", name):
            write_private(root / "previous-context.txt", previous)
        write_private(root / "context.txt", name)


def _root(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("XDG_CONFIG_HOME") or expanded("~/.config", environ)) / "nats"


def _path(root: Path, name: str) -> Path:
    if not name or "/" in name or "\\" in name or ".." in name:  # as the nats command has it
        raise BadBusSettings("NATS_CONTEXT", f"{name!r} is not the name of a context")
    return root / "context" / f"{name}.json"


def _is_of_kind(path: Path, content: Mapping[str, Any]) -> bool:
    try:
        return bool(read_context(path).get("description") == content["description"])
    except BadBusSettings:
        return False


def _selected(path: Path) -> str:
    """The name of the selected context, or an empty string."""
    try:
        return path.read_text("utf-8").strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, ValueError) as e:
        raise BadBusSettings(str(path), f"cannot be read for the selected context; set NATS_CONTEXT: {e}") from None
