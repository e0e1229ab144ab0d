"""What fits into a budget of memory, at which precision, and what would be evicted.

Pure arithmetic over footprints: knows no weights, no device and no loaded model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from ..catalogue import ModelSpec
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
    """What is kept free beside the weights.

    working_bytes: for whatever computes. kv_tokens: tokens whose keys and values each generation model can keep.
    """

    working_bytes: int = WORKING_BYTES
    kv_tokens: int = KV_TOKENS


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model to be placed. steps: the precisions it may be served at, its own first and then ever smaller ones."""

    footprint: Footprint
    generates: bool
    steps: tuple[Precision, ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """What became of a model: its precision, the bytes of its weights there and of its keys and values."""

    candidate: Candidate
    step: int
    kv_bytes: int
    fate: Fate = "fits"

    @property
    def model(self) -> str:
        """Its catalogue id."""
        return self.candidate.footprint.model

    @property
    def precision(self) -> Precision:
        """What it is served at."""
        return self.candidate.steps[self.step]

    @property
    def reduced(self) -> bool:
        """Whether that is less than its own."""
        return self.step > 0

    @property
    def reducible(self) -> bool:
        """Whether there is a smaller precision that it may be served at."""
        return self.fate == "fits" and self.step + 1 < len(self.candidate.steps)

    @property
    def weight_bytes(self) -> int:
        """Bytes of its weights."""
        return self.candidate.footprint.sizes[self.precision]


@dataclass(frozen=True, slots=True)
class Plan:
    """The placements, in the order in which the models were given."""

    placements: tuple[Placement, ...]
    budget_bytes: int
    reserve: Reserve

    @property
    def weight_bytes(self) -> int:
        """Of the models that fit."""
        return sum(placement.weight_bytes for placement in self.placements if placement.fate == "fits")

    @property
    def kv_bytes(self) -> int:
        """Of the models that fit."""
        return sum(placement.kv_bytes for placement in self.placements if placement.fate == "fits")

    @property
    def used_bytes(self) -> int:
        """Weights, keys and values, and what is kept free for work."""
        return self.weight_bytes + self.kv_bytes + self.reserve.working_bytes

    @property
    def fits(self) -> bool:
        """Whether that is within the budget."""
        return self.used_bytes <= self.budget_bytes


def candidate(spec: ModelSpec, footprint: Footprint, reducible: bool) -> Candidate:
    """A catalogue entry's model, from its own precision downwards, or at that alone if it is not to be reduced."""
    own = native(spec)
    steps: tuple[Precision, ...] = (own,)
    if reducible and spec.served_by == "torch":
        smaller = STEPS[STEPS.index("bf16" if own == "fp16" else own) + 1 :]
        steps += tuple(step for step in smaller if step in footprint.sizes)
    return Candidate(footprint, spec.kind == "generation", steps)


def native(spec: ModelSpec) -> Precision:
    """What a model is served at on a GPU where nothing else is asked for; of ONNX graphs, what the loader takes."""
    if spec.served_by == "onnx":
        chosen = [graph for wanted in (spec.dtype, "fp16") for graph in spec.onnx_files if graph == wanted]
        return [*chosen, *spec.onnx_files][0]
    return spec.quantization or ("bf16" if spec.dtype == "auto" else spec.dtype)


def plan(candidates: Sequence[Candidate], budget_bytes: int, reserve: Reserve = Reserve()) -> Plan:
    """Place models in a budget.

    candidates: in the order of their use, the least recently used first. While they do not fit together, the largest
    that has a smaller precision takes one step down, generation models before embedding models, which lose quality
    that shows. What still does not fit is evicted, the least recently used first; a model that does not even fit alone
    is too large and evicts nobody. Reductions that the others' going has made needless are taken back.
    """
    start = tuple(Placement(item, 0, _kv_bytes(item, reserve)) for item in candidates)
    planned = Plan(start, budget_bytes, reserve)
    planned = _settled(planned, _too_large, "too large")
    while not planned.fits and (larger := _largest_reducible(planned)) is not None:
        planned = _with(planned, replace(larger, step=larger.step + 1))
    planned = _settled(planned, _least_recently_used, "evicted")
    while (raised := _raised(planned)) is not None:
        planned = raised
    return planned


def _kv_bytes(item: Candidate, reserve: Reserve) -> int:
    """In whole megabytes, as the settings state them."""
    return -(-item.footprint.kv_bytes_per_token * reserve.kv_tokens // MEGABYTE) * MEGABYTE


def _settled(planned: Plan, chosen: Callable[[Plan], Placement | None], fate: Fate) -> Plan:
    """The plan after each placement that `chosen` finds, one after the other, has met its fate."""
    while (placement := chosen(planned)) is not None:
        planned = _with(planned, replace(placement, fate=fate))
    return planned


def _too_large(planned: Plan) -> Placement | None:
    room = planned.budget_bytes - planned.reserve.working_bytes
    for placement in planned.placements:
        smallest = min(placement.candidate.footprint.sizes[step] for step in placement.candidate.steps)
        if placement.fate == "fits" and smallest + placement.kv_bytes > room:
            return placement
    return None


def _least_recently_used(planned: Plan) -> Placement | None:
    staying = (placement for placement in planned.placements if placement.fate == "fits")
    return None if planned.fits else next(staying, None)


def _largest_reducible(planned: Plan) -> Placement | None:
    reducible = [placement for placement in planned.placements if placement.reducible]
    return max(reducible, key=lambda p: (p.candidate.generates, p.weight_bytes), default=None)


def _raised(planned: Plan) -> Plan | None:
    """The plan with a model one step up again, if any of them then fits: embedding models first, then the smallest."""
    reduced = [placement for placement in planned.placements if placement.fate == "fits" and placement.reduced]
    reduced.sort(key=lambda p: (p.candidate.generates, p.weight_bytes))
    plans = (_with(planned, replace(placement, step=placement.step - 1)) for placement in reduced)
    return next((raised for raised in plans if raised.fits), None)


def _with(planned: Plan, changed: Placement) -> Plan:
    """The plan with a model's placement changed."""
    placements = tuple(changed if old.model == changed.model else old for old in planned.placements)
    return replace(planned, placements=placements)
