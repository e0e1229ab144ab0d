"""sentence-transformers' trainer with our batches, checkpoints and events; it stops at a loss that is not finite."""

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

from ..progress import Evaluated, History, Measured, Trained
from ..run import TrainingOptions
from .batches import Batches, Example
from .cost import measure_steps, measured_bytes
from .epochs import STATE, WEIGHTS, Epochs
from .method import Method, restore_weights, trained_weights
from .texts import Evaluate

EVENT_INTERVAL_S = 1.0
WEIGHT_DECAY = 0.01
MAX_GRAD_NORM = 1.0


class NonFiniteLoss(Exception):
    """The loss or a gradient is infinite or NaN; the weights are unchanged. step: counts from 1."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The training examples. collate: makes the tensors of a batch; evaluate: scores the model on held-out pairs."""

    items: list[Example]
    batches: Batches
    collate: Callable[[Any], dict[str, Any]]
    evaluate: Evaluate


def trainer_arguments(
    folder: Path, options: TrainingOptions, method: Method, batches: Batches, accumulation: int
) -> SentenceTransformerTrainingArguments:
    """The trainer's arguments. accumulation: batches whose gradients make one step."""
    steps = -(-len(batches) // accumulation) * options.epochs
    return SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=options.epochs,
        gradient_accumulation_steps=accumulation,
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
    """The losses since the last event, and the pairs, steps and time since the training began in this process."""

    losses: list[float] = field(default_factory=list)
    pairs: int = 0
    steps: int = 0
    busy_s: float = 0.0
    step_began: float = 0.0
    last_event: float = 0.0


class Trainer(SentenceTransformerTrainer):
    """Trains from the newest epoch to the last, or until `patience` epochs brought no gain."""

    def __init__(
        self,
        model: SentenceTransformer,
        args: SentenceTransformerTrainingArguments,
        loss: torch.nn.Module,
        data: TrainingData,
        epochs: Epochs,
    ) -> None:
        super().__init__(model=model, args=args, loss=loss)
        self.remove_callback(PrinterCallback)  # it writes to standard output, which is for events
        self.meter = _Meter()
        self.data = data
        self.epochs = epochs

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Add none: a candidate has a record and a report instead."""

    def get_train_dataloader(self) -> Any:
        items: Any = self.data.items  # a list serves as a Dataset
        batches: Any = self.data.batches
        return self.accelerator.prepare(DataLoader(items, batch_sampler=batches, collate_fn=self.data.collate))

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward pass of one batch. Raises NonFiniteLoss."""
        pairs = len(inputs["anchor_input_ids"])
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise NonFiniteLoss(self.state.global_step + 1)
        self.meter.losses.append(float(loss) * self.current_gradient_accumulation_steps)
        self.meter.pairs += pairs
        return loss

    def measure_step(self, members: list[int]) -> None:
        """Forward and backward pass of a batch, without any effect on the training."""
        self.current_gradient_accumulation_steps = self.args.gradient_accumulation_steps
        super().training_step(self.model_wrapped, self.data.collate([self.data.items[index] for index in members]))
        self.model_wrapped.zero_grad()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.epochs.save(self._write)

    def _write(self, folder: Path) -> None:
        save_file(trained_weights(self.model), folder / WEIGHTS)
        self._save_optimizer_and_scheduler(str(folder))
        self._save_rng_state(str(folder))
        self.state.save_to_json(str(folder / STATE))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        restore_weights(self.model, load_file(Path(resume_from_checkpoint) / WEIGHTS))


class TrainingMonitor(TrainerCallback):
    """Emits the events of a training, and evaluates the model before it and after each epoch.

    before: bytes that the process had in memory before the model was loaded.
    """

    def __init__(self, trainer: Trainer, history: History, patience: int, before: int) -> None:
        self._trainer, self._meter, self._data, self._epochs = trainer, trainer.meter, trainer.data, trainer.epochs
        self._history = history
        self._patience = patience
        self._before = before

    def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Measure the training's cost, and evaluate the initial model, once a run."""
        steps_s = measure_steps(self._trainer.measure_step, self._data.items, self._data.batches.of_all_epochs)
        left, began = 1 - state.global_step / state.max_steps, time.monotonic()
        is_first = not self._epochs.scores
        if is_first:
            self._epochs.scores.append(self._data.evaluate(parts["model"]))
        eta_s = steps_s * left + (time.monotonic() - began) * args.num_train_epochs
        self._history.add(Measured(memory_bytes=measured_bytes(parts["model"], self._before), eta_s=eta_s))
        if is_first:
            self._add_scores()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        self._meter.step_began = time.monotonic()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Check the gradients. Raises NonFiniteLoss."""
        gradients = (weight.grad for weight in parts["model"].parameters() if weight.grad is not None)
        if not all(bool(gradient.isfinite().all()) for gradient in gradients):
            raise NonFiniteLoss(state.global_step + 1)

    def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Emit the progress, about once a second and at the end."""
        meter, now = self._meter, time.monotonic()
        meter.steps += 1
        meter.busy_s, meter.step_began = meter.busy_s + now - meter.step_began, now
        if now - meter.last_event < EVENT_INTERVAL_S and state.global_step < state.max_steps:
            return
        meter.last_event = now
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
        """Evaluate the model, request a checkpoint, and stop if there was no gain for too long."""
        self._epochs.scores.append(self._data.evaluate(parts["model"]))
        control.should_save = True
        control.should_training_stop = control.should_training_stop or self._epochs.stagnates(self._patience)

    def on_save(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Emit an epoch's scores, now that its checkpoint is written."""
        self._add_scores()

    def _add_scores(self) -> None:
        scores = self._epochs.scores
        if scores[-1]:
            self._history.add(Evaluated(epoch=len(scores) - 1, metrics=scores[-1]))
