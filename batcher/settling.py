"""Keeps the store in agreement with the corrections: at the start, at each news, and now and then.

So a correction is done whatever dies meanwhile: the next batcher looks at what the corrections say
and at what stands in the store, and does what is missing. Looking now and then is for rows that
another batcher put there by a former view, and was killed before it could know better.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import UUID

import structlog
from msgspec.structs import replace

from batcher.backfill import act_of
from batcher.corrections import Corrections
from batcher.figures import Figures
from batcher.mover import Mover
from runtime.audit import write_entry
from runtime.buckets import RevisionConflictError
from runtime.clock import utc_now
from runtime.corrections import Attribution
from runtime.errors import FatalError, PoisonError, TransientError
from runtime.publisher import Publisher
from schemas.audit import AuditOutcome
from schemas.corrections import MAX_PROBLEM, Correction, OwnerCorrection, VmCorrections

_log = structlog.get_logger("decisec.settling")

_LOOK_EVERY_S = 300.0
_AGAIN_AFTER_S = 1.0
_REFUSED_AGAIN_AFTER_S = 60.0
_AT_ONCE = 20
"""VMs whose rows are looked for by one query."""


class Settler:
    """Does what the corrections want, and notes what has been done."""

    def __init__(
        self,
        mover: Mover,
        figures: Figures,
        corrections: Corrections,
        publisher: Publisher,
        *,
        look_every_s: float = _LOOK_EVERY_S,
    ) -> None:
        self._mover = mover
        self._figures = figures
        self._corrections = corrections
        self._publisher = publisher
        self._look_every_s = look_every_s

    async def run(self) -> None:
        """Settle what is due until cancelled."""
        await self._corrections.synced()
        while True:
            due = await self._corrections.due(self._look_every_s)
            groups = [due[first : first + _AT_ONCE] for first in range(0, len(due), _AT_ONCE)]
            waits_s = [await self._try(group) for group in groups]
            await asyncio.sleep(max(waits_s, default=0.0))

    async def _try(self, vm_ids: Sequence[UUID]) -> float:
        """Settle some VMs; returns how long to wait before the next try, in s."""
        try:
            await self.settle(vm_ids)
        except TransientError as error:
            _log.warning("corrections.postponed", vms=len(vm_ids), error=str(error))
            return _AGAIN_AFTER_S
        except (FatalError, PoisonError) as error:
            # Frames go on: that rows of the past cannot be moved is no reason to lose new ones.
            _log.error("corrections.refused", vms=len(vm_ids), error=str(error))
            await self._note_problem(vm_ids, str(error))
            return _REFUSED_AGAIN_AFTER_S
        return 0.0

    async def settle(self, vm_ids: Sequence[UUID]) -> None:
        """Let the store agree with what was corrected of these VMs, and note it.

        Raises:
            TransientError: Store or server are away. It is begun again later.
            FatalError, PoisonError: The store refuses.
        """
        await self._corrections.current()
        version = self._corrections.view().version
        await self._corrections.quiet()
        known = [one for vm in vm_ids if (one := self._corrections.attribution(vm)) is not None]

        async def still_true() -> bool:
            return await self._unchanged(known)

        moved = await self._mover.settle(known, still_true)
        if moved:
            _log.info("corrections.settled", vms=len(known), put_right=moved)
        for one in known:
            if self._corrections.pending(UUID(bytes=one.vm_id)):
                await self._note(UUID(bytes=one.vm_id), one)
        self._corrections.settled(vm_ids, version)

    async def _unchanged(self, known: Sequence[Attribution]) -> bool:
        await self._corrections.current()
        return all(
            (now := self._corrections.attribution(UUID(bytes=one.vm_id))) is not None
            and now.mark == one.mark
            for one in known
        )

    async def _note(self, vm_id: UUID, one: Attribution) -> None:
        """Write down which corrections are applied, and say so in the audit."""
        bucket = self._corrections.bucket
        entry = await bucket.get(str(vm_id))
        if entry is None:
            return
        value = entry.value
        if value.corrections[-1:] and str(value.corrections[-1].correction_id) != one.mark:
            # Another one came meanwhile: it is settled with that.
            return
        open_ones = [c for c in value.corrections if c.applied_at is None]
        if not open_ones:
            return
        applied = {c.correction_id: await self._applied(value, c) for c in open_ones}
        for correction in applied.values():
            await self._audit(value, correction)
        corrections = tuple(applied.get(c.correction_id, c) for c in value.corrections)
        noted = replace(value, corrections=corrections)
        try:
            await bucket.update(str(vm_id), noted, entry.revision)
        except RevisionConflictError:
            _log.debug("corrections.noted_by_another", vm_id=str(vm_id))

    async def _applied(self, value: VmCorrections, correction: Correction) -> Correction:
        if isinstance(correction, OwnerCorrection):
            totals = await self._figures.totals(value.vm_id, value.customers, correction)
            return replace(correction, applied_at=utc_now(), problem="", after=totals)
        rows = await self._figures.rows(value.vm_id, value.customers, correction)
        return replace(correction, applied_at=utc_now(), problem="", after=rows)

    async def _note_problem(self, vm_ids: Sequence[UUID], problem: str) -> None:
        """Tell whoever waits for it."""
        bucket = self._corrections.bucket
        for vm_id in filter(self._corrections.pending, vm_ids):
            try:
                if (entry := await bucket.get(str(vm_id))) is None:
                    continue
                noted = tuple(
                    one if one.applied_at else replace(one, problem=problem[:MAX_PROBLEM])
                    for one in entry.value.corrections
                )
                if noted != entry.value.corrections:
                    value = replace(entry.value, corrections=noted)
                    await bucket.update(str(vm_id), value, entry.revision)
            except (RevisionConflictError, TransientError) as error:
                _log.debug("problem.not_noted", vm_id=str(vm_id), error=str(error))

    async def _audit(self, value: VmCorrections, correction: Correction) -> None:
        act = act_of(value.vm_id, correction)
        entry = act.ended(correction.applied_at or correction.at, AuditOutcome.SUCCEEDED)
        # By this id it stands there once, whoever else has been about it.
        await write_entry(self._publisher, entry, msg_id=f"{correction.correction_id}:ended")
