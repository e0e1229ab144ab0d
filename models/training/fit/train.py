"""The step `train`: from a run's pairs and the weights it starts from to a candidate."""

import gc
import json
import os
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from ...encoders.modules import text_transformer
from ...errors import OutOfDeviceMemory
from ...loading.device import configure_threads, device_errors
from ...loading.memory import device_memory, give_back
from ...loading.reading import quiet
from ...sandbox.limits import memory_limit, resident_bytes
from ...weights.durable import clear_leftovers, discard, new_folder, write_durably
from ...weights.versions import RECORD, TrainingRecord, record_of
from ..data.dataset import read_pairs
from ..data.held_out import held_out, split_held_out
from ..data.records import Pair
from ..errors import CannotTrain, NoPairs, TrainingError
from ..progress import Candidate, Emit, History, Note
from ..run import RunFolder, RunSpec
from .batches import Batches, collate, examples
from .cost import check_trainable
from .epochs import WEIGHTS, Epochs
from .export import export
from .loop import NonFiniteLoss, Trainer, TrainingData, TrainingMonitor, trainer_arguments
from .method import (
    Method,
    choose_method,
    lowest_bf16_cosine,
    make_loss,
    merge_adapters,
    restore_weights,
    trainable_model,
    vector_lengths,
)
from .texts import TrainingTexts, evaluator

BF16_SAMPLE = 16
FREE_SHARE = 0.9
"""Of the free memory that a training on the CPU may take; an estimate that is too low must not prevent it."""


def train(run: RunFolder, emit: Emit) -> None:
    """Train as `run.json` says, on `run.data`, and write `run.candidate`; if that exists, only emit its event.

    Raises TrainingError, ModelError, OSError.
    """
    clear_leftovers(run.path)
    record, stopped = record_of(run.candidate), None
    if record is None:
        record, stopped = _train(run, emit)
    emit(Candidate(weights_sha256=record.weights_sha256, stopped=stopped))


def _train(run: RunFolder, emit: Emit) -> tuple[TrainingRecord, str | None]:
    spec = run.read()
    check_trainable(spec.entry, spec.base)
    spec = spec.model_copy(update={"entry": spec.entry.model_copy(update={"sha256": {}})})
    configure_threads(spec.threads)
    method = choose_method(spec.entry, spec.base, spec.options, spec.device)
    training = _Training(run, spec, method, read_pairs(run.data), History(run.history, emit))
    with quiet():
        stopped = training.run()
        return training.write_candidate(), stopped


class _Training:
    """A run from its pairs to a candidate."""

    def __init__(self, run: RunFolder, spec: RunSpec, method: Method, pairs: list[Pair], history: History) -> None:
        self._run = run
        self._spec = spec
        self._method = method
        self._pairs = pairs
        self._history = history
        self._before = resident_bytes()

    def run(self) -> str | None:
        """Train to the end, in smaller micro-batches where memory is short -> why it ended early, if it did."""
        micro_batch = self._micro_batch()
        limit = None
        if self._method.device.type == "cpu":
            limit = self._spec.memory_bytes or int(device_memory("cpu")[0] * FREE_SHARE)
        while True:
            try:
                with device_errors(str(self._method.device)), memory_limit(limit):
                    return self._fit(micro_batch)
            except OutOfDeviceMemory as error:
                if micro_batch == 1:
                    reason = f"{error} with one pair at a time; lower max_tokens, or give it more memory"
                    raise CannotTrain(self._spec.entry.id, reason) from None
            except NonFiniteLoss as error:
                return self._stop_at_best(error.step)
            micro_batch //= 2
            if self._spec.options.loss == "triplet":  # another number of steps an epoch, so no resuming
                discard(self._run.checkpoints)
                self._run.checkpoints.mkdir()
            write_durably(self._micro_batch_file, str(micro_batch).encode())
            note = f"memory was short; {micro_batch} pairs at a time are computed from here on"
            self._history.add(Note(text=note))
            if limit is not None:
                restart(self._run.path)
            gc.collect()  # the trainer and its model refer to each other
            give_back(str(self._method.device))

    @property
    def _micro_batch_file(self) -> Path:
        return self._run.checkpoints / "micro_batch"

    def _micro_batch(self) -> int:
        """Pairs to compute at once: as requested, or what fitted into memory the last time."""
        options, file = self._spec.options, self._micro_batch_file
        requested = min(options.micro_batch or options.batch_size, options.batch_size)
        return min(requested, int(file.read_bytes())) if file.is_file() else requested

    def write_candidate(self) -> TrainingRecord:
        """Write the best epoch, its adapters merged in float32, as a complete folder."""
        spec, epochs = self._spec, Epochs.load(self._run.checkpoints)
        best = epochs.best
        if best is None:
            raise NoPairs("no epoch was trained")
        method = replace(self._method, checkpointing=False)
        model = trainable_model(spec.entry, spec.base, spec.options, method, torch.float32)
        restore_weights(model, load_file(best / WEIGHTS))
        merge_adapters(text_transformer(spec.entry, model).auto_model)
        with new_folder(self._run.candidate) as temporary:
            digest = export(spec.entry, model, spec.base, temporary)
            record = self._record(digest, epochs)
            (temporary / RECORD).write_text(record.model_dump_json(indent=2))
        return record

    def _fit(self, micro_batch: int) -> str | None:
        """Train the epochs that are left -> why it ended early, if it did."""
        spec, options, epochs = self._spec, self._spec.options, Epochs.load(self._run.checkpoints)
        if not (epochs.done == options.epochs or epochs.stagnates(options.patience)):
            model = trainable_model(spec.entry, spec.base, options, self._method, self._method.base_dtype)
            texts = TrainingTexts.of(spec.entry, model, options.max_tokens)
            data = self._data(texts, micro_batch)
            accumulation = -(-options.batch_size // micro_batch) if options.loss == "triplet" else 1
            method = self._in_safe_precision(model, texts, data)
            lengths = vector_lengths(spec.entry, int(model.get_embedding_dimension() or 0))
            loss = make_loss(model, options, micro_batch, lengths)
            args = trainer_arguments(epochs.folder, options, method, data.batches, accumulation)
            trainer = Trainer(model, args, loss, data, epochs)
            trainer.add_callback(TrainingMonitor(trainer, self._history, options.patience, self._before))
            self._history.rewind(epochs.step, epochs.done)
            trainer.train(resume_from_checkpoint=str(epochs.newest) if epochs.newest else None)
        return None if epochs.done == options.epochs else f"{options.patience} evaluations brought no gain"

    def _data(self, texts: TrainingTexts, micro_batch: int) -> TrainingData:
        options = self._spec.options
        training = [pair for pair in self._pairs if pair.split == "train"]
        items = examples(training, texts, options)
        size = micro_batch if options.loss == "triplet" else options.batch_size
        batches = Batches(items, size, options.epochs, options.seed)
        if not len(batches):
            need = "each needs a negative" if options.loss == "triplet" else "two with different texts are the least"
            raise NoPairs(f"{len(training)} pairs to train on, and {need}")
        selection, _ = split_held_out(self._pairs, options.epochs, options.seed)
        return TrainingData(items, batches, collate(texts), evaluator(held_out(selection), texts, micro_batch))

    def _in_safe_precision(self, model: SentenceTransformer, texts: TrainingTexts, data: TrainingData) -> Method:
        """The method, in float32 where bf16 changes vectors by more than the entry allows.

        Frozen weights in bf16 are not checked: they are served in bf16 too.
        """
        method, entry = self._method, self._spec.entry
        if method.lora or not method.bf16:
            return method
        sample = [item.columns[1] for item in data.items[:BF16_SAMPLE]]
        cosine = lowest_bf16_cosine(model, texts.features(sample))
        if cosine >= entry.min_cosine:
            return method
        self._history.add(Note(text=f"trained in fp32, because in bf16 vectors only have cosine {cosine:.4f} to those"))
        return replace(method, bf16=False)

    def _stop_at_best(self, step: int) -> str:
        """Why the training ended. Raises TrainingError where no epoch is better than the old weights."""
        epochs, reason = Epochs.load(self._run.checkpoints), f"the loss was no number any more at step {step}"
        if not epochs.gained:
            raise TrainingError(f"{reason}; try a lower learning_rate")
        self._history.add(Note(text=f"{reason}; the best epoch before is kept, try a lower learning_rate"))
        return reason

    def _record(self, digest: str, epochs: Epochs) -> TrainingRecord:
        spec, manifest = self._spec, self._run.manifest
        before, after = epochs.scores[0], epochs.scores[epochs.best_number]
        method = {"method": "lora" if self._method.lora else "full"}
        return TrainingRecord(
            model=spec.entry.id,
            job=spec.job,
            parent=spec.parent,
            created_at=datetime.now(UTC),
            weights_sha256=digest,
            options=spec.options.model_dump(mode="json") | method,
            data=json.loads(manifest.read_bytes()) if manifest.is_file() else {},
            metrics={f"{name}_before": value for name, value in before.items()}
            | after
            | {"epoch": float(epochs.best_number)},
        )


def restart(folder: Path) -> NoReturn:
    """Replace this process by a new one of the same step: oneDNN fails for good once an allocation has failed."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", "models.training", "train", str(folder)])
