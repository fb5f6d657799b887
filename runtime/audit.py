"""Acts as the audit tells of them: an entry before anything is done, and one when it is over.

The two may come from different processes: where one was killed meanwhile, another ends the act.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from runtime.bus import Bus
from runtime.clock import utc_now
from runtime.errors import DecisecError
from runtime.publisher import LIMIT_S, Publisher
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """What an operator sets out to do; `AuditEntry` says what the words are.

    Attributes:
        act_id: The same in both entries.
        details: Stand in both entries.
    """

    act_id: UUID
    actor: str
    action: str
    target: str
    reason: str
    details: Mapping[str, str] = field(default_factory=dict)

    def begun(self, at: datetime) -> AuditEntry:
        """The first entry."""
        return self._entry(AuditPhase.BEGUN, AuditOutcome.UNDER_WAY, at, {})

    def ended(
        self, at: datetime, outcome: AuditOutcome, found: Mapping[str, str] | None = None
    ) -> AuditEntry:
        """The last entry, with what was found out meanwhile."""
        return self._entry(AuditPhase.ENDED, outcome, at, found or {})

    def _entry(
        self, phase: AuditPhase, outcome: AuditOutcome, at: datetime, found: Mapping[str, str]
    ) -> AuditEntry:
        return AuditEntry(
            event_id=new_id(),
            at=at,
            actor=self.actor,
            customer_id=OPERATOR,
            action=self.action,
            target=self.target,
            reason=self.reason,
            outcome=outcome,
            details={
                **self.details,
                **found,
                DETAIL_PHASE: phase.value,
                DETAIL_ACT: str(self.act_id),
            },
        )


async def write_entry(
    publisher: Publisher, entry: AuditEntry, *, msg_id: str = "", limit_s: float = LIMIT_S
) -> None:
    """Store an entry in the audit stream.

    Args:
        publisher: To the stream.
        entry: What to store.
        msg_id: By which it stands there once; its own id unless given.
        limit_s: For how long it is tried.

    Raises:
        As `Publisher.publish` does. It may stand there nevertheless.
    """
    await publisher.publish(
        audit(entry), encode(entry), msg_id=msg_id or str(entry.event_id), limit_s=limit_s
    )


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
    act = Act(
        act_id=act_id,
        actor=actor[:255],
        action=action,
        target=target[:255],
        reason=check_reason(reason),
        details=details,
    )
    publisher = Publisher(bus)

    async def write(entry: AuditEntry) -> None:
        await write_entry(publisher, entry, limit_s=_WRITTEN_WITHIN_S)

    await write(act.begun(utc_now()))
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
            await write(act.ended(utc_now(), outcome, found))
        except DecisecError as failure:
            error.add_note(f"and the audit stream did not take the last entry: {failure}")
        raise
    await write(act.ended(utc_now(), AuditOutcome.SUCCEEDED, found))
