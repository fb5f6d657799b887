"""What this host refused: counted, logged and audited, each time or together with its kind.

The first ones of an interval get an entry each. Those that follow are counted by kind, and told as
one entry per kind when the interval is over; of more kinds than are kept apart the rest are
counted by reason. So a flood costs the audit a few entries, and no refusal is missing from it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import structlog

from runtime.clock import utc_now
from runtime.errors import PoisonError, TransientError
from schemas.audit import OPERATOR, AuditEntry, AuditOutcome, host_actor
from schemas.ids import new_id
from vm_agent.scrutiny import Claims, Reason
from vm_agent.telemetry import Telemetry

_log = structlog.get_logger("decisec.refusals")

INTERVAL_S = 30.0
SINGLES = 10
"""Refusals of an interval that get an entry each."""

MAX_KINDS = 32
"""Of one interval; those of further kinds are counted by reason."""

MAX_BUFFERED = 1024
_FLUSHED_WITHIN_S = 2.0
_AGAIN_S = 1.0
_SHORT = 200

Write = Callable[[AuditEntry], Awaitable[object]]
"""Returns once the entry is stored; TransientError while NATS is away."""


class Door(StrEnum):
    """What kind of message it was."""

    COMMAND = "command"
    QUESTION = "question"


@dataclass(frozen=True, slots=True)
class _Kind:
    door: Door
    reason: Reason
    customer_id: str = ""
    verb: str = ""
    requested_by: str = ""


@dataclass(slots=True)
class _Tally:
    count: int
    first_at: datetime


class Refusals:
    """Tells of refusals.

    Args:
        host_id: Whose.
        write: Where entries go.
        telemetry: Counts each.
        interval_s: Refusals of one kind in so much time become one entry.
    """

    def __init__(
        self,
        host_id: str,
        write: Write,
        telemetry: Telemetry,
        *,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._host_id = host_id
        self._write = write
        self._telemetry = telemetry
        self._interval_s = interval_s
        self._kinds: dict[_Kind, _Tally] = {}
        self._logged: set[tuple[Door, Reason]] = set()
        self._singles = 0
        self._entries: deque[AuditEntry] = deque()
        self._wake = asyncio.Event()
        self._written = asyncio.Event()
        self._written.set()

    def note(self, door: Door, reason: Reason, claims: Claims, subject: str, detail: str) -> None:
        """Take a refusal in; costs no I/O.

        Args:
            door: What kind of message it was.
            reason: Why.
            claims: Who it claimed to be from, and what it wanted.
            subject: Where it came.
            detail: For people.
        """
        self._telemetry.refused.add(1, {"door": door.value, "reason": reason.value})
        if (door, reason) not in self._logged:
            self._logged.add((door, reason))
            _log.warning(
                f"{door}.refused", reason=reason.value, subject=subject[:_SHORT],
                detail=detail[:_SHORT], customer_id=claims.customer_id,
            )  # fmt: skip
        if self._singles < SINGLES:
            self._singles += 1
            self._add(self._single(door, reason, claims, subject, detail))
            return
        kind = _Kind(door, reason, claims.customer_id, claims.verb, claims.requested_by)
        if kind not in self._kinds and len(self._kinds) >= MAX_KINDS:
            kind = _Kind(door, reason)
        tally = self._kinds.get(kind)
        if tally is None:
            self._kinds[kind] = _Tally(1, utc_now())
        else:
            tally.count += 1

    async def run(self) -> None:
        """Write entries, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._write_all(), name="refusals-write")
            group.create_task(self._sweep(), name="refusals-sweep")

    async def flush(self) -> None:
        """Return once all is written, or after two seconds; what is left then is counted."""
        self._gather()
        try:
            async with asyncio.timeout(_FLUSHED_WITHIN_S):
                await self._written.wait()
        except TimeoutError:
            self._lose(len(self._entries))

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            self._gather()

    def _gather(self) -> None:
        """Make entries of what was counted, and begin anew."""
        kinds, self._kinds = self._kinds, {}
        self._singles = 0
        self._logged.clear()
        for kind, tally in kinds.items():
            _log.warning(
                f"{kind.door}.refused_often", reason=kind.reason.value, count=tally.count,
                customer_id=kind.customer_id, verb=kind.verb,
            )  # fmt: skip
            details = {
                "customer_id": kind.customer_id,
                "verb": kind.verb,
                "requested_by": kind.requested_by,
                "count": str(tally.count),
                "first_at": tally.first_at.isoformat(),
            }
            self._add(self._entry(kind.door, kind.reason, "", details))

    def _single(
        self, door: Door, reason: Reason, claims: Claims, subject: str, detail: str
    ) -> AuditEntry:
        details = {
            "customer_id": claims.customer_id,
            "verb": claims.verb,
            "requested_by": claims.requested_by,
            "command_id": str(claims.command_id or ""),
            "subject": subject[:_SHORT],
            "detail": detail[:_SHORT],
            "count": "1",
        }
        return self._entry(door, reason, f"vm {claims.vm_id}" if claims.vm_id else "", details)

    def _entry(
        self, door: Door, reason: Reason, target: str, details: dict[str, str]
    ) -> AuditEntry:
        return AuditEntry(
            event_id=new_id(),
            at=utc_now(),
            actor=host_actor(self._host_id),
            # Nobody's own: whose it claims to be need not be true.
            customer_id=OPERATOR,
            action=f"refuse-{door}",
            target=target,
            reason=reason.value,
            outcome=AuditOutcome.REFUSED,
            details={name: _printable(value) for name, value in details.items() if value},
        )

    def _add(self, entry: AuditEntry) -> None:
        if len(self._entries) >= MAX_BUFFERED:
            self._lose(1)
            return
        self._entries.append(entry)
        self._written.clear()
        self._wake.set()

    def _lose(self, count: int) -> None:
        self._telemetry.audit_lost.add(count)
        _log.error("audit.entries_lost", count=count)

    async def _write_all(self) -> None:
        while True:
            if not self._entries:
                self._written.set()
                self._wake.clear()
                await self._wake.wait()
                continue
            try:
                await self._write(self._entries[0])
            except TransientError as error:
                _log.warning("audit.not_written", error=str(error))
                await asyncio.sleep(_AGAIN_S)
                continue
            except PoisonError as error:
                _log.error("audit.entry_refused", error=str(error))
                self._lose(1)
            self._entries.popleft()


def _printable(text: str) -> str:
    """Without what could move a cursor or break a line where it is read."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
