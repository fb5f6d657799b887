"""`python -m batcher.migrate`: bring a store's schema up to date, and end.

For a server whose schema is to be there before the batchers are, or that is changed by another user
than theirs. A batcher does the same when it starts.
"""

from __future__ import annotations

import asyncio
import logging
import sys

from batcher.migrations import migrate, shipped, statuses
from batcher.retention import apply_retention
from batcher.settings import BatcherSettings
from batcher.store import Store
from runtime.errors import DecisecError, SettingsError
from runtime.service import EXIT_CONFIG, EXIT_FATAL
from runtime.settings import load
from runtime.telemetry import configure_logging
from schemas.codec import encode
from schemas.store import MigrationsDone, MigrationState


async def _migrate(settings: BatcherSettings) -> MigrationsDone:
    store = Store(settings)
    try:
        await apply_retention(store, settings, await migrate(store, shipped()))
        found = await statuses(store, shipped())
    finally:
        await store.close()
    return MigrationsDone(
        migrations=found,
        pending=sum(one.state is not MigrationState.APPLIED for one in found),
    )


def main() -> int:
    """Migrate by the batcher's settings; the result is one JSON document on stdout."""
    configure_logging("batcher", "warning")
    logging.getLogger("clickhouse_connect").setLevel(logging.ERROR)
    try:
        settings = load(BatcherSettings, "batcher")
        settings.check()
        done = asyncio.run(_migrate(settings))
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_CONFIG
    except DecisecError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_FATAL
    sys.stdout.buffer.write(encode(done) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
