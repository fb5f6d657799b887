"""What an operator has corrected of the past: bucket `corrections`, a value per VM.

Who owned an incarnation is corrected for the whole of it: a new owner's counters would begin at
zero in its middle, and what was used before would be billed twice. What stands beside the counters
(pool, region, price plan) is corrected from one tick to another. Of two corrections that overlap
the later one in the list holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec

from schemas.audit import MAX_AUDIT_REASON
from schemas.codec import decoder
from schemas.ids import CustomerId, PoolId, PricePlanId, RegionId, VmId
from schemas.units import Counter
from schemas.vms import Counters, Timestamp

MAX_CORRECTIONS = 200
"""Of one VM: the value of a key is one message."""

MAX_PROBLEM = 400

Incarnation = Annotated[int, msgspec.Meta(ge=1, le=2**32 - 1)]
_Actor = Annotated[str, msgspec.Meta(max_length=255)]
_Reason = Annotated[str, msgspec.Meta(max_length=MAX_AUDIT_REASON)]


class Total(msgspec.Struct, frozen=True, kw_only=True):
    """What one customer was billed of a VM, over the incarnations of a correction."""

    customer_id: CustomerId
    used: Counters


class PlanRows(msgspec.Struct, frozen=True, kw_only=True):
    """How many samples of a VM stand under these words, in the range of a correction."""

    pool: PoolId
    region: RegionId
    price_plan: PricePlanId
    samples: Counter


class _Act(msgspec.Struct, frozen=True, kw_only=True):
    """What every correction says of itself.

    Attributes:
        correction_id: Also the id of the act in the audit.
        at: When it was accepted.
        applied_at: When the store agreed with it; None until then. Rows that come later are
            corrected as they come.
        problem: Why the store has refused to agree, if it has. It is tried again.
    """

    correction_id: VmId
    at: Timestamp
    actor: _Actor
    reason: _Reason
    applied_at: Timestamp | None = None
    problem: Annotated[str, msgspec.Meta(max_length=MAX_PROBLEM)] = ""


class OwnerCorrection(_Act, frozen=True, kw_only=True, tag="owner"):
    """These incarnations were this customer's, both ends included.

    Attributes:
        before: What stood in the store when it was accepted.
        after: What stood there once it was applied.
    """

    customer_id: CustomerId
    first_incarnation: Incarnation
    last_incarnation: Incarnation
    before: tuple[Total, ...] = ()
    after: tuple[Total, ...] = ()


class PlanCorrection(_Act, frozen=True, kw_only=True, tag="plan"):
    """From one tick to before another these words held; None leaves what is there.

    Attributes:
        before: As in `OwnerCorrection`.
    """

    from_ms: Counter
    until_ms: Counter
    pool: PoolId | None = None
    region: RegionId | None = None
    price_plan: PricePlanId | None = None
    before: tuple[PlanRows, ...] = ()
    after: tuple[PlanRows, ...] = ()


Correction = OwnerCorrection | PlanCorrection


class VmCorrections(msgspec.Struct, frozen=True, kw_only=True):
    """All corrections of a VM, in the order in which they were accepted.

    Attributes:
        former: Customers under whom rows of the VM may come or stand, by its record and by what
            the store held.
    """

    vm_id: VmId
    former: tuple[CustomerId, ...]
    corrections: Annotated[tuple[Correction, ...], msgspec.Meta(max_length=MAX_CORRECTIONS)]

    @property
    def customers(self) -> tuple[CustomerId, ...]:
        """Everybody whom they concern."""
        owners = {c.customer_id for c in self.corrections if isinstance(c, OwnerCorrection)}
        return tuple(sorted(owners.union(self.former)))


class BackfillWish(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator wants corrected of one VM: who owned it, or what stood beside.

    An owner is given for the incarnations `first_incarnation` to `last_incarnation`, or for those
    between two times; pool, region and price plan from one time to before another.

    Attributes:
        running: Take an incarnation too that has not ended: what it still uses will be the new
            owner's as well.
    """

    vm_id: VmId
    customer_id: CustomerId | None = None
    pool: PoolId | None = None
    region: RegionId | None = None
    price_plan: PricePlanId | None = None
    first_incarnation: Incarnation | None = None
    last_incarnation: Incarnation | None = None
    since: Timestamp | None = None
    until: Timestamp | None = None
    running: bool = False


class KnownIncarnation(msgspec.Struct, frozen=True, kw_only=True):
    """An incarnation as the store knows it.

    Attributes:
        first_at: First tick, or the begin of the minute, hour or day that it lies in.
        last_at: Last tick.
        ended: It has its final sample, or a later one was started, or the VM was deleted.
        customers: Under whom its rows stand.
    """

    incarnation: Counter
    first_at: Timestamp
    last_at: Timestamp
    ended: bool
    customers: tuple[CustomerId, ...]


class Backfill(msgspec.Struct, frozen=True, kw_only=True):
    """What a wish comes to.

    Attributes:
        incarnations: Those that it concerns.
        before: What stands in the store, per customer or per words.
        after: What will stand there.
        correction: As it stands in the bucket; None if nothing has been done.
        unchanged: It is so already, and nothing was or is to be done.
        stranger: The new owner has no VM and has never had one, as far as is known.
    """

    vm_id: VmId
    incarnations: tuple[KnownIncarnation, ...] = ()
    before: tuple[Total, ...] = ()
    after: tuple[Total, ...] = ()
    before_rows: tuple[PlanRows, ...] = ()
    after_rows: tuple[PlanRows, ...] = ()
    correction: Correction | None = None
    unchanged: bool = False
    stranger: bool = False


decode_vm_corrections: Callable[[bytes], VmCorrections] = decoder(VmCorrections)
