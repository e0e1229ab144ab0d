"""The finished model as a Hugging Face repository: bf16 weights, tokenizer, and the card, which is written last."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from platform import python_version
from string import Template

from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .checkpoint import Progress
from .measure import repeated
from .recipe import Recipe
from .sources import Source

TEMPLATE = Path(__file__).with_name("card.md.in")


@dataclass(frozen=True, slots=True)
class Facts:
    """What the card states of a run. bits_per_byte: of the written model over the held-out files."""

    recipe: Recipe
    progress: Progress
    sources: Sequence[Source]
    held_out: Sequence[Source]
    parameters: int
    bits_per_byte: float


def write_model(folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write what from_pretrained reads. The model is turned to bf16 in place."""
    # A model this small falls into loops: the penalty lets it out of most.
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
    """Write README.md: data, licence, recipe, result, and what the model cannot do."""
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


def _texts(sources: Sequence[Source]) -> list[str]:
    return [source.text for source in sources]


def _bytes(sources: Sequence[Source]) -> int:
    return sum(len(text.encode()) for text in _texts(sources))
