"""Model repositories with random weights: the real file layout in any size, for measurements and tests.

Owns Qodo-Embed-1-1.5B's layout and a stand-in for jina-embeddings-v3. Knows nothing of how models are read; writes the
shards tensor by tensor, so the true size never lies in memory.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .random_tokenizer import SPECIALS, small_tokenizer, write_json, write_tokenizer

EMBEDDING_STD = 0.02
QUERY_PROMPT = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "


@dataclass(frozen=True, slots=True)
class _Shape:
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A float32 tensor to be written: normally distributed with deviation `std` around `mean`."""

    name: str
    shape: tuple[int, ...]
    std: float
    mean: float = 0.0

    @property
    def nbytes(self) -> int:
        return 4 * math.prod(self.shape)


def write_qodo(
    folder: Path,
    *,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    intermediate: int = 128,
    vocab: int | None = None,
    prefix: str = "",
    seed: int = 0,
    shards: int = 2,
) -> Path:
    """Write a repository laid out as Qodo-Embed-1-1.5B is, and return its folder.

    vocab: rows of the embedding, at least the tokeniser's own and by default as many. prefix: what the names of the
    weights begin with, `model.` where a causal LM was saved and nothing where its base model was; both can be read.
    The same arguments give the same bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = small_tokenizer()
    own = tokenizer.get_vocab_size()
    shape = _Shape(layers, hidden, heads, kv_heads, intermediate, max(own, vocab or own))
    _write_shards(folder, list(_tensors(shape, prefix)), seed, shards)
    write_tokenizer(folder, tokenizer)
    write_json(folder / "config.json", _config(shape, tokenizer.token_to_id(SPECIALS[0])))
    _write_modules(folder, hidden, "lasttoken")
    return folder


def write_jina(
    folder: Path,
    *,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    intermediate: int = 128,
    vocab: int | None = None,
    seed: int = 0,
) -> Path:
    """Write a repository of the shape of jina-embeddings-v3 without its adapters, for transformers' native class.

    Its tokeniser is that of `write_qodo`, and so are its arguments. Mean pooling.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = small_tokenizer()
    own, end = tokenizer.get_vocab_size(), tokenizer.token_to_id(SPECIALS[0])
    config = {
        "architectures": ["JinaEmbeddingsV3Model"],
        "model_type": "jina_embeddings_v3",
        "bos_token_id": end,
        "eos_token_id": end,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "max_position_embeddings": 8194,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "pad_token_id": end,
        "torch_dtype": "float32",
        "vocab_size": max(own, vocab or own),
    }
    _write_shards(folder, _tensors_of(config), seed, 1)
    write_tokenizer(folder, tokenizer)
    write_json(folder / "config.json", config)
    _write_modules(folder, hidden, "mean_tokens")
    return folder


def _tensors_of(config: Mapping[str, Any]) -> list[_Tensor]:
    """The weights that transformers' own class has: matrices scaled by their width, norms about one."""
    import torch
    from transformers import AutoConfig, AutoModel

    fields = {name: value for name, value in config.items() if name != "model_type"}
    with torch.device("meta"):
        shape = AutoConfig.for_model(config["model_type"], **fields)
        model = AutoModel.from_config(shape)  # type: ignore[no-untyped-call]
    return [_tensor(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()]


def _tensor(name: str, shape: tuple[int, ...]) -> _Tensor:
    if "embeddings" in name and len(shape) == 2:
        return _Tensor(name, shape, EMBEDDING_STD)
    if len(shape) == 2:
        return _Tensor(name, shape, shape[1] ** -0.5)
    return _Tensor(name, shape, 0.1, 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0)


def _config(shape: _Shape, end: int | None) -> dict[str, Any]:
    return {
        "_name_or_path": "Qodo/Qodo-Embed-1-1.5B",
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoModel": "modeling_qwen.Qwen2Model",
            "AutoModelForCausalLM": "modeling_qwen.Qwen2ForCausalLM",
            "AutoModelForSequenceClassification": "modeling_qwen.Qwen2ForSequenceClassification",
        },
        "bos_token_id": end,
        "eos_token_id": end,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": 131072,
        "max_window_layers": shape.layers * 3 // 4,
        "model_type": "qwen2",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.44.2",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": shape.vocab,
    }


def _tensors(shape: _Shape, prefix: str) -> Iterator[_Tensor]:
    """Every weight, scaled so that each layer passes on about as much as it gets."""
    hidden, kv_width = shape.hidden, shape.hidden // shape.heads * shape.kv_heads
    yield _Tensor(f"{prefix}embed_tokens.weight", (shape.vocab, hidden), EMBEDDING_STD)
    for layer in range(shape.layers):
        name = f"{prefix}layers.{layer}"
        yield _Tensor(f"{name}.input_layernorm.weight", (hidden,), 0.1, 1.0)
        for part, width in (("q", hidden), ("k", kv_width), ("v", kv_width)):
            yield _Tensor(f"{name}.self_attn.{part}_proj.weight", (width, hidden), hidden**-0.5)
            yield _Tensor(f"{name}.self_attn.{part}_proj.bias", (width,), 0.1)
        yield _Tensor(f"{name}.self_attn.o_proj.weight", (hidden, hidden), hidden**-0.5)
        yield _Tensor(f"{name}.post_attention_layernorm.weight", (hidden,), 0.1, 1.0)
        for part in ("gate", "up"):
            yield _Tensor(f"{name}.mlp.{part}_proj.weight", (shape.intermediate, hidden), hidden**-0.5)
        yield _Tensor(f"{name}.mlp.down_proj.weight", (hidden, shape.intermediate), shape.intermediate**-0.5)
    yield _Tensor(f"{prefix}norm.weight", (hidden,), 0.1, 1.0)


def _write_shards(folder: Path, tensors: Sequence[_Tensor], seed: int, shards: int) -> None:
    """Split the tensors, in order, into files of about equal size, and write them and their index."""
    total = sum(tensor.nbytes for tensor in tensors)
    groups: list[list[tuple[int, _Tensor]]] = [[] for _ in range(shards)]
    written = 0
    for index, tensor in enumerate(tensors):
        groups[min(written * shards // total, shards - 1)].append((index, tensor))
        written += tensor.nbytes
    weight_map: dict[str, str] = {}
    for shard, group in enumerate(groups, 1):
        file = f"model-{shard:05d}-of-{shards:05d}.safetensors"
        _write_shard(folder / file, group, seed)
        weight_map |= {tensor.name: file for _, tensor in group}
    index_file = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index_file)


def _write_shard(file: Path, group: Sequence[tuple[int, _Tensor]], seed: int) -> None:
    """One safetensors file: the header's length, the header, the data of one tensor after the other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for _, tensor in group:
        end = offset + tensor.nbytes
        header[tensor.name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # data begins at a multiple of eight bytes
    with file.open("wb") as sink:
        sink.write(len(encoded).to_bytes(8, "little"))
        sink.write(encoded)
        for index, tensor in group:
            sink.write(_values(tensor, seed, index).data)


def _values(tensor: _Tensor, seed: int, index: int) -> NDArray[np.float32]:
    values = np.random.default_rng((seed, index)).standard_normal(math.prod(tensor.shape), dtype=np.float32)
    values *= np.float32(tensor.std)
    values += np.float32(tensor.mean)
    return values


def _write_modules(folder: Path, hidden: int, pooling_mode: str) -> None:
    """What sentence-transformers reads: the module list, the pooling, the longest text and the prompts."""
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    pooling = {
        "word_embedding_dimension": hidden,
        **{f"pooling_mode_{mode}": mode == pooling_mode for mode in modes},
        "include_prompt": True,
    }
    sentence_transformers = {
        "__version__": {"sentence_transformers": "3.0.1", "transformers": "4.44.2", "pytorch": "2.4.0"},
        "prompts": {"query": QUERY_PROMPT},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    (folder / "1_Pooling").mkdir(exist_ok=True)
    write_json(folder / "modules.json", modules)
    write_json(folder / "1_Pooling" / "config.json", pooling)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 32768, "do_lower_case": False})
    write_json(folder / "config_sentence_transformers.json", sentence_transformers)
