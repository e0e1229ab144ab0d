"""The streams and buckets that fine-tuning needs on the NATS server, with their bounds.

The administrator creates them once with `mlbus admin init`; an embedded server gets them at its start.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from nats.aio.client import Client
from nats.errors import NoRespondersError
from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DiscardPolicy,
    KeyValueConfig,
    ObjectStoreConfig,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import APIError, NotFoundError, ServiceUnavailableError

from subjects import names
from subjects.uploads import CHUNK_BYTES

from ..bus.errors import BusError
from .bucket import NotSetUp
from .objects import MAX_CHUNKS

CONSUMER = "workers"
"""The durable consumer from which all workers pull jobs."""

MIB, GIB = 2**20, 2**30
DAY_S = 86_400.0
MAX_JOBS = 33
"""One running and 32 waiting."""
MAX_REQUESTED = MAX_JOBS - 1
"""Beyond this, callers' requests are refused: the last place is kept for the nightly run."""
MAX_MESSAGE_BYTES = 8 * MIB
"""max_payload of nats-server.conf: a request with its pairs in it."""
_STORAGE_EXCEEDED = 10047
"""JetStream's error code for a reservation beyond its storage."""


@dataclass(eq=False)
class CannotSetUp(BusError):
    """The server did not create or change something that fine-tuning needs; `reason` is its answer."""

    what: str
    reason: str
    hint: str

    def __str__(self) -> str:
        return f"the NATS server has no {self.what} as fine-tuning needs it: {self.reason}; {self.hint}"


@dataclass(frozen=True, slots=True)
class Storage:
    """A stream, or a bucket with its stream. made: creates it. bounds: the stream's required configuration."""

    stream: str
    label: str
    made: Callable[[JetStreamContext], Awaitable[Any]]
    bounds: dict[str, Any]


def _queue() -> Storage:
    bounds: dict[str, Any] = {
        "subjects": ["ml.queue.>"],
        "retention": RetentionPolicy.WORK_QUEUE,
        "storage": StorageType.FILE,
        "discard": DiscardPolicy.NEW,
        "duplicate_window": DAY_S,  # a nightly job that every worker of a fleet submits is one job
        "max_msgs": MAX_JOBS,
        "max_msg_size": MAX_MESSAGE_BYTES,
        "max_bytes": GIB,
    }
    config = StreamConfig(names.JOBS_STREAM, description="mlbus: jobs that wait", **bounds)
    return Storage(names.JOBS_STREAM, f"stream {names.JOBS_STREAM}", lambda js: js.add_stream(config), bounds)


def _states() -> Storage:
    config = KeyValueConfig(
        names.JOBS_BUCKET,
        description="mlbus: states of jobs, live versions",
        history=1,
        max_bytes=256 * MIB,
        storage=StorageType.FILE,
        direct=True,
    )
    bounds = {"max_msgs_per_subject": 1, "max_bytes": config.max_bytes, "allow_msg_ttl": True, "allow_direct": True}
    label = f"key-value bucket {names.JOBS_BUCKET}"
    return Storage(f"KV_{names.JOBS_BUCKET}", label, lambda js: js.create_key_value(config), bounds)


def _objects(bucket: str, description: str, max_bytes: int, **bounds: Any) -> Storage:
    config = ObjectStoreConfig(bucket, description=description, max_bytes=max_bytes, storage=StorageType.FILE)
    bounds = {"max_bytes": max_bytes, "max_age": 0, "discard": DiscardPolicy.NEW, **bounds}
    label = f"object bucket {bucket}"
    return Storage(f"OBJ_{bucket}", label, lambda js: js.create_object_store(bucket, config), bounds)


STORAGE = (
    _queue(),
    _states(),
    _objects(names.CHECKPOINTS_BUCKET, "mlbus: fine-tuned versions of models", 20 * GIB),
    _objects(
        names.DATA_BUCKET,
        "mlbus: training data too large for a message",
        4 * GIB,
        max_age=DAY_S,
        max_msgs=2**16,  # each may be the only one on its subject, which takes the server's memory
        max_msg_size=CHUNK_BYTES + 4096,  # with room for headers
        max_msgs_per_subject=MAX_CHUNKS,
        discard_new_per_subject=True,
    ),
)
"""They reserve 25.25 GiB of the 32 GB in nats-server.conf."""

_CONSUMER: dict[str, Any] = {
    "ack_policy": AckPolicy.EXPLICIT,
    "ack_wait": 60.0,
    "max_ack_pending": 1,  # one training in a fleet at a time, and in order
    "max_deliver": -1,  # an exhausted one would stay in the queue: attempts are counted with the job's state
}


async def create(nc: Client, timeout_s: float = 30.0) -> list[str]:
    """Create what is missing and change what differs -> what was done, in words.

    timeout_s: for each request. Only changes need the administrator's role. Raises NotSetUp without JetStream,
    CannotSetUp.
    """
    js, done = nc.jetstream(timeout=timeout_s), list[str]()
    for storage in STORAGE:
        done += await _attempted(storage.label, _create_storage(js, storage))
    return done + await _attempted(f"consumer {CONSUMER}", _create_consumer(js))


async def outdated(nc: Client, timeout_s: float = 30.0) -> list[str]:
    """What is missing or differs from what `create` makes, in words. The worker's role suffices.

    timeout_s: for each request. Raises NotSetUp without JetStream.
    """
    js, old = nc.jetstream(timeout=timeout_s), list[str]()

    async def look(label: str, info: Awaitable[Any], bounds: dict[str, Any]) -> None:
        found = await _found(info)
        if found is None:
            old.append(f"{label} is not there")
        elif differing := _differing(found.config, bounds):
            old.append(f"{label}: {_in_words(found.config, differing)}")

    try:
        for storage in STORAGE:
            await look(storage.label, js.stream_info(storage.stream), storage.bounds)
        await look(f"consumer {CONSUMER}", js.consumer_info(names.JOBS_STREAM, CONSUMER), _CONSUMER)
    except (ServiceUnavailableError, NoRespondersError):
        raise NotSetUp from None
    return old


_Done: TypeAlias = Awaitable[list[str]]


async def _attempted(label: str, work: _Done) -> list[str]:
    try:
        return await work
    except (ServiceUnavailableError, NoRespondersError):
        raise NotSetUp from None
    except APIError as error:
        hint = (
            "give JetStream more room (max_file_store in its configuration)"
            if error.err_code == _STORAGE_EXCEEDED
            else "where one that was made by hand is in the way, remove that one"
        )
        raise CannotSetUp(label, error.description or str(error), hint) from error


async def _create_storage(js: JetStreamContext, storage: Storage) -> list[str]:
    info = await _found(js.stream_info(storage.stream))
    if new := info is None:
        await storage.made(js)
        info = await js.stream_info(storage.stream)
    differing = _differing(info.config, storage.bounds)
    if differing:
        await js.update_stream(info.config.evolve(**differing))
    if new:
        return [f"made {storage.label}"]
    return [f"changed {storage.label}: {_in_words(info.config, differing)}"] if differing else []


async def _create_consumer(js: JetStreamContext) -> list[str]:
    info = await _found(js.consumer_info(names.JOBS_STREAM, CONSUMER))
    if info is None:
        await js.add_consumer(names.JOBS_STREAM, ConsumerConfig(durable_name=CONSUMER, **_CONSUMER))
        return [f"made consumer {CONSUMER}"]
    if differing := _differing(info.config, _CONSUMER):
        await js.add_consumer(names.JOBS_STREAM, info.config.evolve(**differing))
        return [f"changed consumer {CONSUMER}: {_in_words(info.config, differing)}"]
    return []


async def _found(info: Awaitable[Any]) -> Any:
    try:
        return await info
    except NotFoundError:
        return None


def _differing(config: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in wanted.items() if (getattr(config, name) or 0) != (value or 0)}


def _in_words(config: Any, differing: dict[str, Any]) -> str:
    return ", ".join(f"{name} {getattr(config, name)} to {wanted}" for name, wanted in differing.items())
