"""Samples out of enriched frames, one object per VM."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple
from uuid import UUID

from schemas.frames import COLUMNS, ENRICHMENT_COLUMNS, EnrichedFrame, Frame, SampleFlag
from schemas.vms import METERS, STATE_NUMBERS, VmState

_STATES = {number: state for state, number in STATE_NUMBERS.items()}
_FORMATS = {"<u1": "B", "<u2": "H", "<u4": "I", "<u8": "Q"}
_DTYPES = {column.name: column.dtype for column in COLUMNS + ENRICHMENT_COLUMNS}


class Sample(NamedTuple):
    """One VM at one tick; `counters` in the order of `METERS`."""

    vm_id: UUID
    customer: str
    incarnation: int
    state: VmState | None
    flags: SampleFlag
    mem_bytes: int
    counters: tuple[int, ...]

    def counter(self, meter: str) -> int:
        """One counter by its name."""
        return self.counters[METERS.index(meter)]


def column(frame: Frame | EnrichedFrame, name: str) -> tuple[int, ...]:
    """A column of whole numbers."""
    return struct.unpack(f"<{frame.rows}{_FORMATS[_DTYPES[name]]}", getattr(frame, name))


def vm_ids(frame: Frame | EnrichedFrame) -> list[UUID]:
    """The VMs of a frame, row by row."""
    raw = frame.vm_ids
    return [UUID(bytes=raw[i : i + 16]) for i in range(0, len(raw), 16)]


def samples(frame: EnrichedFrame) -> Iterator[Sample]:
    """The rows of a frame."""
    owners = struct.unpack(f"<{frame.rows}H", frame.customer_index)
    meters = zip(*(column(frame, meter) for meter in METERS), strict=True)
    return (
        Sample(
            vm,
            frame.customers[owner],
            incarnation,
            _STATES.get(state),
            SampleFlag(flags),
            mem_bytes,
            counters,
        )
        for vm, owner, incarnation, state, flags, mem_bytes, counters in zip(
            vm_ids(frame),
            owners,
            column(frame, "incarnations"),
            column(frame, "states"),
            column(frame, "flags"),
            column(frame, "mem_bytes"),
            meters,
            strict=True,
        )
    )
