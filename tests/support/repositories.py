"""Folders of code and git repositories for the tests."""

import os
import subprocess
from pathlib import Path

CODE = "def add(a, b):\n    return a + b\n"


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, env=environment, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def write(folder: Path, *paths: str, text: str = CODE) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


def committed(folder: Path) -> Path:
    """Make it a repository of a few files, with one commit; -> the folder."""
    write(folder, "b.py", "a.py", "pile/stack.go", "pile/heap.rs")
    git(folder, "init")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "first")
    return folder
