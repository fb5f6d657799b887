"""Exact by construction: from frames to the bill, whatever becomes of them on the way.

The collector's own pipeline, the batcher's own tables and queries, a real engine; only the bus is
left out. `test_usage.py` has the store by itself, `test_collector_properties.py` the collector.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from uuid import UUID

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batcher.host_usage import host_report
from batcher.store import Store
from batcher.windows import Window
from collector.messages import Intake, Now, Outcome
from schemas.frames import EnrichedFrame, Frame, RejectReason, encode_frame
from schemas.ids import new_id
from schemas.store import CustomerUsage, HostUsageRow
from schemas.subjects import METRICS_RAW, metrics_raw, vm_key
from schemas.units import NS_PER_MS
from schemas.usage import UsageReport
from schemas.vms import METERS
from tests.support.feed import enriched_of, ids_of, pipeline_of, rejected_of
from tests.support.lives import Delivery, World, deliveries, forgeries, mixed, worlds
from tests.support.store import Reading, embedded_store, enriched, insert
from tests.support.usage import ask, at, base_ms, expected, fresh_customer

SETTINGS = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[
        HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture,
    ],
)  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def store(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Store]:
    folder: Path = tmp_path_factory.mktemp("exact")
    async with embedded_store(folder / "store") as opened:
        yield opened


class Collecting:
    """A collector that may be restarted, and everything that it passed on. It refuses lies only.

    Attributes:
        passed: The frames that left for the batcher.
        readings: Their rows, as the world knows them.
    """

    def __init__(self, world: World) -> None:
        self.passed: list[EnrichedFrame] = []
        self.readings: list[Reading] = []
        self._known = {record.vm_id: record for record in world.records}
        self._moves = list(world.moves)
        self._rows = {(r.vm_id, r.incarnation, r.tick_ms): r for r in world.readings}
        self._sequence = 0
        self._waited_ns = 0
        self._pipeline = pipeline_of(*world.records)

    def take(self, delivery: Delivery) -> None:
        """Process one delivery."""
        if delivery.restarted:
            self._pipeline = pipeline_of(*self._known.values())
        sent = delivery.frame
        while self._moves and self._moves[0][0] <= sent.tick_ms:
            _, record = self._moves.pop(0)
            self._known[record.vm_id] = record
            self._pipeline.specs.change(vm_key(record.customer_id, record.vm_id), record)
        self._sequence += 1
        intake = Intake(
            metrics_raw(sent.host), encode_frame(sent), METRICS_RAW, self._sequence,
            delivery.redelivered,
        )  # fmt: skip
        outcome = self._pipeline.process(intake, self._now())
        if delivery.forged:
            if outcome.wait:
                self._waited_ns += self._pipeline.rules.unknown_wait_ns
                outcome = self._pipeline.process(intake, self._now())
            assert rejected_of(outcome) == {RejectReason.FOREIGN_VM: ids_of(sent)}
            assert enriched_of(outcome).rows == 0
        else:
            self._note(sent, outcome)

    def _now(self) -> Now:
        return Now(time.time_ns() + self._waited_ns, time.monotonic_ns() + self._waited_ns)

    def _note(self, sent: Frame, outcome: Outcome) -> None:
        frame = enriched_of(outcome)
        assert rejected_of(outcome) == {}
        assert ids_of(frame) == ids_of(sent), "a row went neither on nor aside"
        self.passed.append(frame)
        for vm_id, incarnation in _rows_of(frame):
            self.readings.append(self._rows[vm_id, incarnation, frame.tick_ms])


def _rows_of(frame: EnrichedFrame) -> list[tuple[UUID, int]]:
    numbers = memoryview(frame.incarnations).cast("I").tolist()
    return list(zip(ids_of(frame), numbers, strict=True))


@st.composite
def batches(draw: st.DrawFn, frames: Sequence[EnrichedFrame]) -> list[Sequence[EnrichedFrame]]:
    """Cut anywhere; some are stored twice, as after a lost answer, and with other borders."""
    cuts = sorted(draw(st.lists(st.integers(0, len(frames)), max_size=3)))
    pieces = [frames[a:b] for a, b in zip([0, *cuts], [*cuts, len(frames)], strict=True) if b > a]
    if draw(st.booleans()) and pieces:
        pieces.append(pieces[draw(st.integers(0, len(pieces) - 1))])
    if draw(st.booleans()) and frames:
        first = draw(st.integers(0, len(frames) - 1))
        pieces.append(frames[first : first + draw(st.integers(1, len(frames)))])
    return pieces


@st.composite
def windows(draw: st.DrawFn, world: World, base: int) -> tuple[int, int, int]:
    """Two neighbouring windows, aligned to minutes, to ticks, or to nothing."""
    moment = st.one_of(
        st.integers(-1, 40).map(lambda m: base + m * 60_000),
        st.integers(0, 2_400_000).map(lambda ms: base + ms),
        st.sampled_from(world.ticks_ms),
        st.sampled_from(world.ticks_ms).map(lambda ms: ms + 1),
    )
    three = draw(st.lists(moment, min_size=3, max_size=3, unique=True).map(sorted))
    return three[0], three[1], three[2]


async def used_on(
    store: Store, host: str, start_ms: int, end_ms: int
) -> tuple[dict[str, CustomerUsage], tuple[HostUsageRow, ...]]:
    """A host's usage by customer, and by customer and VM."""
    window = Window.between(at(start_ms), at(end_ms))
    customers, vms = await host_report(store, host, window, limit_s=30)
    return {one.customer_id: one for one in customers}, vms


def _add_up(whole: UsageReport, left: UsageReport, right: UsageReport) -> None:
    by_vm = [{row.vm_id: row for row in part.vms} for part in (whole, left, right)]
    assert set(by_vm[0]) == set(by_vm[1]) | set(by_vm[2])
    for meter in METERS:
        assert whole.totals[meter] == left.totals[meter] + right.totals[meter]
        assert whole.totals[meter] == sum(getattr(row, meter) for row in whole.vms)
        for vm_id, row in by_vm[0].items():
            parts = [getattr(part[vm_id], meter) for part in by_vm[1:] if vm_id in part]
            assert min(parts) >= 0
            assert getattr(row, meter) == sum(parts)


@SETTINGS
@given(data=st.data())
async def test_a_bill_is_what_the_counters_say(store: Store, data: st.DataObject) -> None:
    """Over any window, by VM, customer, host and meter; lies of other hosts are not billed."""
    base = base_ms()
    customers = [fresh_customer(), fresh_customer()]
    world = data.draw(worlds(customers, base))
    collecting = Collecting(world)
    honest = data.draw(deliveries(world.frames))
    lies = data.draw(forgeries(world)) if world.readings else []
    for delivery in data.draw(mixed(honest, lies)):
        collecting.take(delivery)
    for batch in data.draw(batches(collecting.passed)):
        await insert(store, batch)
    if data.draw(st.integers(0, 4)) == 0:
        await store.command("OPTIMIZE TABLE samples FINAL")
        await store.command("OPTIMIZE TABLE usage_minute FINAL")
    start, middle, end = data.draw(windows(world, base))
    by_host = [await used_on(store, host, start, end) for host in world.hosts]
    for customer in customers:
        mine = [r for r in collecting.readings if r.customer == customer]
        whole = await ask(store, customer, start, end)
        assert {row.vm_id: row for row in whole.vms} == expected(mine, start, end)
        left = await ask(store, customer, start, middle)
        right = await ask(store, customer, middle, end)
        _add_up(whole, left, right)
        for host, (sums, rows) in zip(world.hosts, by_host, strict=True):
            there = [r for r in mine if world.owners[r.vm_id, r.incarnation] == host]
            assert [row for row in rows if row.customer_id == customer] == [
                HostUsageRow.of(customer, row)
                for _, row in sorted(expected(there, start, end).items())
            ]
            assert (customer in sums) is bool(expected(there, start, end))
        for meter in METERS:
            on_hosts = [sums[customer].totals[meter] for sums, _ in by_host if customer in sums]
            assert sum(on_hosts) == whole.totals[meter]
        if whole.vms:
            one = data.draw(st.sampled_from(whole.vms))
            assert (await ask(store, customer, start, end, (one.vm_id,))).vms == (one,)


@SETTINGS
@given(data=st.data())
async def test_a_life_costs_its_final_counters(store: Store, data: st.DataObject) -> None:
    """Over all incarnations and hosts, whatever was lost before each one's last frame."""
    base = base_ms()
    customer = fresh_customer()
    world = data.draw(worlds([customer], base))
    last_ms = {(r.vm_id, r.incarnation): r.tick_ms for r in world.readings}
    needed = set(last_ms.values())
    collecting = Collecting(world)
    for one in world.frames:
        if one.tick_ms in needed or data.draw(st.booleans()):
            collecting.take(Delivery(one, redelivered=False, restarted=False))
    if collecting.passed:
        await insert(store, collecting.passed)
    truth: dict[UUID, dict[str, int]] = {}
    for (vm_id, _), counters in world.last().items():
        so_far = truth.setdefault(vm_id, dict.fromkeys(METERS, 0))
        for meter in METERS:
            so_far[meter] += counters[meter]
    answer = await ask(store, customer, base - 60_000, base + 3_600_000)
    assert {
        row.vm_id: {meter: getattr(row, meter) for meter in METERS} for row in answer.vms
    } == truth


# ── the worked example ────────────────────────────────────────────────────────────────────────


def _table(headline: str) -> list[list[str]]:
    """The cells of a table of `docs/metering.md`, from its headline on."""
    lines = (Path(__file__).parents[2] / "docs" / "metering.md").read_text().splitlines()
    begin = lines.index(headline) + 2
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[begin:])
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def _ms(base: int, clock: str) -> int:
    hours, minutes, seconds = clock.split(":")
    return base + (int(hours) * 60 + int(minutes) - 600) * 60_000 + round(float(seconds) * 1000)


def _number(text: str) -> int:
    return int(text.replace(",", ""))


async def test_the_example_in_the_docs_is_billed_as_the_docs_say(store: Store) -> None:
    """Every line of it, and both ways there: the numbers, and how they come about."""
    customer, vm_id, base = fresh_customer(), new_id(), base_ms()
    late = []
    readings = _table(
        "| # | read at | start no. | CPU so far (ms) | received so far (bytes) | arrived |"
    )
    for _, clock, start, cpu, received, arrived in readings:
        counters = {"cpu_ns": _number(cpu) * NS_PER_MS, "net_rx_bytes": _number(received)}
        reading = Reading(vm_id, _ms(base, clock), int(start), counters=counters, customer=customer)
        times = {"once": 1, "never": 0, "twice": 2, "late": 0}[arrived]
        late += [reading] if arrived == "late" else []
        for _ in range(times):
            await insert(store, [enriched([reading])])
    for reading in late:
        await insert(store, [enriched([reading])])
    bills = _table("| from | to | start 1 | start 2 | CPU (ms) | received (bytes) |")
    assert (len(readings), len(bills)) == (8, 6)
    for begin, end, *parts, cpu, received in bills:
        answer = await ask(store, customer, _ms(base, begin), _ms(base, end))
        assert answer.totals["cpu_ns"] == _number(cpu) * NS_PER_MS
        assert answer.totals["net_rx_bytes"] == _number(received)
        pairs = [found for part in parts if (found := re.findall(r"[\d,]+", part))]
        assert sum(_number(after) - _number(before) for after, before in pairs) == _number(cpu)
