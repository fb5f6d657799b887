"""Logs, traces and metrics: JSON lines, W3C context in NATS headers, Prometheus text.

Metric names are declared where the instruments are made, in each service's `telemetry` module;
no label is ever a VM, a customer or anything else without a bound.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import structlog
from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from opentelemetry.trace import Span, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import generate_latest

_SECRET_KEY = re.compile(r"token|secret|password|authorization|credential|private_key|jwt", re.I)
_SECRET_VALUE = re.compile(
    r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*|(?<=://)[^/@\s:]+:[^/@\s]+(?=@)"
    r"|(?i:(?<=bearer )\S+)"
)

SECONDS_BUCKETS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip


_PROPAGATOR = TraceContextTextMapPropagator()
"""Trace context and nothing else: baggage is whatever a stranger likes, and would be passed on."""


_MAX_TRACE_CHARS = 512
"""As much as every tracer must pass on (https://www.w3.org/TR/trace-context/)."""


def redact(text: str) -> str:
    """The text with JWTs, bearer tokens and passwords in URLs replaced by `[redacted]`."""
    return _SECRET_VALUE.sub("[redacted]", text)


def _redact_event(
    _logger: Any, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    for key, value in event.items():
        if _SECRET_KEY.search(key):
            event[key] = "[redacted]"
        elif isinstance(value, str):
            event[key] = redact(value)
    return event


def _add_trace(
    _logger: Any, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = f"{context.trace_id:032x}"
        event["span_id"] = f"{context.span_id:016x}"
    return event


def configure_logging(service: str, level: str = "info") -> None:
    """Send structlog and the standard library's loggers to stderr as JSON lines without secrets."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_trace,
        structlog.processors.format_exc_info,
        _redact_event,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # These speak at info of every request they carry, or of what our own events say too.
    for noisy in ("httpx", "httpcore", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    structlog.contextvars.bind_contextvars(service=service)


def configure_telemetry(service: str, otlp_endpoint: str = "") -> None:
    """Set up the process's tracer and meter providers.

    Args:
        service: Value of `service.name`.
        otlp_endpoint: Base address to send traces to; needs the extra `otlp`.
    """
    resource = Resource.create({SERVICE_NAME: f"decisec-{service}"})
    # Spans that nobody gets are not measured; their ids still tie logs and messages together.
    tracers = TracerProvider(resource=resource, sampler=ALWAYS_ON if otlp_endpoint else ALWAYS_OFF)
    if otlp_endpoint:
        from runtime.otlp import span_processor  # optional extra

        tracers.add_span_processor(span_processor(otlp_endpoint))
    trace.set_tracer_provider(tracers)
    metrics.set_meter_provider(
        MeterProvider(
            resource=resource,
            metric_readers=[PrometheusMetricReader()],
            views=[
                View(
                    instrument_unit="s",
                    instrument_name="*",
                    aggregation=ExplicitBucketHistogramAggregation(SECONDS_BUCKETS),
                )
            ],
        )
    )


def shutdown_telemetry() -> None:
    """Flush what traces are left and stop the exporters."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        provider.shutdown()


def prometheus_text() -> bytes:
    """All metrics of the process in Prometheus' text format."""
    return generate_latest()


def inject(headers: dict[str, str] | None = None) -> dict[str, str]:
    """The headers with the current W3C trace context added."""
    carrier = {} if headers is None else headers
    _PROPAGATOR.inject(carrier)
    return carrier


def trace_id() -> str:
    """The current trace's id, 32 hex digits; empty outside of one."""
    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else ""


@cache
def _tracer() -> trace.Tracer:
    return trace.get_tracer("decisec")


def extract(headers: Mapping[str, str] | None) -> Context:
    """The trace context that a message carries."""
    known = {
        name: value
        for name, value in (headers or {}).items()
        if name.lower() in _PROPAGATOR.fields and len(value) <= _MAX_TRACE_CHARS
    }
    return _PROPAGATOR.extract(known)


@contextmanager
def span(
    name: str,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    parent: Mapping[str, str] | None = None,
    attributes: Mapping[str, str | int | float | bool] | None = None,
) -> Iterator[Span]:
    """A span around a block; `parent` are the headers of the message that caused it."""
    context = extract(parent) if parent is not None else None
    with _tracer().start_as_current_span(
        name, context=context, kind=kind, attributes=attributes
    ) as current:
        yield current


def meter() -> metrics.Meter:
    """The meter that all of decisec's instruments come from."""
    return metrics.get_meter("decisec")


def thinned(values: Sequence[int], most: int) -> tuple[int, ...]:
    """At most `most` of the values, evenly spread, the first one included."""
    if len(values) <= most:
        return tuple(values)
    return tuple(values[i * len(values) // most] for i in range(most))
