"""Migrations: each once, in order, never changed afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from batcher.migrations import Migration, migrate, missing, set_retention, shipped
from batcher.store import Store
from runtime.errors import FatalError, TransientError
from schemas.ids import new_id
from tests.support.store import Reading, embedded_store, enriched, insert


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

    for table, shown, days in (("samples", 3, 3), ("usage_minute", 31, 30)):
        before = await expiry(table)
        await set_retention(store, table, {"samples": 7, "usage_minute": 90}[table])
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
