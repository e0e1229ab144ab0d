"""Loading a causal language model from a folder of checked weights: read, quantise, test. Runs no foreign code."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, ValidationError, model_validator
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ..catalogue import ModelSpec, Quantization, SamplingDefaults
from ..encoders.base import version_of
from ..errors import CannotQuantize, ModelUnavailable, fault_text
from ..loading.device import TORCH_DTYPES
from ..loading.memory import stored_shapes
from ..loading.reading import first_fault, misfit, quiet, reading
from ..quantization.prepacked import prepack
from ..quantization.quantize import quantize, unquantizable, weight_bytes
from ..weights.model_files import next_step, weight_files
from . import load_checks
from .architecture import context_of, drop_unused, kv_shape, served_config, skeleton
from .causal_lm import CausalLM
from .output import Detokeniser
from .prompt import Prompts
from .tokenizer import GenerationTokenizer
from .types import EngineFacts

GENERATION_CONFIG = "generation_config.json"
STALE_BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
"""Suffixes of names that older repositories store with their weights, and that models now compute."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A causal language model whose weights are checked but not read yet. digest: their SHA-256."""

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
        with quiet():
            tokenizer = GenerationTokenizer.read(self.folder, self.spec.id)
        self.on_step("reading the model")
        network = read_network(self.spec, self.folder, config, TORCH_DTYPES[dtype])
        output: torch.nn.Linear = network.get_output_embeddings()  # type: ignore[no-untyped-call]
        vocabulary = output.weight.shape[0]
        context = context_of(self.spec, config)
        test_ids = self._test_ids(tokenizer, vocabulary, context)
        logits, notes = self._place_and_test(network, dtype, quantization, test_ids, context)
        stop_ids = _stop_ids(stated, config, tokenizer, vocabulary)
        if (unknown := tokenizer.vocabulary - vocabulary) > 0:  # the engine refuses them in prompts
            notes = (*notes, f"{unknown} tokens of its tokeniser have no weights")
        prompts = self._prompts(tokenizer, stop_ids, vocabulary)
        facts = EngineFacts(
            model=self.spec.id,
            version=version_of(self.digest, dtype, quantization),
            device=str(self.device),
            dtype=dtype,
            quantization=quantization,
            weight_bytes=weight_bytes(network),
            max_tokens=context,
            vocabulary=vocabulary,
            chat=prompts.chat,
            fill=prompts.fill,
            defaults=SamplingDefaults(**stated.model_dump(include=set(SamplingDefaults.model_fields))),
            notes=notes,
        )
        shape = kv_shape(config, TORCH_DTYPES[dtype])
        return CausalLM(facts, stop_ids, shape, network, tokenizer, prompts, test_ids, logits)

    def _prompts(self, tokenizer: GenerationTokenizer, stop_ids: frozenset[int], vocabulary: int) -> Prompts:
        layout = self.spec.repository_layout
        try:
            return Prompts(tokenizer, stop_ids, vocabulary, layout)
        except ValueError as error:
            reason = f"its entry says repository_layout {layout!r}, and {error}; correct it"
            raise ModelUnavailable(self.spec.id, reason) from error

    def _test_ids(self, tokenizer: GenerationTokenizer, vocabulary: int, context: int) -> list[int]:
        """The ids of the self-test's text. Raises ModelUnavailable if decoding them does not give back the text."""
        ids = tokenizer.encode(load_checks.TEST_TEXT)
        output = Detokeniser(tokenizer)
        if "".join([*map(output.push, ids), output.flush()]) != load_checks.TEST_TEXT:
            reason = f"the tokeniser in {self.folder} does not give back what it reads"
            raise ModelUnavailable(self.spec.id, f"{reason}; use a copy with its tokenizer.json")
        if max(ids) >= vocabulary:
            reason = f"its tokeniser has token {max(ids)}, its weights have {vocabulary} rows"
            raise ModelUnavailable(self.spec.id, f"{reason}; use a copy whose files belong together")
        if context < 2:
            raise ModelUnavailable(self.spec.id, "its context is too short for any text; raise `max_tokens`")
        return ids[: min(load_checks.TEST_TOKENS, context)]

    def _place_and_test(
        self, network: PreTrainedModel, dtype: str, quantization: Quantization | None, test_ids: list[int], context: int
    ) -> tuple[Tensor, tuple[str, ...]]:
        """Quantise the model, move it to its device and test it there.

        -> its logits (V,) for the token after the last of the ids, and notes for the operator.
        """
        model = self.spec.id
        ids_of_rows = load_checks.ids_of_few_and_many_rows(test_ids, context) if quantization else ()
        plain = [load_checks.model_logits(model, network, ids) for ids in ids_of_rows]
        notes = self._quantize(network, quantization) if quantization else ()
        network.to(self.device)  # type: ignore[arg-type]
        prepack(network)
        own_memory(network)
        self.on_step(f"testing the model in {dtype} on {self.device}")
        logits = load_checks.model_logits(model, network, test_ids)
        load_checks.require_causal(model, network, test_ids, logits)
        if quantization:
            after = [load_checks.model_logits(model, network, ids) for ids in ids_of_rows]
            notes = (load_checks.require_near(model, quantization, plain, after), *notes)
        return logits[-1].clone(), notes

    def _quantize(self, network: PreTrainedModel, quantization: Quantization) -> tuple[str, ...]:
        """Quantise the model -> a note if some of it stays as it is. Raises ModelUnavailable if most of it would."""
        self.on_step(f"making it {quantization}")
        count, share = unquantizable(network, quantization)
        if share > 0.5:
            reason = f"{share:.0%} of its weights are in layers that cannot be {quantization}; load it without that"
            raise ModelUnavailable(self.spec.id, reason)
        try:
            quantize(network, quantization, self.device)
        except CannotQuantize as error:
            raise ModelUnavailable(self.spec.id, f"{error}; load it without that") from error
        return (f"{count} of its matrices, {share:.0%} of their weights, are not {quantization}",) if count else ()


def read_network(spec: ModelSpec, folder: Path, config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Read a model onto the CPU in `dtype`. No network, no remote code, no pickle; silent.

    Raises ModelUnavailable, also for weights that are missing, too many or of another shape.
    """
    if fault := _shortage(config, [folder / name for name in weight_files(spec, folder)]):
        raise misfit(spec, folder, fault)
    with reading(spec, folder, next_step(spec)) as faults:
        network: Any = AutoModelForCausalLM.from_pretrained(
            str(folder),
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
        )
    if fault := first_fault([row for row in faults if not row[0].endswith(STALE_BUFFERS)], network):
        raise misfit(spec, folder, fault)
    drop_unused(network)
    read: PreTrainedModel = network.eval().requires_grad_(False)
    return read


def own_memory(network: PreTrainedModel) -> None:
    """Copy parameters out of mapped files: a write to such a file would change the model."""
    for parameter in network.parameters():
        if parameter.device.type == "cpu" and not is_traceable_wrapper_subclass(parameter):
            parameter.data = parameter.data.clone()


def _shortage(config: PretrainedConfig, files: Sequence[Path]) -> str | None:
    """What the files lack, as a clause, if they hold fewer numbers than the model has.

    transformers would first fill the model with random numbers, as many as its configuration says, and then report it.
    """
    stored = dict(item for file in files for item in stored_shapes(file))
    if (layers := config.get_text_config().num_hidden_layers) > len(stored):
        return f"it has {layers} layers, and there are {len(stored)} weights"
    expected = dict(skeleton(config).named_parameters())
    if sum(map(math.prod, stored.values())) >= sum(parameter.numel() for parameter in expected.values()):
        return None
    name = next(name for name, parameter in expected.items() if list(parameter.shape) != stored.get(name))
    return f"{name} is {'of another shape' if name in stored else 'missing'}"


class GenerationConfig(SamplingDefaults):
    """The fields of generation_config.json that are used: the authors' sampling, and the tokens that end a text."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    do_sample: bool | None = None
    eos_token_id: int | Annotated[list[int], Field(max_length=1000)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_unused(cls, stated: Any) -> Any:
        """Without do_sample, transformers does not read these fields either."""
        if not isinstance(stated, dict) or stated.get("do_sample"):
            return stated
        unused = {"temperature", "top_k", "top_p", "min_p"}
        return {name: value for name, value in stated.items() if name not in unused}


def read_generation_config(spec: ModelSpec, folder: Path) -> GenerationConfig:
    """The folder's generation_config.json, if it has one, overridden by the entry. Raises ModelUnavailable if it is
    damaged."""
    try:
        stated = GenerationConfig.model_validate_json((folder / GENERATION_CONFIG).read_bytes())
    except FileNotFoundError:
        stated = GenerationConfig()
    except ValidationError as error:
        reason = f"{GENERATION_CONFIG} in {folder} cannot be used, {fault_text(error)}; correct it"
        raise ModelUnavailable(spec.id, reason) from error
    return stated.model_copy(update=spec.sampling.model_dump(exclude_none=True))


def _stop_ids(
    stated: GenerationConfig, config: PretrainedConfig, tokenizer: GenerationTokenizer, vocabulary: int
) -> frozenset[int]:
    """Every token that a file of the model names as an end, and that the model can generate."""
    ends: set[int] = set()
    for ids in (stated.eos_token_id, config.get_text_config().eos_token_id, tokenizer.eos_id):
        ends.update(ids if isinstance(ids, list) else [] if ids is None else [ids])
    return frozenset(token for token in ends if 0 <= token < vocabulary)
