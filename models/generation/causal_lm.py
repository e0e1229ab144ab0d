"""From a folder of checked weights to a causal language model that an engine can run.

Owns the order of steps and the facts of what was loaded. Knows no cache, no sampling and no catalogue beyond the entry.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from ..catalogue import ModelSpec, Quantization
from ..device import TORCH_DTYPES
from ..encoders.base import version_of
from ..errors import CannotQuantize, ModelUnavailable
from ..prepacked import prepack
from ..quantize import quantize, weight_bytes
from ..quiet import quiet
from . import verify
from .architecture import context_of, kv_shape, served_config
from .base import Defaults
from .generation_config import GenerationConfig, read_generation_config, token_ids
from .kv import KVShape
from .prompt import Prompts
from .reading import read_network
from .tokenizer import GenerationTokenizer


@dataclass(frozen=True, slots=True)
class CausalLM:
    """A loaded model and what is known of it.

    model: its catalogue id. version: the exact weights and precision (encoders.base.version_of). device: where it lies,
    cpu or cuda:0. dtype: what it computes in. max_tokens: prompt and completion together. vocabulary: rows of its
    output layer. stop_ids: the tokens that end a text. network: transformers' own module, in evaluation mode.
    probe, probe_scores: token ids, and what the model itself, by its own attention and as it lies here, says of what
    follows the last of them: (V,) float32 on the CPU.
    """

    model: str
    version: str
    device: str
    dtype: str
    quantization: Quantization | None
    weight_bytes: int
    max_tokens: int
    vocabulary: int
    stop_ids: frozenset[int]
    defaults: Defaults
    kv_shape: KVShape
    network: PreTrainedModel
    tokenizer: GenerationTokenizer
    prompts: Prompts
    probe: Sequence[int]
    probe_scores: Tensor
    notes: tuple[str, ...] = ()

    def close(self) -> None:
        """Let go of the weights. Whatever still refers to this object or a module then keeps nothing large."""
        for module in self.network.modules():
            module._parameters.clear()
            module._buffers.clear()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A causal language model on its way: its weights are checked, and not yet read. digest: their SHA-256."""

    spec: ModelSpec
    folder: Path
    digest: str
    device: torch.device
    on_step: Callable[[str], None]

    def load(self, dtype: str, quantization: Quantization | None = None) -> CausalLM:
        """Read, quantise and test the model.

        Raises ModelUnavailable, NonFiniteLogits, OutOfDeviceMemory.
        """
        config = served_config(self.spec, self.folder)
        stated = read_generation_config(self.spec, self.folder)
        tokenizer = self._tokenizer()
        self.on_step("reading the model")
        network = read_network(self.spec, self.folder, config, TORCH_DTYPES[dtype])
        vocabulary = _vocabulary(network)
        context = context_of(self.spec, config)
        probe = self._probe(tokenizer, vocabulary, context)
        scores, notes = self._proved(network, dtype, quantization, probe)
        stop_ids = _stop_ids(stated, config, tokenizer, vocabulary)
        return CausalLM(
            model=self.spec.id,
            version=version_of(self.digest, dtype, quantization),
            device=str(self.device),
            dtype=dtype,
            quantization=quantization,
            weight_bytes=weight_bytes(network),
            max_tokens=context,
            vocabulary=vocabulary,
            stop_ids=stop_ids,
            defaults=stated.defaults,
            kv_shape=kv_shape(config, TORCH_DTYPES[dtype]),
            network=network,
            tokenizer=tokenizer,
            prompts=Prompts(tokenizer, stop_ids),
            probe=probe,
            probe_scores=scores,
            notes=notes,
        )

    def _tokenizer(self) -> GenerationTokenizer:
        try:
            with quiet():
                return GenerationTokenizer.read(self.folder)
        except ModelUnavailable as error:  # it knows the folder alone
            raise ModelUnavailable(self.spec.id, error.reason) from error

    def _probe(self, tokenizer: GenerationTokenizer, vocabulary: int, context: int) -> list[int]:
        ids = tokenizer.encode(verify.PROBE)[: min(verify.PROBE_TOKENS, context)]
        if len(ids) < 2 or len(set(ids)) < 2:
            raise ModelUnavailable(self.spec.id, f"the tokeniser in {self.folder} knows no words; use a complete copy")
        if max(ids) >= vocabulary:
            reason = f"its tokeniser has token {max(ids)}, its weights have {vocabulary} rows"
            raise ModelUnavailable(self.spec.id, f"{reason}; use a copy whose files belong together")
        return ids

    def _proved(
        self, network: PreTrainedModel, dtype: str, quantization: Quantization | None, probe: list[int]
    ) -> tuple[Tensor, tuple[str, ...]]:
        """Quantise the model, put it on its device and test it there.

        -> its scores (V,) of what follows the probe, and what its operator should know.
        """
        model, plain = self.spec.id, None
        if quantization is not None:
            self.on_step(f"making it {quantization}")
            plain = verify.probe_logits(model, network, probe)
            try:
                quantize(network, quantization, self.device)
            except CannotQuantize as error:
                raise ModelUnavailable(model, f"{error}; load it without that") from error
        network.to(self.device)  # type: ignore[arg-type]
        prepack(network)
        self.on_step(f"testing the model in {dtype} on {self.device}")
        scores = verify.probe_logits(model, network, probe)
        verify.require_causal(model, network, probe, scores)
        last = scores[-1].clone()
        if quantization is None or plain is None:
            return last, ()
        return last, (verify.require_near(model, quantization, plain, scores),)


def _vocabulary(network: PreTrainedModel) -> int:
    """Rows of the output layer, still unquantised."""
    output: torch.nn.Linear = network.get_output_embeddings()  # type: ignore[no-untyped-call]
    return output.weight.shape[0]


def _stop_ids(
    stated: GenerationConfig, config: PretrainedConfig, tokenizer: GenerationTokenizer, vocabulary: int
) -> frozenset[int]:
    """Every token that anybody says ends a text, of those that the model can write."""
    ends = stated.end_ids | token_ids(config.eos_token_id) | token_ids(tokenizer.eos_id)
    return frozenset(token for token in ends if 0 <= token < vocabulary)
