"""/healthz, /readyz and /metrics, as on a worker's port."""

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.responses import PlainTextResponse, Response

from .bus import Bus


def add_routes(app: FastAPI, bus: Bus, registry: CollectorRegistry) -> None:
    """Add /healthz (200 while the process runs), /readyz (200 if a worker answers on NATS, else 503 and why) and
    /metrics."""

    @app.get("/healthz")
    async def healthz() -> Response:
        return PlainTextResponse("ok\n")

    @app.get("/readyz")
    async def readyz() -> Response:
        fault = await bus.fault()
        return PlainTextResponse(f"{fault or 'ok'}\n", 503 if fault else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
