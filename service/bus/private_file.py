"""Files that hold secrets."""

import os
import secrets
from pathlib import Path

MODE = 0o600


def write_private(path: Path, text: str) -> None:
    """Write the file, whole or not at all, and never readable by others, not even for a moment. Raises OSError."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE), "w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    draft.replace(path)
