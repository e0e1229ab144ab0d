"""The settings of the HTTP gateway: `http.*`."""

from typing import Annotated, Any

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from .finetuning import Section


class HttpSettings(Section):
    """The HTTP gateway, `mlbus gateway`, also where `mlbus serve` starts it."""

    listen: str = Field(
        "127.0.0.1:8080", description="HOST:PORT to listen on; port 0: any free one; an IPv6 address in brackets"
    )
    insecure: bool = Field(
        False, description="listen on an address that other machines reach, though anybody there may then ask"
    )
    hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="names under which it may be called, as in the header Host; localhost and addresses always may",
    )
    origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="web pages of elsewhere that may call it, as in the header Origin: `https://app.example.org`"
    )
    requests: int = Field(1024, ge=1, description="requests at once; past that they are refused with 429")
    connections: int = Field(2048, ge=1, description="connections at once; past that they are closed")
    body_bytes: int = Field(
        8 * 2**20 - 4096, ge=1024, description="bytes of a request's body; NATS carries no more in a message"
    )
    header_bytes: int = Field(32_768, ge=1024, description="bytes of a request's headers")
    default_timeout_s: float = Field(
        60.0, gt=0, le=900, description="deadline of a request without Ml-Timeout-Ms, in seconds"
    )
    read_timeout_s: float = Field(
        30.0, gt=0, le=3600, description="seconds that a request's headers may take to arrive, and its body again"
    )
    write_timeout_s: float = Field(
        20.0, gt=0, le=3600, description="seconds that a caller may leave an answer unread before its work is cancelled"
    )

    @field_validator("hosts", "origins", mode="before")
    @classmethod
    def _comma_separated(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
