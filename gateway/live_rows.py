"""Rows of enriched frames, picked by whose they are."""

from __future__ import annotations

import struct
from collections.abc import Container, Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from schemas.frames import COLUMNS, ENRICHMENT_COLUMNS, EnrichedFrame, SampleFlag
from schemas.live import LiveSample
from schemas.vms import METERS, STATE_NUMBERS

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_STATES = {number: state.value for state, number in STATE_NUMBERS.items()}
_FORMATS = {"<u1": "<B", "<u2": "<H", "<u4": "<I", "<u8": "<Q"}
_READERS = {
    column.name: (struct.Struct(_FORMATS[column.dtype]), column.width)
    for column in COLUMNS + ENRICHMENT_COLUMNS
    if column.dtype in _FORMATS
}


class Row(NamedTuple):
    """Place of a VM's row in a frame, and whose it is."""

    customer_id: str
    vm: bytes
    number: int


def rows_of(frame: EnrichedFrame, customers: Container[str]) -> Iterator[Row]:
    """The rows that belong to these customers, by the frame's own column."""
    wanted = {
        index: customer for index, customer in enumerate(frame.customers) if customer in customers
    }
    if not wanted:
        return
    owners = struct.unpack(f"<{frame.rows}H", frame.customer_index)
    ids = frame.vm_ids
    for number, owner in enumerate(owners):
        customer = wanted.get(owner)
        if customer is not None:
            yield Row(customer, ids[number * 16 : number * 16 + 16], number)


def sample_of(frame: EnrichedFrame, row: Row) -> LiveSample:
    """A row as its owner sees it."""

    def value(name: str) -> int:
        reader, width = _READERS[name]
        found: int = reader.unpack_from(getattr(frame, name), row.number * width)[0]
        return found

    flags = value("flags")
    return LiveSample(
        vm_id=UUID(bytes=row.vm),
        at=_EPOCH + timedelta(milliseconds=frame.tick_ms),
        incarnation=value("incarnations"),
        state=_STATES.get(value("states"), ""),
        final=bool(flags & SampleFlag.FINAL),
        simulated=bool(flags & SampleFlag.SIMULATED),
        vcpus=value("vcpus"),
        memory_mib=value("memory_mib"),
        mem_bytes=value("mem_bytes"),
        **{meter: value(meter) for meter in METERS},
    )
