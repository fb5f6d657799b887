"""The VMs, hosts and customers as the bus last told of them, and questions about them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from datetime import datetime
from uuid import UUID

import structlog

from gateway.catalog import Catalog
from gateway.customer_book import CustomerBook
from gateway.host_index import HostIndex
from gateway.host_names import Naming, real
from gateway.inventory import Inventory
from gateway.placement import need_of, total
from gateway.snapshot_index import SnapshotIndex
from gateway.status_book import Forged, StatusBook
from gateway.vm_views import view
from runtime.buckets import Bucket, Entry, Mirror
from runtime.bus import Bus
from runtime.clock import utc_now
from schemas.api import VmView
from schemas.errors import InvalidIdError
from schemas.hosts import HEARTBEAT_FRESH, Customer, HostInfo, Resources, decode_host_info
from schemas.subjects import HOSTS, VM_SPECS, VM_STATUS, parse_vm_key, vm_key
from schemas.vms import VmRecord, VmSpec, VmState, VmStatus, decode_vm_record, decode_vm_status

_log = structlog.get_logger("decisec.fleet")

_SHOWN_WITHIN_S = 1.0


def vm_key_of(status: VmStatus) -> str:
    """The key of the VM that a status is about."""
    return f"{status.customer_id}.{status.vm_id}"


class Fleet:
    """Four mirrored buckets. Reads are from memory; `fresh` asks the server.

    Args:
        bus: The connection.
        on_deleted: Called with the key of every VM that a host says it has deleted, and the host.
        inventory: Told of all that it has to know.
        on_forged: Called with statuses that are not what their keys say; see `StatusBook`.
    """

    def __init__(
        self,
        bus: Bus,
        on_deleted: Callable[[str, str], None] | None = None,
        inventory: Inventory | None = None,
        on_forged: Forged = lambda *_: None,
    ) -> None:
        self.inventory = inventory or Inventory()
        self.specs = Bucket(bus, VM_SPECS, decode_vm_record)
        self.statuses = Bucket(bus, VM_STATUS, decode_vm_status)
        self.catalog = Catalog()
        self.on_host = HostIndex()
        self.snapshots = SnapshotIndex()
        self._on_deleted = on_deleted
        self._records: dict[str, VmRecord] = {}
        self._ahead: dict[str, int] = {}
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._beats: dict[str, datetime] = {}
        self._heard_s: dict[str, float] = {}
        self._spec_mirror = Mirror(self.specs, self._hear_record)
        self._book = StatusBook(on_forged)
        self._status_mirror = Mirror(self.statuses, self._take_status)
        self._host_mirror = Mirror(Bucket(bus, HOSTS, decode_host_info), self._take_host)
        self.customers = CustomerBook(bus)

    async def run(self) -> None:
        """Follow the buckets until cancelled."""
        async with asyncio.TaskGroup() as group:
            for name, mirror in (
                ("mirror-specs", self._spec_mirror.run()),
                ("mirror-status", self._status_mirror.run()),
                ("mirror-hosts", self._host_mirror.run()),
                ("mirror-customers", self.customers.run()),
            ):
                group.create_task(mirror, name=name)

    async def synced(self) -> None:
        """Return once everything that stood at the start is there."""
        await self._spec_mirror.synced()
        await self._status_mirror.synced()
        await self._host_mirror.synced()
        await self.customers.synced()

    @property
    def hosts(self) -> dict[str, HostInfo]:
        """Heartbeats by host."""
        return self.inventory.hosts

    @property
    def told(self) -> Mirror[VmRecord]:
        """The records as the bus has told them, without what this gateway has noted itself."""
        return self._spec_mirror

    @property
    def told_statuses(self) -> Mirror[VmStatus]:
        """The statuses as the bus has told them."""
        return self._status_mirror

    def customer(self, customer_id: str) -> Customer | None:
        """The operator's entry, if there is one."""
        return self.customers.get(customer_id)

    def record(self, key: str) -> VmRecord | None:
        """A VM's record, tombstones included."""
        return self._records.get(key)

    def records(self) -> list[VmRecord]:
        """All records that are no tombstones."""
        return [record for record in self._records.values() if record.deleted_at is None]

    def status(self, key: str) -> VmStatus | None:
        """What the agent of the VM's host last said of it; None for a VM without a record."""
        record = self._records.get(key)
        return self._book.get(key, record.host_id) if record is not None else None

    def get(self, customer_id: str, vm_id: UUID, naming: Naming = real) -> VmView | None:
        """One VM of a customer, unless it is deleted."""
        key = vm_key(customer_id, vm_id)
        record = self._records.get(key)
        if record is None or record.deleted_at is not None:
            return None
        found = view(record, self.status(key), naming)
        return None if found.state is VmState.DELETED else found

    def wanted(
        self,
        customer_id: str,
        vm_id: str,
        wants: Callable[[VmRecord, VmState], bool],
        naming: Naming = real,
    ) -> VmView | None:
        """One VM of a customer, by an id of the catalog, if it is wanted; a quick no if not."""
        key = f"{customer_id}.{vm_id}"
        record = self._records.get(key)
        if record is None or record.deleted_at is not None:
            return None
        status = self.status(key)
        if status is not None and status.host_id != record.host_id:
            status = None
        state = status.state if status is not None else VmState.PENDING
        if state is VmState.DELETED or not wants(record, state):
            return None
        return view(record, status, naming)

    def placed(self, customer_id: str, vm_ids: Collection[UUID] | None = None) -> dict[UUID, str]:
        """The hosts of a customer's VMs that are there: of these, or of all."""
        found: dict[UUID, str] = {}
        for vm_id in self.catalog.ids(customer_id) if vm_ids is None else map(str, vm_ids):
            record = self._records.get(f"{customer_id}.{vm_id}")
            if record is not None and record.deleted_at is None:
                found[record.vm_id] = record.host_id
        return found

    def used(self, customer_id: str) -> Resources:
        """What a customer's VMs take, whatever their state."""
        return total(
            need_of(self._records[f"{customer_id}.{vm_id}"].spec)
            for vm_id in self.catalog.ids(customer_id)
        )

    def peers(self, customer_id: str, spec: VmSpec, but: UUID | None = None) -> Mapping[str, int]:
        """VMs of a customer that one of this spec is to be apart from, by host.

        Args:
            customer_id: Whose.
            spec: Of the one that is to be placed.
            but: Its id, if it has a record already.
        """
        found: Counter[str] = Counter()
        if (kind := spec.kind) is None:
            return found
        name, value = kind
        for vm_id in self.catalog.ids(customer_id):
            record = self._records[f"{customer_id}.{vm_id}"]
            if record.vm_id != but and record.spec.labels.get(name) == value:
                found[record.host_id] += 1
        return found

    async def fresh(
        self, customer_id: str, vm_id: UUID
    ) -> tuple[Entry[VmRecord], VmStatus | None] | None:
        """Record and status as they stand on the server; None for a VM that is gone.

        Raises:
            TransientError: The server cannot be reached.
        """
        key = vm_key(customer_id, vm_id)
        # Unknown here is not yet proof: another gateway may have just made it.
        record, status = await self.read(key)
        if record is None or record.value.deleted_at is not None:
            return None
        if status is not None and status.state is VmState.DELETED:
            return None
        return record, status

    async def read(self, key: str) -> tuple[Entry[VmRecord] | None, VmStatus | None]:
        """A VM's record as it stands on the server, tombstones too, and its host's status.

        Raises:
            TransientError: The server cannot be reached.
        """
        known = self._records.get(key)
        if known is None:
            record = await self.specs.get(key)
            status = await self.said(key, record.value.host_id) if record else None
            return record, status
        record, status = await asyncio.gather(self.specs.get(key), self.said(key, known.host_id))
        if record is not None and record.value.host_id != known.host_id:
            status = await self.said(key, record.value.host_id)
        return record, status

    async def said(self, key: str, host_id: str) -> VmStatus | None:
        """What a host says of a VM now, on the server.

        Raises:
            TransientError: The server cannot be reached.
        """
        entry = await self.statuses.get(f"{host_id}.{key}")
        if entry is None:
            # Of an agent that wrote before keys had a host's name.
            return self._book.get(key, host_id)
        status = entry.value
        return status if (status.host_id, vm_key_of(status)) == (host_id, key) else None

    async def shown(self, key: str, status: VmStatus) -> None:
        """Wait until reads from memory show this status or a later one, a second at most."""
        event = asyncio.Event()
        watchers = self._watchers.setdefault(key, set())
        watchers.add(event)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(_SHOWN_WITHIN_S):
                    while (known := self.status(key)) is None or (
                        known.updated_at < status.updated_at
                    ):
                        event.clear()
                        await event.wait()
        finally:
            watchers.discard(event)
            if not watchers:
                self._watchers.pop(key, None)

    def note(self, record: VmRecord, revision: int | None = None) -> None:
        """Take a record that this gateway has just written, before the bus tells of it.

        Args:
            record: The record.
            revision: Where it stands in the bucket: what was written before it and comes late is
                ignored then. None for one whose key is new.
        """
        key = vm_key(record.customer_id, record.vm_id)
        if revision is not None:
            if self._spec_mirror.revision >= revision:
                return  # told of already, or of a later one
            self._ahead[key] = revision
        self._take_record(key, record)

    def forget(self, key: str) -> None:
        """Take note that this gateway has just removed a record."""
        self._ahead.pop(key, None)
        self._take_record(key, None)

    def _hear_record(self, key: str, record: VmRecord | None) -> None:
        ahead = self._ahead.get(key)
        if ahead is not None:
            if self._spec_mirror.taking < ahead:
                return
            del self._ahead[key]
        self._take_record(key, record)

    def _take_record(self, key: str, record: VmRecord | None) -> None:
        known = self._records.get(key)
        if record is None:
            if known is not None:
                del self._records[key]
                self._unlist(known)
                self.snapshots.change(key, None)
                self.inventory.take_record(known, None, None)
            return
        if known is not None and known.deleted_at is not None:
            return  # a tombstone is final; this is an older word that comes late
        try:
            parse_vm_key(key)
        except InvalidIdError:
            return
        self._records[key] = record
        if record.deleted_at is not None:
            if known is not None:
                self._unlist(known)
        elif known is None:
            self.catalog.add(record.customer_id, record.name, record.vm_id)
        elif known.name != record.name:
            self.catalog.rename(record.customer_id, known.name, record.name, record.vm_id)
        if record.deleted_at is None:
            self.on_host.move(key, known.host_id if known else None, record.host_id)
        status = self.status(key)
        self.snapshots.change(key, status)
        self.inventory.take_record(known, record, status)

    def _unlist(self, record: VmRecord) -> None:
        self.catalog.remove(record.customer_id, record.name, record.vm_id)
        self.on_host.move(vm_key(record.customer_id, record.vm_id), record.host_id, None)

    async def status_heard(self) -> None:
        """Return once all statuses that stand on the server now are known here; in a second.

        Raises:
            TransientError: The server cannot be reached.
        """
        revision = await self.statuses.last_revision()
        with suppress(TimeoutError):
            async with asyncio.timeout(_SHOWN_WITHIN_S):
                await self._status_mirror.reached(revision)

    def silent(self, now_s: float) -> frozenset[str]:
        """Hosts whose heartbeat has not changed for too long, by this gateway's own clock.

        Args:
            now_s: Monotonic time.
        """
        limit_s = HEARTBEAT_FRESH.total_seconds()
        return frozenset(
            host_id for host_id, heard_s in self._heard_s.items() if now_s - heard_s > limit_s
        )

    def _hear_host(self, host_id: str, host: HostInfo | None) -> None:
        """Note when a heartbeat came: the time in it is the host's own, and may be wrong."""
        before = self._beats.pop(host_id, None)
        if host is None:
            self._heard_s.pop(host_id, None)
            return
        self._beats[host_id] = host.heartbeat_at
        if before == host.heartbeat_at:
            return  # told again, after a reconnect
        # The first one that is told may have stood there for long already.
        age_s = 0.0 if before else max(0.0, (utc_now() - host.heartbeat_at).total_seconds())
        self._heard_s[host_id] = time.monotonic() - age_s

    def _take_status(self, written: str, status: VmStatus | None) -> None:
        word = self._book.take(written, status)
        if word is None:
            return
        key, host_id = word
        self.snapshots.change(key, self.status(key))
        for event in self._watchers.get(key, ()):
            event.set()
        if status is not None:
            self.inventory.take_status(status)
        if status is not None and status.state is VmState.DELETED and self._on_deleted:
            self._on_deleted(key, host_id)

    def _take_host(self, key: str, info: HostInfo | None) -> None:
        if info is not None and info.host_id != key:
            _log.error("heartbeat.refused", host_id=key, claims=info.host_id)
            return
        self._hear_host(key, info)
        self.inventory.take_host(key, info)
