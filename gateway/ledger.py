"""Granting against a quota: a pure function of the ledger, the records and the time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime

import msgspec

from schemas.hosts import Customer, Resources
from schemas.quotas import Amounts, Hold, QuotaLedger

_FIELDS = Amounts.__struct_fields__


@dataclass(frozen=True, slots=True)
class Wish:
    """Something that is to be made.

    Attributes:
        hold_id: Its id.
        until: Until then it stands in the records, or is not made.
    """

    hold_id: str
    amounts: Amounts
    until: datetime


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of some wishes.

    Attributes:
        ledger: What is to be written before any of them is granted.
        refused: Per wish that is not granted, why.
    """

    ledger: QuotaLedger
    refused: Mapping[str, str]


def limits_of(customer: Customer) -> Amounts:
    """All that a customer may have."""
    return Amounts(**msgspec.structs.asdict(customer.quota), snapshots=customer.max_snapshots)


def amounts_of(need: Resources) -> Amounts:
    """What VMs take, as a quota has it."""
    return Amounts(**msgspec.structs.asdict(need))


def added(amounts: Iterable[Amounts]) -> Amounts:
    """The sum of some amounts."""
    sums = dict.fromkeys(_FIELDS, 0)
    for one in amounts:
        for name in _FIELDS:
            sums[name] += getattr(one, name)
    return Amounts(**sums)


def held(
    ledger: QuotaLedger,
    now: datetime,
    *,
    known: Callable[[str], bool],
    released: Set[str] = frozenset(),
) -> Amounts:
    """What the ledger's holds take besides the records."""
    return added(
        hold.amounts
        for hold_id, hold in ledger.holds.items()
        if hold.until > now and hold_id not in released and not known(hold_id)
    )


def decide(
    ledger: QuotaLedger,
    wishes: Sequence[Wish],
    limits: Amounts,
    used: Amounts,
    now: datetime,
    *,
    known: Callable[[str], bool],
    stored: Callable[[str], bool],
    released: Set[str],
    revisions: Mapping[str, int],
) -> Decision:
    """Grant wishes in their order while they fit; one that was granted before is granted again.

    Args:
        ledger: As it stands.
        wishes: What is to be made.
        limits: What the customer may have.
        used: What its records take.
        now: Compared with the holds.
        known: Whether a record counts in `used`, or has counted and is gone.
        stored: Whether everybody who reads up to `revisions` knows the record as well.
        released: Holds of what is not made any more.
        revisions: How far the records were read.
    """
    kept = {
        hold_id: hold
        for hold_id, hold in ledger.holds.items()
        if hold.until > now and hold_id not in released and not stored(hold_id)
    }
    seen = dict(ledger.seen)
    if any(stored(hold_id) for hold_id in ledger.holds):
        seen |= {name: max(number, seen.get(name, 0)) for name, number in revisions.items()}
    taken = added((used, held(ledger, now, known=known, released=released)))
    refused: dict[str, str] = {}
    for wish in wishes:
        if wish.hold_id in kept or known(wish.hold_id):
            continue
        wanted = added((taken, wish.amounts))
        # A limit that was lowered below what is there refuses only more of the same.
        over = [
            name
            for name in _FIELDS
            if getattr(wish.amounts, name) and getattr(wanted, name) > getattr(limits, name)
        ]
        if over:
            refused[wish.hold_id] = ", ".join(
                f"{name} {getattr(wanted, name)} of {getattr(limits, name)}" for name in over
            )
            continue
        taken = wanted
        kept[wish.hold_id] = Hold(amounts=wish.amounts, until=wish.until)
    return Decision(QuotaLedger(holds=kept, seen=seen), refused)
