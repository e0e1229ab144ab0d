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
from ..encoders.base import version_of
from ..errors import CannotQuantize, ModelUnavailable
from ..loading.device import TORCH_DTYPES
from ..loading.quiet import quiet
from ..quantization.prepacked import prepack
from ..quantization.quantize import left_alone, quantize, weight_bytes
from . import load_self_test
from .architecture import context_of, kv_shape, served_config
from .base import Defaults
from .detokenise import Detokeniser
from .generation_config import GenerationConfig, read_generation_config, token_ids
from .kv_cache import KVShape
from .prompt import Prompts
from .read_model import own_memory, read_network
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
        scores, notes = self._proved(network, dtype, quantization, probe, context)
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
            prompts=Prompts(tokenizer, stop_ids, vocabulary),
            probe=probe,
            probe_scores=scores,
            notes=(*notes, *_unknown_tokens(tokenizer, vocabulary)),
        )

    def _tokenizer(self) -> GenerationTokenizer:
        try:
            with quiet():
                return GenerationTokenizer.read(self.folder)
        except ModelUnavailable as error:  # it knows the folder alone
            raise ModelUnavailable(self.spec.id, error.reason) from error

    def _probe(self, tokenizer: GenerationTokenizer, vocabulary: int, context: int) -> list[int]:
        """The probe's ids. Raises ModelUnavailable where the tokeniser does not give back its text."""
        ids = tokenizer.encode(load_self_test.PROBE)
        output = Detokeniser(tokenizer)
        if "".join([*map(output.push, ids), output.flush()]) != load_self_test.PROBE:
            reason = f"the tokeniser in {self.folder} does not give back what it reads"
            raise ModelUnavailable(self.spec.id, f"{reason}; use a copy with its tokenizer.json")
        if max(ids) >= vocabulary:
            reason = f"its tokeniser has token {max(ids)}, its weights have {vocabulary} rows"
            raise ModelUnavailable(self.spec.id, f"{reason}; use a copy whose files belong together")
        if context < 2:
            raise ModelUnavailable(self.spec.id, "its context is too short for any text; raise `max_tokens`")
        return ids[: min(load_self_test.PROBE_TOKENS, context)]

    def _proved(
        self, network: PreTrainedModel, dtype: str, quantization: Quantization | None, probe: list[int], context: int
    ) -> tuple[Tensor, tuple[str, ...]]:
        """Quantise the model, put it on its device and test it there.

        -> its scores (V,) of what follows the probe, and what its operator should know.
        """
        model = self.spec.id
        probes = load_self_test.probes_of_rows(probe, context) if quantization else ()
        plain = [load_self_test.probe_logits(model, network, ids) for ids in probes]
        notes = self._quantized(network, quantization) if quantization else ()
        network.to(self.device)  # type: ignore[arg-type]
        prepack(network)
        own_memory(network)
        self.on_step(f"testing the model in {dtype} on {self.device}")
        scores = load_self_test.probe_logits(model, network, probe)
        load_self_test.require_causal(model, network, probe, scores)
        if quantization:
            after = [load_self_test.probe_logits(model, network, ids) for ids in probes]
            notes = (load_self_test.require_near(model, quantization, plain, after), *notes)
        return scores[-1].clone(), notes

    def _quantized(self, network: PreTrainedModel, how: Quantization) -> tuple[str, ...]:
        """Quantise the model, if that changes most of it -> a note where it does not change all."""
        self.on_step(f"making it {how}")
        count, share = left_alone(network, how)
        if share > 0.5:
            reason = f"{share:.0%} of its weights are in layers that cannot be {how}; load it without that"
            raise ModelUnavailable(self.spec.id, reason)
        try:
            quantize(network, how, self.device)
        except CannotQuantize as error:
            raise ModelUnavailable(self.spec.id, f"{error}; load it without that") from error
        return (f"{count} of its matrices, {share:.0%} of their weights, are not {how}",) if count else ()


def _vocabulary(network: PreTrainedModel) -> int:
    """Rows of the output layer, still unquantised."""
    output: torch.nn.Linear = network.get_output_embeddings()  # type: ignore[no-untyped-call]
    return output.weight.shape[0]


def _unknown_tokens(tokenizer: GenerationTokenizer, vocabulary: int) -> tuple[str, ...]:
    """A note where the tokeniser has tokens beyond the output layer's rows, which the engine refuses in prompts."""
    more = tokenizer.vocabulary - vocabulary
    return (f"{more} tokens of its tokeniser have no weights",) if more > 0 else ()


def _stop_ids(
    stated: GenerationConfig, config: PretrainedConfig, tokenizer: GenerationTokenizer, vocabulary: int
) -> frozenset[int]:
    """Every token that anybody says ends a text, of those that the model can write."""
    ends = stated.end_ids | token_ids(config.get_text_config().eos_token_id) | token_ids(tokenizer.eos_id)
    return frozenset(token for token in ends if 0 <= token < vocabulary)
