"""/openapi.json, and the same for people at /docs: one page without scripts that fetches nothing."""

import functools
import json
from importlib.resources import files
from typing import Any

import orjson
from fastapi import FastAPI
from jinja2 import Environment
from starlette.responses import HTMLResponse, Response

from subjects import names

from .openapi import document

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def add_routes(app: FastAPI) -> None:
    """The document in both forms."""

    @app.get("/openapi.json")
    async def openapi() -> Response:
        return Response(orjson.dumps(document()), media_type=names.JSON)

    @app.get("/docs")
    async def docs() -> Response:
        return HTMLResponse(_page(), headers={"Content-Security-Policy": _POLICY})


@functools.cache
def _page() -> str:
    template = Environment(autoescape=True).from_string(
        files(__package__).joinpath("docs.template.html").read_text("utf-8")
    )
    described = document()
    operations: dict[str, list[dict[str, Any]]] = {}
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            told = {"method": method.upper(), "path": path, **operation}
            operations.setdefault(operation["tags"][0], []).append(told)
    return template.render(
        info=described["info"],
        operations=operations,
        schemas={name: json.dumps(schema, indent=2) for name, schema in described["components"]["schemas"].items()},
        name_of=lambda schema: str(schema.get("$ref", "")).rpartition("/")[2],
    )
