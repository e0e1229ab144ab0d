"""The OpenAPI document: valid, complete, and what it says of a message is what comes."""

import re
from typing import Any

import jsonschema
import pytest
from gateways import Gateway, ask, post
from jsonschema import Draft202012Validator

from service.gateway.app import application
from service.gateway.bus import Bus
from service.gateway.openapi import document
from service.settings.gateway import HttpSettings

pytestmark = pytest.mark.asyncio(loop_scope="module")

HIDDEN = {"/openapi.json", "/docs"}


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with what it refers to."""
    return {**schema, "components": document()["components"]}


async def test_every_route_is_described_and_no_other(setup) -> None:
    app = application(Bus(None, 1), HttpSettings())._app
    served = {
        (path, method.lower()) for route in app.routes if (path := route.path) not in HIDDEN for method in route.methods
    }
    assert served == {(path, method) for path, methods in document()["paths"].items() for method in methods}


async def test_every_schema_is_one_and_every_reference_leads_somewhere() -> None:
    schemas = document()["components"]["schemas"]
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)
    referred = set(re.findall(r"'\$ref': '#/components/schemas/([^']+)'", str(document())))
    assert referred <= set(schemas)
    operations = [operation for methods in document()["paths"].values() for operation in methods.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/ml/embed", {"text": "a"}),
        ("/ml/embed/batch", {"texts": ["a", "b"]}),
        ("/ml/similarity", {"query": "a", "candidates": ["b"]}),
        ("/ml/generate", {"prompt": "a", "max_tokens": 2, "logprobs": 1, "n": 2}),
        ("/ml/models/list", {}),
        ("/ml/models/recommended", {}),
        ("/ml/schema", {"subject": "ml.embed"}),
    ],
)
async def test_a_reply_is_as_described(gateway: Gateway, path: str, body: dict[str, Any]) -> None:
    operation = document()["paths"][path]["post"]
    asked = operation["requestBody"]["content"]["application/json"]["schema"]
    told = operation["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.validate(body, resolved(asked))
    jsonschema.validate((await post(gateway, path, body)).json, resolved(told))
    failed = operation["responses"]["default"]["content"]["application/json"]["schema"]
    jsonschema.validate((await post(gateway, path, {"nope": 1})).json, resolved(failed))


async def test_it_is_served_for_programs_and_for_people(gateway: Gateway) -> None:
    told = await ask(gateway, "GET", "/openapi.json")
    assert told.json == document()
    assert told.json["openapi"].startswith("3.1")
    page = await ask(gateway, "GET", "/docs")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    text = page.body.decode()
    assert all(path in text for path in document()["paths"])
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", text)
    anchors = set(re.findall(r'id="([^"]+)"', text))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= anchors
