"""The step `train`: from a run's pairs and the weights it starts from to a candidate.

Owns the order: check, train from the newest epoch on, again in smaller pieces where memory is short, write the best.
"""

import gc
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from ...encoders.modules import text_transformer
from ...errors import OutOfDeviceMemory
from ...loading.device import configure_threads, memory_errors
from ...loading.memory import device_memory, give_back
from ...loading.quiet import quiet
from ...sandbox.limits import begin_again, memory_limit, resident_bytes
from ...weights.durable import clear_leftovers, discard, publish_folder, temporary_name, write_durably
from ...weights.versions import RECORD, TrainingRecord, record_of
from ..data.dataset import read_pairs
from ..data.records import Pair
from ..errors import CannotTrain, Diverged, NoPairs
from ..progress import Candidate, Event, Note
from ..run import RunFolder, RunSpec
from ..verify.held_out import held_out, parted
from .batches import Batches, collate, examples
from .epochs import WEIGHTS, Epochs
from .export import export
from .footprint import check_trainable
from .history import History
from .loop import Data, Loop, NotANumber, Watch, arguments
from .losses import make_loss, vector_lengths
from .method import Method, choose_method, lowest_bf16_cosine, merge_adapters, put_weights, trainable_model
from .ranking import HeldOutTask
from .texts import TrainingTexts

BF16_SAMPLE = 16
OF_WHAT_IS_FREE = 0.9
"""May be taken, as the training begins; an estimate that is too low must not stand in the way."""


def train(run: RunFolder, say: Callable[[Event], None]) -> None:
    """Train as `run.json` says, on `run.data`, and leave `run.candidate`; where that is there, only say so.

    Raises CannotTrain, NoPairs, Diverged, MalformedPair, ModelError, OSError.
    """
    clear_leftovers(run.path)
    record = record_of(run.candidate)
    if record is None:
        record, stopped = _train(run, say)
        say(Candidate(weights_sha256=record.weights_sha256, stopped=stopped))
    else:
        say(Candidate(weights_sha256=record.weights_sha256))


def _train(run: RunFolder, say: Callable[[Event], None]) -> tuple[TrainingRecord, str | None]:
    spec = run.read()
    check_trainable(spec.entry, spec.base)
    spec = spec.model_copy(update={"entry": spec.entry.model_copy(update={"sha256": {}})})
    configure_threads(spec.threads)
    method = choose_method(spec.entry, spec.base, spec.options, spec.device)
    training = _Training(run, spec, method, list(read_pairs(run.data)), History(run.history, say))
    with quiet():
        stopped = training.whole()
        return training.candidate(), stopped


class _Training:
    """A run on its way from pairs to a candidate."""

    def __init__(self, run: RunFolder, spec: RunSpec, method: Method, pairs: list[Pair], history: History) -> None:
        self._run = run
        self._spec = spec
        self._method = method
        self._pairs = pairs
        self._history = history
        self._before = resident_bytes()

    def whole(self) -> str | None:
        """Train to the end, in smaller pieces where memory is short -> why it ended early, if it did."""
        rows = self._rows()
        ceiling = None
        if self._method.device.type == "cpu":
            ceiling = self._spec.memory_bytes or int(device_memory("cpu")[0] * OF_WHAT_IS_FREE)
        while True:
            try:
                with memory_errors(str(self._method.device)), memory_limit(ceiling):
                    return self._fitted(rows)
            except OutOfDeviceMemory as error:
                if rows == 1:
                    reason = f"{error} with one pair at a time; lower max_tokens, or give it more memory"
                    raise CannotTrain(self._spec.entry.id, reason) from None
            except NotANumber as error:
                return self._kept(error.step)
            rows //= 2
            if self._spec.options.loss == "triplet":  # an epoch has other steps then, and cannot be gone on from
                discard(self._run.checkpoints)
                self._run.checkpoints.mkdir()
            write_durably(self._rows_file, str(rows).encode())
            self._history.add(Note(text=f"memory was short; {rows} pairs at a time are computed from here on"))
            if ceiling is not None:
                begin_again(self._run.path)
            gc.collect()  # the trainer and its model refer to each other
            give_back(str(self._method.device))

    @property
    def _rows_file(self) -> Path:
        return self._run.checkpoints / "micro_batch"

    def _rows(self) -> int:
        """How many pairs are computed at once: as asked, or what fitted the last time."""
        options, file = self._spec.options, self._rows_file
        asked = min(options.micro_batch or options.batch_size, options.batch_size)
        return min(asked, int(file.read_bytes())) if file.is_file() else asked

    def candidate(self) -> TrainingRecord:
        """Write the best epoch, its adapters merged in float32, as a complete folder."""
        spec, epochs = self._spec, Epochs.found(self._run.checkpoints)
        best = epochs.best
        if best is None:
            raise NoPairs("no epoch was trained")
        method = replace(self._method, checkpointing=False)
        model = trainable_model(spec.entry, spec.base, spec.options, method, torch.float32)
        put_weights(model, load_file(best / WEIGHTS))
        merge_adapters(text_transformer(spec.entry, model).auto_model)
        temporary = temporary_name(self._run.candidate)
        try:
            temporary.mkdir()
            digest = export(spec.entry, model, spec.base, temporary)
            record = self._record(digest, epochs)
            (temporary / RECORD).write_text(record.model_dump_json(indent=2))
            publish_folder(temporary, self._run.candidate)
        except BaseException:
            discard(temporary)
            raise
        return record

    def _fitted(self, rows: int) -> str | None:
        """Train what is left, so many pairs at a time."""
        spec, options, epochs = self._spec, self._spec.options, Epochs.found(self._run.checkpoints)
        if epochs.done == options.epochs or epochs.exhausted(options.patience):
            return self._early(epochs)
        model = trainable_model(spec.entry, spec.base, options, self._method, self._method.base_dtype)
        texts = TrainingTexts.of(spec.entry, model, options.max_tokens)
        data = self._data(texts, rows)
        accumulated = -(-options.batch_size // rows) if options.loss == "triplet" else 1
        method = self._precise(model, texts, data)
        lengths = vector_lengths(spec.entry, int(model.get_embedding_dimension() or 0))
        loss = make_loss(model, options, rows, lengths)
        args = arguments(epochs.folder, options, method, data.batches, accumulated)
        loop = Loop(model, args, loss, data, epochs)
        loop.add_callback(Watch(loop, data, epochs, self._history, options.patience, self._before))
        self._history.rewind(epochs.step, epochs.done)
        loop.train(resume_from_checkpoint=str(epochs.newest) if epochs.newest else None)
        return self._early(epochs)

    def _data(self, texts: TrainingTexts, rows: int) -> Data:
        options = self._spec.options
        items = examples([pair for pair in self._pairs if pair.split == "train"], texts, options)
        size = rows if options.loss == "triplet" else options.batch_size
        batches = Batches(items, size, options.epochs, options.seed)
        if not len(batches):
            raise NoPairs(_too_few(self._pairs, options.loss))
        choosing, _ = parted(self._pairs, options.epochs, options.seed)
        task = HeldOutTask(held_out(choosing), texts, rows)
        return Data(items, batches, collate(texts), task.scores)

    def _precise(self, model: SentenceTransformer, texts: TrainingTexts, data: Data) -> Method:
        """The method, in float32 where bf16 makes other vectors than the entry allows. Of frozen weights in bf16
        nothing better is in memory to compare with; they are served so too."""
        method, entry = self._method, self._spec.entry
        if method.lora or not method.bf16:
            return method
        sample = [item.columns[1] for item in data.items[:BF16_SAMPLE]]
        cosine = lowest_bf16_cosine(model, texts.features(sample))
        if cosine >= entry.min_cosine:
            return method
        self._history.add(Note(text=f"trained in fp32, because in bf16 vectors only have cosine {cosine:.4f} to those"))
        return replace(method, bf16=False)

    def _early(self, epochs: Epochs) -> str | None:
        if epochs.done == self._spec.options.epochs:
            return None
        return f"{self._spec.options.patience} evaluations brought no gain"

    def _kept(self, step: int) -> str:
        """Why it ended. Raises Diverged where nothing is worth keeping."""
        epochs = Epochs.found(self._run.checkpoints)
        if not epochs.gained or epochs.best is None:
            raise Diverged(step)
        reason = f"the loss was no number any more at step {step}"
        self._history.add(Note(text=f"{reason}; the best epoch before is kept, try a lower learning_rate"))
        return reason

    def _record(self, digest: str, epochs: Epochs) -> TrainingRecord:
        spec, manifest = self._spec, self._run.manifest
        before, after = epochs.scores[0], epochs.scores[epochs.best_number]
        used = {"method": "lora" if self._method.lora else "full"}
        return TrainingRecord(
            model=spec.entry.id,
            job=spec.job,
            parent=spec.parent,
            created_at=datetime.now(UTC),
            weights_sha256=digest,
            options=spec.options.model_dump(mode="json") | used,
            data=json.loads(manifest.read_bytes()) if manifest.is_file() else {},
            metrics={f"{name}_before": value for name, value in before.items()}
            | after
            | {"epoch": float(epochs.best_number)},
        )


def _too_few(pairs: Sequence[Pair], loss: str) -> str:
    count = sum(pair.split == "train" for pair in pairs)
    need = "each needs a negative" if loss == "triplet" else "two with different texts are the least"
    return f"{count} pairs to train on, and {need}"
