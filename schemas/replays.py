"""What frames say of themselves that were refused and that an operator puts back.

Every frame that is sent once more has the id of its replay (`HEADER_REPLAY`). One that was refused
before has these headers as well: its rows are new, so that answers which were complete change.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple
from urllib.parse import quote, unquote

from schemas.audit import MAX_AUDIT_REASON
from schemas.frames import HEADER_REPLAY, replay_of

HEADER_RETRY = "Decisec-Retry"
"""`sent` on a frame that was refused as its host had sent it, `replayed` if a replay had."""
HEADER_REPLAY_REASON = "Decisec-Replay-Reason"
"""Why it is put back, as the audit has it; what is not printable ASCII is percent-encoded."""

_PLAIN = (string.digits + string.ascii_letters + string.punctuation + " ").replace("%", "")


class Refused(StrEnum):
    """How a frame had come that was refused."""

    SENT = "sent"
    REPLAYED = "replayed"


class Retry(NamedTuple):
    """The act by which a refused frame was put back.

    Attributes:
        replay_id: Of the act, as in the audit.
        reason: For people.
        uncertain: It was refused as a part of a replay, so its rows may have been stored before.
    """

    replay_id: str
    reason: str
    uncertain: bool


def retry_headers(replay_id: str, reason: str, refused: Refused) -> dict[str, str]:
    """The headers of a frame that is put back."""
    return {
        HEADER_REPLAY: replay_id,
        HEADER_RETRY: refused.value,
        HEADER_REPLAY_REASON: quote(reason, safe=_PLAIN),
    }


def retry_of(headers: Mapping[str, str]) -> Retry | None:
    """The act that put a frame back; None for one that was not refused."""
    refused = headers.get(HEADER_RETRY)
    if not refused or not (replay_id := replay_of(headers)):
        return None
    told = unquote(headers.get(HEADER_REPLAY_REASON, ""), errors="replace")[:MAX_AUDIT_REASON]
    reason = "".join(c if c.isprintable() else "?" for c in told)
    return Retry(replay_id, reason, refused != Refused.SENT)
