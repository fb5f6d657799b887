"""Counters and meters: exact, never back, one baseline, one final sample."""

from __future__ import annotations

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from schemas.frames import SampleFlag
from schemas.ids import new_id
from schemas.vms import Counters, VmState
from vm_agent.counters import ZERO, Values, climb, reading, to_counters, to_values
from vm_agent.drivers.abc import DeviceCounters
from vm_agent.metering import GoneSources, VmMeter

amounts = st.integers(0, 2**62)
values = st.tuples(*[amounts] * 7)


class FixedSources(GoneSources):
    """Sources that a test sets."""

    def __init__(self) -> None:
        self.cpu: int | None = 0
        self.settled: int | None = None
        self.net: tuple[int, int] | None = (0, 0)
        self.closed = 0

    def cpu_ns(self) -> int | None:
        return self.cpu

    def settled_cpu_ns(self) -> int | None:
        return self.settled

    def net_bytes(self) -> tuple[int, int] | None:
        return self.net

    def close(self) -> None:
        self.closed += 1


def a_meter(
    sources: FixedSources, last: Values | None = None, vm_id: UUID | None = None
) -> VmMeter:
    return VmMeter(
        vm_id or new_id(),
        3,
        memory_mib=128,
        started_ns=1_000_000_000,
        sources=sources,
        state=VmState.RUNNING,
        last=last,
    )


@given(st.lists(values, max_size=20))
def test_counters_never_go_back_and_every_step_back_is_counted(series: list[Values]) -> None:
    """Each counter is the greatest reading so far."""
    last = ZERO
    for i, read in enumerate(series):
        before = last
        last, held = climb(last, read)
        assert last == tuple(max(column) for column in zip(ZERO, *series[: i + 1], strict=True))
        assert held == sum(r < b for r, b in zip(read, before, strict=True))


@given(st.integers(0, 2**50), st.integers(16, 2**20))
def test_memory_over_time_is_an_exact_integer(uptime_ns: int, memory_mib: int) -> None:
    """KiB times ms, by the same uptime that is billed."""
    read = reading(
        uptime_ns=uptime_ns, memory_mib=memory_mib, cpu_ns=0, net=(0, 0), device=DeviceCounters()
    )
    assert read[0] == uptime_ns // 10**6
    assert read[2] == memory_mib * 1024 * read[0]


def test_the_vmms_own_numbers_win_over_the_kernels() -> None:
    """Where a VMM tells CPU or network, the process clock and the tap are not asked."""
    device = DeviceCounters(
        disk_read_bytes=1, disk_write_bytes=2, net_rx_bytes=3, net_tx_bytes=4, cpu_ns=5
    )
    read = reading(uptime_ns=0, memory_mib=1, cpu_ns=99, net=(98, 97), device=device)
    assert read == (0, 5, 0, 1, 2, 3, 4)


@given(values)
def test_tuple_and_message_form_agree(numbers: Values) -> None:
    """There and back again."""
    assert to_values(to_counters(numbers)) == numbers


def test_a_meter_begins_at_zero_and_ends_with_exactly_the_final_counters() -> None:
    """Baseline, samples, final; uptime stands still once the VMM has ended."""
    sources = FixedSources()
    meter = a_meter(sources)
    sources.cpu = 7
    row = meter.row(1_050_000_000)
    assert (row.flags, row.values) == (SampleFlag.BASELINE, ZERO)
    sources.cpu, sources.net = 10, (5, 6)
    meter.device = DeviceCounters(disk_read_bytes=1, disk_write_bytes=2)
    row = meter.row(1_100_000_000)
    assert (row.flags, row.values) == (0, (100, 10, 100 * 128 * 1024, 1, 2, 5, 6))
    meter.stop_clock(1_150_000_000)
    sources.cpu, sources.net = None, None
    assert meter.row(1_900_000_000).values == (150, 10, 150 * 128 * 1024, 1, 2, 5, 6)
    assert not is_ready(meter)
    final = meter.settle(now_ns=2_000_000_000, cpu_ns=11)
    meter.finish(final)
    assert final.uptime_ms == 150
    assert final.cpu_ns == 11
    assert is_ready(meter)
    row = meter.row(3_000_000_000)
    assert (row.flags, row.state, row.values) == (
        SampleFlag.FINAL, VmState.STOPPED, to_values(final),
    )  # fmt: skip
    assert sources.closed == 1


def test_an_incarnation_that_ends_at_once_still_gets_its_baseline_first() -> None:
    """Final counters that stand before the first tick wait for the second one."""
    meter = a_meter(FixedSources())
    final = meter.settle(now_ns=1_010_000_000, cpu_ns=5)
    meter.finish(final)
    assert not is_ready(meter)
    assert meter.row(1_100_000_000).flags == SampleFlag.BASELINE
    assert is_ready(meter)
    assert to_counters(meter.row(1_200_000_000).values) == final == Counters(
        uptime_ms=10, cpu_ns=5, mem_kib_ms=10 * 128 * 1024
    )  # fmt: skip


def test_an_adopted_incarnation_goes_on_from_what_was_reported() -> None:
    """No second baseline; sources that start lower are held and counted."""
    meter = a_meter(FixedSources(), last=(500, 50, 500 * 128 * 1024, 10, 20, 30, 40))
    row = meter.row(1_400_000_000)
    assert row.flags == 0
    assert row.values == (500, 50, 500 * 128 * 1024, 10, 20, 30, 40)
    assert meter.held == 5


def is_ready(meter: VmMeter) -> bool:
    """Asked through a call, so that the type checker does not take the answer for lasting."""
    return meter.ready_for_last


def test_no_sample_is_above_the_final_one_whatever_the_group_has_counted() -> None:
    """A tick between a VMM's end and its settlement shows what its clock said last.

    The group counts more than the process: were that shown, the final sample would go back.
    """
    sources = FixedSources()
    sources.settled = 9_000
    meter = a_meter(sources)
    meter.row(2_000_000_000)
    sources.cpu = 4_000
    assert meter.row(3_000_000_000).values[1] == 4_000
    sources.cpu = None  # reaped
    assert meter.row(4_000_000_000).values[1] == 4_000
    final = meter.settle(now_ns=5_000_000_000, cpu_ns=5_000)
    assert final.cpu_ns == 5_000
    assert meter.row(6_000_000_000).values[1] == 5_000
    meter.finish(final)
    assert meter.row(7_000_000_000).values[1] == 5_000


def test_a_vmm_that_nobody_saw_ending_is_billed_by_its_group() -> None:
    """And never below what was reported of it."""
    for settled, billed in ((9_000, 9_000), (3_000, 4_000), (None, 4_000)):
        sources = FixedSources()
        sources.cpu = 4_000
        meter = a_meter(sources)
        meter.row(2_000_000_000)
        meter.row(3_000_000_000)
        sources.cpu, sources.settled = None, settled
        assert meter.settle(now_ns=5_000_000_000, cpu_ns=None).cpu_ns == billed
        assert meter.held == 0
