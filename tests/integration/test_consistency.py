"""Rollups against ticks, on a real chDB: what differs is found, and made good from the ticks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta

import pytest
import pytest_asyncio

from batcher.consistency import Consistency, checkable
from batcher.store import Store
from batcher.windows import Retention
from runtime.clock import SystemClock
from schemas.ids import new_id
from schemas.store import Level
from schemas.vms import METERS
from tests.support.store import Reading, embedded_store, enriched, insert

DAY = datetime.now(UTC).date() - timedelta(days=2)
BASE_MS = int(datetime(DAY.year, DAY.month, DAY.day, tzinfo=UTC).timestamp()) * 1000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def store(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Store]:
    async with embedded_store(tmp_path_factory.mktemp("consistency") / "store") as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def filled(store: Store) -> Store:
    """Two customers with a VM each, 25 ticks over 25 hours."""
    for table in ("samples", "usage_minute", "usage_hour", "usage_day"):
        await store.command(f"TRUNCATE TABLE {table}")
    for customer in ("acme", "bolt"):
        vm_id, run_id = new_id(), new_id()
        await insert(
            store,
            [
                enriched(
                    [
                        Reading(
                            vm_id, BASE_MS + hour * 3_600_000 + 100,
                            counters=dict.fromkeys(METERS, hour), customer=customer,
                        )
                    ],
                    run_id=run_id, seq=hour,
                )
                for hour in range(25)
            ],
        )  # fmt: skip
    return store


@pytest.fixture
def consistency(store: Store) -> Consistency:
    return Consistency(store, SystemClock(), look_again_after_s=0)


async def test_rollups_that_agree_are_counted_and_not_touched(
    filled: Store, consistency: Consistency
) -> None:
    """24 minutes, 24 hours and a day of each VM; a repair finds nothing to do."""
    found = await consistency.check(DAY)
    assert (found.customers, found.compared, found.differences) == (2, 2 * (24 + 24 + 1), ())
    assert (await consistency.repair(DAY)).repaired == ()
    rows = await filled.query("SELECT count() FROM usage_minute")
    assert rows[0][0] == 2 * 25


async def test_what_is_missing_is_found_and_made_good_again_and_again(
    filled: Store, consistency: Consistency
) -> None:
    """Of one customer minutes, hours and the day are lost, twice: the other is left alone."""
    for _ in range(2):
        for table in ("usage_minute", "usage_hour", "usage_day"):
            await filled.command(
                f"ALTER TABLE {table} DELETE WHERE customer_id = 'acme' SETTINGS mutations_sync = 2"
            )
        found = await consistency.repair(DAY)
        assert [(d.customer_id, d.level, d.behind, d.ahead) for d in found.differences] == [
            ("acme", Level.MINUTE, 24, 0),
            ("acme", Level.HOUR, 24, 0),
            ("acme", Level.DAY, 1, 0),
        ]
        assert found.repaired == ("acme",)
        assert found.left == ()
        assert (await consistency.check(DAY)).differences == ()
    following = await consistency.check(DAY + timedelta(days=1))
    assert [(d.customer_id, d.behind) for d in following.differences] == [("acme", 1)] * 3


async def test_a_customer_with_many_vms_is_compared_in_parts(
    store: Store, consistency: Consistency
) -> None:
    """45 VMs are three parts: what each lacks is found, added up and made good."""
    vms = [new_id() for _ in range(45)]
    frame = enriched([Reading(vm, BASE_MS, 1, 0, {"cpu_ns": 9}, "many") for vm in vms])
    await insert(store, [frame])
    lost = ", ".join(f"'{vm}'" for vm in sorted(vms)[::9])
    await store.command(
        f"ALTER TABLE usage_minute DELETE WHERE vm_id IN ({lost}) SETTINGS mutations_sync = 2"
    )
    found = await consistency.repair(DAY)
    many = [d for d in found.differences if d.customer_id == "many"]
    assert [(d.level, d.behind, d.ahead) for d in many] == [(Level.MINUTE, 5, 0)]
    assert "many" in found.repaired
    assert found.left == ()
    left = (await consistency.check(DAY)).differences
    assert "many" not in {d.customer_id for d in left}


@pytest.mark.parametrize("column", ["cpu_ns", "flags", "ticks_0", "last_tick_ms"])
async def test_a_single_value_that_differs_is_found(
    filled: Store, consistency: Consistency, column: str
) -> None:
    """A counter, a flag or a tick that a rollup lacks is behind; one too many is ahead."""
    await filled.command("OPTIMIZE TABLE usage_minute FINAL")
    where = f"customer_id = 'bolt' AND minute_ms = {BASE_MS + 7 * 3_600_000}"
    more = {"cpu_ns": "cpu_ns + 1", "flags": "4", "ticks_0": "7", "last_tick_ms": "minute_ms + 900"}
    for value, behind, ahead in (("0", 1, 0), (more[column], 0, 1)):
        if column == "flags" and behind:
            continue
        await filled.command(
            f"ALTER TABLE usage_minute UPDATE {column} = {value} WHERE {where}"
            " SETTINGS mutations_sync = 2"
        )
        found = (await consistency.repair(DAY)).differences
        assert [(d.customer_id, d.level, d.behind, d.ahead) for d in found] == [
            ("bolt", Level.MINUTE, behind, ahead)
        ]
        left = (await consistency.check(DAY)).differences
        assert [(d.behind, d.ahead) for d in left] == ([(0, 1)] if ahead else [])
        await filled.command("OPTIMIZE TABLE usage_minute FINAL")


async def test_ticks_that_came_days_later_are_compared_with_their_own_day(
    store: Store, consistency: Consistency
) -> None:
    """Whatever day they were collected on, the one before by a clock that is behind included."""
    reading = Reading(new_id(), BASE_MS, counters=dict.fromkeys(METERS, 3), customer="late")
    for days in (-1, 0, 1, 2):
        collected_ms = BASE_MS + days * 86_400_000 + (86_399_000 if days < 0 else 0)
        await insert(store, [enriched([reading], collected_at_ns=collected_ms * 10**6)])
    await store.command(
        "ALTER TABLE usage_minute DELETE WHERE customer_id = 'late' SETTINGS mutations_sync = 2"
    )
    found = await consistency.repair(DAY)
    late = [d for d in found.differences if d.customer_id == "late"]
    assert [(d.level, d.behind) for d in late] == [(Level.MINUTE, 1)]
    rows = await store.query("SELECT count() FROM usage_minute WHERE customer_id = 'late'")
    assert (found.left, rows[0][0]) == ((), 4)


def test_days_whose_ticks_may_have_expired_are_not_checked() -> None:
    """The day that is half expired is left out."""
    now = datetime(2030, 6, 20, 12, tzinfo=UTC)
    old = Retention(now - timedelta(days=400), timedelta(days=7), timedelta(days=90))
    assert checkable(old, now) == (date(2030, 6, 14), date(2030, 6, 20))
