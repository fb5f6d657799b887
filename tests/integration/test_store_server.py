"""The store over HTTP: the same client code against a server, with the faults a network has."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from batcher.migrations import migrate, shipped
from batcher.schema_lock import TABLE, schema_lock
from batcher.settings import BatcherSettings
from batcher.store import Store
from runtime.errors import FatalError, OverloadedError, PoisonError, TransientError
from schemas.store import MigrationsDone, MigrationState, decode_migrations_done
from tests.support.clickhouse_door import Door, clickhouse_door
from tests.support.ports import free_port
from tests.support.store import check_store, check_wrong_password, enriched, insert, reading, used

PASSWORD = "correct horse: battery/staple"


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    path = tmp_path_factory.mktemp("server") / "store"
    with clickhouse_door(path, password=PASSWORD) as opened:
        yield opened


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def store(door: Door) -> AsyncIterator[Store]:
    opened = Store(BatcherSettings(store_url=door.url, store_password=PASSWORD))
    try:
        await migrate(opened, shipped())
        yield opened
    finally:
        await opened.close()


async def test_a_server_takes_what_the_embedded_store_takes(store: Store) -> None:
    """Migrations, retention, Arrow inserts and usage queries with parameters, over HTTP."""
    await check_store(store)


async def test_an_answer_that_is_lost_does_not_double_the_rows(store: Store, door: Door) -> None:
    """The insert was done and the connection ended: the same token again adds nothing."""
    frames = [enriched([reading("cut")])]
    door.faults.extend(["cut"] * 4)
    with pytest.raises(TransientError):
        await insert(store, frames)
    door.faults.clear()
    await insert(store, frames)
    assert await used(store, "cut") == (5, 1)
    rows = await store.query("SELECT count() FROM samples WHERE customer_id = 'cut'")
    assert rows[0][0] == 1


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (252, OverloadedError),
        (241, OverloadedError),
        (469, PoisonError),
        (497, FatalError),
        (999, TransientError),
    ],
)
async def test_a_servers_error_codes_are_told_apart(
    store: Store, door: Door, code: int, kind: type[Exception]
) -> None:
    """Each code leads to what the loop must do, and the store works again afterwards."""
    customer = f"code-{code}"
    frames = [enriched([reading(customer)])]
    door.faults.append(code)
    with pytest.raises(kind):
        await insert(store, frames)
    door.faults.clear()
    await insert(store, frames)
    assert await used(store, customer) == (5, 1)


async def test_a_wrong_password_is_fatal_and_stays_secret(door: Door) -> None:
    """The operator has to act; the message does not show what was tried."""
    await check_wrong_password(door.url)


async def test_a_server_that_is_not_there_is_transient() -> None:
    """The batcher waits for it."""
    store = Store(BatcherSettings(store_url=f"http://127.0.0.1:{free_port()}"))
    try:
        with pytest.raises(TransientError):
            await store.query("SELECT 1")
    finally:
        await store.close()


async def migrating(door: Door, database: str) -> MigrationsDone:
    """`python -m batcher.migrate` against the door."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "batcher.migrate",
        env={
            **os.environ,
            "DECISEC_BATCHER_STORE_URL": door.url,
            "DECISEC_BATCHER_STORE_PASSWORD": PASSWORD,
            "DECISEC_BATCHER_DATABASE": database,
        },
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(90):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return decode_migrations_done(out)


async def test_processes_that_migrate_at_once_apply_each_migration_once(door: Door) -> None:
    """One does the work, the other waits for it; nobody holds the lock afterwards."""
    done = await asyncio.gather(*(migrating(door, "raced") for _ in range(2)))
    expected = [(m.version, m.name, m.sha256, MigrationState.APPLIED) for m in shipped()]
    for one in done:
        assert one.pending == 0
        assert [(m.version, m.name, m.sha256, m.state) for m in one.migrations] == expected
    looked = BatcherSettings(store_url=door.url, store_password=PASSWORD, database="raced")
    store = Store(looked)
    try:
        rows = await store.query("SELECT version FROM schema_migrations ORDER BY version")
        assert [row[0] for row in rows] == [m.version for m in shipped()]
        assert (await store.query(f"EXISTS TABLE {TABLE}"))[0][0] == 0
    finally:
        await store.close()


async def test_a_lock_is_waited_for_and_taken_over_once_it_was_left_behind(store: Store) -> None:
    """While somebody holds it nobody else does; one that died does not hold it for ever."""
    order: list[str] = []

    async def second() -> None:
        async with schema_lock(store):
            order.append("second")

    async with asyncio.timeout(60):
        async with asyncio.TaskGroup() as group, schema_lock(store):
            waiting = group.create_task(second(), name="second")
            await asyncio.wait({waiting}, timeout=0.5)
            order.append("first")
        assert order == ["first", "second"]
        await store.command(f"CREATE TABLE {TABLE} (holder String) ENGINE = Memory COMMENT 'dead'")
        async with schema_lock(store, left_behind_s=0):
            rows = await store.query(
                "SELECT comment FROM system.tables"
                " WHERE database = currentDatabase() AND name = {table:String}",
                {"table": TABLE},
            )
            assert str(rows[0][0]).endswith(f"/{os.getpid()}")
    assert (await store.query(f"EXISTS TABLE {TABLE}"))[0][0] == 0
