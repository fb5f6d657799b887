"""Migrations: each once, in order, never changed afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from pathlib import Path

import pytest
import pytest_asyncio

from batcher.consistency import Consistency
from batcher.host_usage import host_report
from batcher.migrations import Migration, migrate, missing, shipped
from batcher.retention import apply_retention, kept_days, set_retention
from batcher.settings import BatcherSettings
from batcher.store import Store
from batcher.usage import report
from batcher.windows import Window
from runtime.clock import SystemClock
from runtime.errors import FatalError, TransientError
from schemas.ids import new_id
from schemas.usage import UsageQuery
from tests.support.store import Reading, embedded_store, enriched, insert, insert_alone


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def store(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Store]:
    async with embedded_store(tmp_path_factory.mktemp("migrations") / "store") as opened:
        yield opened


def test_what_is_missing_is_what_was_not_applied() -> None:
    """The rest comes in order."""
    all_of_them = shipped()
    first = all_of_them[0]
    assert missing(all_of_them, []) == all_of_them
    assert missing(all_of_them, [(first.version, first.sha256)]) == all_of_them[1:]


def test_a_changed_migration_is_fatal() -> None:
    """An applied file that reads differently now stops the batcher, and the message says so."""
    with pytest.raises(FatalError, match="never change an applied migration"):
        missing(shipped(), [(1, "0" * 64)])


def test_a_newer_database_is_fatal() -> None:
    """Old code does not write into tables it does not know."""
    with pytest.raises(FatalError, match="start a newer batcher"):
        missing(shipped(), [(9999, "0" * 64)])


@pytest.mark.parametrize("names", [["0001_a.sql", "0003_b.sql"], ["0001_a.sql", "notes.txt"]])
def test_a_broken_set_of_files_is_fatal(tmp_path: Path, names: list[str]) -> None:
    """A gap or a stray file is a mistake in packaging."""
    for name in names:
        (tmp_path / name).write_text("SELECT 1;\n")
    with pytest.raises(FatalError):
        shipped(tmp_path)


def test_a_file_is_taken_apart_at_its_semicolons() -> None:
    """One statement at a time goes to the store."""
    assert Migration(1, "x", "SELECT 1;\n\n-- two\nSELECT ';';\n").statements == [
        "SELECT 1",
        "-- two\nSELECT ';'",
    ]


async def test_migrating_again_changes_nothing(store: Store) -> None:
    """The ledger has each version once, and the store's age stays."""
    first = await migrate(store, shipped())
    assert await migrate(store, shipped()) == first
    assert abs(datetime.now(UTC) - first) < timedelta(minutes=5)
    rows = await store.query("SELECT version, sha256 FROM schema_migrations ORDER BY version")
    assert [tuple(row) for row in rows] == [(m.version, m.sha256) for m in shipped()]


async def test_retention_is_changed_only_when_it_differs(store: Store) -> None:
    """Settings win over the migration's figure; the same figure touches nothing."""

    async def expiry(table: str) -> str:
        rows = await store.query(
            "SELECT engine_full FROM system.tables "
            "WHERE database = currentDatabase() AND name = {t:String}",
            {"t": table},
        )
        return str(rows[0][0])

    usual = kept_days(BatcherSettings())
    for table, shown, days in (
        ("samples", 3, 3),
        ("usage_minute", 31, 30),
        ("usage_hour", 431, 400),
        ("usage_day", 831, 800),
    ):
        before = await expiry(table)
        await set_retention(store, table, usual[table])
        assert await expiry(table) == before
        await set_retention(store, table, days)
        assert f"toIntervalDay({shown})" in await expiry(table)


async def test_ids_come_back_as_they_went_in(store: Store) -> None:
    """The 16 bytes of a UUID keep their order on the way into the store and out of it."""
    vm_id, tick = new_id(), int(datetime.now(UTC).timestamp()) * 1000
    frame = enriched([Reading(vm_id, tick, customer="ids")])
    await insert(store, [frame])
    rows = await store.query(
        "SELECT vm_id, run_id, tick_ms, toString(vm_id), toUnixTimestamp64Milli(tick) "
        "FROM samples WHERE customer_id = 'ids'"
    )
    assert [tuple(row) for row in rows] == [(vm_id, frame.run_id, tick, str(vm_id), tick)]


async def test_a_closed_store_says_so(store: Store) -> None:
    """A call after `close` is an error that a caller knows, not a crash of the executor."""
    closed = Store(store.settings)
    await closed.close()
    with pytest.raises(TransientError, match="closed"):
        await closed.query("SELECT 1")


async def older(store: Store, database: str) -> Store:
    """A store as it was before it had hours and days, with a minute in it."""
    found = Store(BatcherSettings(store_path=store.settings.store_path, database=database))
    before = list(takewhile(lambda m: m.name != "usage_hour_day", shipped()))
    await migrate(found, before)
    noon_ms = int(datetime.now(UTC).timestamp()) // 86_400 * 86_400_000 - 43_200_000
    counters = {"cpu_ns": 7}
    one = Reading(new_id(), noon_ms, 1, 0, counters, "old")
    await insert_alone(found, [enriched([one], host="h-old")])
    return found


async def test_hours_and_days_begin_with_what_the_minutes_know(store: Store) -> None:
    """An updated store answers for whole days from before the update."""
    updated = await older(store, "updated")
    try:
        retention = await apply_retention(
            updated, updated.settings, await migrate(updated, shipped())
        )
        assert retention.known_since is None
        await updated.command("TRUNCATE TABLE samples")
        await updated.command("TRUNCATE TABLE usage_minute")
        day = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        query = UsageQuery(start=day - timedelta(days=1), end=day)
        window = Window.between(query.start, query.end)
        for table in ("usage_hour", "usage_day"):
            assert (await report(updated, "old", query, window, limit_s=10)).totals["cpu_ns"] == 7
            await updated.command(f"TRUNCATE TABLE {table}")
    finally:
        await updated.close()


async def test_an_updated_store_says_what_its_minutes_had_lost(store: Store) -> None:
    """Old enough for minutes to have expired: known is what came two days after the first left."""
    expired = await older(store, "expired")
    try:
        await set_retention(expired, "usage_minute", 20)
        await expired.command("TRUNCATE TABLE schema_migrations")
        for one in takewhile(lambda m: m.name != "usage_hour_day", shipped()):
            await expired.command(
                "INSERT INTO schema_migrations (version, name, sha256, applied_at) VALUES "
                "({v:UInt32}, {n:String}, {s:String}, now64(3) - toIntervalDay(30))",
                {"v": one.version, "n": one.name, "s": one.sha256},
            )
        born = await migrate(expired, shipped())
        retention = await apply_retention(expired, expired.settings, born)
        today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        assert retention.known_since == today + timedelta(days=2)
    finally:
        await expired.close()


@pytest.mark.parametrize("age_days", [0, 30])
async def test_an_updated_store_knows_hosts_as_far_as_its_ticks_go(
    store: Store, age_days: int
) -> None:
    """What its samples show; where some may have expired, it says since when that is whole."""
    updated = await older(store, f"hosts_{age_days}")
    try:
        await updated.command(
            "ALTER TABLE schema_migrations UPDATE applied_at = applied_at - toIntervalDay("
            f"{age_days}) WHERE 1 SETTINGS mutations_sync = 2"
        )
        retention = await apply_retention(
            updated, updated.settings, await migrate(updated, shipped())
        )
        today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        known_since = today + timedelta(days=2) if age_days else None
        assert retention.hosts_known_since == known_since
        window = Window.between(today - timedelta(days=1), today)
        (customer,), _ = await host_report(updated, "h-old", window, limit_s=10)
        assert (customer.customer_id, customer.totals["cpu_ns"]) == ("old", 7)
    finally:
        await updated.close()


async def test_a_migration_that_was_cut_off_is_run_again_as_a_whole(store: Store) -> None:
    """Every statement of every migration may run twice: what was stored meanwhile is unharmed."""
    again = await older(store, "again")
    try:
        retention = await apply_retention(again, again.settings, await migrate(again, shipped()))
        born = retention.born
        for _ in range(2):
            await again.command(
                "ALTER TABLE schema_migrations DELETE WHERE name != 'samples'"
                " SETTINGS mutations_sync = 2"
            )
            repeated = await apply_retention(again, again.settings, await migrate(again, shipped()))
            assert (repeated, repeated.born) == (retention, born)
        day = datetime.now(UTC).date() - timedelta(days=1)
        found = await Consistency(again, SystemClock(), look_again_after_s=0).check(day)
        assert (found.compared, found.differences) == (3, ())
    finally:
        await again.close()
