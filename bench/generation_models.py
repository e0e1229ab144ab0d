"""The models that text is generated with, and prompts for them: two of random weights, and the bundled one.

Owns their sizes and what a token costs to read. Knows nothing of who generates.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from .processes import ROOT
from .random_generators import write_llama, write_starcoder

CONTEXT = 2048
WEIGHT_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
_EMBEDDINGS = ("model.embed_tokens.weight", "transformer.wte.weight", "transformer.wpe.weight")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text and its tokens."""

    text: str
    ids: Sequence[int]


def llama(folder: Path) -> Path:
    """Llama's kind with 162 million weights; each head has its own keys."""
    write_llama(folder, layers=16, hidden=768, heads=12, kv_heads=12, intermediate=2048, vocab=32000, context=CONTEXT)
    return readable(folder)


def starcoder(folder: Path) -> Path:
    """GPTBigCode with 265 million weights; all heads share their keys."""
    write_starcoder(folder, layers=20, hidden=1024, heads=16, intermediate=4096, vocab=49152, context=CONTEXT)
    return readable(folder)


def tiny_coder(_folder: Path) -> Path:
    """The bundled model, where it lies."""
    return ROOT / "models" / "bundled" / "tiny_coder"


MODELS: dict[str, Callable[[Path], Path]] = {"llama": llama, "starcoder": starcoder, "tiny_coder": tiny_coder}


def token_bytes(folder: Path, dtype: str) -> int:
    """Bytes of weights that a token takes to compute: all of them, but for an embedding that is no output layer too."""
    shapes = {name: entry["shape"] for file in _files(folder) for name, entry in _header(file).items()}
    looked_up = _EMBEDDINGS if "lm_head.weight" in shapes else _EMBEDDINGS[2:]
    read = sum(int(np.prod(shape)) for name, shape in shapes.items() if name not in looked_up)
    return read * WEIGHT_BYTES[dtype]


def prompts_of(folder: Path, count: int, words: int, seed: Sequence[int]) -> list[Prompt]:
    """Different prompts of so many words, each of them one token, from the model's own tokeniser.

    Other seeds give other prompts, so that nobody can have computed them before.
    """
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    pieces = tokenizer.get_vocab()
    space = "Ġ" if "Ġ" in pieces else "▁"
    known = sorted(piece[1:] for piece in pieces if piece[0] == space and piece[1:].isalpha() and piece.isprintable())
    plain = [word for word in known if word.isascii()]
    chosen = np.random.default_rng([*seed, count, words]).choice(plain, (count, words))
    lead = " " if space == "Ġ" else ""  # SentencePiece puts one there itself
    texts = [lead + " ".join(row) for row in chosen]
    prompts = [Prompt(text, tokenizer.encode(text).ids) for text in texts]
    if len({len(prompt.ids) for prompt in prompts}) != 1:
        raise ValueError(f"{folder}: words of its vocabulary are not one token each")
    return prompts


def readable(folder: Path) -> Path:
    """Make tokens that are a part of a character as unlikely as those of no text, so that every token can be shown."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens = range(tokenizer.get_vocab_size())
    partial = [token for token in tokens if "\ufffd" in tokenizer.decode([token]) or not tokenizer.decode([token])]
    for file in _files(folder):
        weights = load_file(file)
        name = "lm_head.weight" if "lm_head.weight" in weights else "transformer.wte.weight"
        weights[name][partial] = 0.0
        save_file(weights, file, metadata={"format": "pt"})
    return folder


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _header(file: Path) -> dict[str, dict[str, list[int]]]:
    with file.open("rb") as source:
        header: dict[str, dict[str, list[int]]] = json.loads(source.read(int.from_bytes(source.read(8), "little")))
    header.pop("__metadata__", None)
    return header
