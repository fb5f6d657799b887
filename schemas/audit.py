"""Who did what: entries of the stream `AUDIT`, on `audit.<customer>.<action>`."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Final

import msgspec

from schemas.codec import decoder
from schemas.ids import CustomerId, EventId
from schemas.vms import Timestamp

OPERATOR: Final = "operator"
"""Stands where a customer's id does in entries of what operators did."""

HOST_ACTIONS: Final = frozenset({"refuse-command", "refuse-question"})
"""What hosts have to tell of."""

MAX_AUDIT_REASON: Final = 200
"""Characters: one line that people read."""

DETAIL_PHASE: Final = "phase"
DETAIL_ACT: Final = "act_id"
"""Key in `details`: the same in both entries of an act."""

_ShortText = Annotated[str, msgspec.Meta(max_length=255)]


class AuditPhase(StrEnum):
    """An act that takes time is told twice: before anything is done, and when it is over."""

    BEGUN = "begun"
    ENDED = "ended"


class AuditOutcome(StrEnum):
    """How an act stands."""

    UNDER_WAY = "under_way"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    REFUSED = "refused"


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that somebody did, or set out to do.

    Attributes:
        actor: Who says to have done it.
        customer_id: Whose things it was done to; `OPERATOR` for acts of operators.
        action: A token such as `replay`; the last one of the entry's subject.
        target: What it was done to, for people.
        reason: Why, in one line.
        outcome: A value of `AuditOutcome`, or a word of a newer version.
        details: `phase`, `act_id`, and what else there is to know.
    """

    event_id: EventId
    at: Timestamp
    actor: _ShortText
    customer_id: CustomerId
    action: CustomerId
    target: _ShortText
    reason: Annotated[str, msgspec.Meta(max_length=MAX_AUDIT_REASON)] = ""
    outcome: _ShortText
    details: dict[str, str] = msgspec.field(default_factory=dict)


decode_audit_entry: Callable[[bytes], AuditEntry] = decoder(AuditEntry)


def is_of_host(entry: AuditEntry, host_id: str) -> bool:
    """Whether an entry is one that a host may write: of what it refused, in its own name."""
    return (
        entry.actor == host_actor(host_id)
        and entry.customer_id == OPERATOR
        and entry.action in HOST_ACTIONS
        and entry.outcome == AuditOutcome.REFUSED
    )


def host_actor(host_id: str) -> str:
    """Who an agent is in entries."""
    return f"agent@{host_id}"
