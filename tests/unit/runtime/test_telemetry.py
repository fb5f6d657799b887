"""Logs without secrets, and a trace that goes on through headers."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.telemetry import inject, redact, span

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        (f"refused {JWT}", JWT),
        (f"Authorization: Bearer {JWT}", JWT),
        ("authorization: bearer abc.def", "abc.def"),
        ("cannot reach nats://alice:s3cret@host:4222", "s3cret"),
        ("http://default:pa55@ch:8123/?x=1", "pa55"),
    ],
)
def test_secrets_are_taken_out_of_texts(text: str, gone: str) -> None:
    """Tokens and passwords in URLs never get into a log line."""
    assert gone not in redact(text)
    assert "[redacted]" in redact(text)


@given(st.text(max_size=200))
def test_redacting_twice_is_redacting_once(text: str) -> None:
    """Nothing is eaten by a second pass."""
    assert redact(redact(text)) == redact(text)


def test_a_log_line_is_json_without_secrets_and_with_its_trace() -> None:
    """In a process of its own: keys that name secrets and values that look like them are gone."""
    code = f"""
import structlog
from runtime.telemetry import configure_logging, configure_telemetry, span
configure_logging("t"); configure_telemetry("t")
with span("work") as s:
    structlog.get_logger("decisec.x").info("thing.done", token="hunter2", note="Bearer {JWT}", n=3)
    print(f"{{s.get_span_context().trace_id:032x}}")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    line = json.loads(done.stderr.strip().splitlines()[-1])
    assert line["event"] == "thing.done"
    assert (line["service"], line["n"], line["level"]) == ("t", 3, "info")
    assert line["trace_id"] == done.stdout.strip()
    assert "hunter2" not in done.stderr
    assert JWT not in done.stderr


def test_a_span_goes_on_through_headers() -> None:
    """What is injected on one side is the parent on the other."""
    with span("send") as sender:
        headers = inject()
    with span("receive", parent=headers) as receiver:
        assert receiver.get_span_context().trace_id == sender.get_span_context().trace_id
    with span("receive", parent={"traceparent": "garbage"}) as receiver:
        assert receiver.get_span_context().is_valid


@pytest.mark.parametrize("trace", ["", "00-\x00-zz", "00-" + "f" * 3000, "ff--", "\ufffd"])
def test_headers_of_strangers_are_neither_passed_on_nor_logged(
    trace: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Baggage least of all: it is anything, of any length."""
    headers = {"traceparent": trace, "tracestate": "=,;=" * 500, "baggage": "=,;=\ufffd" * 500}
    with span("receive x", parent=headers):
        sent = inject()
    assert set(sent) <= {"traceparent", "tracestate"}
    assert "=,;=" not in sent.get("tracestate", "")
    assert caplog.messages == []
