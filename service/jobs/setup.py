"""The streams and buckets that fine-tuning needs on the NATS server, with their bounds.

The administrator creates them once with `mlbus admin init`; an embedded server gets them at its start.
"""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from nats.aio.client import Client
from nats.js import JetStreamContext, api
from nats.js.errors import APIError, NotFoundError

from subjects import names
from subjects.uploads import CHUNK_BYTES

from ..bus.errors import BusError
from .bucket import requiring_set_up
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


class CannotSetUp(BusError):
    """The server did not create or change something that fine-tuning needs; `reason` is its answer."""

    what: str
    reason: str
    hint: str
    message = "the NATS server has no {what} as fine-tuning needs it: {reason}; {hint}"


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
        "retention": api.RetentionPolicy.WORK_QUEUE,
        "storage": api.StorageType.FILE,
        "discard": api.DiscardPolicy.NEW,
        "duplicate_window": DAY_S,  # a nightly job that every worker of a fleet submits is one job
        "max_msgs": MAX_JOBS,
        "max_msg_size": MAX_MESSAGE_BYTES,
        "max_bytes": GIB,
    }
    config = api.StreamConfig(names.JOBS_STREAM, description="mlbus: jobs that wait", **bounds)
    return Storage(names.JOBS_STREAM, f"stream {names.JOBS_STREAM}", lambda js: js.add_stream(config), bounds)


def _states() -> Storage:
    config = api.KeyValueConfig(
        names.JOBS_BUCKET,
        description="mlbus: states of jobs, live versions",
        history=1,
        max_bytes=256 * MIB,
        storage=api.StorageType.FILE,
        direct=True,
    )
    bounds = {"max_msgs_per_subject": 1, "max_bytes": config.max_bytes, "allow_msg_ttl": True, "allow_direct": True}
    label = f"key-value bucket {names.JOBS_BUCKET}"
    return Storage(f"KV_{names.JOBS_BUCKET}", label, lambda js: js.create_key_value(config), bounds)


def _objects(bucket: str, description: str, max_bytes: int, **bounds: Any) -> Storage:
    config = api.ObjectStoreConfig(bucket, description=description, max_bytes=max_bytes, storage=api.StorageType.FILE)
    bounds = {"max_bytes": max_bytes, "max_age": 0, "discard": api.DiscardPolicy.NEW, **bounds}
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
    "ack_policy": api.AckPolicy.EXPLICIT,
    "ack_wait": 60.0,
    "max_ack_pending": 1,  # one training in a fleet at a time, and in order
    "max_deliver": -1,  # an exhausted one would stay in the queue: attempts are counted with the job's state
}


@dataclass(frozen=True, slots=True)
class _Part:
    """A stream or the consumer. info: reads it; make, change: create it, and give it another configuration."""

    label: str
    bounds: dict[str, Any]
    info: Callable[[], Awaitable[Any]]
    make: Callable[[], Awaitable[Any]]
    change: Callable[[Any], Awaitable[Any]]

    async def read(self) -> tuple[Any, dict[str, Any]]:
        """-> its configuration, None if it is not there, and the bounds that it does not have."""
        try:
            config = (await self.info()).config
        except NotFoundError:
            return None, self.bounds
        return config, {name: want for name, want in self.bounds.items() if (getattr(config, name) or 0) != (want or 0)}

    async def create(self) -> list[str]:
        config, differing = await self.read()
        if missing := config is None:
            await self.make()
            config, differing = await self.read()
        if differing:
            await self.change(config.evolve(**differing))
        if missing:
            return [f"made {self.label}"]
        return [f"changed {self.label}: {_in_words(config, differing)}"] if differing else []


def _parts(js: JetStreamContext) -> Iterator[_Part]:
    for storage in STORAGE:
        info, make = partial(js.stream_info, storage.stream), partial(storage.made, js)
        yield _Part(storage.label, storage.bounds, info, make, js.update_stream)
    change = partial(js.add_consumer, names.JOBS_STREAM)
    yield _Part(
        f"consumer {CONSUMER}",
        _CONSUMER,
        partial(js.consumer_info, names.JOBS_STREAM, CONSUMER),
        partial(change, api.ConsumerConfig(durable_name=CONSUMER, **_CONSUMER)),
        change,
    )


def _in_words(config: Any, differing: dict[str, Any]) -> str:
    return ", ".join(f"{name} {getattr(config, name)} to {wanted}" for name, wanted in differing.items())


async def create(nc: Client, timeout_s: float = 30.0) -> list[str]:
    """Create what is missing and change what differs -> what was done, in words.

    timeout_s: for each request. Only changes need the administrator's role. Raises NotSetUp without JetStream,
    CannotSetUp.
    """
    done: list[str] = []
    for part in _parts(nc.jetstream(timeout=timeout_s)):
        try:
            with requiring_set_up():
                done += await part.create()
        except APIError as error:
            hint = (
                "give JetStream more room (max_file_store in its configuration)"
                if error.err_code == _STORAGE_EXCEEDED
                else "where one that was made by hand is in the way, remove that one"
            )
            raise CannotSetUp(part.label, error.description or str(error), hint) from error
    return done


async def outdated(nc: Client, timeout_s: float = 30.0) -> list[str]:
    """What is missing or differs from what `create` makes, in words. The worker's role suffices.

    timeout_s: for each request. Raises NotSetUp without JetStream.
    """
    old: list[str] = []
    for part in _parts(nc.jetstream(timeout=timeout_s)):
        with requiring_set_up():
            config, differing = await part.read()
        if config is None:
            old.append(f"{part.label} is not there")
        elif differing:
            old.append(f"{part.label}: {_in_words(config, differing)}")
    return old
