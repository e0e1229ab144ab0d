"""The application: its routes, and around them the guard."""

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from subjects.errors import MLError

from ..settings.gateway import HttpSettings
from . import documents, errors, health, native
from .bus import Bus
from .guard import Guard
from .llamacpp import endpoints as llamacpp
from .ollama import endpoints as ollama
from .openai import endpoints
from .tei import endpoints as tei
from .telemetry import GatewayTelemetry


def application(bus: Bus, settings: HttpSettings) -> ASGIApp:
    """The gateway as an ASGI application."""
    telemetry = GatewayTelemetry()
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    health.add_routes(app, bus, telemetry.registry)
    documents.add_routes(app)
    endpoints.add_routes(app, bus, settings)
    llamacpp.add_routes(app, bus, settings)
    ollama.add_routes(app, bus, settings)
    tei.add_routes(app, bus, settings)
    native.add_routes(app, bus, settings)
    app.add_exception_handler(MLError, _refused)
    app.add_exception_handler(HTTPException, _not_routed)
    return Guard(app, settings, telemetry)


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, MLError)
    return errors.response(error, request.url.path)


def _not_routed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    return errors.response(errors.of_http(error, request.method, path), path)
