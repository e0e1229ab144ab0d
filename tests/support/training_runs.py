"""Runs of a training for the tests, with few pairs."""

import json
from datetime import date
from pathlib import Path
from typing import Any

from models.catalogue import ModelSpec, load_catalogue
from models.training.fit.train import train
from models.training.progress import Event
from models.training.run import RunFolder, RunSpec, TrainingOptions, VerifyLimits
from models.weights.hub import locate

SUBJECTS = ["file", "socket", "tree", "token", "matrix", "thread", "price", "colour", "user", "row", "page", "clock"]
VERBS = ["open", "close", "sort", "count", "print", "merge"]


def pairs() -> list[dict[str, Any]]:
    """72 pairs, every sixth of them held out, with a negative each."""
    made = [
        {
            "anchor": f"{verb.capitalize()} the {subject}.",
            "positive": f"def {verb}_{subject}(it):\n" + f"    it.{subject}.{verb}()\n" * (1 + number % 3),
            "negatives": [f"def {verb}_{SUBJECTS[number - 1]}x(it): pass"],
            "kind": "docstring",
            "language": "python",
            "file": f"{subject}.py",
        }
        for number, subject in enumerate(SUBJECTS)
        for verb in VERBS
    ]
    return [{**pair, "split": "train" if number % 6 else "held_out"} for number, pair in enumerate(made)]


def of_folder(folder: Path, **fields: object) -> ModelSpec:
    given = {"kind": "embedding", "folder": str(folder), "causal": False, "append_eos": True, **fields}
    return load_catalogue({"mine": given}).get("mine")


def run_in(
    path: Path,
    entry: ModelSpec,
    lines: list[dict[str, Any]] | None = None,
    memory: int | None = None,
    limits: VerifyLimits | None = None,
    **options: Any,
) -> RunFolder:
    """A run with its pairs, `pairs()` unless others are given."""
    run = RunFolder(path)
    path.mkdir(parents=True)
    chosen = {"batch_size": 16, "max_tokens": 32, "learning_rate": 1e-3, **options}
    spec = RunSpec(
        job="job-1",
        entry=entry,
        base=entry.folder or locate(entry),
        parent="base",
        training_data=path,
        day=date(2026, 1, 2),
        options=TrainingOptions(**chosen),
        limits=limits or VerifyLimits(),
        device="cpu",
        memory_bytes=memory,
    )
    run.spec.write_text(spec.model_dump_json())
    run.data.write_text("".join(json.dumps(pair) + "\n" for pair in (pairs() if lines is None else lines)))
    return run


def trained(run: RunFolder) -> list[Event]:
    events: list[Event] = []
    train(run, events.append)
    return events


def last(events: list[Event], kind: type[Any]) -> Any:
    return [event for event in events if isinstance(event, kind)][-1]
