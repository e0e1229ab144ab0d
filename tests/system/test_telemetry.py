"""Logs, metrics and traces: what they tell, and that they never tell a text."""

import asyncio
import json
from asyncio.subprocess import PIPE

import pytest
from http_probe import scrape
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from serve_fake import fake_process
from workers import running_worker

import service.app
from subjects import MLClient, names
from subjects.errors import MLError

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


async def test_metrics_tell_requests_batches_and_errors(nats_url):
    async with running_worker(nats_url, metrics_port=0) as started, await MLClient.connect(nats_url) as ml:
        await asyncio.gather(*(ml.embed(f"some text {n}") for n in range(10)))
        with pytest.raises(MLError):
            await ml.embed("x", model="nope")
        text = await asyncio.to_thread(scrape, started.metrics_port)
    assert 'mlbus_request_seconds_count{route="embed"} 11.0' in text
    assert 'mlbus_errors_total{code="404",route="embed"} 1.0' in text
    assert 'mlbus_batch_tokens_sum{model="minilm"} 30.0' in text
    for name in ("batch_texts", "batch_padding_ratio", "device_seconds", "queued_texts", "requests_in_flight"):
        assert f"mlbus_{name}" in text


async def test_a_taken_metrics_port_does_not_keep_a_second_worker_from_starting(nats_url):
    async with (
        running_worker(nats_url, metrics_port=0) as first,
        running_worker(nats_url, metrics_port=first.metrics_port) as second,
    ):
        assert second.metrics_port != first.metrics_port
        assert "mlbus_" in await asyncio.to_thread(scrape, second.metrics_port)


async def test_a_callers_trace_is_continued(nats_url, monkeypatch):
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(service.app, "configured_tracer", lambda: provider.get_tracer("test"))
    async with running_worker(nats_url), await MLClient.connect(nats_url) as ml:
        parent = f"00-{TRACE_ID}-b7ad6b7169203331-01"
        await ml._nc.request(names.EMBED, b"x", timeout=10, headers={"traceparent": parent, "Ml-Request-Id": "id-1"})
    (span,) = spans.get_finished_spans()
    assert f"{span.context.trace_id:032x}" == TRACE_ID
    assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
    assert span.attributes["mlbus.request_id"] == "id-1"
    assert span.name == "ml.embed"


async def test_the_client_sends_its_callers_trace(nats_url, monkeypatch):
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    tracer = provider.get_tracer("test")
    monkeypatch.setattr(service.app, "configured_tracer", lambda: tracer)
    async with running_worker(nats_url), await MLClient.connect(nats_url) as ml:
        with tracer.start_as_current_span("caller") as caller:
            await ml.embed("x")
            await ml.embed_batch(["x", "y"])
    asked = caller.get_span_context()
    served = [span for span in spans.get_finished_spans() if span.name != "caller"]
    assert len(served) == 2
    for span in served:
        assert (span.context.trace_id, span.parent.span_id) == (asked.trace_id, asked.span_id)
        assert span.parent.is_remote


async def test_logs_are_json_off_a_terminal_and_hold_no_text(nats_url):
    worker = await fake_process(nats_url, "debug", stderr=PIPE)
    async with await MLClient.connect(nats_url) as ml:
        ml._transport.retries = 0
        await ml.embed("verysecret words")
        for bad in ("verysecret poison", "verysecret nan"):
            with pytest.raises(MLError):
                await ml.embed(bad)
        with pytest.raises(MLError):
            await ml.embed("verysecret", prompt_name="nope")
    worker.terminate()
    _, logged = await asyncio.wait_for(worker.communicate(), 20)
    events = [json.loads(line) for line in logged.splitlines()]
    assert {"worker.ready", "batch.failed", "request.failed", "endpoint.drained"} <= {
        event["event"] for event in events
    }
    assert b"verysecret" not in logged
