"""Acts of operators: an entry in the audit stream before anything is done, and one afterwards."""

from __future__ import annotations

import asyncio
import getpass
import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from uuid import UUID

from runtime.audit import Act, write_entry
from runtime.bus import Bus
from runtime.clock import utc_now
from runtime.errors import DecisecError
from runtime.publisher import Publisher
from schemas.audit import MAX_AUDIT_REASON, AuditEntry, AuditOutcome

_WRITTEN_WITHIN_S = 10.0


def operator() -> str:
    """Who says to do it: a name for people, no proof."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = f"uid {os.getuid()}"
    return f"{name}@{socket.gethostname()}"[:255]


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
