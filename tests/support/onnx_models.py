"""Tiny ONNX embedders and their oracle: the signature of jina-embeddings-v3, and what other exporters make of it.

The hidden state of a token is tanh(word + mean of the text's words + task), so it depends on the ids, the mask and the
task; `hidden_states` computes the same in numpy.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

DIMENSIONS, TASKS, MAX_TOKENS = 16, 3, 24
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "query", "passage", ":", *(f"w{i}" for i in range(60))]
_rng = np.random.default_rng(0)
WORD_VECTORS = _rng.standard_normal((len(WORDS), DIMENSIONS)).astype(np.float32)
TASK_VECTORS = _rng.standard_normal((TASKS, DIMENSIONS)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class TinyGraph:
    """What to build. `task_shape` None: no task_id; `mask`: its type, where not `integer`; `extra`: further inputs,
    read by nobody; `output`: the name of the hidden states; `pooled_as`: that of their maximum; `hungry`: asks for
    petabytes from the second text on; `quantized`: what comes before the tanh has 8 bits, on a scale that the largest
    value of the batch sets.
    """

    task_shape: list[int] | None = field(default_factory=list)
    integer: int = TensorProto.INT64
    mask: int | None = None
    dtype: type = np.float32
    sequence: str | int = "sequence"
    extra: tuple[str, ...] = ()
    output: str = "text_embeds"
    pooled_as: str | None = None
    rank_declared: bool = True
    hungry: bool = False
    quantized: bool = False


def hidden_states(ids: list[int], task: int | None) -> np.ndarray:
    """The hidden states (T, D) of one text, as the graph is to give them."""
    words = WORD_VECTORS[ids]
    return np.tanh(words + words.mean(axis=0) + (0 if task is None else TASK_VECTORS[task]))


def save(folder: Path, tiny: TinyGraph = TinyGraph(), graph: str = "onnx/model.onnx", **config: Any) -> Path:
    """Write the graph with its weights beside it, a tokeniser and `config` as its configuration; -> the folder."""
    path = folder / graph
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save_model(_model(tiny), path, save_as_external_data=True, location=path.name + "_data", size_threshold=100)
    _tokenizer().save(str(folder / "tokenizer.json"))
    config = {"model_max_length": MAX_TOKENS, "pad_token": "[PAD]"} | config
    write_json(folder / "tokenizer_config.json", config)
    return folder


def save_constant(path: Path, data: str | None) -> None:
    """Write a graph of one tensor, which is beside it in `data` where that is named."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensor = numpy_helper.from_array(np.ones(2000, np.float32), "weight")
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, [2000])
    body = helper.make_graph([helper.make_node("Identity", ["weight"], ["out"])], "g", [], [output], [tensor])
    if data is not None:
        path.with_name(data).unlink(missing_ok=True)  # or the tensor would be appended
    onnx.save_model(helper.make_model(body), path, save_as_external_data=data is not None, location=data)


def write_json(path: Path, content: Any) -> None:
    """Write JSON, making the folder first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), "utf-8")


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [(word, WORDS.index(word)) for word in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    return tokenizer


def _model(tiny: TinyGraph) -> onnx.ModelProto:
    number = helper.np_dtype_to_tensor_dtype(np.dtype(tiny.dtype))
    node = helper.make_node
    nodes = [
        node("Gather", ["word_vectors", "input_ids"], ["words"]),
        node("Cast", ["attention_mask"], ["flat_mask"], to=number),
        node("Unsqueeze", ["flat_mask", "last"], ["mask"]),
        node("Mul", ["words", "mask"], ["real"]),
        node("ReduceSum", ["real", "first"], ["sum"]),
        node("ReduceSum", ["mask", "first"], ["count"]),
        node("Div", ["sum", "count"], ["mean"]),
        node("Add", ["words", "mean"], ["context"]),
    ]
    inner = "context"
    if tiny.task_shape is not None:
        nodes += [node("Gather", ["task_vectors", "task_id"], ["task"]), node("Add", [inner, "task"], ["tasked"])]
        inner = "tasked"
    if tiny.hungry:
        nodes += _petabytes_from_the_second_text_on(number)
        nodes.append(node("Add", [inner, "nothing"], ["fed"]))
        inner = "fed"
    if tiny.quantized:
        nodes += [
            node("Pow", [inner, "five"], ["wide"]),
            node("DynamicQuantizeLinear", ["wide"], ["bytes", "scale", "shift"]),
            node("DequantizeLinear", ["bytes", "scale", "shift"], ["rounded"]),
        ]
        inner = "rounded"
    nodes.append(node("Tanh", [inner], [tiny.output]))
    if tiny.pooled_as is not None:
        # Not the mean, so that a test sees who pooled.
        nodes.append(node("ReduceMax", [tiny.output], [tiny.pooled_as], axes=[1], keepdims=0))
    constants = {
        "word_vectors": WORD_VECTORS.astype(tiny.dtype),
        "task_vectors": TASK_VECTORS.astype(tiny.dtype),
        "last": np.array([-1]),
        "first": np.array([1]),
        "huge": np.array([1 << 50]),
        "one": np.array([1]),
        "zero": np.array([0]),
        "five": np.array(5, np.float32),
    }
    used = {name for each in nodes for name in each.input}
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used]
    body = helper.make_graph(nodes, "tiny", _inputs(tiny), _outputs(tiny, number), initializers)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _petabytes_from_the_second_text_on(number: int) -> list[onnx.NodeProto]:
    """A tensor of (texts - 1) << 50 values, more than any address space; its sum is `nothing`."""
    node, value = helper.make_node, helper.make_tensor("value", number, [1], [0.0])
    return [
        node("Shape", ["input_ids"], ["texts"], start=0, end=1),
        node("Sub", ["texts", "one"], ["others"]),
        node("Mul", ["others", "huge"], ["size"]),
        node("ConstantOfShape", ["size"], ["petabytes"], value=value),
        node("ReduceSum", ["petabytes", "zero"], ["nothing"]),
    ]


def _inputs(tiny: TinyGraph) -> list[onnx.ValueInfoProto]:
    names = ("input_ids", "attention_mask", *tiny.extra)
    types = dict.fromkeys(names, tiny.integer) | {"attention_mask": tiny.mask or tiny.integer}
    inputs = [helper.make_tensor_value_info(name, type_, ["batch", tiny.sequence]) for name, type_ in types.items()]
    if tiny.task_shape is not None:
        inputs.append(helper.make_tensor_value_info("task_id", tiny.integer, tiny.task_shape))
    return inputs


def _outputs(tiny: TinyGraph, number: int) -> list[onnx.ValueInfoProto]:
    shapes = {tiny.output: ["batch", "sequence", DIMENSIONS]}
    if tiny.pooled_as is not None:
        shapes[tiny.pooled_as] = ["batch", DIMENSIONS]
    return [
        helper.make_tensor_value_info(name, number, shape if tiny.rank_declared else None)
        for name, shape in shapes.items()
    ]
