"""Answers `usage.query.<customer>`: whose usage it is says the subject, never the message."""

from __future__ import annotations

import msgspec
import structlog

from batcher.archive import Archive
from batcher.telemetry import Instruments
from batcher.usage import report
from batcher.watermark import Until
from batcher.windows import RefusedQueryError, check
from runtime.bus import Message
from runtime.errors import FatalError, OverloadedError, TransientError
from schemas import subjects
from schemas.codec import encode
from schemas.errors import ErrorCode, ErrorInfo, InvalidIdError, MalformedMessageError
from schemas.units import NS_PER_S
from schemas.usage import UsageReply, UsageReport, decode_usage_query

_log = structlog.get_logger("decisec.usage")

QUEUE = "batcher"
SUBJECT = "usage.query.*"
MAX_REPLY_BYTES = 1_000_000
"""Just under the 1 MiB that NATS takes."""


class UsageDoor:
    """A bus handler: one query after the other, each bounded in time and memory.

    With an embedded store a query and an insert wait for each other, because the engine has one
    thread: a query holds inserts up for `limit_s` at most.
    """

    def __init__(self, archive: Archive, instruments: Instruments) -> None:
        self._archive = archive
        self._instruments = instruments

    async def answer(self, message: Message) -> bytes:
        """The encoded `UsageReply` to a query; errors travel inside it."""
        clock = self._archive.clock
        began_ns = clock.monotonic_ns()
        reply = await self._reply(message)
        body = encode(reply)
        if len(body) > MAX_REPLY_BYTES:
            reply = _refusal(
                ErrorCode.BAD_REQUEST, "the answer passes 1 MB; name at most 1000 VMs in vm_ids"
            )
            body = encode(reply)
        outcome = reply.error.code.value if reply.error else "ok"
        self._instruments.answered((clock.monotonic_ns() - began_ns) / NS_PER_S, outcome)
        return body

    async def _reply(self, message: Message) -> UsageReply:
        try:
            return UsageReply(report=await self._report(message))
        except (InvalidIdError, MalformedMessageError, RefusedQueryError) as error:
            return _refusal(ErrorCode.BAD_REQUEST, str(error))
        except OverloadedError as error:
            _log.warning("query.failed", subject=message.subject, error=str(error))
            return _refusal(
                ErrorCode.UNAVAILABLE,
                "the store is overloaded; try later, or ask for fewer VMs or a shorter window",
            )
        except TransientError as error:
            _log.warning("query.failed", subject=message.subject, error=str(error))
            return _refusal(ErrorCode.UNAVAILABLE, "the store is away; try again later")
        except FatalError as error:
            _log.error("query.failed", subject=message.subject, error=str(error))
            return _refusal(ErrorCode.INTERNAL, "the store refuses the query; see the log")

    async def _report(self, message: Message) -> UsageReport:
        archive = self._archive
        customer_id = subjects.customer_of(message.subject)
        query = decode_usage_query(message.data)
        now = archive.now
        window = check(query, archive.retention, now)
        # First this: what has arrived by then is in the answer that is read after it.
        before = await archive.watermark.undisturbed(customer_id, query.vm_ids)
        until = await archive.watermark.complete_until(customer_id, query.vm_ids, query.start)
        window = window.rolled(archive.rolled_until_ms())
        answer = await report(archive.store, customer_id, query, window, limit_s=archive.limit_s)
        after = await archive.watermark.undisturbed(customer_id, query.vm_ids)
        if before is None or before != after:
            # Rows are being moved, and may have been read under both customers or half.
            until = Until(None)
        return msgspec.structs.replace(
            answer,
            complete_until=until.time,
            complete=until.time is not None and query.end <= until.time,
            lost_hosts=until.lost_hosts,
        )


def _refusal(code: ErrorCode, message: str) -> UsageReply:
    return UsageReply(error=ErrorInfo(code=code, message=message))
