"""The audit trail: who set out to do what, from where, and what was made of it.

An act is told before its first effect: the entry is sent on the same connection, so the server has
it before anything that the act writes, and costs the act no round trip. The act's answer waits for
the entry's acknowledgement, which by then has come. While entries are not acknowledged, further
acts are refused instead of done unaudited.

What is refused, and how an act ended, is told off the request's path from a bounded buffer; what
does not fit is counted. Floods become one entry per kind and interval, with their count.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import nats.errors
import structlog

from gateway.acts import Act
from gateway.errors import unavailable
from runtime.acks import Acks, Answer, Stored
from runtime.bus import Bus
from runtime.clock import utc_now
from runtime.errors import TransientError
from runtime.publisher import Outgoing, Publisher
from runtime.telemetry import inject, meter
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

_log = structlog.get_logger("decisec.trail")

MAX_OPEN = 2048
"""Acts whose first entry is not acknowledged."""

MAX_BUFFERED = 8192
MAX_KINDS = 1024
"""Of refusals in one interval; those of further kinds are counted together."""

SINGLE_REFUSALS = 20
"""Of one customer in one interval that get an entry each."""

INTERVAL_S = 10.0
_ACK_WITHIN_S = 5.0
_STALLED_AFTER_S = 10.0
_BATCH = 256
_FLUSHED_WITHIN_S = 3.0
_LOST_LOGGED_EVERY_S = 60.0
_MSG_ID = "Nats-Msg-Id"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that was refused.

    Attributes:
        customer_id: Empty if it is not known who asked.
        action: A token.
        single: Worth an entry of its own, up to a number.
    """

    customer_id: str
    actor: str
    action: str
    target: str
    door: str
    address: str
    trace_id: str
    code: str
    status: int
    single: bool


@dataclass(slots=True)
class _Open:
    entry: AuditEntry
    sent_s: float
    heard: asyncio.Future[None]
    number: str = ""


@dataclass(frozen=True, slots=True)
class _Kind:
    customer_id: str
    actor: str
    action: str
    door: str
    address: str
    code: str
    status: int


_OTHERS = "others"


class Trail:
    """Writes the audit stream.

    Args:
        bus: The connection on which acts write as well.
        stalled_after_s: Acts are refused when an entry has waited so long.
        interval_s: Refusals of one kind in so much time become one entry.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        stalled_after_s: float = _STALLED_AFTER_S,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._bus = bus
        self._acks = Acks(bus, max_in_flight=2 * MAX_OPEN)
        self._publisher = Publisher(bus)
        self._stalled_after_s = stalled_after_s
        self._interval_s = interval_s
        self._open: dict[str, _Open] = {}
        self._buffer: deque[AuditEntry] = deque()
        self._in_hand = 0
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._kinds: dict[_Kind, tuple[int, datetime]] = {}
        self._singles: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()
        self._lost_logged_s: dict[str, float] = {}
        self._entries = meter().create_counter(
            "decisec_audit_entries", description="Audit entries that the stream has taken"
        )
        self._missing = meter().create_counter(
            "decisec_audit_entries_lost", description="Audit entries given up, by kind"
        )
        self._unheard = meter().create_counter(
            "decisec_audit_acts_unacknowledged",
            description="Acts answered before their entry was acknowledged",
        )

    async def begin(self, act: Act) -> None:
        """Tell of an act before its first effect.

        Raises:
            RefusedError: UNAVAILABLE. Too many entries, or one for too long, are not acknowledged.
        """
        if len(self._open) >= MAX_OPEN or self._stalled():
            raise unavailable()
        entry = _entry_of(act, AuditOutcome.UNDER_WAY, AuditPhase.BEGUN)
        key = str(entry.event_id)
        one = _Open(entry, time.monotonic(), asyncio.get_running_loop().create_future())
        self._open[key] = one
        headers = inject({_MSG_ID: key})
        try:
            one.number = await self._acks.send(
                audit(entry), encode(entry), headers, partial(self._heard, key)
            )
        except (nats.errors.Error, OSError) as error:
            del self._open[key]
            raise unavailable() from error
        act.begun = one.heard

    async def heard(self, act: Act) -> None:
        """Return once an act's first entry is acknowledged, or after a while."""
        if act.begun is None or act.begun.done():
            return
        done, _ = await asyncio.wait({act.begun}, timeout=_ACK_WITHIN_S)
        if not done:
            # It goes on being sent; `begin` sees to it that this does not go on for long.
            self._unheard.add(1)

    def ended(self, act: Act, status: int, code: str = "") -> None:
        """Tell how an act ended; one that is under way has nothing more to tell here."""
        if status == 202:
            return
        outcome = AuditOutcome.SUCCEEDED if status < 300 else AuditOutcome.FAILED
        self._add(_entry_of(act, outcome, AuditPhase.ENDED, status, code), "ended")

    def refused(self, refusal: Refusal) -> None:
        """Tell of a refusal: on its own, or counted with others of its kind."""
        customer = refusal.customer_id
        if refusal.single and customer and self._singles[customer] < SINGLE_REFUSALS:
            self._singles[customer] += 1
            details = {"act_id": str(new_id()), **_where(refusal), "trace_id": refusal.trace_id}
            self._add(_refusal_entry(refusal, refusal.target, details), "refused")
            return
        kind = _Kind(
            customer,
            refusal.actor,
            refusal.action,
            refusal.door,
            refusal.address,
            refusal.code,
            refusal.status,
        )
        if kind not in self._kinds and len(self._kinds) >= MAX_KINDS:
            kind = _Kind("", "", _OTHERS, "", "", refusal.code, refusal.status)
        count, first = self._kinds.get(kind, (0, utc_now()))
        self._kinds[kind] = count + 1, first

    def refused_status(self, host_id: str, key: str, reason: str) -> None:
        """Tell of a status that a host wrote in another's name."""
        self.refused(
            Refusal(
                customer_id="",
                actor=f"agent@{host_id}" if host_id else "",
                action="write-status",
                target=f"key {key}",
                door="bus",
                address="",
                trace_id="",
                code=reason,
                status=403,
                single=False,
            )
        )

    async def run(self) -> None:
        """Write until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._write_all(), name="trail-write")
            group.create_task(self._sweep(), name="trail-sweep")

    async def flush(self) -> None:
        """Return once all is written, or after three seconds; what is left then is counted."""
        self._gather()
        try:
            async with asyncio.timeout(_FLUSHED_WITHIN_S):
                if waiting := [one.heard for one in self._open.values()]:
                    await asyncio.wait(waiting)
                await self._idle.wait()
        except TimeoutError:
            left = len(self._buffer) + self._in_hand
            self._missing.add(left, {"kind": "shutdown"})
            _log.error("audit.entries_lost", kind="shutdown", count=left)

    def _stalled(self) -> bool:
        oldest = next(iter(self._open.values()), None)
        return oldest is not None and time.monotonic() - oldest.sent_s > self._stalled_after_s

    def _heard(self, key: str, answer: Answer) -> None:
        if isinstance(answer, Stored):
            self._entries.add(1)
            self._close(key)
        else:
            self._again(key)

    def _close(self, key: str) -> None:
        one = self._open.pop(key, None)
        if one is not None and not one.heard.done():
            one.heard.set_result(None)

    def _again(self, key: str) -> None:
        """Send an act's first entry once more, in its turn."""
        one = self._open.get(key)
        if one is None or not one.number:
            return
        self._acks.forget(one.number)
        one.number = ""
        # Not bounded by the buffer: `begin` bounds it.
        self._buffer.append(one.entry)
        self._awake()

    def _add(self, entry: AuditEntry, kind: str) -> None:
        if len(self._buffer) >= MAX_BUFFERED:
            self._lose(kind, 1)
            return
        self._buffer.append(entry)
        self._awake()

    def _awake(self) -> None:
        self._idle.clear()
        self._wake.set()

    def _lose(self, kind: str, count: int) -> None:
        self._missing.add(count, {"kind": kind})
        self._lost[kind] += count
        now_s = time.monotonic()
        if now_s - self._lost_logged_s.get(kind, -_LOST_LOGGED_EVERY_S) >= _LOST_LOGGED_EVERY_S:
            self._lost_logged_s[kind] = now_s
            _log.error("audit.entries_lost", kind=kind, count=self._lost.pop(kind))

    async def _write_all(self) -> None:
        while True:
            if not self._buffer:
                self._idle.set()
                self._wake.clear()
                await self._wake.wait()
            self._in_hand = min(_BATCH, len(self._buffer))
            await self._write([self._buffer.popleft() for _ in range(self._in_hand)])
            self._in_hand = 0

    async def _write(self, entries: list[AuditEntry]) -> None:
        messages = [Outgoing(audit(one), encode(one), str(one.event_id)) for one in entries]
        results = await self._publisher.publish_all(messages)
        again = []
        for entry, result in zip(entries, results, strict=True):
            if isinstance(result, Stored):
                self._entries.add(1)
                self._close(str(entry.event_id))
            elif isinstance(result, TransientError):
                again.append(entry)
            else:
                _log.error("audit.entry_refused", error=str(result))
                self._close(str(entry.event_id))
                self._lose("refused_by_stream", 1)
        self._buffer.extendleft(reversed(again))

    async def _sweep(self) -> None:
        gathered_s = time.monotonic()
        while True:
            await asyncio.sleep(min(1.0, self._interval_s))
            now_s = time.monotonic()
            for key, one in list(self._open.items()):
                if one.number and now_s - one.sent_s > _ACK_WITHIN_S:
                    self._again(key)
            if now_s - gathered_s >= self._interval_s:
                gathered_s = now_s
                self._gather()

    def _gather(self) -> None:
        """Make entries of the refusals that were counted."""
        self._singles.clear()
        kinds, self._kinds = self._kinds, {}
        for kind, (count, first) in kinds.items():
            details = {**_where(kind), "count": str(count), "first_at": first.isoformat()}
            self._add(_refusal_entry(kind, "", details), "refused")


def _where(of: Refusal | _Kind) -> dict[str, str]:
    return _without_empty(
        (("door", of.door), ("address", of.address), ("status", str(of.status)), ("code", of.code))
    )


def _without_empty(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {name: value for name, value in pairs if value}


def _refusal_entry(of: Refusal | _Kind, target: str, details: dict[str, str]) -> AuditEntry:
    return AuditEntry(
        event_id=new_id(),
        at=utc_now(),
        actor=of.actor[:255],
        # Nobody's own: for operators.
        customer_id=of.customer_id or OPERATOR,
        action=of.action,
        target=target[:255],
        outcome=AuditOutcome.REFUSED,
        details=_without_empty(details.items()),
    )


def _entry_of(
    act: Act, outcome: AuditOutcome, phase: AuditPhase, status: int = 0, code: str = ""
) -> AuditEntry:
    details = _without_empty(
        (
            (DETAIL_PHASE, phase),
            (DETAIL_ACT, str(act.act_id)),
            ("door", act.door),
            ("address", act.address),
            ("trace_id", act.trace_id),
            ("operation_id", str(act.operation_id or "")),
            ("status", str(status or "")),
            ("code", code),
        )
    )
    return AuditEntry(
        event_id=new_id(),
        at=utc_now(),
        actor=act.actor[:255],
        customer_id=act.customer_id,
        action=act.action,
        target=act.target[:255],
        reason=act.reason[:MAX_AUDIT_REASON],
        outcome=outcome,
        details=details,
    )
