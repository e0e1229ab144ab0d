"""Repositories of causal LMs with random weights: the real file layouts in any size, for measurements and tests.

Owns CodeLlama's, Llama's and StarCoder's layouts, and a plain one for others. Knows nothing of how models are read.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from .generation_tokenizers import write_byte_level_bpe, write_sentencepiece_bpe
from .random_tokenizer import write_json

LOGIT_STD = 3.0
"""Deviation of a position's scores: a tie is rare, and a sampler has a choice."""


class Sizes(TypedDict, total=False):
    """What a model may be given.

    vocab: rows of the embedding, at least the tokeniser's own and by default as many; tokens past those are never made.
    context: in tokens. seed: of the weights. shards: files for them. dtype: theirs, as torch names it.
    """

    layers: int
    hidden: int
    heads: int
    intermediate: int
    vocab: int | None
    context: int
    seed: int
    shards: int
    dtype: str


class LlamaSizes(Sizes, total=False):
    """kv_heads: fewer than heads are grouped-query attention."""

    kv_heads: int


class StarCoderSizes(Sizes, total=False):
    """multi_query: all heads share one key and value; else each has its own."""

    multi_query: bool


@dataclass(frozen=True, slots=True)
class _Weight:
    """A tensor to be drawn: of deviation `std` around `mean`, but for rows that are zero."""

    name: str
    shape: tuple[int, ...]
    std: float
    mean: float = 0.0
    zero_rows: Sequence[int] = ()

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def write_codellama(folder: Path, **sizes: Unpack[LlamaSizes]) -> Path:
    """Write a repository laid out as CodeLlama-7b-Instruct-hf is, and return its folder.

    By default 2 layers of 64 and 4 heads. The model's own end is never its likeliest token. The same arguments give
    the same weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokens = write_sentencepiece_bpe(folder)
    asked: LlamaSizes = {"context": 16384, "kv_heads": sizes.get("heads", 4), **sizes}
    return _write_model(folder, _llama_config(asked, tokens, 1_000_000), asked, tokens)


def write_llama(folder: Path, **sizes: Unpack[LlamaSizes]) -> Path:
    """Write a base model of Llama's kind, with neither a chat template nor tokens to fill in the middle.

    As `write_codellama`, but for 2 kv_heads by default.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokens = write_sentencepiece_bpe(folder, fill=False, chat=False)
    asked: LlamaSizes = {"context": 4096, "kv_heads": 2, **sizes}
    return _write_model(folder, _llama_config(asked, tokens, 10_000), asked, tokens)


def write_base(folder: Path, model_type: str, **fields: Any) -> Path:
    """Write a base model of another kind with Llama's tokeniser. As `write_llama`.

    model_type: as transformers names it. fields: of its configuration, over those of `write_llama`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokens = write_sentencepiece_bpe(folder, fill=False, chat=False)
    asked: LlamaSizes = {"context": 4096, "kv_heads": 2}
    config = {**_llama_config(asked, tokens, 10_000), "model_type": model_type, **fields}
    del config["architectures"], config["rope_scaling"]
    return _write_model(folder, config, asked, tokens)


def write_starcoder(folder: Path, **sizes: Unpack[StarCoderSizes]) -> Path:
    """Write a repository laid out as starcoderbase-1b is, and return its folder. As `write_codellama`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = write_byte_level_bpe(folder)
    hidden = sizes.get("hidden", 64)
    config = {
        "_name_or_path": "bigcode/starcoderbase-1b",
        "activation_function": "gelu_pytorch_tanh",
        "architectures": ["GPTBigCodeForCausalLM"],
        "attention_softmax_in_fp32": True,
        "attn_pdrop": 0.1,
        "bos_token_id": 0,
        "embd_pdrop": 0.1,
        "eos_token_id": 0,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "model_type": "gpt_bigcode",
        "multi_query": sizes.get("multi_query", True),
        "n_embd": hidden,
        "n_head": sizes.get("heads", 4),
        "n_inner": sizes.get("intermediate", 4 * hidden),
        "n_layer": sizes.get("layers", 2),
        "n_positions": sizes.get("context", 8192),
        "resid_pdrop": 0.1,
        "scale_attention_softmax_in_fp32": True,
        "scale_attn_weights": True,
        "torch_dtype": sizes.get("dtype", "float32"),
        "transformers_version": "4.28.1",
        "use_cache": True,
        "vocab_size": max(tokens, sizes.get("vocab") or 0),
    }
    return _write_model(folder, config, sizes, tokens)


def _llama_config(sizes: LlamaSizes, tokens: int, rope_theta: float) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": sizes.get("hidden", 64),
        "initializer_range": 0.02,
        "intermediate_size": sizes.get("intermediate", 128),
        "max_position_embeddings": sizes["context"],
        "model_type": "llama",
        "num_attention_heads": sizes.get("heads", 4),
        "num_hidden_layers": sizes.get("layers", 2),
        "num_key_value_heads": sizes["kv_heads"],
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": rope_theta,
        "tie_word_embeddings": False,
        "torch_dtype": sizes.get("dtype", "float32"),
        "transformers_version": "4.33.0",
        "use_cache": True,
        "vocab_size": max(tokens, sizes.get("vocab") or 0),
    }


def _write_model(folder: Path, config: dict[str, Any], sizes: Sizes, tokens: int) -> Path:
    write_json(folder / "config.json", config)
    ends = {name: config[name] for name in ("bos_token_id", "eos_token_id")}
    write_json(
        folder / "generation_config.json", {"_from_model_config": True, **ends, "transformers_version": "4.33.0"}
    )
    _write_weights(folder, list(_weights(config, tokens)), sizes)
    return folder


def _write_weights(folder: Path, weights: Sequence[_Weight], sizes: Sizes) -> None:
    """Draw the weights, no more than a file of them in memory, into files of about equal size with their index."""
    shards, dtype = sizes.get("shards", 1), getattr(torch, sizes.get("dtype", "float32"))
    total, written = sum(weight.size for weight in weights), 0
    files: dict[str, dict[int, _Weight]] = {}
    for place, weight in enumerate(weights):
        shard = min(written * shards // total, shards - 1) + 1
        files.setdefault(f"model-{shard:05d}-of-{shards:05d}.safetensors", {})[place] = weight
        written += weight.size
    for file, held in files.items():
        drawn = {weight.name: _draw(weight, sizes.get("seed", 0), place, dtype) for place, weight in held.items()}
        save_file(drawn, folder / file, metadata={"format": "pt"})
    weight_map = {weight.name: file for file, held in files.items() for weight in held.values()}
    index = {"metadata": {"total_size": total * dtype.itemsize}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)


def _draw(weight: _Weight, seed: int, place: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed << 16 | place)
    values = torch.randn(weight.shape, generator=generator) * weight.std + weight.mean
    values[list(weight.zero_rows)] = 0.0
    return values.to(dtype)


def _weights(config: Mapping[str, Any], tokens: int) -> Iterator[_Weight]:
    """Every weight of transformers' own class for this configuration.

    The layers add far more than the embedding brings, and attention picks few positions: else the next token would
    hang on the last one alone, and a greedy text would go round in circles.
    """
    fields = {name: value for name, value in config.items() if name != "model_type"}
    with torch.device("meta"):
        shape = AutoConfig.for_model(config["model_type"], **fields)
        model = AutoModelForCausalLM.from_config(shape)  # type: ignore[no-untyped-call]
    never = (config["eos_token_id"], *range(tokens, config["vocab_size"]))
    head = model.get_output_embeddings().weight
    for name, parameter in model.named_parameters():
        yield _weight(name, tuple(parameter.shape), never if parameter is head else ())


def _weight(name: str, shape: tuple[int, ...], zero_rows: Sequence[int]) -> _Weight:
    if name.endswith("bias"):
        return _Weight(name, shape, 0.1)
    if len(shape) == 1:
        return _Weight(name, shape, 0.1, 1.0)
    kind = name.split(".")[-2]
    gains = {"o_proj": 16.0, "down_proj": 16.0, "c_proj": 16.0, "q_proj": 2.0, "k_proj": 2.0, "c_attn": 2.0}
    embeddings = ("embed_tokens", "wte", "wpe", "lm_head")
    gain = LOGIT_STD if kind in embeddings else gains.get(kind, 1.0)
    return _Weight(name, shape, gain * shape[1] ** -0.5, zero_rows=zero_rows)
