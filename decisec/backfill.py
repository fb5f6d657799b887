"""Corrections of the past, from the side of who asks for them: looked at, done, waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import UUID

import msgspec

from runtime.buckets import Bucket
from runtime.bus import Bus
from runtime.errors import TransientError
from schemas.codec import encode
from schemas.corrections import (
    Backfill,
    BackfillWish,
    Correction,
    OwnerCorrection,
    PlanCorrection,
    Total,
    VmCorrections,
    decode_vm_corrections,
)
from schemas.errors import ErrorCode, ErrorInfo
from schemas.store import StoreQuestion, StoreReply, StoreVerb, decode_store_reply
from schemas.subjects import CORRECTIONS, store_ask
from schemas.vms import METERS

_LOOK_EVERY_S = 0.2
_ANSWER_S = 60.0


class RefusedError(Exception):
    """The store's side says no.

    Attributes:
        error: Why, with what to change.
    """

    def __init__(self, error: ErrorInfo) -> None:
        super().__init__(error.message)
        self.error = error


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one meter: the sums over all customers."""

    meter: str
    before: int
    after: int


class Corrections:
    """Asks a batcher for corrections, and reads what was corrected.

    Every call raises TransientError when NATS or the batcher cannot be reached.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._bucket: Bucket[VmCorrections] = Bucket(bus, CORRECTIONS, decode_vm_corrections)

    async def preview(self, wish: BackfillWish) -> Backfill:
        """What a wish would come to.

        Raises:
            RefusedError: It cannot be done.
        """
        return await self._ask(StoreVerb.PREVIEW, StoreQuestion(backfill=wish))

    async def order(self, wish: BackfillWish, actor: str, reason: str) -> Backfill:
        """Have it done. From when this returns it will be, whatever dies.

        Raises:
            RefusedError: It cannot be done.
        """
        question = StoreQuestion(backfill=wish, actor=actor, reason=reason)
        return await self._ask(StoreVerb.BACKFILL, question)

    async def applied(self, vm_id: UUID, correction_id: UUID) -> Correction:
        """Return the correction once the store agrees with it.

        Raises:
            RefusedError: The store has refused to. It is tried again.
        """
        while True:
            entry = await self._bucket.get(str(vm_id))
            for one in entry.value.corrections if entry is not None else ():
                if one.correction_id != correction_id:
                    continue
                if one.applied_at is not None:
                    return one
                if one.problem:
                    raise RefusedError(ErrorInfo(code=ErrorCode.INTERNAL, message=one.problem))
            await asyncio.sleep(_LOOK_EVERY_S)

    async def all(self) -> list[tuple[UUID, Correction]]:
        """All corrections of all VMs, in the order of their times."""
        found = (await self._bucket.all()).values()
        every = [(value.vm_id, one) for value in found for one in value.corrections]
        return sorted(every, key=lambda pair: (pair[1].at, pair[1].correction_id))

    async def _ask(self, verb: StoreVerb, question: StoreQuestion) -> Backfill:
        answer = await self._bus.request(store_ask(verb), encode(question), timeout_s=_ANSWER_S)
        reply: StoreReply = decode_store_reply(answer.data)
        if reply.error is not None:
            raise RefusedError(reply.error)
        if reply.backfill is None:
            raise TransientError("this batcher is older than backfills: update it")
        return reply.backfill


def changes(before: Sequence[Total], after: Sequence[Total]) -> list[Change]:
    """Meters whose sum over all customers has changed. There must be none."""
    sums = [
        Change(
            meter=meter,
            before=sum(getattr(total.used, meter) for total in before),
            after=sum(getattr(total.used, meter) for total in after),
        )
        for meter in METERS
    ]
    return [one for one in sums if one.before != one.after]


def changed(correction: Correction, *, growing: bool = False) -> list[Change]:
    """What an applied correction has changed that it should not have.

    Args:
        correction: As it was noted once it was applied.
        growing: Samples may have come meanwhile, of an incarnation that runs: only less is wrong.
    """
    if isinstance(correction, OwnerCorrection):
        found = changes(correction.before, correction.after)
        return [one for one in found if one.after < one.before] if growing else found
    before = sum(row.samples for row in correction.before)
    after = sum(row.samples for row in correction.after)
    # Late ones may have come here too: counters are not touched by it.
    return [Change(meter="samples", before=before, after=after)] if after < before else []


def words(correction: Correction) -> str:
    """What a correction says, in one line."""
    if isinstance(correction, OwnerCorrection):
        first, last = correction.first_incarnation, correction.last_incarnation
        numbers = f"incarnation {first}" if first == last else f"incarnations {first}-{last}"
        return f"owner {correction.customer_id} of {numbers}"
    return ", ".join(said(correction))


def said(correction: PlanCorrection) -> list[str]:
    """The words that a correction gives."""
    return [
        f"{name.replace('_', ' ')} {word}"
        for name in ("pool", "region", "price_plan")
        if (word := getattr(correction, name)) is not None
    ]
