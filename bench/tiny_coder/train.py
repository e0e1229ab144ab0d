"""Train tiny_coder and write its repository: `python -m bench.tiny_coder.train --out FOLDER`.

An interrupted run resumes from its last checkpoint if started again with the same `--run`. With fewer `--tokens` it
ends early, and with `--tokens 0` only the repository is written.
"""

import argparse
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from .data import Source, read_sources, split, stream, train_tokenizer
from .recipe import SHAPE, Progress, Recipe, build, optimisers
from .repository import Facts, bits_per_byte, write_card, write_model

log = logging.getLogger(__name__)

TOKENS = 7_000_000
LOG_STEPS, SAVE_STEPS, MEASURE_STEPS = 10, 100, 500
LOSS_TOKENS = 256
"""Tokens whose logits are in memory at a time: 4 MB, which fit into a CPU cache."""


@dataclass(frozen=True, slots=True)
class Run:
    """The state of a run. checkpoint: the file that keeps it."""

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    optimisers: Sequence[Optimizer]
    recipe: Recipe
    progress: Progress
    checkpoint: Path


def begin(sources: Sequence[Source], plan: Recipe, file: Path, shape: Mapping[str, Any] = SHAPE) -> Run:
    """Start a run on these sources, or resume the one of the checkpoint file."""
    tokenizer = train_tokenizer(source.text for source in sources)
    model = build(len(tokenizer), plan.seed, shape)
    run = Run(model, tokenizer, optimisers(model, plan), plan, Progress(), file)
    if file.exists():
        load_checkpoint(run)
    return run


def save_checkpoint(run: Run) -> None:
    """Write weights, optimiser states and progress, as one safetensors file that appears whole."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in run.model.named_parameters()}
    tensors: dict[str, Tensor] = {f"weight/{name}": p.detach() for p, name in names.items()}
    for optimiser in run.optimisers:
        for parameter, state in optimiser.state.items():
            tensors |= {f"{key}/{names[parameter]}": value for key, value in state.items()}
    unfinished = run.checkpoint.with_suffix(".part")
    save_file(tensors, unfinished, metadata={"progress": json.dumps(asdict(run.progress))})
    unfinished.replace(run.checkpoint)


def load_checkpoint(run: Run) -> None:
    """Restore what save_checkpoint wrote."""
    parameters = dict(run.model.named_parameters())
    owner = {p: o for o in run.optimisers for group in o.param_groups for p in group["params"]}
    with safe_open(run.checkpoint, "pt") as stored:
        for entry in stored.keys():  # noqa: SIM118 - not a mapping
            key, name = entry.split("/")
            parameter, value = parameters[name], stored.get_tensor(entry)
            if key == "weight":
                parameter.data.copy_(value)
            else:
                owner[parameter].state[parameter][key] = value
        for field, number in json.loads(stored.metadata()["progress"]).items():
            setattr(run.progress, field, number)


def train(run: Run, sources: Sequence[Source], held_out: Sequence[Source]) -> None:
    """Train to the recipe's last token, with checkpoints meanwhile and at the end."""
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
            save_checkpoint(run)


def batches(run: Run, sources: Sequence[Source]) -> Iterator[torch.Tensor]:
    """The shuffled windows of each epoch, (windows, tokens + 1) ids a step, from the run's progress on.

    The rest of an epoch, less than a step, is dropped.
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
    """Train on one batch of windows -> the mean loss in nats a token."""
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
    """Compute the gradient of the mean loss, some tokens' logits at a time. inputs, targets (B, T) ids -> nats."""
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
    """Bits per byte over the held-out files, in bf16 and in windows of the run's current width."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return bits_per_byte(run.model, run.tokenizer, [source.text for source in held_out], run.progress.width)


def publish(run: Run, folder: Path, sources: Sequence[Source], held_out: Sequence[Source]) -> float:
    """Write the repository -> its bits per byte over the held-out files, measured on the written model."""
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
