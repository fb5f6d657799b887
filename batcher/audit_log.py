"""The audit log out of the store: for one customer, or for operators.

A customer's query is bound to the customer of its subject, and every value from outside travels as
a parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import structlog

from batcher.store import Store
from batcher.windows import RefusedQueryError
from runtime.bus import Message
from runtime.errors import FatalError, OverloadedError, PoisonError, TransientError
from schemas import subjects
from schemas.audit import OPERATOR, AuditEntry
from schemas.audit_log import (
    MAX_AUDIT_DAYS,
    AuditPage,
    AuditQuery,
    AuditReply,
    decode_audit_query,
)
from schemas.codec import encode
from schemas.errors import ErrorCode, ErrorInfo, InvalidIdError, MalformedMessageError

_log = structlog.get_logger("decisec.audit_log")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SUBJECT = "auditlog.query.*"
_MAX_REPLY_BYTES = 1_000_000
"""Just under the 1 MiB that NATS takes."""

_QUERY = """
SELECT
    customer_id, toUnixTimestamp64Micro(at), event_id, actor, action, target, reason, outcome,
    details
FROM audit_log
WHERE ({everybody:UInt8} OR customer_id = {customer:String})
  AND at >= fromUnixTimestamp64Micro({start:Int64}, 'UTC')
  AND at < fromUnixTimestamp64Micro({end:Int64}, 'UTC')
  AND (toUnixTimestamp64Micro(at), toString(event_id)) < ({before:Int64}, {before_id:String})
ORDER BY at DESC, toString(event_id) DESC
LIMIT 1 BY at, event_id
LIMIT {limit:UInt32}
"""


async def page(
    store: Store, customer_id: str | None, query: AuditQuery, *, limit_s: int
) -> AuditPage:
    """Entries of one customer, or of all where it is None.

    Raises:
        RefusedQueryError: The window is too long or empty, or the answer too large.
        TransientError, FatalError: As `Store.query` does.
    """
    if query.start >= query.end:
        raise RefusedQueryError("end must come after start")
    if query.end - query.start > timedelta(days=MAX_AUDIT_DAYS):
        raise RefusedQueryError(f"at most {MAX_AUDIT_DAYS} days at once")
    before, _, before_id = query.cursor.partition("_")
    try:
        rows = await store.query(
            _QUERY,
            {
                "everybody": int(customer_id is None),
                "customer": customer_id or "",
                "start": _us(query.start),
                "end": _us(query.end),
                "before": int(before) if before else 2**62,
                "before_id": before_id,
                "limit": query.limit + 1,
            },
            settings={"max_execution_time": limit_s, "max_memory_usage": 1024**3},
        )
    except PoisonError as error:
        raise RefusedQueryError(f"too much for one answer; ask for less ({error})") from error
    entries = tuple(_entry(row) for row in rows[: query.limit])
    more = len(rows) > query.limit
    last = entries[-1] if more else None
    cursor = f"{_us(last.at)}_{last.event_id}" if last else ""
    found = AuditPage(entries=entries, next_cursor=cursor)
    if len(encode(found)) > _MAX_REPLY_BYTES:
        raise RefusedQueryError("the answer passes 1 MB; ask for fewer at once")
    return found


class AuditDoor:
    """Answers `auditlog.query.<customer>`: whose entries says the subject, never the message."""

    def __init__(self, store: Store, *, limit_s: int) -> None:
        self._store = store
        self._limit_s = limit_s

    async def answer(self, message: Message) -> bytes:
        """The encoded `AuditReply`; errors travel inside it."""
        return encode(await self._reply(message))

    async def _reply(self, message: Message) -> AuditReply:
        try:
            customer_id = subjects.customer_of(message.subject)
            if customer_id == OPERATOR:
                # That is no customer, whoever calls himself so: operators ask the store.
                return AuditReply(page=AuditPage(entries=()))
            query = decode_audit_query(message.data)
            return AuditReply(
                page=await page(self._store, customer_id, query, limit_s=self._limit_s)
            )
        except (InvalidIdError, MalformedMessageError, RefusedQueryError) as error:
            return _refusal(ErrorCode.BAD_REQUEST, str(error))
        except OverloadedError as error:
            _log.warning("query.failed", subject=message.subject, error=str(error))
            return _refusal(ErrorCode.UNAVAILABLE, "the store is overloaded; try later")
        except TransientError as error:
            _log.warning("query.failed", subject=message.subject, error=str(error))
            return _refusal(ErrorCode.UNAVAILABLE, "the store is away; try again later")
        except FatalError as error:
            _log.error("query.failed", subject=message.subject, error=str(error))
            return _refusal(ErrorCode.INTERNAL, "the store refuses the query; see the log")


def _entry(row: Any) -> AuditEntry:
    customer_id, at_us, event_id, actor, action, target, reason, outcome, details = row
    return AuditEntry(
        customer_id=customer_id,
        at=_EPOCH + timedelta(microseconds=at_us),
        event_id=event_id if isinstance(event_id, UUID) else UUID(str(event_id)),
        actor=actor,
        action=action,
        target=target,
        reason=reason,
        outcome=outcome,
        details=dict(details) if isinstance(details, Mapping) else {},
    )


def _us(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(microseconds=1)


def _refusal(code: ErrorCode, message: str) -> AuditReply:
    return AuditReply(error=ErrorInfo(code=code, message=message))
