"""How a model is trained, and the limits that a candidate must keep."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TrainingOptions(BaseModel):
    """How to train: the fields of `ml.finetune` on the wire, for a caller in this process."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    method: Literal["auto", "lora", "full"] = "auto"
    loss: Literal["infonce", "triplet"] = "infonce"
    matryoshka: bool = False
    epochs: int = Field(1, ge=1, le=100)
    batch_size: int = Field(32, ge=2, le=4096)
    micro_batch: int | None = Field(None, ge=1, le=4096)
    learning_rate: float = Field(1e-5, gt=0, le=0.1)
    warmup: float = Field(0.1, ge=0, le=1)
    max_tokens: int | None = Field(None, ge=8, le=32768)
    patience: int = Field(2, ge=1, le=100)
    hard_negatives: int = Field(1, ge=0, le=8)
    lora_rank: int = Field(16, ge=1, le=256)
    seed: int = Field(0, ge=0, le=2**32 - 1)


class VerifyLimits(BaseModel):
    """The limits a candidate must keep to be accepted. Drift is measured on the held-out texts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    require_gain: bool = Field(True, description="reject a candidate without a significant gain on the held-out pairs")
    confidence: float = Field(
        0.95, gt=0.5, lt=1, description="confidence level at which a candidate counts as worse or better"
    )
    probe_drop: float = Field(0.01, ge=0, le=1, description="decline on general English that is allowed")
    min_cosine_p5: float = Field(
        0.5, ge=-1, le=1, description="least cosine of the old to the new vector of a text, 5th percentile"
    )
    min_overlap: float = Field(
        0.3, ge=0, le=1, description="least share of the ten nearest neighbours that stay the same"
    )
    max_slowdown: float = Field(1.5, ge=1, le=10, description="time of a batch, relative to the live version")
