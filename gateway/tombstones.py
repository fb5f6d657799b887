"""Turning the record of a deleted VM into a tombstone."""

from __future__ import annotations

import asyncio
from typing import Protocol
from uuid import UUID

import msgspec
import structlog

from gateway.fleet import Fleet
from runtime.buckets import RevisionConflictError
from runtime.clock import utc_now
from runtime.errors import PoisonError, TransientError
from runtime.retry import forever
from schemas.errors import ErrorCode
from schemas.hosts import Operation
from schemas.subjects import vm_key

_log = structlog.get_logger("decisec.tombstones")

_MAX_DOUBTFUL = 10_000
_TRIES = 24
_AGAIN_S = 5.0
"""Between two questions to a host that does not answer."""


class Absence(Protocol):
    """Asks a host whether it has a VM; `Absent` does."""

    async def __call__(self, customer_id: str, vm_id: UUID, host_id: str) -> bool:
        """Whether it says that it has not. TransientError if it says nothing."""


class Tombstones:
    """Follows what agents say, and buries what they have deleted.

    A status is its host's own word. A result need not be: any host may have written it. So a VM
    that its host is said not to know is asked for, where only that host can answer.

    The mirrors tell of every status at their start, so a gateway that was away catches up.

    Args:
        absent: Asks a host.
    """

    def __init__(self, absent: Absence) -> None:
        self._absent = absent
        self._keys: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self._doubtful: asyncio.Queue[tuple[Operation, int]] = asyncio.Queue(_MAX_DOUBTFUL)

    def bury(self, key: str, host_id: str) -> None:
        """Have a VM's record marked as deleted, if this is the host that has it."""
        self._keys.put_nowait((key, host_id))

    def take(self, operation: Operation) -> None:
        """Bury a VM that its agent does not know and that its owner has asked to delete."""
        if (
            operation.verb == "delete"
            and operation.finished
            and operation.error is not None
            and operation.error.code is ErrorCode.NOT_FOUND
        ):
            self._doubt(operation, _TRIES)

    async def run(self, fleet: Fleet) -> None:
        """Work until cancelled."""
        await fleet.synced()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._bury_all(fleet), name="tombstones-write")
            group.create_task(self._ask_all(fleet), name="tombstones-ask")

    async def _bury_all(self, fleet: Fleet) -> None:
        while True:
            key, host_id = await self._keys.get()
            known = fleet.record(key)
            if known is not None and known.deleted_at is not None:
                continue
            try:
                async for attempt in forever("tombstone"):
                    with attempt:
                        await self._write(fleet, key, host_id)
            except PoisonError as error:
                _log.error("tombstone.abandoned", key=key, error=str(error))

    async def _ask_all(self, fleet: Fleet) -> None:
        loop = asyncio.get_running_loop()
        while True:
            operation, tries = await self._doubtful.get()
            key = vm_key(operation.customer_id, operation.vm_id)
            record = fleet.record(key)
            if (
                record is None
                or record.deleted_at is not None
                or record.host_id != operation.host_id
            ):
                continue
            try:
                if await self._absent(record.customer_id, record.vm_id, record.host_id):
                    self.bury(key, record.host_id)
                else:
                    _log.warning("burial.refused", key=key, said_by="an operation")
            except TransientError as error:
                _log.info("absence.not_known", key=key, error=str(error))
                if tries > 1:
                    loop.call_later(_AGAIN_S, self._doubt, operation, tries - 1)

    def _doubt(self, operation: Operation, tries: int) -> None:
        try:
            self._doubtful.put_nowait((operation, tries))
        except asyncio.QueueFull:
            # Its owner may ask for it once more.
            _log.error("burial.given_up", operation_id=str(operation.operation_id))

    async def _write(self, fleet: Fleet, key: str, host_id: str) -> None:
        entry = await fleet.specs.get(key)
        if entry is None or entry.value.deleted_at is not None:
            return
        if entry.value.host_id != host_id:
            _log.warning("burial.refused", key=key, said_by=host_id, host_id=entry.value.host_id)
            return
        # Nobody needs its metadata any more, and it may hold secrets.
        spec = entry.value.spec.without_secrets()
        buried = msgspec.structs.replace(entry.value, spec=spec, deleted_at=utc_now())
        try:
            revision = await fleet.specs.update(key, buried, entry.revision)
        except RevisionConflictError as error:
            raise TransientError(f"the record of {key} changed meanwhile") from error
        fleet.note(buried, revision)
        _log.info("vm.buried", key=key)
