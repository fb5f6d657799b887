"""Who may change the schema of a server now: the one who could create a table of a certain name.

ClickHouse has no locks for clients, but of two that create a table exactly one succeeds. Migrations
are idempotent, so the lock is there for order, not for safety: one that its holder left behind is
taken over after a while, and a holder that was only slow does no harm.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from clickhouse_connect.driver.exceptions import Error

from batcher.store import Store
from runtime.errors import DecisecError, TransientError

_log = structlog.get_logger("decisec.schema_lock")

TABLE = "schema_lock"
_TABLE_ALREADY_EXISTS = 57
_LOOK_EVERY_S = 0.2
_LEFT_BEHIND_S = 120


@asynccontextmanager
async def schema_lock(store: Store, *, left_behind_s: int = _LEFT_BEHIND_S) -> AsyncIterator[None]:
    """Hold the lock for the length of the block; wait for it as long as it takes.

    An embedded store belongs to one process anyway: there it does nothing.

    Raises:
        FatalError, TransientError: As `Store.command` does.
    """
    if store.settings.embedded:
        yield
        return
    await _acquire(store, left_behind_s)
    try:
        yield
    finally:
        try:
            await store.command(f"DROP TABLE IF EXISTS {TABLE} SYNC")
        except TransientError as error:
            _log.warning("schema_lock.left_behind", until_s=left_behind_s, error=str(error))


async def _acquire(store: Store, left_behind_s: int) -> None:
    holder = f"{socket.gethostname()}/{os.getpid()}".replace("'", "")
    told = False
    while True:
        try:
            await store.command(
                f"CREATE TABLE {TABLE} (holder String) ENGINE = Memory COMMENT '{holder}'"
            )
        except DecisecError as error:
            if not _taken(error):
                raise
        else:
            return
        rows = await store.query(
            "SELECT comment, dateDiff('second', metadata_modification_time, now())"
            " FROM system.tables WHERE database = {database:String} AND name = {table:String}",
            {"database": store.database, "table": TABLE},
        )
        if not rows:
            continue
        other, age_s = str(rows[0][0]), int(rows[0][1])
        if age_s >= left_behind_s:
            _log.warning("schema_lock.taken_over", holder=other, age_s=age_s)
            await store.command(f"DROP TABLE IF EXISTS {TABLE} SYNC")
        elif not told:
            _log.info("schema_lock.awaited", holder=other, age_s=age_s)
            told = True
        await asyncio.sleep(_LOOK_EVERY_S)


def _taken(error: DecisecError) -> bool:
    cause = error.__cause__
    return isinstance(cause, Error) and cause.code == _TABLE_ALREADY_EXISTS
