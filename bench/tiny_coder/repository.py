"""The finished model as a Hugging Face repository: bf16 weights, tokenizer and model card, with its evaluation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from platform import python_version
from string import Template

import torch
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .data import Ids, Source, encode
from .recipe import Progress, Recipe

TEMPLATE = Path(__file__).with_name("card.md.in")


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts for the model card. bits_per_byte: of the written model over the held-out files."""

    recipe: Recipe
    progress: Progress
    sources: Sequence[Source]
    held_out: Sequence[Source]
    parameters: int
    bits_per_byte: float


def write_model(folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write the files for from_pretrained. Converts the model to bf16 in place."""
    # A model this small falls into loops; the penalty prevents most.
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        do_sample=True,
        temperature=0.6,
        top_p=0.95,
        repetition_penalty=1.1,
    )
    model.bfloat16().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(folder)


def write_card(folder: Path, facts: Facts) -> None:
    """Write README.md: data, licence, recipe, result, limitations."""
    card = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        python=python_version(),
        files=len(facts.sources),
        megabytes=f"{_bytes(facts.sources) / 1e6:.2f}",
        held_out_files=len(facts.held_out),
        held_out_bytes=f"{_bytes(facts.held_out):,}",
        held_out="\n".join(f"- `{source.path}`" for source in facts.held_out),
        repeated=f"{repeated(_texts(facts.held_out), _texts(facts.sources)):.1%}",
        parameters=f"{facts.parameters / 1e6:.2f}",
        seed=facts.recipe.seed,
        tokens=f"{facts.progress.tokens:,}",
        steps=f"{facts.progress.steps:,}",
        epochs=facts.progress.epoch,
        stages="; ".join(
            f"from token {begin:,} on {rows} windows of {width:,} tokens a step"
            for begin, width, rows in facts.recipe.stages
        ).capitalize(),
        fim_percent=f"{facts.recipe.fim_rate:.0%}",
        cpu_hours=f"{facts.progress.cpu_s / 3600:.1f}",
        bits_per_byte=f"{facts.bits_per_byte:.3f}",
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


@torch.inference_mode()
def bits_per_byte(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], window: int | None = None
) -> float:
    """The mean cost of a byte of the texts, each preceded by the end-of-text token.

    window: tokens of the context; by default the model's whole context. It moves by half its size, so that after the
    first one each token is predicted from at least half a window.
    """
    model.eval()  # type: ignore[no-untyped-call]
    window = window or model.config.max_position_embeddings
    nats = sum(_nats(model, [tokenizer.bos_token_id, *ids], window) for ids in encode(tokenizer, texts))
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


def _nats(model: LlamaForCausalLM, ids: Ids, window: int) -> float:
    half = window // 2
    total = 0.0
    for start in range(0, max(1, len(ids) - 1 - window + half), half):
        chunk = torch.tensor(ids[start : start + window + 1])
        known = window - half if start else 0
        logits = model(input_ids=chunk[None, :-1], use_cache=False).logits[0, known:]
        total += float(cross_entropy(logits.float(), chunk[known + 1 :], reduction="sum"))
    return total


def repeated(texts: Sequence[str], trained: Sequence[str], characters: int = 80) -> float:
    """The share of the texts' passages of `characters` that occur in a training text."""
    passages = [text[i : i + characters] for text in texts for i in range(0, len(text) - characters, characters)]
    known = "\0".join(trained)
    return sum(passage in known for passage in passages) / max(1, len(passages))


def _texts(sources: Sequence[Source]) -> list[str]:
    return [source.text for source in sources]


def _bytes(sources: Sequence[Source]) -> int:
    return sum(len(text.encode()) for text in _texts(sources))
