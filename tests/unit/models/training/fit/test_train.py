"""The step `train`: what it leaves, that it goes on after a kill, and what it does about numbers and memory.

The model is a tiny random one of Qodo's layout, once all-MiniLM-L6-v2. On one thread.
"""

import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_runs import last, of_folder, pairs, run_in, trained
from workers import clean_environment

from bench.random_models import write_qodo
from models.catalogue import load_catalogue
from models.loading.loader import LoadOptions, load
from models.training.errors import CannotTrain, NoPairs, TrainingError
from models.training.fit import train
from models.training.fit.epochs import Epochs
from models.training.progress import Candidate, Evaluated, Measured, Note, Trained, read_event
from models.training.run import RunFolder
from models.weights.model_files import check_weights
from models.weights.versions import record_of


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qodo(tmp_path_factory.mktemp("base"))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def require_equal(one: RunFolder, other: RunFolder) -> None:
    expected, found = weights_of(one.candidate), weights_of(other.candidate)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.slow
def test_minilm_learns_and_leaves_a_complete_candidate(tmp_path: Path) -> None:
    entry = load_catalogue().get("minilm")
    run = run_in(tmp_path / "run", entry, learning_rate=5e-5, epochs=2)
    run.manifest.write_text(json.dumps({"pairs": 60}))
    events = trained(run)
    scores = [event for event in events if isinstance(event, Evaluated)]
    assert [event.epoch for event in scores] == [0, 1, 2]
    assert max(event.metrics["ndcg@10"] for event in scores[1:]) >= scores[0].metrics["ndcg@10"]
    steps = [event for event in events if isinstance(event, Trained)]
    assert (steps[-1].step, steps[-1].steps, steps[-1].epoch, steps[-1].eta_s) == (8, 8, 2.0, 0.0)
    assert all(math.isfinite(event.loss) and event.pairs_per_s > 0 for event in steps)
    record = record_of(run.candidate)
    assert record is not None
    digest = check_weights(entry.model_copy(update={"sha256": {}}), run.candidate)
    assert record.weights_sha256 == digest == last(events, Candidate).weights_sha256
    assert (record.options["method"], record.data, record.parent) == ("full", {"pairs": 60}, "base")
    assert record.metrics["ndcg@10"] == max(event.metrics["ndcg@10"] for event in scores[1:])
    assert not [path for path in run.candidate.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert load(entry, LoadOptions("cpu", folder=run.candidate)).version.startswith(digest[:12])
    filed = [read_event(line) for line in run.history.read_bytes().splitlines()]
    assert filed == [event for event in events if not isinstance(event, Candidate)]
    measured = last(events, Measured)
    assert events.index(measured) < events.index(steps[0])
    assert 16 * 22_700_000 < measured.memory_bytes < 4e9
    assert measured.eta_s > 0


def test_a_finished_step_only_emits_its_event(base: Path, tmp_path: Path) -> None:
    run = run_in(tmp_path / "run", of_folder(base))
    first = last(trained(run), Candidate)
    assert trained(run) == [first]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits(base: Path, tmp_path: Path) -> None:
    one, same, other = (run_in(tmp_path / str(n), of_folder(base), epochs=2, seed=n // 2) for n in range(3))
    digests = [last(trained(run), Candidate).weights_sha256 for run in (one, same, other)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.slow
def test_a_resumed_training_gives_the_same_weights(base: Path, tmp_path: Path, method: str) -> None:
    whole, cut = (
        run_in(tmp_path / name, of_folder(base), epochs=3, patience=3, method=method) for name in ("whole", "cut")
    )
    events = trained(whole)
    command = [sys.executable, "-m", "models.training", "train", str(cut.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=clean_environment()) as child:
        assert child.stdout is not None
        for line in child.stdout:
            event = read_event(line)
            if isinstance(event, Evaluated) and event.epoch == 1:
                child.send_signal(signal.SIGKILL)
                break
        else:
            pytest.fail("it ended before it was killed")
        child.wait()
    assert not cut.candidate.exists()
    resumed = trained(cut)
    assert [event.epoch for event in resumed if isinstance(event, Evaluated)][-1] == 3
    assert 0 not in [event.epoch for event in resumed if isinstance(event, Evaluated)]
    require_equal(whole, cut)
    filed = [read_event(line) for line in cut.history.read_bytes().splitlines()]
    assert [event for event in filed if isinstance(event, Evaluated)] == [
        event for event in events if isinstance(event, Evaluated)
    ]
    steps = [event.step for event in filed if isinstance(event, Trained)]
    assert steps == sorted(set(steps))


def test_adapters_are_merged_into_plain_weights(base: Path, tmp_path: Path) -> None:
    run = run_in(tmp_path / "run", of_folder(base), method="lora", lora_rank=4)
    trained(run)
    before, after = weights_of(base), weights_of(run.candidate)
    assert before.keys() == after.keys()
    differs = {name for name in before if not torch.equal(before[name], after[name])}
    assert differs == {name for name in before if "_proj.weight" in name}
    assert not list(run.candidate.glob("adapter*"))
    record = record_of(run.candidate)
    assert record is not None
    assert record.options["method"] == "lora"
    load(of_folder(base), LoadOptions("cpu", folder=run.candidate))


def test_large_models_get_adapters_and_recompute_activations(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, plain = run_in(tmp_path / "run", of_folder(base)), run_in(tmp_path / "plain", of_folder(base), method="lora")
    trained(plain)
    monkeypatch.setattr("models.training.fit.method.LARGE", 1000)
    trained(run)
    require_equal(run, plain)


@pytest.mark.parametrize("options", [{"loss": "triplet", "micro_batch": 4}, {"matryoshka": True}, {"micro_batch": 5}])
def test_every_loss_trains(base: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    run = run_in(tmp_path / "run", of_folder(base), epochs=2, **options)
    events = trained(run)
    assert last(events, Trained).steps == 8
    before, after = weights_of(base), weights_of(run.candidate)
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_training_stops_early_without_gain(base: Path, tmp_path: Path) -> None:
    run = run_in(tmp_path / "run", of_folder(base), epochs=9, patience=2, learning_rate=1e-12)
    events = trained(run)
    assert last(events, Evaluated).epoch == 2
    assert last(events, Candidate).stopped == "2 evaluations brought no gain"


REHEARSED = 2
"""How many losses are computed before the training begins."""


def spoiled(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[int, int], float]) -> None:
    """Let the loss be multiplied with spoil(how many were computed before, pairs at a time)."""
    make, count = train.make_loss, 0

    def make_loss(model: Any, options: Any, rows: int, lengths: Any = ()) -> torch.nn.Module:
        loss = make(model, options, rows, lengths)
        forward = loss.forward

        def computed(*given: Any) -> torch.Tensor:
            nonlocal count
            count += 1
            value: torch.Tensor = forward(*given) * spoil(count - 1, rows)
            return value

        loss.forward = computed  # type: ignore[method-assign]
        return loss

    monkeypatch.setattr(train, "make_loss", make_loss)
    monkeypatch.setattr(train, "restart", lambda folder: None)  # it would take the place of this process


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_loss_ends_the_training_with_the_best_epoch(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: float
) -> None:
    spoilt = run_in(tmp_path / "run", of_folder(base), epochs=3)
    monkeypatch.setattr(Epochs, "gained", property(lambda epochs: epochs.done > 0))
    spoiled(monkeypatch, lambda count, rows: bad if count >= REHEARSED + 6 else 1.0)
    events = trained(spoilt)
    assert last(events, Candidate).stopped == "the loss was no number any more at step 7"
    assert "best epoch" in last(events, Note).text
    assert all(tensor.isfinite().all() for tensor in weights_of(spoilt.candidate).values())
    assert Epochs.load(spoilt.checkpoints).done == 1


def test_a_non_finite_loss_before_any_gain_is_an_error(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_in(tmp_path / "run", of_folder(base))
    spoiled(monkeypatch, lambda count, rows: math.nan)
    with pytest.raises(TrainingError, match="step 1"):
        trained(run)
    assert not run.candidate.exists()


def test_a_non_finite_gradient_never_reaches_the_weights(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is finite; on the way back it overflows."""
    run = run_in(tmp_path / "run", of_folder(base))
    spoiled(monkeypatch, lambda count, rows: 1.0)
    step = train.Trainer.training_step

    def training_step(loop: Any, model: Any, *given: Any) -> torch.Tensor:
        loss: torch.Tensor = step(loop, model, *given)
        next(model.parameters()).grad[0] = math.nan
        return loss

    monkeypatch.setattr(train.Trainer, "training_step", training_step)
    with pytest.raises(TrainingError, match="step 1"):
        trained(run)


SHORT = [
    lambda: torch.OutOfMemoryError("CUDA out of memory"),
    lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    MemoryError,
]


@pytest.mark.parametrize("error", SHORT)
@pytest.mark.slow
def test_micro_batches_are_halved_when_memory_is_short(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception]
) -> None:
    run = run_in(tmp_path / "run", of_folder(base), epochs=2)

    def spoil(count: int, rows: int) -> float:
        if count >= REHEARSED + 6 and rows > 4:
            raise error()
        return 1.0

    spoiled(monkeypatch, spoil)
    events = trained(run)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert [note.split(";")[1].split()[0] for note in notes] == ["8", "4"]
    assert [event.epoch for event in events if isinstance(event, Evaluated)] == [0, 1, 2]
    assert last(events, Candidate).stopped is None


@pytest.mark.slow
def test_triplet_training_restarts_when_memory_is_short(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_in(tmp_path / "run", of_folder(base), epochs=2, loss="triplet")

    def spoil(count: int, rows: int) -> float:
        if count >= REHEARSED + 6 and rows > 4:
            raise MemoryError
        return 1.0

    spoiled(monkeypatch, spoil)
    events = trained(run)
    assert [event for event in events if isinstance(event, Note)]
    assert [event.epoch for event in events if isinstance(event, Evaluated)][-3:] == [0, 1, 2]
    assert last(events, Candidate).stopped is None


def test_training_fails_when_not_even_one_pair_fits(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_in(tmp_path / "run", of_folder(base), batch_size=4)

    def spoil(count: int, rows: int) -> float:
        raise MemoryError

    spoiled(monkeypatch, spoil)
    with pytest.raises(CannotTrain, match="one pair at a time; lower max_tokens"):
        trained(run)


@pytest.mark.slow
def test_training_keeps_to_its_memory_limit(tmp_path: Path) -> None:
    """In a process of its own: 60 pairs of 256 tokens do not fit into 900 MB at once, and are computed in pieces."""
    entry = of_folder(write_qodo(tmp_path / "base", hidden=128, intermediate=512))
    lines = [{**pair, "positive": pair["positive"] * 40} for pair in pairs()]
    run = run_in(tmp_path / "run", entry, lines, memory=900 << 20, batch_size=64, max_tokens=256, method="full")
    command = [sys.executable, "-m", "models.training", "train", str(run.path)]
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environment(), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "memory was short" in done.stdout
    assert run.candidate.is_dir()


@pytest.mark.parametrize("options", [{}, {"loss": "triplet"}])
def test_too_few_pairs_are_refused(base: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    lines = [{**pair, "negatives": []} for pair in pairs()]
    chosen = lines if options else lines[:2]
    run = run_in(tmp_path / "run", of_folder(base), chosen, **options)
    with pytest.raises(NoPairs, match="to train on"):
        trained(run)


def test_without_held_out_pairs_the_last_epoch_is_used(base: Path, tmp_path: Path) -> None:
    lines = [{**pair, "split": "train"} for pair in pairs()]
    run = run_in(tmp_path / "run", of_folder(base), lines, epochs=2)
    events = trained(run)
    assert not [event for event in events if isinstance(event, Evaluated)]
    record = record_of(run.candidate)
    assert record is not None
    assert record.metrics == {"epoch": 2.0}
