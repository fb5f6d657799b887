"""What the door on the bus answers out of the store: usage, metrics, events, the audit log.

Checked as the HTTP API checks its parameters, and answered by the same services.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from gateway.audit_log import AuditLog
from gateway.auth import Principal
from gateway.errors import RefusedError
from gateway.events import EventService, EventsWanted
from gateway.metrics import MetricService
from gateway.usage_reports import UsageReportService
from schemas.audit_log import MAX_AUDIT_DAYS, AuditQuery
from schemas.errors import ErrorCode
from schemas.requests import (
    AuditRequest,
    EventsRequest,
    MetricsRequest,
    Reply,
    UsageRequest,
)
from schemas.series import STEPS_MS, SeriesQuery

READS = frozenset({"usage", "metrics", "events", "audit"})
"""Verbs that are answered here."""

_EARLIEST = datetime(1970, 1, 2, tzinfo=UTC)
_LATEST = datetime(2200, 1, 1, tzinfo=UTC)

Read = UsageRequest | MetricsRequest | EventsRequest | AuditRequest


class DoorReads:
    """Answers for principals that are authenticated already; raises as the services do."""

    def __init__(
        self,
        usage: UsageReportService,
        metrics: MetricService,
        events: EventService,
        audit_log: AuditLog,
    ) -> None:
        self._usage = usage
        self._metrics = metrics
        self._events = events
        self._audit_log = audit_log

    async def answer(self, who: Principal, asked: Read) -> Reply:
        """What was asked for."""
        match asked:
            case UsageRequest():
                _check(asked.start, asked.end)
                report = await self._usage.report(who, asked.start, asked.end, asked.vm_ids)
                return Reply(usage=report)
            case MetricsRequest():
                return Reply(metrics=await self._metrics.series(who, _series(asked)))
            case EventsRequest():
                return Reply(events=await self._events.page(who, _events(asked)))
            case AuditRequest():
                return Reply(audit=await self._audit_log.page(who, _entries(asked)))


def _series(asked: MetricsRequest) -> SeriesQuery:
    _check(asked.start, asked.end)
    if asked.step_ms is not None and asked.step_ms not in STEPS_MS:
        raise _wrong(f"step_ms: must be one of {', '.join(map(str, STEPS_MS))}")
    return SeriesQuery(
        start=asked.start,
        end=asked.end,
        vm_ids=asked.vm_ids,
        points=asked.points,
        step_ms=asked.step_ms,
        metrics=tuple(dict.fromkeys(asked.metrics)),
    )


def _events(asked: EventsRequest) -> EventsWanted:
    return EventsWanted(
        start=asked.start,
        end=asked.end,
        vm_ids=asked.vm_ids,
        kinds=asked.types,
        newest_first=asked.newest_first,
        limit=asked.limit,
        cursor=asked.cursor,
    )


def _entries(asked: AuditRequest) -> AuditQuery:
    _check(asked.start, asked.end)
    if asked.end - asked.start > timedelta(days=MAX_AUDIT_DAYS):
        raise _wrong(f"start: at most {MAX_AUDIT_DAYS} days before end")
    return AuditQuery(start=asked.start, end=asked.end, limit=asked.limit, cursor=asked.cursor)


def _check(start: datetime, end: datetime) -> None:
    if start >= end:
        raise _wrong("end: must come after start")
    if not _EARLIEST <= start < end <= _LATEST:
        raise _wrong(f"{'start' if start < _EARLIEST else 'end'}: lies too far away")


def _wrong(message: str) -> RefusedError:
    return RefusedError(ErrorCode.BAD_REQUEST, message)
