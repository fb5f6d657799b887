"""What frames say of themselves that are put back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.audit import MAX_AUDIT_REASON
from schemas.frames import HEADER_REPLAY
from schemas.replays import (
    HEADER_REPLAY_REASON,
    HEADER_RETRY,
    Refused,
    Retry,
    retry_headers,
    retry_of,
)

_RUBBISH = "a%0Ab%FF" + "x" * 999
_REASONS = st.text(min_size=1, max_size=MAX_AUDIT_REASON).filter(str.isprintable)


@given(_REASONS, st.sampled_from(Refused))
def test_a_reason_comes_through_a_header(reason: str, refused: Refused) -> None:
    """Whatever one line it is; the header is plain ASCII."""
    headers = retry_headers("r1", reason, refused)
    assert all(value.isascii() and value.isprintable() for value in headers.values())
    assert retry_of(headers) == Retry("r1", reason, refused is Refused.REPLAYED)


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({}, None),
        ({HEADER_REPLAY: "r1"}, None),
        ({HEADER_RETRY: "sent"}, None),
        ({HEADER_REPLAY: "no id", HEADER_RETRY: "sent"}, None),
        ({HEADER_REPLAY: "r1", HEADER_RETRY: "sent"}, Retry("r1", "", False)),
        ({HEADER_REPLAY: "r1", HEADER_RETRY: "of a newer version"}, Retry("r1", "", True)),
        (
            {
                HEADER_REPLAY: "r1",
                HEADER_RETRY: "sent",
                HEADER_REPLAY_REASON: _RUBBISH,
            },
            Retry("r1", "a?b\ufffd" + "x" * (MAX_AUDIT_REASON - 4), False),
        ),
    ],
)
def test_what_a_stranger_writes_is_no_more_than_a_line(
    headers: dict[str, str], found: Retry | None
) -> None:
    """Of a retry, if it names one."""
    assert retry_of(headers) == found
