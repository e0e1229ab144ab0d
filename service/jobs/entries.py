"""All entries of the bucket of jobs below a prefix, none of them missed while others change them.

Knows nothing of what they mean.
"""

import asyncio
from collections.abc import Sequence

from nats.js import JetStreamContext
from nats.js.errors import KeyNotFoundError
from nats.js.kv import KeyValue

from subjects import names

_SUBJECT = f"$KV.{names.JOBS_BUCKET}."
_AT_ONCE = 100


async def entries(js: JetStreamContext, bucket: KeyValue, prefix: str) -> Sequence[KeyValue.Entry]:
    """The entries of keys that begin with a prefix such as `job.`, each as it is when it is read.

    The keys are told in one answer and then read one by one: a watch skips a key whose value is replaced before it
    comes to it, and tells the new value only after its first round. Raises what an absent server raises.
    """
    state = (await js.stream_info(f"KV_{names.JOBS_BUCKET}", subjects_filter=f"{_SUBJECT}{prefix}>")).state
    keys = [subject.removeprefix(_SUBJECT) for subject in state.subjects or {}]
    found: list[KeyValue.Entry | None] = []
    for start in range(0, len(keys), _AT_ONCE):
        found += await asyncio.gather(*(_read(bucket, key) for key in keys[start : start + _AT_ONCE]))
    return [entry for entry in found if entry is not None]


async def _read(bucket: KeyValue, key: str) -> KeyValue.Entry | None:
    """None for one that was removed."""
    try:
        return await bucket.get(key, validate_keys=False)
    except KeyNotFoundError:
        return None
