"""A pipeline that is fed frames, and what comes out of it."""

from __future__ import annotations

from uuid import UUID

from collector.messages import Intake, Now, Outcome
from collector.pipeline import Pipeline, Rules
from schemas.frames import (
    HEADER_REASON,
    EnrichedFrame,
    Frame,
    decode_enriched_frame,
    decode_frame,
    encode_frame,
)
from schemas.replays import Retry
from schemas.subjects import METRICS_RAW, metrics_raw, vm_key
from schemas.units import NS_PER_MS, NS_PER_S
from schemas.vms import VmRecord
from tests.support.frames import BASE_MS, HOST


def pipeline_of(*records: VmRecord, rules: Rules | None = None) -> Pipeline:
    """A pipeline that knows these VMs."""
    pipeline = Pipeline(rules or Rules())
    for one in records:
        pipeline.specs.change(vm_key(one.customer_id, one.vm_id), one)
    return pipeline


class Feed:
    """Feeds a pipeline; each message gets the next place in the stream."""

    def __init__(self, *records: VmRecord, rules: Rules | None = None) -> None:
        self.pipeline = pipeline_of(*records, rules=rules)
        self.sequence = 0

    def __call__(
        self,
        sent: Frame | bytes,
        *,
        subject: str = metrics_raw(HOST),
        at_ms: int = 0,
        redelivered: bool = False,
        replay: str = "",
        retry: Retry | None = None,
    ) -> Outcome:
        """Process one; `at_ms` is the collector's time after the first tick."""
        self.sequence += 1
        data = encode_frame(sent) if isinstance(sent, Frame) else sent
        return self.pipeline.process(
            Intake(subject, data, METRICS_RAW, self.sequence, redelivered, replay, retry=retry),
            Now((BASE_MS + at_ms) * NS_PER_MS, NS_PER_S + at_ms * NS_PER_MS),
        )


def enriched_of(outcome: Outcome) -> EnrichedFrame:
    """The frame that left for the batcher."""
    assert outcome.enriched is not None
    return decode_enriched_frame(outcome.enriched.payload)


def ids_of(frame: Frame | EnrichedFrame) -> list[UUID]:
    """VMs of a frame, row by row."""
    return [UUID(bytes=frame.vm_ids[i : i + 16]) for i in range(0, len(frame.vm_ids), 16)]


def rejected_of(outcome: Outcome) -> dict[str, list[UUID]]:
    """Refused VMs per reason, as the published rejects hold them."""
    return {
        m.headers[HEADER_REASON]: ids_of(decode_frame(m.payload))
        for m in outcome.side
        if m.headers is not None
    }


def uptime(ms: int, **more: int) -> dict[str, int]:
    """Counters of a VM that has been up so long."""
    return {"uptime_ms": ms, **more}
