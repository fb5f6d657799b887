"""Which messages, and which rows of them, are meant."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar
from uuid import UUID

import msgspec

from runtime.buckets import Bucket
from runtime.bus import Bus
from schemas.frames import COLUMNS, ENRICHMENT_COLUMNS, Column, EnrichedFrame, Frame
from schemas.ids import CustomerId, HostId
from schemas.subjects import VM_SPECS, filters_of_frames, filters_of_host, parse_vm_key
from schemas.vms import decode_vm_record

Owners = Mapping[bytes, str]
"""Customers by the 16 bytes of a VM's id."""

_F = TypeVar("_F", bound=Frame | EnrichedFrame)


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Hosts, customers and VMs; an empty one stands for all."""

    hosts: tuple[HostId, ...] = ()
    customers: tuple[CustomerId, ...] = ()
    vm_ids: tuple[UUID, ...] = ()

    @property
    def whole_frames(self) -> bool:
        """Whether frames are taken with all their rows."""
        return not (self.customers or self.vm_ids)

    def filters(self, stream: str) -> tuple[str, ...]:
        """Subjects to ask the server for; empty for all."""
        if not self.hosts:
            return filters_of_frames(stream)
        return tuple(f for host in self.hosts for f in filters_of_host(stream, host))

    def has(self, *, host: str = "", customer: str = "", vm_id: UUID | None = None) -> bool:
        """Whether something of this host, customer and VM is meant."""
        return (
            (not self.hosts or host in self.hosts)
            and (not self.customers or customer in self.customers)
            and (not self.vm_ids or vm_id in self.vm_ids)
        )

    def words(self) -> str:
        """For people; empty for all."""
        parts = [
            *(f"host {host}" for host in self.hosts),
            *(f"customer {customer}" for customer in self.customers),
            *(f"VM {vm_id}" for vm_id in self.vm_ids),
        ]
        return ", ".join(parts)


async def owners_of(bus: Bus) -> dict[bytes, str]:
    """Whose every VM is, those that are deleted included.

    Raises:
        TransientError: The server did not say.
    """
    bucket = Bucket(bus, VM_SPECS, decode_vm_record)
    return {
        vm_id.bytes: customer
        for customer, vm_id in (parse_vm_key(key) for key in await bucket.all())
    }


def narrowed(frame: _F, selection: Selection, owners: Owners) -> _F | None:
    """The frame with the rows that are meant only; None if it has none of them.

    Args:
        frame: Of checked shape.
        selection: What is meant. Hosts are not looked at.
        owners: For raw frames, which do not say whose their VMs are.
    """
    if selection.whole_frames:
        return frame
    vm_ids = [frame.vm_ids[i : i + 16] for i in range(0, len(frame.vm_ids), 16)]
    owner = _owner_of(frame, owners)
    wanted = {vm_id.bytes for vm_id in selection.vm_ids}
    rows = [
        row
        for row, vm_id in enumerate(vm_ids)
        if (not wanted or vm_id in wanted)
        and (not selection.customers or owner(row, vm_id) in selection.customers)
    ]
    if not rows:
        return None
    return frame if len(rows) == len(vm_ids) else _trimmed(frame, rows)


def _owner_of(frame: Frame | EnrichedFrame, owners: Owners) -> Callable[[int, bytes], str]:
    if isinstance(frame, EnrichedFrame):
        names, index = frame.customers, frame.customer_index
        places = [int.from_bytes(index[i : i + 2], "little") for i in range(0, len(index), 2)]
        # An index beside its dictionary names nobody.
        return lambda row, _vm_id: names[places[row]] if places[row] < len(names) else ""
    return lambda _row, vm_id: owners.get(vm_id, "")


def _trimmed(frame: _F, rows: Sequence[int]) -> _F:
    parts = {}
    for column in _columns_of(frame):
        content, width = getattr(frame, column.name), column.width
        parts[column.name] = b"".join([content[r * width : (r + 1) * width] for r in rows])
    return msgspec.structs.replace(frame, **parts)


def _columns_of(frame: Frame | EnrichedFrame) -> tuple[Column, ...]:
    return COLUMNS + ENRICHMENT_COLUMNS if isinstance(frame, EnrichedFrame) else COLUMNS
