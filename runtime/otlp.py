"""The OTLP/HTTP trace exporter: needs the extra `otlp`, imported only when asked for."""

from __future__ import annotations

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor


def span_processor(endpoint: str) -> SpanProcessor:
    """Sends finished spans in batches to `<endpoint>/v1/traces`."""
    return BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces"))
