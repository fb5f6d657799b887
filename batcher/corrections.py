"""What operators have corrected, as this batcher knows it, and what is still to be done for it.

A batch is built under one view of the corrections. While it waits for the store, another one may
be written. So before its frames are acknowledged the bucket is asked for its last revision. If
nothing was written since, the rows were in the store before the next correction, and whoever moves
rows by that finds them there. Otherwise the batch is built and inserted again: a frame that is
acknowledged has been stored by every correction that was written until then.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Iterable, Sequence
from uuid import UUID

from batcher.amendment import View
from runtime.buckets import Bucket, Mirror
from runtime.corrections import Attribution, CorrectionIndex
from runtime.errors import TransientError
from schemas.corrections import VmCorrections
from schemas.frames import EnrichedFrame

_LOOK_EVERY_S = 0.02
_CATCH_UP_S = 2.0


class Corrections:
    """Follows the bucket of corrections.

    Args:
        bucket: Where they stand.
    """

    def __init__(self, bucket: Bucket[VmCorrections]) -> None:
        self.bucket = bucket
        self._index = CorrectionIndex()
        self._mirror = Mirror(bucket, self._change)
        self._view: View | None = None
        self._former: list[weakref.ref[View]] = []
        self._due: set[bytes] = set()
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Follow the bucket until cancelled."""
        await self._mirror.run()

    async def synced(self) -> None:
        """Return once what stood in the bucket at first is known."""
        await self._mirror.synced()

    async def current(self) -> int:
        """Know what stands in the bucket by now; returns its revision.

        Raises:
            TransientError: The server is away.
        """
        revision = await self.bucket.last_revision()
        if self._mirror.revision < revision:
            try:
                async with asyncio.timeout(_CATCH_UP_S):
                    await self._mirror.reached(revision)
            except TimeoutError as error:
                raise TransientError("the corrections are not all known yet") from error
        return revision

    def view(self) -> View:
        """The corrections as they are known now. Batches hold on to theirs until they are done."""
        if self._view is None:
            self._view = View(self._index.version, self._index.snapshot())
        return self._view

    async def passed(self, view: View, frames: Iterable[EnrichedFrame]) -> bool:
        """Whether one of these frames has been corrected since this view.

        Raises:
            TransientError: The server is away: nobody can say.
        """
        await self.current()
        changed = self._index.changed_since(view.version)
        return bool(changed) and any(
            frame.vm_ids[place : place + 16] in changed
            for frame in frames
            for place in range(0, len(frame.vm_ids), 16)
        )

    async def quiet(self) -> None:
        """Return once no batch is in hand that was built under a former view."""
        while any(former() is not None for former in self._former):
            await asyncio.sleep(_LOOK_EVERY_S)
        self._former.clear()

    def attribution(self, vm_id: UUID) -> Attribution | None:
        """What was corrected of a VM."""
        return self._index.get(vm_id.bytes)

    def pending(self, vm_id: UUID) -> bool:
        """Whether a correction of a VM has not been noted as applied."""
        value = self._mirror.values.get(str(vm_id))
        return value is not None and any(c.applied_at is None for c in value.corrections)

    def everything(self) -> list[UUID]:
        """All VMs of which something was corrected."""
        return [UUID(bytes=one.vm_id) for one in self._index]

    async def due(self, within_s: float) -> list[UUID]:
        """VMs whose rows have to be looked at: those of the news, or all after a while."""
        try:
            async with asyncio.timeout(within_s):
                while not self._due:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            return self.everything()
        return [UUID(bytes=vm_id) for vm_id in self._due]

    def settled(self, vm_ids: Iterable[UUID], version: int) -> None:
        """The store agrees with what was known of these at a version."""
        later = self._index.changed_since(version)
        self._due.difference_update({vm_id.bytes for vm_id in vm_ids} - later)

    def unsettled(self, customer_id: str | None, vm_ids: Sequence[UUID]) -> bool:
        """Whether rows of a customer, or of some VMs, may be on their way; None: of anybody."""
        wanted = {vm_id.bytes for vm_id in vm_ids}
        return any(
            (not wanted or vm_id in wanted)
            and (customer_id is None or customer_id in one.customers)
            for vm_id in self._due
            if (one := self._index.get(vm_id)) is not None
        )

    def taken_over(self, customer_id: str) -> list[UUID]:
        """VMs that were another one's, and of which rows are this customer's."""
        return [
            UUID(bytes=one.vm_id)
            for one in self._index
            if any(span.value == customer_id for span in one.owners)
        ]

    def _change(self, key: str, value: VmCorrections | None) -> None:
        before = self._index.version
        self._index.change(key, value)
        if self._index.version == before:
            return
        if self._view is not None:
            self._former.append(weakref.ref(self._view))
            self._view = None
        if value is not None:
            self._due.add(value.vm_id.bytes)
            self._news.set()
