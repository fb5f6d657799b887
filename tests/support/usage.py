"""Usage by its definition, and the way to ask a store for it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from uuid import UUID

from batcher.store import Store
from batcher.usage import report
from batcher.windows import Window
from schemas.frames import SampleFlag
from schemas.ids import new_id
from schemas.usage import UsageQuery, UsageReport, UsageRow
from schemas.vms import METERS
from tests.support.store import Reading

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LIMIT_S = 30


def base_ms() -> int:
    """A whole minute, an hour ago."""
    now_ms = int(datetime.now(UTC).timestamp()) * 1000
    return now_ms // 60_000 * 60_000 - 3_600_000


def at(ms: int) -> datetime:
    """Unix ms as an instant."""
    return EPOCH + timedelta(milliseconds=ms)


async def ask(
    store: Store, customer: str, start_ms: int, end_ms: int, vm_ids: tuple[UUID, ...] = ()
) -> UsageReport:
    """A customer's usage in `[start_ms, end_ms)`."""
    query = UsageQuery(start=at(start_ms), end=at(end_ms), vm_ids=vm_ids)
    window = Window.between(query.start, query.end)
    return await report(store, customer, query, window, limit_s=LIMIT_S)


def fresh_customer() -> str:
    """Whose usage no other test touches."""
    return f"c-{new_id().hex}"


def expected(readings: Iterable[Reading], start: int, end: int) -> dict[UUID, UsageRow]:
    """What must be answered for these readings: `counter(end) - counter(start)`, by VM."""
    lives: dict[tuple[UUID, int], list[Reading]] = defaultdict(list)
    for reading in readings:
        lives[reading.vm_id, reading.incarnation].append(reading)
    inside: dict[UUID, list[int]] = defaultdict(list)
    used: dict[UUID, dict[str, int]] = defaultdict(lambda: dict.fromkeys(METERS, 0))
    ticks: dict[UUID, int] = defaultdict(int)
    for (vm_id, incarnation), life in lives.items():
        seen = {r.tick_ms for r in life if start <= r.tick_ms < end}
        if not seen:
            continue
        inside[vm_id].append(incarnation)
        ticks[vm_id] += len(seen)
        for meter in METERS:
            before = [max((r.counters[meter] for r in life if r.tick_ms < t), default=0)
                      for t in (start, end)]  # fmt: skip
            used[vm_id][meter] += before[1] - before[0]
    return {
        vm_id: UsageRow(
            vm_id=vm_id,
            incarnations=len(numbers),
            samples=ticks[vm_id],
            settled=any(r.flags & SampleFlag.FINAL for r in lives[vm_id, max(numbers)]),
            simulated=False,
            **used[vm_id],
        )
        for vm_id, numbers in inside.items()
    }


def grown(vm_id: UUID, tick: int, value: int, **more: object) -> Reading:
    """A tick at which all counters have one value."""
    return Reading(vm_id, tick, counters=dict.fromkeys(METERS, value), **more)  # type: ignore[arg-type]
