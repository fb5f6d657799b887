"""Turning the record of a deleted VM into a tombstone."""

from __future__ import annotations

import asyncio

import msgspec
import structlog

from gateway.fleet import Fleet
from runtime.buckets import RevisionConflictError
from runtime.clock import utc_now
from runtime.errors import PoisonError, TransientError
from runtime.retry import forever
from schemas.errors import ErrorCode
from schemas.hosts import Operation, OperationStatus
from schemas.subjects import vm_key

_log = structlog.get_logger("decisec.tombstones")


class Tombstones:
    """Follows what agents say, and buries what they have deleted.

    The mirrors tell of every status at their start, so a gateway that was away catches up.
    """

    def __init__(self) -> None:
        self._keys: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    def bury(self, key: str, host_id: str) -> None:
        """Have a VM's record marked as deleted, if this is the host that has it."""
        self._keys.put_nowait((key, host_id))

    def take(self, operation: Operation) -> None:
        """Bury a VM that its agent does not know and that its owner has asked to delete."""
        if operation.verb != "delete" or not operation.finished:
            return
        if operation.status is OperationStatus.SUCCEEDED or (
            operation.error is not None and operation.error.code is ErrorCode.NOT_FOUND
        ):
            self.bury(vm_key(operation.customer_id, operation.vm_id), operation.host_id)

    async def run(self, fleet: Fleet) -> None:
        """Work until cancelled."""
        await fleet.synced()
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
