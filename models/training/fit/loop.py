"""sentence-transformers' trainer, made to speak in events, to keep whole checkpoints and to refuse what is no number.

Owns the steps of the optimiser and the ends of epochs. What a checkpoint is for, epochs.py knows.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerCallback

from ..options import TrainingOptions
from ..progress import Evaluated, Measured, Trained
from .batches import Batches, Example
from .epochs import STATE, WEIGHTS, Epochs
from .history import History
from .measured_step import needed_bytes, rehearse
from .method import Method, put_weights, trained_weights

SAY_EVERY_S = 1.0
WEIGHT_DECAY = 0.01
MAX_GRAD_NORM = 1.0


class NotANumber(Exception):
    """The loss or a gradient is infinite or no number; the weights are as they were. step: counts from 1."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


@dataclass(frozen=True, slots=True)
class Data:
    """What a model is trained on. collate: makes tensors of a batch; scores: measures the model on what is held out."""

    items: list[Example]
    batches: Batches
    collate: Callable[[Any], dict[str, Any]]
    scores: Callable[[SentenceTransformer], dict[str, float]]


def arguments(
    folder: Path, options: TrainingOptions, method: Method, batches: Batches, accumulated: int
) -> SentenceTransformerTrainingArguments:
    """For the trainer. accumulated: batches whose gradients make one step."""
    steps = -(-len(batches) // accumulated) * options.epochs
    return SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=options.epochs,
        gradient_accumulation_steps=accumulated,
        learning_rate=options.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=round(options.warmup * steps),
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=MAX_GRAD_NORM,
        bf16=method.bf16,
        use_cpu=method.device.type == "cpu",
        seed=options.seed,
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=method.device.type != "cpu",
    )


@dataclass(slots=True)
class _Meter:
    """Losses and pairs since somebody asked, and the pace since the training began here."""

    losses: list[float] = field(default_factory=list)
    pairs: int = 0
    steps: int = 0
    busy_s: float = 0.0
    begun: float = 0.0
    said: float = 0.0


class Loop(SentenceTransformerTrainer):
    """Trains from the newest epoch to the last, or until enough of them brought no gain."""

    def __init__(
        self,
        model: SentenceTransformer,
        args: SentenceTransformerTrainingArguments,
        loss: torch.nn.Module,
        data: Data,
        epochs: Epochs,
    ) -> None:
        super().__init__(model=model, args=args, loss=loss)
        self.remove_callback(PrinterCallback)  # it writes to standard output, which is for events
        self.meter = _Meter()
        self._data = data
        self._epochs = epochs

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """None: a candidate has a record and a report instead."""

    def get_train_dataloader(self) -> Any:
        """Our batches."""
        items: Any = self._data.items  # a list will do for a Dataset
        batches: Any = self._data.batches
        return self.accelerator.prepare(DataLoader(items, batch_sampler=batches, collate_fn=self._data.collate))

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """One batch forward and back. Raises NotANumber."""
        pairs = len(inputs["anchor_input_ids"])
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise NotANumber(self.state.global_step + 1)
        self.meter.losses.append(float(loss) * self.current_gradient_accumulation_steps)
        self.meter.pairs += pairs
        return loss

    def rehearse(self, members: list[int]) -> None:
        """A batch forward and back, of which nothing stays."""
        self.current_gradient_accumulation_steps = self.args.gradient_accumulation_steps
        super().training_step(self.model_wrapped, self._data.collate([self._data.items[index] for index in members]))
        self.model_wrapped.zero_grad()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._epochs.keep(self._write)

    def _write(self, folder: Path) -> None:
        save_file(trained_weights(self.model), folder / WEIGHTS)
        self._save_optimizer_and_scheduler(str(folder))
        self._save_rng_state(str(folder))
        self.state.save_to_json(str(folder / STATE))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        put_weights(self.model, load_file(Path(resume_from_checkpoint) / WEIGHTS))


class Watch(TrainerCallback):
    """Says what the training will take and how it goes, and has the model measured before it and after each epoch.

    before: bytes that the process had in memory before there was a model.
    """

    def __init__(self, loop: Loop, data: Data, epochs: Epochs, history: History, patience: int, before: int) -> None:
        self._loop = loop
        self._meter = loop.meter
        self._data = data
        self._epochs = epochs
        self._history = history
        self._patience = patience
        self._before = before

    def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Measure what it will take, and once the model that it starts from."""
        steps_s = rehearse(self._loop.rehearse, self._data.items, self._data.batches.of_all_epochs)
        left, began = 1 - state.global_step / state.max_steps, time.monotonic()
        is_first = not self._epochs.scores
        if is_first:
            self._epochs.scores.append(self._data.scores(parts["model"]))
        eta_s = steps_s * left + (time.monotonic() - began) * args.num_train_epochs
        self._history.add(Measured(memory_bytes=needed_bytes(parts["model"], self._before), eta_s=eta_s))
        if is_first:
            self._say_scores()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Start the clock."""
        self._meter.begun = time.monotonic()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Let no gradient through that is no number. Raises NotANumber."""
        gradients = (weight.grad for weight in parts["model"].parameters() if weight.grad is not None)
        if not all(bool(gradient.isfinite().all()) for gradient in gradients):
            raise NotANumber(state.global_step + 1)

    def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Say how far it is, about once a second and at the end."""
        meter, now = self._meter, time.monotonic()
        meter.steps += 1
        meter.busy_s, meter.begun = meter.busy_s + now - meter.begun, now
        if now - meter.said < SAY_EVERY_S and state.global_step < state.max_steps:
            return
        meter.said = now
        mean, meter.losses = sum(meter.losses) / len(meter.losses), []
        self._history.add(
            Trained(
                step=state.global_step,
                steps=state.max_steps,
                epoch=state.epoch,
                loss=mean,
                pairs_per_s=meter.pairs / meter.busy_s,
                eta_s=(state.max_steps - state.global_step) * meter.busy_s / meter.steps,
            )
        )

    def on_epoch_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Measure the model, have it kept, and see whether it is worth going on."""
        self._epochs.scores.append(self._data.scores(parts["model"]))
        control.should_save = True
        control.should_training_stop = control.should_training_stop or self._epochs.exhausted(self._patience)

    def on_save(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Say what came of an epoch, now that it cannot be lost."""
        self._say_scores()

    def _say_scores(self) -> None:
        scores = self._epochs.scores
        if scores[-1]:
            self._history.add(Evaluated(epoch=len(scores) - 1, metrics=scores[-1]))
