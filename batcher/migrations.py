"""The store's schema: numbered SQL files, applied in order, each once.

Statements are idempotent (`IF NOT EXISTS`), because ClickHouse has no transactions around them:
a migration that was cut off is run again as a whole.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from importlib.resources.abc import Traversable

import structlog

from batcher.schema_lock import schema_lock
from batcher.store import Store
from runtime.errors import FatalError
from schemas.store import MigrationState, MigrationStatus

_log = structlog.get_logger("decisec.migrations")

_NAME = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
_LEDGER = """
CREATE TABLE IF NOT EXISTS schema_migrations
(
    version UInt32,
    name String,
    sha256 String,
    applied_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC')
)
ENGINE = MergeTree
ORDER BY version
"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file."""

    version: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        """Digest of the file's text."""
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @property
    def statements(self) -> list[str]:
        """Its statements, one by one; each ends with `;` at the end of a line."""
        return [s.strip() for s in re.split(r";\s*(?:\n|\Z)", self.sql) if s.strip()]


def shipped(folder: Traversable | None = None) -> list[Migration]:
    """The migrations that came with this version, in order.

    Raises:
        FatalError: A file's name is wrong, or a number is missing or there twice.
    """
    folder = folder or resources.files("infra").joinpath("clickhouse").joinpath("migrations")
    found = []
    for entry in folder.iterdir():
        match = _NAME.fullmatch(entry.name)
        if match is None:
            raise FatalError(f"{entry.name} is no migration: expected NNNN_name.sql")
        found.append(Migration(int(match[1]), match[2], entry.read_text()))
    found.sort(key=lambda migration: migration.version)
    if [m.version for m in found] != list(range(1, len(found) + 1)):
        raise FatalError(f"migrations must count from 1: {[m.version for m in found]}")
    return found


def missing(
    migrations: Sequence[Migration], applied: Sequence[tuple[int, str]]
) -> Sequence[Migration]:
    """What is still to be applied.

    Args:
        migrations: All there are.
        applied: Version and digest of those that the database has.

    Raises:
        FatalError: An applied file has changed since, or the database is newer than the code.
    """
    known = {migration.version: migration for migration in migrations}
    for version, digest in applied:
        migration = known.get(version)
        if migration is None:
            raise FatalError(
                f"the database has migration {version:04}, this version of decisec knows only "
                f"{len(known):04}: start a newer batcher"
            )
        if migration.sha256 != digest:
            raise FatalError(
                f"migration {version:04}_{migration.name} was applied with other contents "
                f"(sha256 {digest[:12]}…, now {migration.sha256[:12]}…): never change an applied "
                "migration, add one"
            )
    done = {version for version, _ in applied}
    return [migration for migration in migrations if migration.version not in done]


async def migrate(store: Store, migrations: Sequence[Migration]) -> datetime:
    """Bring the store's schema up to date; safe to repeat and to run in several processes at once.

    Returns:
        When the store got its first table, in UTC.

    Raises:
        FatalError: As `missing` says, or the store refuses a statement.
        TransientError: The store is away.
    """
    await store.change(_LEDGER)
    if missing(migrations, await _applied(store)):
        async with schema_lock(store):
            # Whoever held the lock before has perhaps done it all.
            for migration in missing(migrations, await _applied(store)):
                await _apply(store, migration)
    rows = await store.query(
        "SELECT toUnixTimestamp64Milli(min(applied_at)) FROM schema_migrations"
    )
    return datetime.fromtimestamp(int(rows[0][0]) / 1000, UTC)


async def statuses(store: Store, migrations: Sequence[Migration]) -> tuple[MigrationStatus, ...]:
    """How each migration stands, those included that only the database has.

    Raises:
        FatalError, TransientError: As `Store.query` does.
    """
    rows = await store.query(
        "SELECT version, any(name), any(sha256), toUnixTimestamp64Milli(min(applied_at))"
        " FROM schema_migrations GROUP BY version ORDER BY version"
    )
    ledger = {int(version): (str(name), str(sha), int(at)) for version, name, sha, at in rows}
    known = {migration.version: migration for migration in migrations}
    return tuple(
        _status(version, known.get(version), ledger.get(version))
        for version in sorted(known.keys() | ledger.keys())
    )


def _status(
    version: int, migration: Migration | None, applied: tuple[str, str, int] | None
) -> MigrationStatus:
    if applied is None:
        if migration is None:
            raise ValueError(f"migration {version} is neither known nor applied")
        return MigrationStatus(
            version=version,
            name=migration.name,
            sha256=migration.sha256,
            state=MigrationState.PENDING,
        )
    name, digest, at_ms = applied
    if migration is None:
        state = MigrationState.UNKNOWN
    else:
        same = migration.sha256 == digest
        state = MigrationState.APPLIED if same else MigrationState.CHANGED
    return MigrationStatus(
        version=version,
        name=migration.name if migration else name,
        sha256=digest,
        state=state,
        applied_at=datetime.fromtimestamp(at_ms / 1000, UTC),
    )


async def _applied(store: Store) -> list[tuple[int, str]]:
    rows = await store.query("SELECT DISTINCT version, sha256 FROM schema_migrations")
    return [(int(version), str(digest)) for version, digest in rows]


async def _apply(store: Store, migration: Migration) -> None:
    for statement in migration.statements:
        await store.change(statement)
    await store.command(
        "INSERT INTO schema_migrations (version, name, sha256) "
        "VALUES ({version:UInt32}, {name:String}, {sha256:String})",
        {
            "version": migration.version,
            "name": migration.name,
            "sha256": migration.sha256,
        },
    )
    _log.info("migration.applied", version=migration.version, name=migration.name)
