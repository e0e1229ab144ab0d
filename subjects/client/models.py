"""`MLClient.models`: the typed client of `ml.models.*`."""

from collections.abc import Sequence

from .. import routes
from ..errors import MLError
from ..models import ModelsChangeReply, ModelsInfoReply, ModelsListReply, ModelsPromoteReply, ModelsRecommendedReply
from ..names import Dtype, Kind, Quantization, Use
from .transport import Transport


class ModelsClient:
    """The catalogue, and the models in the workers' memory.

    worker: the id of the worker to ask. Without it any worker answers a question; a change reaches all workers, and
    the first answer is returned. Changes need the role admin of nats-server.conf.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def list(
        self, kind: Kind | None = None, *, worker: str | None = None, timeout_s: float | None = None
    ) -> ModelsListReply:
        """The catalogue, the loaded models and the memory that they take."""
        return await self._transport.ask(routes.MODELS_LIST.to_worker(worker), {"kind": kind}, timeout_s)

    async def info(self, model: str, *, worker: str | None = None, timeout_s: float | None = None) -> ModelsInfoReply:
        """One model and its versions."""
        return await self._transport.ask(routes.MODELS_INFO.to_worker(worker), {"model": model}, timeout_s)

    async def recommended(self, use: Use | None = None, *, timeout_s: float | None = None) -> ModelsRecommendedReply:
        """The model for a use, and the one to take if it is not present."""
        return await self._transport.ask(routes.MODELS_RECOMMENDED, {"use": use}, timeout_s)

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
        return await self._transport.ask(routes.MODELS_LOAD.to_worker(worker), asked, timeout_s)

    async def unload(
        self, model: str, *, force: bool = False, worker: str | None = None, timeout_s: float | None = None
    ) -> ModelsChangeReply:
        """Take a model out of memory. Raises Conflict while requests use it, unless forced."""
        return await self._transport.ask(
            routes.MODELS_UNLOAD.to_worker(worker), {"model": model, "force": force}, timeout_s
        )

    async def reload(
        self, model: str, *, version: str | None = None, worker: str | None = None, timeout_s: float | None = None
    ) -> ModelsChangeReply:
        """Swap a model's weights for its live version, or for the named one, which becomes the live one.

        With `worker` the named version is served by that worker alone.
        """
        return await self._transport.ask(
            routes.MODELS_RELOAD.to_worker(worker), {"model": model, "version": version}, timeout_s
        )

    async def reload_all(
        self, model: str, workers: int, *, version: str | None = None, timeout_s: float | None = None
    ) -> Sequence[ModelsChangeReply | MLError]:
        """The same on every worker -> the answers of this number of workers."""
        return await self._transport.ask_all(
            routes.MODELS_RELOAD, {"model": model, "version": version}, workers, timeout_s
        )

    async def promote(
        self,
        model: str | None = None,
        version: str | None = None,
        *,
        job: str | None = None,
        timeout_s: float | None = None,
    ) -> ModelsPromoteReply:
        """Serve an accepted version in the whole fleet, or the version of a job once it has passed.

        A call that ends before its answer undoes the change. Raises Conflict if the version failed its checks.
        """
        return await self._transport.ask(
            routes.MODELS_PROMOTE, {"model": model, "version": version, "job": job}, timeout_s
        )
