"""The gain, time and memory of fine-tuning all-MiniLM-L6-v2 on the standard library.

    python -m bench.finetune [--pairs 5000] [--epochs 1] [--learning-rate 5e-5] [--threads 2]

Docstrings must find their code. Our step `train`, in its own process, is compared with a plain loop over
sentence-transformers' loss on the same pairs, stopped after the same time. Both start from the same weights. They are
evaluated on held-out files of the standard library, on two packages that neither was trained on, and on English
sentences that have nothing to do with code.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from models.catalogue import load_catalogue
from models.loading.device import configure_threads
from models.loading.loader import LoadOptions, load
from models.training.data.dataset import read_pairs, write_dataset
from models.training.data.held_out import HeldOut, held_out
from models.training.encoding import encode_texts
from models.training.progress import Trained, read_event
from models.training.run import RunFolder, RunSpec, TrainingOptions
from models.training.verify.check_texts import probe_score
from models.training.verify.metrics import rank_metrics
from models.weights.hub import locate

from . import finetune_data, report
from .processes import ROOT

MODEL, PACKAGES = "minilm", ("networkx", "rich")
MAX_TOKENS = 160
STDLIB, PROBE = "standard library, held out", "English sentences"
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Contender:
    """Weights in a folder, and the cost of their training. pairs_per_s: without start-up and evaluations."""

    name: str
    folder: Path
    pairs: int = 0
    seconds: float = 0.0
    pairs_per_s: float = 0.0
    peak_bytes: int = 0


def main() -> None:
    """Train both, evaluate all three, print."""
    options = _options()
    packages = ("torch", "transformers", "sentence-transformers")
    report.print_setting("bench.finetune", packages, tokens=MAX_TOKENS, **vars(options))
    with tempfile.TemporaryDirectory() as place:
        run = _prepared(Path(place), options)
        pairs = read_pairs(run.data)
        ours = _ours(run)
        plain = _plain(run, options, ours.seconds)
        contenders = Contender("before", run.read().base), plain, ours
        tasks = {STDLIB: held_out(pairs)} | _elsewhere(Path(place))
        scores = {contender.name: _evaluate(contender.folder, tasks, options.threads) for contender in contenders}
    _print_training(contenders[1:])
    _print_scores(tasks, scores)
    _print_targets(ours, plain, scores)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--hard-negatives", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def _prepared(folder: Path, options: argparse.Namespace) -> RunFolder:
    """A run with its pairs."""
    training = TrainingOptions(
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        max_tokens=MAX_TOKENS,
        hard_negatives=options.hard_negatives,
    )
    entry = load_catalogue().get(MODEL)
    run = RunFolder(folder / "run")
    run.path.mkdir()
    spec = RunSpec(
        job="bench",
        entry=entry,
        base=locate(entry),
        parent="base",
        training_data=folder,
        day=date.today(),
        options=training,
        threads=options.threads,
    )
    run.spec.write_text(spec.model_dump_json())
    code = finetune_data.standard_library(folder)
    manifest = write_dataset(run, finetune_data.docstring_pairs(code, options.pairs, training))
    counts = f"{manifest.pairs} to train on, {manifest.held_out} held out, of {manifest.files} files"
    print(f"pairs      {counts}\n", flush=True)
    return run


def _ours(run: RunFolder) -> Contender:
    started = time.perf_counter()
    rates = []
    command = (sys.executable, "-m", "models.training", "train", str(run.path))
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        rates += [event.pairs_per_s for event in map(read_event, process.stdout) if isinstance(event, Trained)]
    if process.returncode:
        raise RuntimeError(f"the training ended with {process.returncode}")
    seconds = time.perf_counter() - started
    spec = run.read()
    pairs = spec.options.epochs * sum(pair.split == "train" for pair in read_pairs(run.data))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return Contender("mlbus", run.candidate, pairs, seconds, rates[-1], peak)


def _plain(run: RunFolder, options: argparse.Namespace, budget_s: float) -> Contender:
    spec = run.read()
    out = run.path / "plain"
    settings = spec.options.model_dump(mode="json") | {"budget_s": budget_s, "threads": options.threads}
    command = (sys.executable, "-m", "bench.peers.plain_finetune", spec.base, run.data, out, json.dumps(settings))
    done = subprocess.run([*map(str, command)], cwd=ROOT, check=True, capture_output=True)
    found = json.loads(done.stdout.splitlines()[-1])
    rate = found["pairs"] / found["seconds"]
    return Contender("plain loop", out, found["pairs"], found["seconds"], rate, found["peak_bytes"])


def _elsewhere(folder: Path) -> dict[str, HeldOut]:
    return {
        f"{name}, never trained on": finetune_data.search_task(finetune_data.package(name, folder)) for name in PACKAGES
    }


def _evaluate(folder: Path, tasks: Mapping[str, HeldOut], threads: int) -> dict[str, tuple[float, float]]:
    """MRR@10 and NDCG@10 of each task, with the weights as they are served; of the probe MRR@10 twice."""
    configure_threads(threads)
    encoder = load(load_catalogue().get(MODEL), LoadOptions(folder=folder, threads=threads))
    probe = probe_score(lambda texts: encode_texts(encoder, texts))
    found = {PROBE: (probe, probe)}
    for name, task in tasks.items():
        vectors = encode_texts(encoder, task.queries), encode_texts(encoder, task.documents)
        ranking = rank_metrics(*vectors, task.relevant, task.ignored)
        found[name] = ranking.mean_reciprocal_rank, ranking.mean_ndcg
    return found


def _print_training(contenders: Sequence[Contender]) -> None:
    rows = [
        (one.name, f"{one.pairs}", f"{one.seconds:.0f}", f"{one.pairs_per_s:.2f}", f"{one.peak_bytes / MIB:.0f}")
        for one in contenders
    ]
    report.print_table(("", "pairs", "seconds", "pairs/s", "peak MiB"), rows)


def _print_scores(tasks: Mapping[str, HeldOut], scores: Mapping[str, Mapping[str, tuple[float, float]]]) -> None:
    rows = []
    for task in (*tasks, PROBE):
        size = f"{len(tasks[task].queries)} in {len(tasks[task].documents)}" if task in tasks else "120 in 240"
        rows.append((task, size, *(f"{mrr:.3f} / {ndcg:.3f}" for mrr, ndcg in (s[task] for s in scores.values()))))
    report.print_table(("MRR@10 / NDCG@10", "queries in texts", *scores), rows)


def _print_targets(ours: Contender, plain: Contender, scores: Mapping[str, Mapping[str, tuple[float, float]]]) -> None:
    def gain(task: str, name: str = ours.name) -> float:
        return scores[name][task][0] - scores["before"][task][0]

    report.print_target("gain of MRR@10, held out", gain(STDLIB), 0.09)
    report.print_target("minutes", ours.seconds / 60, 20, at_most=True)
    report.print_target("pairs/s", ours.pairs_per_s, 8)
    for name in scores["before"]:
        if name not in (STDLIB, PROBE):
            report.print_target(f"gain of MRR@10, {name}", gain(name), 0.06)
    report.print_target("loss on English sentences", -gain(PROBE), 0.01, at_most=True)
    print(f"pairs/s to the plain loop's: {ours.pairs_per_s / plain.pairs_per_s:.2f}")
    print(f"gain of the plain loop: {gain(STDLIB, plain.name):.3f}")


if __name__ == "__main__":
    main()
