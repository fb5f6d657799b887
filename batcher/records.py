"""Which streams of events go into which table, and what a message is as a row there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from runtime.consumer import Delivery
from runtime.errors import PoisonError
from schemas import subjects
from schemas.audit import AuditEntry, decode_audit_entry, is_of_host
from schemas.errors import InvalidIdError
from schemas.events import (
    GapClosed,
    GapOpened,
    HostHeard,
    VmFailed,
    VmStopped,
    decode_host_event,
    decode_vm_event,
    event_type,
)

Row = Mapping[str, Any]

_UUID: pa.DataType = pa.binary(16)
_WHEN: pa.DataType = pa.timestamp("us", "UTC")
_WORD: pa.DataType = pa.string()


@dataclass(frozen=True, slots=True)
class Feed:
    """One table and where its rows come from.

    Attributes:
        stream: Of events.
        durable: Name of the consumer.
        table: Where they go.
        read: A message as a row.
        columns: The row's columns.
        filter_subjects: Only these; empty means all of the stream.
    """

    stream: str
    durable: str
    table: str
    read: Callable[[Delivery], Row]
    columns: Mapping[str, pa.DataType]
    filter_subjects: tuple[str, ...] = ()

    def rows(self, rows: list[Row]) -> pa.Table:
        """Rows as the store takes them."""
        return pa.Table.from_pylist(rows, schema=pa.schema(self.columns))


def vm_event_row(delivery: Delivery) -> Row:
    """A row of `vm_events`.

    Raises:
        MalformedMessageError, PoisonError: It is no event, or one on another's subject.
    """
    event = decode_vm_event(delivery.data)
    _expect(delivery, lambda: subjects.vm_event(event))
    reason = ""
    if isinstance(event, VmStopped):
        reason = str(event.reason.value)
    elif isinstance(event, VmFailed):
        reason = str(event.error.code.value)
    return {
        "customer_id": event.customer_id,
        "vm_id": event.vm_id.bytes,
        "at": event.at,
        "event_id": event.event_id.bytes,
        "type": event_type(event),
        "host": event.host_id,
        "incarnation": event.incarnation,
        "command_id": event.command_id.bytes if event.command_id else None,
        "reason": reason,
        "body": delivery.data.decode(),
        "recorded_at": delivery.recorded_at,
    }


def gap_row(delivery: Delivery) -> Row:
    """A row of `metering_gaps`. Raises as `vm_event_row` does."""
    event = decode_host_event(delivery.data)
    _expect(delivery, lambda: subjects.host_event(event))
    gap = event if isinstance(event, GapOpened | GapClosed) else None
    return {
        "host": event.host_id,
        "at": event.at,
        "event_id": event.event_id.bytes,
        "type": event_type(event),
        "run_id": gap.run_id.bytes if gap else None,
        "seq_first": gap.seq_first if gap else None,
        "seq_last": gap.seq_last if gap else None,
        "silent_ms": event.silent_ms if isinstance(event, HostHeard) else None,
        "body": delivery.data.decode(),
        "recorded_at": delivery.recorded_at,
    }


def audit_row(delivery: Delivery) -> Row:
    """A row of `audit_log`. Raises as `vm_event_row` does."""
    entry = decode_audit_entry(delivery.data)
    _expect(delivery, lambda: subjects.audit(entry))
    return _audit_row(entry, delivery)


def host_audit_row(delivery: Delivery) -> Row:
    """The same of an entry that a host wrote: of what it refused, and in its own name only."""
    entry = decode_audit_entry(delivery.data)
    host_id = delivery.subject.rpartition(".")[2]
    _expect(delivery, lambda: subjects.host_audit(host_id))
    if not is_of_host(entry, host_id):
        raise PoisonError("not_the_hosts", f"{host_id} writes as {entry.actor[:80]!r}")
    return _audit_row(entry, delivery)


def _audit_row(entry: AuditEntry, delivery: Delivery) -> Row:
    return {
        "customer_id": entry.customer_id,
        "at": entry.at,
        "event_id": entry.event_id.bytes,
        "actor": entry.actor,
        "action": entry.action,
        "target": entry.target,
        "reason": entry.reason,
        "outcome": entry.outcome,
        "details": list(entry.details.items()),
        "recorded_at": delivery.recorded_at,
    }


def _expect(delivery: Delivery, subject: Callable[[], str]) -> None:
    # Rights are given by subject: what a message says of itself must be what it was allowed to.
    try:
        expected = subject()
    except InvalidIdError as error:
        raise PoisonError("wrong_subject", str(error)) from error
    if delivery.subject != expected:
        raise PoisonError("wrong_subject", f"{delivery.subject} holds what belongs on {expected}")


_AUDIT_COLUMNS = {
    "customer_id": _WORD, "at": _WHEN, "event_id": _UUID, "actor": _WORD,
    "action": _WORD, "target": _WORD, "reason": _WORD, "outcome": _WORD,
    "details": pa.map_(_WORD, _WORD), "recorded_at": _WHEN,
}  # fmt: skip

VM_EVENTS_DURABLE = "batcher-vm-events"

FEEDS = (
    Feed(
        stream=subjects.VM_EVENTS,
        durable=VM_EVENTS_DURABLE,
        table="vm_events",
        read=vm_event_row,
        columns={
            "customer_id": _WORD, "vm_id": _UUID, "at": _WHEN, "event_id": _UUID,
            "type": _WORD, "host": _WORD, "incarnation": pa.uint32(), "command_id": _UUID,
            "reason": _WORD, "body": _WORD, "recorded_at": _WHEN,
        },
    ),
    Feed(
        stream=subjects.HOST_EVENTS,
        durable="batcher-metering-gaps",
        table="metering_gaps",
        read=gap_row,
        columns={
            "host": _WORD, "at": _WHEN, "event_id": _UUID, "type": _WORD, "run_id": _UUID,
            "seq_first": pa.int64(), "seq_last": pa.int64(), "silent_ms": pa.int64(),
            "body": _WORD, "recorded_at": _WHEN,
        },
        filter_subjects=tuple(
            f"host.evt.*.{kind}"
            for kind in (
                "gap_opened", "gap_closed", "host_suspected", "host_silent", "host_heard",
                "metering_adjusted", "host_lost", "host_found",
            )
        ),
    ),
    Feed(
        stream=subjects.AUDIT,
        durable="batcher-audit",
        table="audit_log",
        read=audit_row,
        columns=_AUDIT_COLUMNS,
    ),
    Feed(
        stream=subjects.HOST_AUDIT,
        durable="batcher-host-audit",
        table="audit_log",
        read=host_audit_row,
        columns=_AUDIT_COLUMNS,
    ),
)  # fmt: skip
