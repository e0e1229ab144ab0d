"""The settings of serving: `limits.*`, `batch.*`, `memory.*` and `generation.*` in settings.py."""

from pydantic import Field, model_validator

from .finetuning import Section


class LimitSettings(Section):
    """What one worker accepts at once. Past a limit it refuses requests with 429."""

    requests: int = Field(
        4096,
        ge=1,
        description="requests in flight; the same number again for `ml.models.*`, `ml.finetune` and `ml.jobs.*`",
    )
    request_bytes: int = Field(64 * 2**20, ge=1024, description="bytes of the bodies of these requests, likewise")
    default_timeout_s: float = Field(
        60.0, gt=0, le=900, description="deadline of a request without Ml-Timeout-Ms, in seconds"
    )
    watches: int = Field(
        256,
        ge=1,
        description="streams of ml.jobs.watch; a user, or all users without credentials together, may hold a quarter "
        "of them",
    )
    queue_texts: int = Field(8192, ge=1, description="texts of each priority that wait for one model")
    queue_tokens: int = Field(1_000_000, ge=1, description="tokens of each priority that wait for one model")


class BatchSettings(Section):
    """How texts to embed are batched."""

    budget_tokens: int | None = Field(
        None,
        ge=1,
        description="tokens of a batch, including padding where the model pads; absent: what suits the device",
    )
    overhead_tokens: int | None = Field(
        None,
        ge=0,
        description="where the model pads: padding in tokens that a text may add to a batch; absent: what suits the "
        "device",
    )


class MemorySettings(Section):
    """Which models stay in memory."""

    budget_gb: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="gigabytes (10^9 bytes) for models; absent: what is free at the first load, less a tenth of all "
        "memory or 1 GiB",
    )
    idle_unload_s: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="seconds after which an unused model is unloaded; absent: never",
    )
    pinned: tuple[str, ...] = Field(
        (), description="models that are loaded at start and never evicted or unloaded when idle"
    )
    load_on_demand: bool = Field(
        True, description="load a model when a request asks for it, if its weights are on this machine"
    )
    load_timeout_s: float = Field(
        600.0,
        gt=0,
        allow_inf_nan=False,
        description="seconds after which a load, or the process that opens a model first, is given up",
    )

    @model_validator(mode="after")
    def _comes_back(self) -> "MemorySettings":
        if self.idle_unload_s is not None and not self.load_on_demand:
            raise ValueError("idle_unload_s without load_on_demand would unload models for good; leave one of them out")
        return self


class GenerationSettings(Section):
    """How text is generated."""

    kv_gb: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="gigabytes for the KV cache of each generation model; absent: enough for max_running completions "
        "of full length and one more, but at most an eighth of the models' memory (at least 64 MiB)",
    )
    max_running: int = Field(32, ge=1, le=4096, description="completions of one model that are generated at once")
    waiting: int = Field(
        256, ge=1, description="completions that wait for one model; past that a request is refused with 429"
    )
    waiting_tokens: int = Field(262_144, ge=1, description="tokens of the prompts of these completions")
    chunk_tokens: int | None = Field(
        None,
        ge=1,
        description="prompt tokens computed in one step beside running completions; absent: 128 on a CPU, 1024 with "
        "CUDA",
    )
    stuck_step_s: float = Field(
        30.0,
        gt=0,
        allow_inf_nan=False,
        description="seconds after which a step is reported as stuck, in the log and the metrics",
    )
