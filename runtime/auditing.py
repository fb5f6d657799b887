"""Acts in the audit stream: an entry before anything is done, and one afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from uuid import UUID

from runtime.bus import Bus
from runtime.clock import utc_now
from runtime.errors import DecisecError
from runtime.publisher import Publisher
from schemas.audit import (
    DETAIL_ACT,
    DETAIL_PHASE,
    MAX_AUDIT_REASON,
    OPERATOR,
    AuditEntry,
    AuditOutcome,
    AuditPhase,
)
from schemas.codec import encode
from schemas.ids import new_id
from schemas.subjects import audit

_WRITTEN_WITHIN_S = 10.0


def check_reason(reason: str) -> str:
    """The reason, if it is one.

    Raises:
        ValueError: It is empty, too long, or more than a line.
    """
    if not reason.strip() or len(reason) > MAX_AUDIT_REASON or not reason.isprintable():
        raise ValueError(f"reason: one line of 1 to {MAX_AUDIT_REASON} characters")
    return reason


@asynccontextmanager
async def audited(
    bus: Bus,
    *,
    act_id: UUID,
    actor: str,
    action: str,
    target: str,
    reason: str,
    details: Mapping[str, str],
) -> AsyncIterator[dict[str, str]]:
    """Audits what the block does; what it adds to the dictionary stands in the last entry.

    Raises:
        TransientError: The audit stream did not take the first entry, and nothing was done; or,
            all being done, it did not take the last one.
    """
    publisher = Publisher(bus)

    async def write(phase: AuditPhase, outcome: AuditOutcome, more: Mapping[str, str]) -> None:
        entry = AuditEntry(
            event_id=new_id(),
            at=utc_now(),
            actor=actor[:255],
            customer_id=OPERATOR,
            action=action,
            target=target[:255],
            reason=check_reason(reason),
            outcome=outcome,
            details={**more, DETAIL_PHASE: phase, DETAIL_ACT: str(act_id)},
        )
        await publisher.publish(
            audit(entry), encode(entry), msg_id=str(entry.event_id), limit_s=_WRITTEN_WITHIN_S
        )

    await write(AuditPhase.BEGUN, AuditOutcome.UNDER_WAY, details)
    found: dict[str, str] = {}
    outcome = AuditOutcome.FAILED
    try:
        yield found
    except BaseException as error:
        if isinstance(error, (asyncio.CancelledError, KeyboardInterrupt)):
            outcome = AuditOutcome.INTERRUPTED
        else:
            found["error"] = str(error)[:400]
        try:
            await write(AuditPhase.ENDED, outcome, {**details, **found})
        except DecisecError as failure:
            error.add_note(f"and the audit stream did not take the last entry: {failure}")
        raise
    await write(AuditPhase.ENDED, AuditOutcome.SUCCEEDED, {**details, **found})
