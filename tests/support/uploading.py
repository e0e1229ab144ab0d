"""Uploads to `ml.finetune.upload` as a plain client makes them, and what of them is in the bucket."""

import io
import json
from hashlib import sha256
from typing import Any

from nats.aio.client import Client
from serve_jobs import JobsWorker

from service.jobs.objects import Objects
from subjects import codec, names


async def sent(nc: Client, upload: str, data: bytes, after: int = 0, digest: str | None = None) -> dict[str, Any]:
    fields = {"upload": upload, "data": data, "after": after} | ({"sha256": digest} if digest else {})
    body = codec.dumps(fields, names.MSGPACK)
    reply = await nc.request(names.FINETUNE_UPLOAD, body, timeout=10, headers={names.ACCEPT: names.JSON})
    answer: dict[str, Any] = json.loads(reply.data)
    return answer


async def send_all(nc: Client, upload: str, *chunks: bytes, digest: str = "") -> dict[str, Any]:
    """All chunks, one after the other -> the last answer."""
    answer: dict[str, Any] = {"sequence": 0}
    for chunk in chunks[:-1]:
        answer = await sent(nc, upload, chunk, answer["sequence"])
    digest = digest or sha256(b"".join(chunks)).hexdigest()
    return await sent(nc, upload, chunks[-1], answer["sequence"], digest)


async def subjects_of(worker: JobsWorker, upload: str) -> dict[str, int]:
    """How many chunks there are of an upload, by their subject: one for each user who has sent some."""
    state = (await worker.nc.jetstream().stream_info("OBJ_ml_data", f"$O.ml_data.C.*.{upload}")).state
    return state.subjects or {}


async def stored(worker: JobsWorker, upload: str) -> int:
    """How many chunks there are of an upload."""
    return sum((await subjects_of(worker, upload)).values())


async def read(worker: JobsWorker, upload: str) -> bytes:
    """As a job does."""
    copied = io.BytesIO()
    await Objects(worker.nc, names.DATA_BUCKET).copy(upload, copied)
    return copied.getvalue()
