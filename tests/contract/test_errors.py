"""The table of codes: both ways, and never a header that NATS cannot carry."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import errors as models
from service.errors import to_wire
from subjects import errors, names


def test_the_codes_are_those_of_the_contract():
    assert set(errors.CODES) == {400, 401, 403, 404, 406, 408, 409, 413, 415, 422, 429, 499, 500, 503, 507}
    assert {code for code, kind in errors.CODES.items() if kind.retryable} == {429, 503, 507}


@pytest.mark.parametrize("kind", [*errors.CODES.values(), errors.NotServed])
def test_an_error_survives_the_wire(kind):
    sent = kind("what to change", retry_after_ms=70)
    body, headers = sent.body("id-1"), sent.headers()
    got = errors.from_reply(int(headers[names.ERROR_CODE]), headers[names.ERROR], body)
    assert type(got) is kind
    assert (got.message, got.retry_after_ms, got.request_id) == ("what to change", 70, "id-1")
    assert body["error"]["retryable"] is kind.retryable


@given(st.text())
def test_any_message_fits_a_header(message):
    line = errors.Internal(message).headers()[names.ERROR]
    assert line.isascii()
    assert "\n" not in line
    assert "\r" not in line
    assert len(line) <= 512


@pytest.mark.parametrize("body", [{}, {"error": 5}, {"error": {"message": 1, "retry_after_ms": "x"}}])
def test_a_foreign_error_body_still_gives_the_code(body):
    assert errors.from_reply(429, "busy", body).code == 429
    assert isinstance(errors.from_reply(418, "teapot", body), errors.Malformed)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (models.UnknownModel("x", ("y",)), 404),
        (models.ModelUnavailable("x", "why"), 503),
        (models.TextTooLong(0, 300, 256), 413),
        (models.InvalidOption("no such prompt"), 422),
        (models.OutOfDeviceMemory("cuda:0"), 507),
    ],
)
def test_model_errors_have_their_code(error, code):
    found = to_wire(error)
    assert found is not None
    assert found.code == code
    assert found.message == str(error)


def test_the_unforeseen_has_none():
    assert to_wire(ValueError("secret")) is None
