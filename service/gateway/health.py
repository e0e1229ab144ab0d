"""/healthz, /readyz and /metrics, as on a worker's port."""

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.responses import PlainTextResponse, Response

from .bus import Bus


def router(bus: Bus, registry: CollectorRegistry) -> APIRouter:
    """Whether the process runs; whether it would answer requests, that is a worker answers on NATS; and its figures."""
    made = APIRouter(include_in_schema=False)

    @made.get("/healthz")
    async def healthz() -> Response:
        return PlainTextResponse("ok\n")

    @made.get("/readyz")
    async def readyz() -> Response:
        fault = await bus.fault()
        return PlainTextResponse(f"{fault or 'ok'}\n", 503 if fault else 200)

    @made.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return made
