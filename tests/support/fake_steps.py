"""The steps of a training, as a script tells them: `python fake_steps.py FOLDER STEP RUN`, instead of models.training.

FOLDER holds script.json: for each step (and for `swap`) what it does at its first start, at the second and so on, then
`ok`: hold (until it is ended), crash, die (by SIGKILL), fail, noise, reject. What is there already is not done again.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

from models.training.data.records import Manifest
from models.training.progress import Candidate, Collected, Failed, Measured, Note, Trained, Verified, emit
from models.training.run import RunFolder
from models.weights.durable import write_durably
from models.weights.version_history import OWN_DATA
from models.weights.versions import TrainingRecord


def sha256_of(run: RunFolder) -> str:
    """Of what a run makes: no two make the same."""
    return hashlib.sha256(run.read().job.encode()).hexdigest()


class Script:
    """What the steps of a test do. folder: where it is kept, so that processes share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, **actions: list[str]) -> Script:
        self.folder.mkdir(exist_ok=True)
        (self.folder / "script.json").write_text(json.dumps(actions))
        return self

    @property
    def command(self) -> tuple[str, ...]:
        """What runs the steps."""
        return (sys.executable, __file__, str(self.folder))

    def next(self, step: str) -> str:
        """What the step does at this start."""
        actions = json.loads((self.folder / "script.json").read_text()).get(step, [])
        start = self.starts(step)
        (self.folder / f"{step}.{start}").touch(exist_ok=False)
        return actions[start] if start < len(actions) else "ok"

    def starts(self, step: str) -> int:
        """How often it was begun."""
        return len(list(self.folder.glob(f"{step}.*")))


def holding(step: str, start: int = 1) -> str:
    """The note by which a test knows that a step holds; start: counted from 1."""
    return f"{step} holds, start {start}"


def main(folder: str, step: str, run_folder: str) -> int:
    run = RunFolder(Path(run_folder))
    outputs = {"collect": run.manifest, "train": run.candidate / "training_config.json", "verify": run.report}
    if outputs[step].exists():
        return 0
    script = Script(Path(folder))
    action = script.next(step)
    if step == "train":
        emit(Measured(memory_bytes=2 * 10**9, eta_s=90))
        emit(Trained(step=1, steps=2, epoch=0.5, loss=float("nan"), pairs_per_s=8.0, eta_s=1.0))
    match action:
        case "hold":
            emit(Note(text=holding(step, script.starts(step))))
            signal.pause()
        case "crash":
            raise RuntimeError("a bug")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "fail":
            emit(Failed(reason=f"{step} cannot be done"))
            return 1
        case "noise":
            print("a library's own words\n" + "x" * 2**20 + '\n{"event":"unknown"}\n\x00', flush=True)  # noqa: T201
    {"collect": collect, "train": train, "verify": verify}[step](run, action)
    return 0


def collect(run: RunFolder, action: str) -> None:
    digest = (run.read().codebase or run.path).name
    manifest = Manifest(
        source="code",
        digest=digest,
        sha256=sha256_of(run),
        seed=0,
        pairs=4,
        held_out=2,
        kinds={"call": 4},
        languages={},
    )
    write_durably(run.data, b"{}\n")
    write_durably(run.manifest, manifest.model_dump_json().encode())
    emit(Collected(pairs=4, held_out=2, digest=digest))


def train(run: RunFolder, action: str) -> None:
    spec = run.read()
    record = TrainingRecord(
        model=spec.entry.id,
        job=spec.job,
        parent=spec.parent,
        created_at=datetime.now(UTC),
        weights_sha256=sha256_of(run),
        options={},
        data=json.loads(run.manifest.read_text()),
        metrics={},
    )
    run.candidate.mkdir(exist_ok=True)
    emit(Trained(step=2, steps=2, epoch=1.0, loss=0.5, pairs_per_s=8.0, eta_s=0.0))
    write_durably(run.candidate / "training_config.json", record.model_dump_json().encode())
    emit(Candidate(weights_sha256=sha256_of(run), stopped="no gain" if action == "stop" else None))


def verify(run: RunFolder, action: str) -> None:
    reasons = ["held-out NDCG@10 is down"] if action == "reject" else []
    report = {"accepted": not reasons, "reasons": reasons, "metrics": {"mrr": 0.7, "drift": float("nan")}, "more": []}
    if run.read().given is not None:
        report["judged"] = OWN_DATA
    run.report.mkdir()
    write_durably(run.report / "report.json", json.dumps(report).encode())
    emit(Verified(accepted=not reasons, reasons=reasons, metrics={}))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
