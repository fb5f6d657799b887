"""Acts as the audit tells of them: an entry before anything is done, and one when it is over.

The two may come from different processes: where one was killed meanwhile, another ends the act.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from runtime.publisher import LIMIT_S, Publisher
from schemas.audit import (
    DETAIL_ACT,
    DETAIL_PHASE,
    OPERATOR,
    AuditEntry,
    AuditOutcome,
    AuditPhase,
)
from schemas.codec import encode
from schemas.ids import new_id
from schemas.subjects import audit


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
