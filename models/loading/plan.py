"""Which models fit into a budget of memory, at which precision, and which would be evicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from ..catalogue import ModelSpec

if TYPE_CHECKING:  # it imports torch
    from .footprint import Footprint, Precision

Fate: TypeAlias = Literal["fits", "evicted", "too large"]
STEPS: tuple[Precision, ...] = ("fp32", "bf16", "int8", "int4")
"""From each precision to the next smaller one."""
WORKING_BYTES = 1_500_000_000
"""The CUDA context, about 0.4 GB, and the activations of a large batch: for 16,384 tokens in Qodo's feed-forward
layers, 8,960 wide, three of 0.3 GB live at once in bf16."""
MEGABYTE = 1_000_000
KV_TOKENS = 4096
"""Tokens in flight: one request of 4,096, or 16 of 256."""


@dataclass(frozen=True, slots=True)
class Reserve:
    """Memory beside the weights. working_bytes: for computing. kv_tokens: for the cache of each generation model."""

    working_bytes: int = WORKING_BYTES
    kv_tokens: int = KV_TOKENS


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model to be placed. steps: the precisions that it may be served at, from its own downwards."""

    footprint: Footprint
    generates: bool
    steps: tuple[Precision, ...]


@dataclass(slots=True)
class Placement:
    """A model's place in a plan: its fate, its step of precision, and the bytes of its keys and values."""

    candidate: Candidate
    kv_bytes: int
    step: int = 0
    fate: Fate = "fits"

    @property
    def model(self) -> str:
        return self.candidate.footprint.model

    @property
    def precision(self) -> Precision:
        return self.candidate.steps[self.step]

    @property
    def reduced(self) -> bool:
        """Whether that is less than its own."""
        return self.step > 0

    @property
    def weight_bytes(self) -> int:
        """Bytes of its weights."""
        return self.candidate.footprint.sizes[self.precision]


@dataclass(frozen=True, slots=True)
class Plan:
    """The placements, in the order in which the models were given."""

    placements: Sequence[Placement]
    budget_bytes: int
    reserve: Reserve

    @property
    def fitting(self) -> list[Placement]:
        return [placement for placement in self.placements if placement.fate == "fits"]

    @property
    def weight_bytes(self) -> int:
        """Weights of the models that fit."""
        return sum(placement.weight_bytes for placement in self.fitting)

    @property
    def kv_bytes(self) -> int:
        """Keys and values of the models that fit."""
        return sum(placement.kv_bytes for placement in self.fitting)

    @property
    def used_bytes(self) -> int:
        """Weights, keys and values, and the memory reserved for computing."""
        return self.weight_bytes + self.kv_bytes + self.reserve.working_bytes

    @property
    def fits(self) -> bool:
        """Whether that is within the budget."""
        return self.used_bytes <= self.budget_bytes


def candidate(spec: ModelSpec, footprint: Footprint, reducible: bool) -> Candidate:
    """A catalogue entry's model as a candidate. reducible: whether it may be served below its own precision."""
    own = native(spec)
    steps: tuple[Precision, ...] = (own,)
    if reducible and spec.served_by == "torch":
        smaller = STEPS[STEPS.index("bf16" if own == "fp16" else own) + 1 :]
        steps += tuple(step for step in smaller if step in footprint.sizes)
    return Candidate(footprint, spec.kind == "generation", steps)


def native(spec: ModelSpec) -> Precision:
    """The precision that a model is served at on a GPU by default; of ONNX graphs the one that the loader takes."""
    if spec.served_by == "onnx":
        return spec.graph(spec.dtype, "fp16")
    return spec.quantization or ("bf16" if spec.dtype == "auto" else spec.dtype)


def plan(candidates: Sequence[Candidate], budget_bytes: int, reserve: Reserve = Reserve()) -> Plan:
    """Place models in a budget.

    candidates: in the order of their use, the least recently used first. A model that does not even fit alone is too
    large, and evicts no other. While the rest do not fit together, the largest that has a smaller precision takes one
    step down, generation models before embedding models, of which the loss of quality shows. Then models are evicted,
    the least recently used first; reductions that this has made unnecessary are taken back.
    """
    planned = Plan([Placement(item, _kv_bytes(item, reserve)) for item in candidates], budget_bytes, reserve)
    for placement in planned.placements:
        least = min(placement.candidate.footprint.sizes[step] for step in placement.candidate.steps)
        if least + placement.kv_bytes > budget_bytes - reserve.working_bytes:
            placement.fate = "too large"
    while not planned.fits and (
        reducible := [each for each in planned.fitting if each.step + 1 < len(each.candidate.steps)]
    ):
        max(reducible, key=_order).step += 1
    while not planned.fits and (fitting := planned.fitting):
        fitting[0].fate = "evicted"
    while any(_raised(each, planned) for each in sorted(planned.fitting, key=_order) if each.reduced):
        pass  # one after the other, embedding models first, then the smallest
    return planned


def _order(placement: Placement) -> tuple[bool, int]:
    return placement.candidate.generates, placement.weight_bytes


def _kv_bytes(item: Candidate, reserve: Reserve) -> int:
    """In whole megabytes, as the settings state them."""
    return -(-item.footprint.kv_bytes_per_token * reserve.kv_tokens // MEGABYTE) * MEGABYTE


def _raised(placement: Placement, planned: Plan) -> bool:
    """Take a reduction back, if all then fit -> whether that was so."""
    placement.step -= 1
    if not planned.fits:
        placement.step += 1
        return False
    return True
