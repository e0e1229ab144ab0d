"""`ml.finetune.upload`: training data in chunks, which become an object for `ml.finetune`."""

from base64 import b64decode
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema, model_validator

from .message import Message, Reply

CHUNK_BYTES = 2**17
"""Of every chunk but the last, which may be shorter."""

UploadId: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{32,64}$")]


def _decoded(data: Any) -> Any:
    try:
        return b64decode(data, validate=True) if isinstance(data, str) else data
    except ValueError:
        raise ValueError("must be bytes, or base64 in JSON") from None


Chunk: TypeAlias = Annotated[
    bytes,
    Field(min_length=1, max_length=CHUNK_BYTES),
    BeforeValidator(_decoded),
    WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
]


class UploadRequest(Message):
    """One chunk. Sent again, it is still there once."""

    upload: UploadId = Field(
        description="the caller's own, random, such as a UUID: the object's name, which is given once"
    )
    after: int = Field(
        0, ge=0, le=2**63 - 1, description="the sequence that the chunk before was answered with; 0 for the first"
    )
    data: Chunk = Field(description=f"{CHUNK_BYTES} bytes, as many or fewer in the last chunk; base64 in JSON")
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        None, description="with the last chunk: of all bytes, in hexadecimal"
    )

    @model_validator(mode="after")
    def _whole(self) -> "UploadRequest":
        if self.sha256 is None and len(self.data) != CHUNK_BYTES:
            raise ValueError(
                f"field 'data' has {len(self.data)} bytes; {CHUNK_BYTES} are a chunk, and 'sha256' marks the last one"
            )
        return self


class UploadReply(Reply):
    upload: UploadId
    sequence: int = Field(description="what the next chunk comes after")
    object: str | None = Field(None, description="after the last chunk: what ml.finetune takes as `object`")


def in_chunks(pieces: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Bytes that come in pieces of any size -> chunks, each with whether it is the last one."""
    held = bytearray()
    for piece in pieces:
        held += piece
        while len(held) > CHUNK_BYTES:
            yield bytes(held[:CHUNK_BYTES]), False
            del held[:CHUNK_BYTES]
    yield bytes(held), True
