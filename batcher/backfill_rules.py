"""Which wishes can be fulfilled, and which are: pure decisions over what is known of a VM."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec

from runtime.corrections import Attribution
from schemas.corrections import (
    Backfill,
    BackfillWish,
    Correction,
    KnownIncarnation,
    OwnerCorrection,
    PlanCorrection,
    PlanRows,
    VmCorrections,
)
from schemas.ids import CustomerId

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class RefusedBackfillError(ValueError):
    """It cannot be done as it was asked for; the message says what to change."""


def by_time(wish: BackfillWish, known: Sequence[KnownIncarnation]) -> list[KnownIncarnation]:
    """The incarnations in a wish's range of time.

    Raises:
        RefusedBackfillError: It cuts one, or holds none.
    """
    assert wish.since is not None and wish.until is not None  # noqa: S101, PT018 - `_check`
    since, until = wish.since, wish.until
    touched = [one for one in known if not outside(one, since, until)]
    for one in touched:
        if one.first_at < since or one.last_at >= until:
            begin = min(since, *(other.first_at for other in touched))
            end = max(until, *(other.last_at + timedelta(milliseconds=1) for other in touched))
            raise RefusedBackfillError(
                f"the range cuts incarnation {one.incarnation}, which ran from "
                f"{one.first_at.isoformat()} to {one.last_at.isoformat()}: an owner is corrected "
                f"for whole incarnations. Give {begin.isoformat()} to {end.isoformat()}, or "
                "incarnations by their numbers"
            )
    if not touched:
        raise RefusedBackfillError("the store has no samples of this VM in that range")
    return touched


def by_number(wish: BackfillWish, known: Sequence[KnownIncarnation]) -> list[KnownIncarnation]:
    """The incarnations that a wish names by their numbers.

    Raises:
        RefusedBackfillError: The store does not know them.
    """
    first, last = wish.first_incarnation or 0, wish.last_incarnation or 0
    concerned = [one for one in known if first <= one.incarnation <= last]
    newest = known[-1].incarnation
    if not concerned or last > newest:
        raise RefusedBackfillError(
            f"the store knows incarnations {known[0].incarnation} to {newest} of this VM"
        )
    return concerned


def outside(one: KnownIncarnation, since: datetime, until: datetime) -> bool:
    """Whether an incarnation has nothing in a range."""
    return one.last_at < since or one.first_at >= until


def same(before: Sequence[Correction], wanted: Correction) -> Correction | None:
    """The correction that says just this, if none that came later says something else."""
    if not before:
        return None
    nobody = VmCorrections(vm_id=before[0].correction_id, former=(), corrections=tuple(before))
    now = Attribution(nobody)
    for one in reversed(before):
        if isinstance(one, OwnerCorrection) and isinstance(wanted, OwnerCorrection):
            if (
                one.customer_id == wanted.customer_id
                and one.first_incarnation <= wanted.first_incarnation
                and wanted.last_incarnation <= one.last_incarnation
                and all(
                    span.value == wanted.customer_id
                    for span in now.owners
                    if span.begin <= wanted.last_incarnation and span.end > wanted.first_incarnation
                )
            ):
                return one
        elif (
            isinstance(one, PlanCorrection)
            and isinstance(wanted, PlanCorrection)
            and one.from_ms <= wanted.from_ms
            and wanted.until_ms <= one.until_ms
            and all(
                getattr(span.value, name) == word
                for span in now.words
                if span.begin < wanted.until_ms and span.end > wanted.from_ms
                for name in ("pool", "region", "price_plan")
                if (word := getattr(wanted, name)) is not None
            )
        ):
            return one
    return None


def so_already(
    backfill: Backfill,
    wanted: Correction,
    recorded: CustomerId | None,
    before: Sequence[Correction],
) -> bool:
    """Whether the owner's rows stand where they belong without any correction."""
    return (
        isinstance(wanted, OwnerCorrection)
        and not any(isinstance(one, OwnerCorrection) for one in before)
        and recorded == wanted.customer_id
        and all(one.customers == (wanted.customer_id,) for one in backfill.incarnations)
    )


def with_before(correction: Correction, backfill: Backfill) -> Correction:
    """The correction with the figures from before it."""
    if isinstance(correction, OwnerCorrection):
        return msgspec.structs.replace(correction, before=backfill.before)
    return msgspec.structs.replace(correction, before=backfill.before_rows)


def reworded(rows: Sequence[PlanRows], correction: PlanCorrection) -> tuple[PlanRows, ...]:
    """What the rows will be once they have their words."""
    counts: dict[tuple[str, str, str], int] = {}
    for row in rows:
        words = (
            correction.pool or row.pool,
            correction.region or row.region,
            correction.price_plan or row.price_plan,
        )
        counts[words] = counts.get(words, 0) + row.samples
    return tuple(
        PlanRows(pool=pool, region=region, price_plan=plan, samples=count)
        for (pool, region, plan), count in sorted(counts.items())
    )


def ms(instant: datetime) -> int:
    """The first ms that is not before an instant."""
    return -((_EPOCH - instant) // timedelta(milliseconds=1))
