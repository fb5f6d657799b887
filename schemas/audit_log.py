"""Reading the audit log: questions on `auditlog.query.<customer>`, and their answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final

import msgspec

from schemas.audit import AuditEntry
from schemas.codec import decoder
from schemas.errors import ErrorInfo
from schemas.vms import Timestamp

MAX_AUDIT_PAGE: Final = 500
MAX_AUDIT_DAYS: Final = 31
"""The longest window of one question."""

Cursor = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,17}_[0-9a-f-]{36}$(?!\n)|^$(?!\n)")]


class AuditQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Entries in `[start, end)`, newest first. Whose they are says the subject.

    Attributes:
        limit: On a page.
        cursor: `next_cursor` of the page before.
    """

    start: Timestamp
    end: Timestamp
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_AUDIT_PAGE)] = 100
    cursor: Cursor = ""


class AuditPage(msgspec.Struct, frozen=True, kw_only=True):
    """Entries, newest first; `next_cursor` is empty on the last page."""

    entries: tuple[AuditEntry, ...]
    next_cursor: str = ""


class AuditReply(msgspec.Struct, frozen=True, kw_only=True):
    """A page, or the reason why there is none."""

    page: AuditPage | None = None
    error: ErrorInfo | None = None


decode_audit_query: Callable[[bytes], AuditQuery] = decoder(AuditQuery)
decode_audit_reply: Callable[[bytes], AuditReply] = decoder(AuditReply)
