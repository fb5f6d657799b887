"""Where that stands what was made of a quota: records of VMs, and what hosts say of snapshots."""

from __future__ import annotations

from typing import Protocol
from uuid import UUID

from gateway.fleet import Fleet
from gateway.ledger import amounts_of
from schemas.quotas import Amounts
from schemas.subjects import VM_SPECS, VM_STATUS


class Records(Protocol):
    """Where that stands what was made, as this gateway has read it.

    Attributes:
        name: The bucket.
    """

    name: str

    @property
    def revision(self) -> int:
        """Read up to here."""

    async def reached(self, revision: int) -> None:
        """Return once it was read up to here."""

    async def last_revision(self) -> int:
        """What the server says is the last one."""

    def used(self, customer_id: str) -> Amounts:
        """What a customer's records take."""

    def known(self, customer_id: str, hold_id: str) -> bool:
        """Whether a record counts, or has counted and is gone."""

    def stored(self, customer_id: str, hold_id: str) -> bool:
        """Whether the bus has told of it."""


class VmRecords:
    """The VMs, by the mirror of their specs."""

    name = VM_SPECS

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    @property
    def revision(self) -> int:
        """See `Records`."""
        return self._fleet.told.revision

    async def reached(self, revision: int) -> None:
        """See `Records`."""
        await self._fleet.told.reached(revision)

    async def last_revision(self) -> int:
        """See `Records`."""
        return await self._fleet.specs.last_revision()

    def used(self, customer_id: str) -> Amounts:
        """See `Records`."""
        return amounts_of(self._fleet.used(customer_id))

    def known(self, customer_id: str, hold_id: str) -> bool:
        """See `Records`."""
        return self._fleet.record(f"{customer_id}.{hold_id}") is not None

    def stored(self, customer_id: str, hold_id: str) -> bool:
        """See `Records`."""
        return f"{customer_id}.{hold_id}" in self._fleet.told.values


class SnapshotRecords:
    """The snapshots, by the mirror of the statuses that hosts write."""

    name = VM_STATUS

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    @property
    def revision(self) -> int:
        """See `Records`."""
        return self._fleet.told_statuses.revision

    async def reached(self, revision: int) -> None:
        """See `Records`."""
        await self._fleet.told_statuses.reached(revision)

    async def last_revision(self) -> int:
        """See `Records`."""
        return await self._fleet.statuses.last_revision()

    def used(self, customer_id: str) -> Amounts:
        """See `Records`."""
        return Amounts(snapshots=self._fleet.snapshots.count(customer_id))

    def known(self, customer_id: str, hold_id: str) -> bool:
        """See `Records`."""
        return self._fleet.snapshots.get(customer_id, UUID(hold_id)) is not None

    def stored(self, customer_id: str, hold_id: str) -> bool:
        """See `Records`."""
        return self.known(customer_id, hold_id)
