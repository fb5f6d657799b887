"""What an operator wishes to correct: looked at, refused with what to change, or accepted.

Accepted is what stands in the bucket of corrections. From then on every row is stored by it, and
`batcher.settling` moves those of the past, here or wherever a batcher lives.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

import msgspec

from batcher.backfill_rules import (
    RefusedBackfillError,
    by_number,
    by_time,
    ms,
    outside,
    reworded,
    same,
    so_already,
    with_before,
)
from batcher.corrections import Corrections
from batcher.figures import Figures
from batcher.watermark import Placements
from batcher.windows import instant_of
from runtime.audit import Act, write_entry
from runtime.buckets import Entry, RevisionConflictError
from runtime.clock import Clock
from runtime.errors import TransientError
from runtime.publisher import Publisher
from schemas.corrections import (
    MAX_CORRECTIONS,
    Backfill,
    BackfillWish,
    Correction,
    KnownIncarnation,
    OwnerCorrection,
    PlanCorrection,
    VmCorrections,
)
from schemas.ids import CustomerId, new_id
from schemas.units import MAX_COUNTER, NS_PER_S
from schemas.vms import METERS

ACTION = "backfill"


class Backfills:
    """Answers wishes, one after the other."""

    def __init__(
        self,
        figures: Figures,
        corrections: Corrections,
        placements: Placements,
        publisher: Publisher,
        clock: Clock,
    ) -> None:
        self._figures = figures
        self._corrections = corrections
        self._placements = placements
        self._publisher = publisher
        self._clock = clock

    async def preview(self, wish: BackfillWish) -> Backfill:
        """What a wish would come to. Changes nothing.

        Raises:
            RefusedBackfillError: It cannot be done.
            TransientError, FatalError: As `Store.query` does.
        """
        return (await self._look(wish, "", "", await self._entry(wish.vm_id)))[0]

    async def accept(self, wish: BackfillWish, actor: str, reason: str) -> Backfill:
        """Write a correction down, in the audit first and then where everybody goes by it.

        A wish that is fulfilled, or being fulfilled, is not written again.

        Raises:
            As `preview`. Nothing was corrected then.
        """
        entry = await self._entry(wish.vm_id)
        backfill, value = await self._look(wish, actor, reason, entry)
        if value is None or backfill.correction is None:
            return backfill
        act = act_of(wish.vm_id, backfill.correction)
        await write_entry(self._publisher, act.begun(backfill.correction.at))
        bucket, key = self._corrections.bucket, str(wish.vm_id)
        try:
            if entry is None:
                await bucket.create(key, value)
            else:
                await bucket.update(key, value, entry.revision)
        except RevisionConflictError as error:
            raise TransientError(
                "another correction of this VM was accepted at the same time"
            ) from error
        return backfill

    async def _entry(self, vm_id: UUID) -> Entry[VmCorrections] | None:
        return await self._corrections.bucket.get(str(vm_id))

    async def _look(
        self,
        wish: BackfillWish,
        actor: str,
        reason: str,
        entry: Entry[VmCorrections] | None,
    ) -> tuple[Backfill, VmCorrections | None]:
        """What it comes to, and what is to be written; None if nothing is."""
        self._check(wish)
        placed = self._placements.of_vm(wish.vm_id)
        found = await self._figures.customers(wish.vm_id)
        former = {*found, *(entry.value.former if entry else ())}
        if placed is not None:
            former.add(placed.customer_id)
        known = await self._figures.incarnations(
            wish.vm_id, sorted(former), deleted=placed is not None and placed.deleted_at is not None
        )
        if not known:
            raise RefusedBackfillError(f"the store has no samples of VM {wish.vm_id}")
        before = entry.value.corrections if entry else ()
        wanted, concerned = self._correction(wish, known, actor, reason)
        alike = same(before, wanted)
        value = VmCorrections(
            vm_id=wish.vm_id, former=tuple(sorted(former)), corrections=(*before, wanted)
        )
        backfill = Backfill(
            vm_id=wish.vm_id,
            incarnations=tuple(concerned),
            stranger=wish.customer_id is not None
            and wish.customer_id not in former
            and not self._placements.knows(wish.customer_id),
        )
        if alike is not None:
            backfill = await self._figured(backfill, alike, value.customers)
            return msgspec.structs.replace(backfill, unchanged=alike.applied_at is not None), None
        backfill = await self._figured(backfill, wanted, value.customers)
        if so_already(backfill, wanted, placed.customer_id if placed else None, before):
            return msgspec.structs.replace(backfill, correction=None, unchanged=True), None
        if any(one.applied_at is None for one in before):
            raise RefusedBackfillError(
                "another correction of this VM is still being applied: see `decisec backfill ls`"
            )
        if len(before) >= MAX_CORRECTIONS:
            raise RefusedBackfillError(f"a VM has {MAX_CORRECTIONS} corrections at most")
        wanted = with_before(wanted, backfill)
        return (
            msgspec.structs.replace(backfill, correction=wanted),
            msgspec.structs.replace(value, corrections=(*before, wanted)),
        )

    def _check(self, wish: BackfillWish) -> None:
        words = (wish.pool, wish.region, wish.price_plan)
        if (wish.customer_id is None) == all(word is None for word in words):
            raise RefusedBackfillError("give an owner, or a pool, region or price plan")
        by_number = wish.first_incarnation is not None and wish.last_incarnation is not None
        by_time = wish.since is not None and wish.until is not None
        if by_number == by_time or (by_number and wish.customer_id is None):
            raise RefusedBackfillError(
                "give both ends of a range of time, or for an owner the incarnations"
            )
        if by_number and (wish.first_incarnation or 0) > (wish.last_incarnation or 0):
            raise RefusedBackfillError("the first incarnation must not be after the last")
        if wish.since is not None and wish.until is not None:
            if wish.until <= wish.since:
                raise RefusedBackfillError("the range must end later than it begins")
            if wish.until > self._now():
                raise RefusedBackfillError("only the past is corrected: end it now or before")

    def _correction(
        self, wish: BackfillWish, known: Sequence[KnownIncarnation], actor: str, reason: str
    ) -> tuple[Correction, Sequence[KnownIncarnation]]:
        act_id, now = new_id(), self._now()
        if wish.customer_id is None:
            assert wish.since is not None and wish.until is not None  # noqa: S101, PT018 - `_check`
            return PlanCorrection(
                correction_id=act_id,
                at=now,
                actor=actor,
                reason=reason,
                from_ms=ms(wish.since),
                until_ms=ms(wish.until),
                pool=wish.pool,
                region=wish.region,
                price_plan=wish.price_plan,
            ), [one for one in known if not outside(one, wish.since, wish.until)]
        concerned = by_time(wish, known) if wish.since else by_number(wish, known)
        for one in concerned:
            if not (one.ended or wish.running):
                raise RefusedBackfillError(
                    f"incarnation {one.incarnation} has not ended: what it still uses would be the "
                    "new owner's as well. Say that you mean it (--running), or wait"
                )
        return OwnerCorrection(
            correction_id=act_id,
            at=now,
            actor=actor,
            reason=reason,
            customer_id=wish.customer_id,
            first_incarnation=wish.first_incarnation or concerned[0].incarnation,
            last_incarnation=wish.last_incarnation or concerned[-1].incarnation,
        ), concerned

    async def _figured(
        self, backfill: Backfill, correction: Correction, customers: Sequence[CustomerId]
    ) -> Backfill:
        """With the figures of now, and those that will be."""
        vm_id = backfill.vm_id
        if isinstance(correction, OwnerCorrection):
            before = await self._figures.totals(vm_id, customers, correction)
            after = await self._figures.expected(vm_id, customers, correction)
            if any(getattr(t.used, m) > MAX_COUNTER for t in (*before, *after) for m in METERS):
                raise RefusedBackfillError("a total passes 2^63-1: give fewer incarnations")
            return msgspec.structs.replace(
                backfill, correction=correction, before=before, after=after
            )
        rows = await self._figures.rows(vm_id, customers, correction)
        return msgspec.structs.replace(
            backfill,
            correction=correction,
            before_rows=rows,
            after_rows=reworded(rows, correction),
        )

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.wall_ns() / NS_PER_S, UTC)


def act_of(vm_id: UUID, correction: Correction) -> Act:
    """What the audit says of a correction, with its words and its figures."""
    details = {"vm_id": str(vm_id)}
    if isinstance(correction, OwnerCorrection):
        target = f"owner of VM {vm_id}"
        details |= {
            "customer": correction.customer_id,
            "incarnations": f"{correction.first_incarnation}-{correction.last_incarnation}",
        }
    else:
        target = f"plan of VM {vm_id}"
        details |= {
            "from": instant_of(correction.from_ms).isoformat(),
            "until": instant_of(correction.until_ms).isoformat(),
        } | {
            name: word
            for name in ("pool", "region", "price_plan")
            if (word := getattr(correction, name)) is not None
        }
    for name in ("before", "after"):
        details[name] = msgspec.json.encode(getattr(correction, name)).decode()
    return Act(
        act_id=correction.correction_id,
        actor=correction.actor,
        action=ACTION,
        target=target,
        reason=correction.reason,
        details=details,
    )
