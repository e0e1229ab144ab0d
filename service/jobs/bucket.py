"""The key-value bucket of jobs and live versions: looked up, read whole, changed by compare-and-set."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar, cast

from nats.aio.client import Client
from nats.errors import NoRespondersError
from nats.js import JetStreamContext
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError, NotFoundError, ServiceUnavailableError
from nats.js.kv import KeyValue

from subjects import names
from subjects.errors import NotServed

ResultT = TypeVar("ResultT")
STREAM = f"KV_{names.JOBS_BUCKET}"
SUBJECT = f"$KV.{names.JOBS_BUCKET}."
_CONCURRENT_READS = 100
_TRIES = 50
_LEAST_INTERVAL_S = 0.25


class NotSetUp(NotServed):
    """The streams and buckets of fine-tuning do not exist."""

    def __init__(self) -> None:
        super().__init__(
            "fine-tuning is not set up on this NATS server: run `mlbus admin init` once, as its administrator; the "
            "server needs JetStream (nats-server -js)"
        )


@contextmanager
def requiring_set_up() -> Iterator[None]:
    """Inside, a stream or bucket that is not there, or a server without JetStream, raises NotSetUp."""
    try:
        yield
    except (NotFoundError, ServiceUnavailableError, NoRespondersError):
        raise NotSetUp from None


async def jobs_bucket(nc: Client) -> KeyValue:
    """The bucket. Raises NotSetUp."""
    with requiring_set_up():
        return await nc.jetstream().key_value(names.JOBS_BUCKET)


async def read_entry(bucket: KeyValue, key: str) -> KeyValue.Entry | None:
    """The entry of a key, None if there is none. Raises what an absent server raises."""
    try:
        return await bucket.get(key, validate_keys=False)
    except KeyNotFoundError:
        return None


async def read_entries(js: JetStreamContext, bucket: KeyValue, prefix: str) -> Sequence[KeyValue.Entry]:
    """The entries of all keys that begin with a prefix such as `job.`, each as it is when it is read.

    One request lists the keys, then each key is read. A watch would miss keys: it skips one whose value is replaced
    before its turn, and reports the new value only after the first round. Raises what an absent server raises.
    """
    state = (await js.stream_info(STREAM, subjects_filter=f"{SUBJECT}{prefix}>")).state
    keys = [subject.removeprefix(SUBJECT) for subject in state.subjects or {}]
    found: list[KeyValue.Entry | None] = []
    for start in range(0, len(keys), _CONCURRENT_READS):
        found += await asyncio.gather(*(read_entry(bucket, key) for key in keys[start : start + _CONCURRENT_READS]))
    return [entry for entry in found if entry is not None]


async def compare_and_set(bucket: KeyValue, key: str, change: Callable[[KeyValue.Entry | None], bytes | None]) -> bool:
    """Write what `change` makes of the present entry -> whether anything was written.

    change: gets None for a missing key, and returns None to leave the key as it is. It is called again each time
    somebody else wrote the key in between. Raises what `change` and an absent server raise.
    """
    for _ in range(_TRIES):
        entry = await read_entry(bucket, key)
        value = change(entry)
        if value is None:
            return False
        try:
            if entry is None:
                await bucket.create(key, value)
            else:
                await bucket.update(key, value, last=entry.revision)
        except KeyWrongLastSequenceError:
            continue
        return True
    raise RuntimeError(f"key {key!r} was changed by others {_TRIES} times in a row")


class SharedRead(Generic[ResultT]):
    """An expensive read that concurrent callers share: every 0.25 s at most, and for half of the time at most."""

    def __init__(self, read: Callable[[], Awaitable[ResultT]]) -> None:
        self._read = read
        self._lock = asyncio.Lock()
        self._started = 0
        self._finished = 0
        self._result: ResultT | None = None
        self._not_before = 0.0

    async def result(self) -> ResultT:
        """The result of a read that starts after this call. Raises what the read raises."""
        started = self._started
        async with self._lock:
            if self._finished <= started:
                self._result = await self._read_once()
                self._finished = self._started
            return cast(ResultT, self._result)

    async def _read_once(self) -> ResultT:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._not_before - loop.time())
        self._started += 1
        started_at = loop.time()
        try:
            return await self._read()
        finally:
            self._not_before = started_at + max(_LEAST_INTERVAL_S, 2 * (loop.time() - started_at))
