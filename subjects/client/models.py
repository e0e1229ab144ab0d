"""`MLClient.models`: the typed client of `ml.models.*`. Knows no connection; it is given a way to ask."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from pydantic import BaseModel

from .. import codec, names
from ..errors import MLError
from ..models import (
    Dtype,
    Kind,
    ModelsChangeReply,
    ModelsInfoReply,
    ModelsInfoRequest,
    ModelsListReply,
    ModelsListRequest,
    ModelsLoadRequest,
    ModelsRecommendedReply,
    ModelsRecommendedRequest,
    ModelsReloadRequest,
    ModelsUnloadRequest,
    Quantization,
    Use,
)
from ..promote import ModelsPromoteReply, ModelsPromoteRequest

ReplyT = TypeVar("ReplyT", bound=BaseModel)


class Ask(Protocol):
    """Sends a request on a subject and reads the reply; raises a subclass of MLError when it fails."""

    async def __call__(
        self, subject: str, request: BaseModel, reply: type[ReplyT], timeout_s: float | None
    ) -> ReplyT: ...


class AskAll(Protocol):
    """Sends a request once to all who listen, and reads so many replies."""

    async def __call__(
        self, subject: str, request: BaseModel, reply: type[ReplyT], answers: int, timeout_s: float | None
    ) -> list[ReplyT | MLError]: ...


class ModelsClient:
    """Which models there are, and what workers keep in memory.

    worker: a worker's id, to ask that one. Without it any worker answers a question; a change reaches all of them, and
    the first answer comes back. Changes need the admin role of nats-server.conf.
    """

    def __init__(self, ask: Ask, ask_all: AskAll) -> None:
        self._ask = ask
        self._ask_all = ask_all

    async def list(
        self, kind: Kind | None = None, *, worker: str | None = None, timeout_s: float | None = None
    ) -> ModelsListReply:
        """The catalogue, what is loaded and the memory that it takes."""
        request = codec.validate({"kind": kind}, ModelsListRequest)
        return await self._ask(_on(names.MODELS_LIST, worker), request, ModelsListReply, timeout_s)

    async def info(self, model: str, *, worker: str | None = None, timeout_s: float | None = None) -> ModelsInfoReply:
        """One model and its versions."""
        request = codec.validate({"model": model}, ModelsInfoRequest)
        return await self._ask(_on(names.MODELS_INFO, worker), request, ModelsInfoReply, timeout_s)

    async def recommended(self, use: Use | None = None, *, timeout_s: float | None = None) -> ModelsRecommendedReply:
        """The model for a use, and what to take where it is not present."""
        request = codec.validate({"use": use}, ModelsRecommendedRequest)
        return await self._ask(names.MODELS_RECOMMENDED, request, ModelsRecommendedReply, timeout_s)

    async def load(
        self,
        model: str,
        *,
        dtype: Dtype | None = None,
        quantization: Quantization | None = None,
        pin: bool | None = None,
        worker: str | None = None,
        timeout_s: float | None = None,
    ) -> ModelsChangeReply:
        """Load a model, downloaded first if need be; see ModelsLoadRequest for the meanings."""
        asked = {"model": model, "dtype": dtype, "quantization": quantization, "pin": pin}
        request = codec.validate(asked, ModelsLoadRequest)
        return await self._ask(_on(names.MODELS_LOAD, worker), request, ModelsChangeReply, timeout_s)

    async def unload(
        self, model: str, *, force: bool = False, worker: str | None = None, timeout_s: float | None = None
    ) -> ModelsChangeReply:
        """Take a model out of memory. Raises Conflict while requests use it, unless forced."""
        request = codec.validate({"model": model, "force": force}, ModelsUnloadRequest)
        return await self._ask(_on(names.MODELS_UNLOAD, worker), request, ModelsChangeReply, timeout_s)

    async def reload(
        self, model: str, *, version: str | None = None, worker: str | None = None, timeout_s: float | None = None
    ) -> ModelsChangeReply:
        """Swap a model's weights for its live version, or the one that is named, which then is the live one.

        With `worker` a version that is named stays that worker's alone.
        """
        request = codec.validate({"model": model, "version": version}, ModelsReloadRequest)
        return await self._ask(_on(names.MODELS_RELOAD, worker), request, ModelsChangeReply, timeout_s)

    async def reload_all(
        self, model: str, workers: int, *, version: str | None = None, timeout_s: float | None = None
    ) -> Sequence[ModelsChangeReply | MLError]:
        """The same on every worker, and what so many of them answer."""
        request = codec.validate({"model": model, "version": version}, ModelsReloadRequest)
        return await self._ask_all(names.MODELS_RELOAD, request, ModelsChangeReply, workers, timeout_s)

    async def promote(
        self,
        model: str | None = None,
        version: str | None = None,
        *,
        job: str | None = None,
        timeout_s: float | None = None,
    ) -> ModelsPromoteReply:
        """Have an accepted version serve in the whole fleet, or what comes of a job once it has passed.

        Giving up before the answer has come undoes it. Raises Conflict where it did not prove itself.
        """
        request = codec.validate({"model": model, "version": version, "job": job}, ModelsPromoteRequest)
        return await self._ask(names.MODELS_PROMOTE, request, ModelsPromoteReply, timeout_s)


def _on(subject: str, worker: str | None) -> str:
    return f"{subject}.{worker}" if worker else subject
