"""Every name on the wire: subjects, headers, content types, and the words that fields take."""

from collections.abc import Mapping
from typing import Literal, TypeAlias

SERVICE = "ml"
"""Name of the service in the NATS micro protocol."""
QUEUE_GROUP = "ml"
"""The queue group that all workers share: one of them takes each request."""

EMBED = "ml.embed"
EMBED_BATCH = "ml.embed.batch"
SIMILARITY = "ml.similarity"
GENERATE = "ml.generate"
GENERATE_BATCH = "ml.generate.batch"
TOKENIZE = "ml.tokenize"
DETOKENIZE = "ml.detokenize"
CANCEL = "ml.cancel"
FINETUNE = "ml.finetune"
FINETUNE_UPLOAD = "ml.finetune.upload"
JOBS_GET = "ml.jobs.get"
JOBS_WATCH = "ml.jobs.watch"
JOBS_LIST = "ml.jobs.list"
JOBS_CANCEL = "ml.jobs.cancel"
MODELS_LIST = "ml.models.list"
MODELS_INFO = "ml.models.info"
MODELS_RECOMMENDED = "ml.models.recommended"
MODELS_LOAD = "ml.models.load"
MODELS_UNLOAD = "ml.models.unload"
MODELS_RELOAD = "ml.models.reload"
MODELS_PROMOTE = "ml.models.promote"
SCHEMA = "ml.schema"

JOBS_STREAM = "ML_JOBS"
"""The JetStream work queue of waiting jobs, on the subjects of `job_queue_subject`."""
JOBS_BUCKET = "ml_jobs"
"""The key-value bucket with the states of jobs and the live version of each model."""
CHECKPOINTS_BUCKET = "ml_checkpoints"
"""The object bucket of fine-tuned versions."""
DATA_BUCKET = "ml_data"
"""The object bucket of training data too large for a message."""

CONTENT_TYPE = "Content-Type"
ACCEPT = "Accept"
REQUEST_ID = "Ml-Request-Id"
TIMEOUT_MS = "Ml-Timeout-Ms"
STREAM = "Ml-Stream"
PING_MS = "Ml-Ping-Ms"
CALLER = "Ml-Caller"
"""On a request: a subject on which the caller listens while it waits, so that workers can check that it still does."""
EVENT = "Ml-Event"
SEQ = "Ml-Seq"
WORKER = "Ml-Worker"
"""On an answer of one worker among all that answer: its id."""
RESULT = "Ml-Result"
"""On a reply in plain text: the other fields of the reply, as JSON in ASCII."""
TRACEPARENT = "traceparent"
ERROR = "Nats-Service-Error"
ERROR_CODE = "Nats-Service-Error-Code"

STREAM_AUTO = "auto"
"""The value of Ml-Stream for one reply if it is sure to fit into a message, and frames otherwise."""

JSON = "application/json"
MSGPACK = "application/msgpack"
TEXT = "text/plain"

EncodingFormat: TypeAlias = Literal["float32", "float16", "base64", "array", "int8", "binary"]
Truncate: TypeAlias = Literal["end", "start", "error"]
Priority: TypeAlias = Literal["interactive", "bulk"]
"""Whether a person waits for a text, or it is one of many."""
ChatRole: TypeAlias = Literal["system", "developer", "user", "assistant", "tool"]
FinishReason: TypeAlias = Literal["stop", "length", "cancelled", "timeout", "error"]
TrainingMethod: TypeAlias = Literal["auto", "lora", "full"]
TrainingLoss: TypeAlias = Literal["infonce", "triplet"]
JobState: TypeAlias = Literal[
    "queued",
    "collecting",
    "training",
    "verifying",
    "swapping",
    "done",
    "failed",
    "cancelled",
    "rejected",
    "skipped",
]
Kind: TypeAlias = Literal["embedding", "generation"]
Form: TypeAlias = Literal["embedding", "prompt", "messages", "fim"]
Use: TypeAlias = Literal["code", "general", "production", "dev"]
Dtype: TypeAlias = Literal["auto", "fp32", "bf16", "fp16"]
Quantization: TypeAlias = Literal["int8", "int4"]
Role: TypeAlias = Literal["client", "admin"]
"""A role of nats-server.conf that asks: what a client may ask, an administrator may too."""

MAX_TIMEOUT_S = 900
"""The longest deadline of a request, in seconds."""
WIND_UP_S = 1.0
"""How long after its deadline, in seconds, the last frame of a stream of text may come: about one step of decoding."""


def cancel_subject(request_id: str) -> str:
    """The subject on which a message with any body cancels the request with this id."""
    return f"{CANCEL}.{request_id}"


def job_event_subject(job_id: str) -> str:
    """The subject on which workers publish each new state of a job; `*`: of all jobs. Clients use JOBS_WATCH."""
    return f"ml.jobs.{job_id}.event"


def job_queue_subject(job_id: str) -> str:
    """The subject of a waiting job's message in JOBS_STREAM."""
    return f"ml.queue.finetune.{job_id}"


def header_bytes(headers: Mapping[str, str]) -> int:
    """The size of headers on the wire. The server counts it towards max_payload, nats-py's own check does not."""
    lines = sum(len(name.encode()) + len(value.encode()) + len(": \r\n") for name, value in headers.items())
    return len("NATS/1.0\r\n") + lines + len("\r\n")
