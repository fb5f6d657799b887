"""Corrections as they stand in the bucket."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from schemas.corrections import Correction, OwnerCorrection, PlanCorrection, VmCorrections
from schemas.ids import new_id

AT = datetime(2026, 1, 1, tzinfo=UTC)


def owned(customer: str, first: int = 1, last: int = 1) -> OwnerCorrection:
    """These incarnations were a customer's."""
    return OwnerCorrection(
        correction_id=new_id(), at=AT, actor="tester", reason="because", customer_id=customer,
        first_incarnation=first, last_incarnation=last,
    )  # fmt: skip


def planned(
    from_ms: int,
    until_ms: int,
    *,
    pool: str | None = None,
    region: str | None = None,
    price_plan: str | None = None,
) -> PlanCorrection:
    """These words held for a while."""
    return PlanCorrection(
        correction_id=new_id(), at=AT, actor="tester", reason="because", from_ms=from_ms,
        until_ms=until_ms, pool=pool, region=region, price_plan=price_plan,
    )  # fmt: skip


def corrected(vm_id: UUID, *corrections: Correction, former: str = "acme") -> VmCorrections:
    """What was corrected of a VM, in this order."""
    return VmCorrections(vm_id=vm_id, former=(former,), corrections=corrections)
