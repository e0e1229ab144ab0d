"""Train tiny_coder and write its repository: `python -m bench.tiny_coder.train --out FOLDER`.

Owns the loop. A run that was stopped goes on from its last checkpoint if started again with the same `--run`; with
fewer `--tokens` it comes to an early end, and with `--tokens 0` only the repository is written, as the run stands.
"""

import argparse
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from . import checkpoint
from .checkpoint import Progress
from .measure import bits_per_byte
from .recipe import SHAPE, Recipe, build, optimisers
from .repository import Facts, write_card, write_model
from .sources import Source, read_sources, split
from .tokens import stream, train_tokenizer

log = logging.getLogger(__name__)

TOKENS = 7_000_000
LOG_STEPS, SAVE_STEPS, MEASURE_STEPS = 10, 100, 500
LOSS_TOKENS = 256
"""How many tokens' logits exist at a time: 4 MB, which a cache holds; those of a step would go to memory and back."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a run holds between its steps. checkpoint: the file it is kept in."""

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    optimisers: Sequence[Optimizer]
    recipe: Recipe
    progress: Progress
    checkpoint: Path


def begin(sources: Sequence[Source], plan: Recipe, file: Path, shape: Mapping[str, Any] = SHAPE) -> Run:
    """Start a run on these sources, or take up the one that the file keeps."""
    tokenizer = train_tokenizer(source.text for source in sources)
    model = build(len(tokenizer), plan.seed, shape)
    both = optimisers(model, plan)
    progress = checkpoint.load(file, model, both) if file.exists() else Progress()
    return Run(model, tokenizer, both, plan, progress, file)


def train(run: Run, sources: Sequence[Source], held_out: Sequence[Source]) -> None:
    """Train to the recipe's last token, with a checkpoint now and then and at the end."""
    at = run.progress
    begun_s = time.process_time() - at.cpu_s
    for batch in batches(run, sources):
        loss = step(run, batch)
        at.cpu_s = time.process_time() - begun_s
        if at.steps % LOG_STEPS == 0:
            log.info("step %d tokens %d loss %.4f cpu %.0f s", at.steps, at.tokens, loss, at.cpu_s)
        if at.steps % MEASURE_STEPS == 0:
            log.info("step %d held out %.4f bits per byte", at.steps, measure(run, held_out))
        if at.steps % SAVE_STEPS == 0 or at.tokens >= run.recipe.total_tokens:
            checkpoint.save(run.checkpoint, run.model, run.optimisers, at)


def batches(run: Run, sources: Sequence[Source]) -> Iterator[torch.Tensor]:
    """The windows of each epoch in a new order, (windows, tokens + 1) ids a step, from where the run stands.

    What an epoch has left at its end, less than a step, is dropped.
    """
    at, plan = run.progress, run.recipe
    while at.tokens < plan.total_tokens:
        at.width, at.rows = (at.width, at.rows) if at.window else plan.stage(at.tokens)
        ids = stream(run.tokenizer, sources, f"{plan.seed}/{at.epoch}", plan.fim_rate).astype(np.int64)
        order = np.random.default_rng([plan.seed, at.epoch]).permutation((len(ids) - 1) // at.width)
        while at.window + at.rows <= len(order) and at.tokens < plan.total_tokens:
            starts = order[at.window : at.window + at.rows] * at.width
            at.steps, at.tokens, at.window = at.steps + 1, at.tokens + at.rows * at.width, at.window + at.rows
            yield torch.from_numpy(np.stack([ids[start : start + at.width + 1] for start in starts]))
        if at.window + at.rows > len(order):
            at.epoch, at.window = at.epoch + 1, 0


def step(run: Run, batch: torch.Tensor) -> float:
    """Learn from one batch of windows; the mean loss in nats a token."""
    run.model.train()
    loss = backward(run.model, batch[:, :-1], batch[:, 1:])
    rate = run.recipe.rate(run.progress.tokens)
    for optimiser in run.optimisers:
        for group in optimiser.param_groups:
            group["lr"] = rate * optimiser.defaults["lr"]
        optimiser.step()
        optimiser.zero_grad()
    return loss


def backward(model: LlamaForCausalLM, inputs: torch.Tensor, targets: torch.Tensor) -> float:
    """Add the gradient of the mean loss, a few tokens' logits at a time. inputs, targets (B, T) ids -> nats."""
    total = 0.0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state
        leaf = hidden.detach().requires_grad_()
        parts = torch.split(leaf.flatten(0, 1), LOSS_TOKENS)
        for some, target in zip(parts, torch.split(targets.flatten(), LOSS_TOKENS), strict=True):
            loss = cross_entropy(model.lm_head(some).float(), target, reduction="sum") / targets.numel()
            torch.autograd.backward(loss)
            total += loss.item()
    torch.autograd.backward(hidden, leaf.grad)
    return total


def measure(run: Run, held_out: Sequence[Source]) -> float:
    """Bits per byte over the held-out files, computed as in training, in windows of the run's present width."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return bits_per_byte(run.model, run.tokenizer, [source.text for source in held_out], run.progress.width)


def publish(run: Run, folder: Path, sources: Sequence[Source], held_out: Sequence[Source]) -> float:
    """Write the repository; its bits per byte over the held-out files, measured on what was written."""
    write_model(folder, run.model, run.tokenizer)
    written, tokenizer = LlamaForCausalLM.from_pretrained(folder), PreTrainedTokenizerFast.from_pretrained(folder)
    bits = bits_per_byte(written, tokenizer, [source.text for source in held_out])
    write_card(folder, Facts(run.recipe, run.progress, sources, held_out, written.num_parameters(), bits))
    return bits


def main() -> None:
    """Read the command line, train, write the repository."""
    options = _options()
    torch.set_num_threads(options.threads)
    options.run.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [logging.StreamHandler(), logging.FileHandler(options.run / "log")]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers)
    sources, held_out = split(read_sources())
    run = begin(sources, Recipe(options.tokens, options.seed), options.run / "checkpoint.safetensors")
    train(run, sources, held_out)
    log.info("written: %.4f bits per byte", publish(run, options.out, sources, held_out))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train tiny_coder on the standard library of this Python.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the repository")
    parser.add_argument(
        "--run", type=Path, default=Path("var/tiny_coder"), help="folder for the checkpoint and the log"
    )
    parser.add_argument("--tokens", type=int, default=TOKENS, help="tokens to train on in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


if __name__ == "__main__":
    main()
