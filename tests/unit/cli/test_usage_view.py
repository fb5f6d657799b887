"""The usage table: whether it can still change is said under it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from decisec.cli.usage import usage_table
from schemas.usage import UsageReport

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("until", "complete", "words"),
    [
        (NOON, True, "complete"),
        (NOON - timedelta(minutes=1), False, "complete until 2026-01-01T11:59:00+00:00"),
        (None, False, "may still change"),
    ],
)
def test_the_table_says_whether_it_is_final(
    until: datetime | None, complete: bool, words: str
) -> None:
    """In the same line as its window."""
    report = UsageReport(
        customer_id="acme",
        start=NOON - timedelta(hours=1),
        end=NOON,
        vms=(),
        totals={},
        complete_until=until,
        complete=complete,
    )
    caption = str(usage_table(report, {}).caption)
    assert caption.endswith(f" to {NOON.isoformat()}, {words}")


def test_the_table_names_hosts_that_are_lost() -> None:
    """What they still hold is not in it."""
    report = UsageReport(
        customer_id="acme",
        start=NOON,
        end=NOON,
        vms=(),
        totals={},
        complete=True,
        lost_hosts=("h1", "h2"),
    )
    assert "not counting what was lost with h1, h2" in str(usage_table(report, {}).caption)
