"""What an operator asks of the store, on `store.ask.<verb>`, and the answers.

Core NATS, asked of whichever batcher answers first: with an embedded store that is the one that
owns it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from enum import StrEnum
from typing import Annotated

import msgspec

from schemas.audit import MAX_AUDIT_REASON
from schemas.audit_log import AuditPage, AuditQuery
from schemas.codec import decoder
from schemas.corrections import Backfill, BackfillWish
from schemas.errors import ErrorInfo
from schemas.ids import CustomerId, HostId
from schemas.units import Counter
from schemas.usage import UsageRow
from schemas.vms import Timestamp


class StoreVerb(StrEnum):
    """What can be asked."""

    STATUS = "status"
    CHECK = "check"
    REPAIR = "repair"
    PREVIEW = "preview"
    BACKFILL = "backfill"
    USAGE = "usage"
    AUDIT = "audit"


class StoreQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """A question to the store.

    Attributes:
        day: Of a check or a repair: which UTC day's usage.
        actor: Of a repair or a backfill: who says to do it.
        reason: Of a repair or a backfill: why, in one line.
        backfill: Of a backfill or its preview: what is to be corrected.
        host: Whose usage.
        start: Of usage: inclusive; as in a `UsageQuery`.
        end: Of usage: exclusive, likewise.
        audit: Which entries of the audit log.
        customer: Of the audit log: only this one's; all by default.
    """

    day: date | None = None
    actor: Annotated[str, msgspec.Meta(max_length=255)] = ""
    reason: Annotated[str, msgspec.Meta(max_length=MAX_AUDIT_REASON)] = ""
    backfill: BackfillWish | None = None
    host: HostId | None = None
    start: Timestamp | None = None
    end: Timestamp | None = None
    audit: AuditQuery | None = None
    customer: CustomerId | None = None


class MigrationState(StrEnum):
    """How a migration stands.

    Attributes:
        APPLIED: The store has it.
        PENDING: The store lacks it.
        CHANGED: The store has it with other contents.
        UNKNOWN: The store has it and this version of decisec does not.
    """

    APPLIED = "applied"
    PENDING = "pending"
    CHANGED = "changed"
    UNKNOWN = "unknown"


class MigrationStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One migration; `sha256` is that of the file, or of what was applied if there is none."""

    version: int
    name: str
    sha256: str
    state: MigrationState
    applied_at: Timestamp | None = None


class MigrationsDone(msgspec.Struct, frozen=True, kw_only=True):
    """The schema after migrating; `pending` is 0 then."""

    migrations: tuple[MigrationStatus, ...]
    pending: int = 0


class TableStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One table: what it holds before merges, its size on disk, and how long it keeps rows."""

    name: str
    rows: Counter
    size_bytes: Counter
    kept_days: int


class StoreStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How the store stands.

    Attributes:
        engine: ClickHouse's version.
        embedded: It runs inside the batcher.
        cluster: Whose replicas the tables are on; empty for none.
        first_day: From this UTC day on ticks are kept whole: rollups can be checked.
        last_day: The current one.
    """

    engine: str
    embedded: bool
    database: str
    cluster: str = ""
    first_day: date
    last_day: date
    migrations: tuple[MigrationStatus, ...]
    tables: tuple[TableStatus, ...]


class Level(StrEnum):
    """A rollup."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Where a customer's rollup differs from the ticks.

    Attributes:
        behind: So many of its minutes, hours or days lack something that the ticks show.
        ahead: So many know more than the ticks that are left.
    """

    customer_id: CustomerId
    level: Level
    behind: Counter
    ahead: Counter


class DayCheck(msgspec.Struct, frozen=True, kw_only=True):
    """A UTC day's rollups against its ticks.

    Attributes:
        compared: Rows that were compared: one per VM, incarnation and minute, hour or day.
        differences: Only where there are any.
        repaired: Customers whose rollups were inserted again; the differences are those from
            before.
        left: What still differs afterwards.
        not_shown: So many more differences than an answer holds.
    """

    day: date
    customers: Counter
    compared: Counter
    differences: tuple[Difference, ...] = ()
    repaired: tuple[CustomerId, ...] = ()
    left: tuple[Difference, ...] = ()
    not_shown: Counter = 0


class CustomerUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What a customer's VMs used on a host: sums over VMs and incarnations."""

    customer_id: CustomerId
    vms: Counter
    incarnations: Counter
    samples: Counter
    totals: dict[str, Counter]


class HostUsageRow(UsageRow, frozen=True, kw_only=True):
    """One VM's usage on a host."""

    customer_id: CustomerId

    @classmethod
    def of(cls, customer_id: CustomerId, row: UsageRow) -> HostUsageRow:
        """A customer's VM."""
        return cls(customer_id=customer_id, **msgspec.structs.asdict(row))


class HostUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What was used on a host in a window. Names of hosts are for operators only.

    Attributes:
        vms: By customer and VM.
        not_shown: So many more VMs than an answer holds; they are in all sums.
        samples_since, complete_until, complete: As in a `UsageReport`, for this host alone.
        lost: It is declared lost: that time does not wait for it.
    """

    host_id: HostId
    start: Timestamp
    end: Timestamp
    customers: tuple[CustomerUsage, ...]
    totals: dict[str, Counter]
    vms: tuple[HostUsageRow, ...]
    not_shown: Counter = 0
    samples_since: Timestamp | None = None
    complete_until: Timestamp | None = None
    complete: bool = False
    lost: bool = False


class StoreReply(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for, or the reason why there is none."""

    status: StoreStatus | None = None
    check: DayCheck | None = None
    backfill: Backfill | None = None
    usage: HostUsage | None = None
    audit: AuditPage | None = None
    error: ErrorInfo | None = None


decode_store_question: Callable[[bytes], StoreQuestion] = decoder(StoreQuestion)
decode_migrations_done: Callable[[bytes], MigrationsDone] = decoder(MigrationsDone)
decode_store_reply: Callable[[bytes], StoreReply] = decoder(StoreReply)
