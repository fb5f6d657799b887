"""How long the tables keep their rows: settings win over what the migrations say."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta

import structlog

from batcher.settings import BatcherSettings
from batcher.store import Store
from batcher.windows import Retention

_log = structlog.get_logger("decisec.retention")

# A rollup knows only the day or month of collection: one more keeps the last one whole.
_EXPIRY = {
    "samples": ("toDateTime(collected_at)", 0),
    "usage_minute": ("toDateTime(collected_on, 'UTC')", 1),
    "usage_hour": ("toDateTime(collected_in, 'UTC')", 31),
    "usage_day": ("toDateTime(collected_in, 'UTC')", 31),
    "incarnation_hosts": ("toDateTime(collected_in, 'UTC')", 31),
    "vm_events": ("toDateTime(recorded_at)", 0),
    "metering_gaps": ("toDateTime(recorded_at)", 0),
    "audit_log": ("toDateTime(recorded_at)", 0),
}


def kept_days(settings: BatcherSettings) -> dict[str, int]:
    """Days that each table keeps its rows."""
    return {
        "samples": settings.samples_days,
        "usage_minute": settings.usage_days,
        "usage_hour": settings.usage_hour_days,
        "usage_day": settings.usage_day_days,
        "incarnation_hosts": settings.usage_day_days,
        "vm_events": settings.events_days,
        "metering_gaps": settings.events_days,
        "audit_log": settings.audit_days,
    }


async def set_retention(store: Store, table: str, days: int) -> None:
    """Make rows of `table` expire `days` days after they came in; no-op if they do.

    Raises:
        FatalError, TransientError: As `Store.command` does.
    """
    begin, more = _EXPIRY[table]
    expression = f"{begin} + toIntervalDay({int(days) + more})"
    rows = await store.query(
        "SELECT engine_full FROM system.tables "
        "WHERE database = {database:String} AND name = {table:String}",
        {"database": store.database, "table": table},
    )
    if f"TTL {expression} " not in f"{rows[0][0]} ":
        await store.change(f"ALTER TABLE {table} MODIFY TTL {expression}")
        _log.info("retention.changed", table=table, days=days)


async def apply_retention(store: Store, settings: BatcherSettings, born: datetime) -> Retention:
    """Set all tables' retention, and say what the store can know from now on.

    Raises:
        FatalError, TransientError: As `Store.command` does.
    """
    days = kept_days(settings)
    for table, kept in days.items():
        await set_retention(store, table, kept)
    marks = await store.query("SELECT name, max(day) FROM store_marks GROUP BY name")
    since = {str(name): datetime.combine(day, time(), UTC) for name, day in marks}
    return Retention(
        born=born,
        ticks=timedelta(days=days["samples"]),
        minutes=timedelta(days=days["usage_minute"]),
        hours=timedelta(days=days["usage_hour"]),
        days=timedelta(days=days["usage_day"]),
        known_since=since.get("usage_known_since"),
        hosts_known_since=since.get("hosts_known_since"),
    )
