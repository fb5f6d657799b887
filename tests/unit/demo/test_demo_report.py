"""The demo's verdict bites: whatever is not as it must be becomes a problem in words."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decisec.demo.audit import RawAudit, quantiles
from decisec.demo.report import Report, compare, judge
from schemas.frames import Frame, SampleFlag
from schemas.hosts import HostInfo, Resources
from schemas.ids import new_id
from schemas.usage import UsageReport, UsageRow
from schemas.vms import METERS
from tests.support.frames import BASE_MS, Row, frame

VM, OTHER = new_id(), new_id()
NAMES = {VM: "database", OTHER: "idle"}
TICKS = 10
NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOST = HostInfo(
    host_id="h1",
    run_id=new_id(),
    boot_id="b",
    version="0",
    driver="firecracker",
    capacity=Resources(),
    free=Resources(),
    heartbeat_at=NOW,
)


def life(run_id: UUID, *vms: UUID, ticks: int = TICKS, first_seq: int = 0) -> list[Frame]:
    """All frames of a run in which these VMs live from first to last."""
    frames = []
    for number in range(ticks):
        flags = SampleFlag(0)
        if number == 0:
            flags |= SampleFlag.BASELINE
        if number == ticks - 1:
            flags |= SampleFlag.FINAL
        made = frame([Row(vm) for vm in vms], run_id=run_id, seq=first_seq + number)
        frames.append(msgspec.structs.replace(made, flags=bytes([flags] * len(vms)), late_ns=10**6))
    return frames


def audited(frames: list[Frame]) -> RawAudit:
    audit = RawAudit()
    for one in frames:
        audit.take(one)
    return audit


def row(vm_id: UUID, value: int = 7, **changes: Any) -> UsageRow:
    meters = dict.fromkeys(METERS, value)
    fixed = {"incarnations": 1, "samples": TICKS, "settled": True}
    return UsageRow(vm_id=vm_id, **{**meters, **fixed, **changes})


def bill(*rows: UsageRow, totals: Mapping[str, int] | None = None) -> UsageReport:
    sums = {meter: sum(getattr(r, meter) for r in rows) for meter in METERS}
    return UsageReport(
        customer_id="acme",
        start=NOW,
        end=NOW + timedelta(minutes=1),
        vms=rows,
        totals={**sums, **(totals or {})},
    )


def verdict(
    *,
    report: UsageReport | None = None,
    audit: RawAudit | None = None,
    counted: Mapping[UUID, Mapping[str, int]] | None = None,
    rejected: int = 0,
) -> Report:
    """The verdict on two VMs that are billed 7 of everything, unless told otherwise."""
    report = report or bill(row(VM), row(OTHER))
    counted = counted or {vm: dict.fromkeys(METERS, 7) for vm in (VM, OTHER)}
    audit = audit or audited(life(new_id(), VM, OTHER))
    return judge(
        host=HOST,
        seconds=1,
        vms=2,
        audit=audit,
        rejected=rejected,
        usage=compare([report], counted, NAMES),
        reports=[report],
        jitter=quantiles(audit.late_ms),
        lag=quantiles([100, 300]),
    )


def test_what_is_as_it_must_be_has_no_problem() -> None:
    """All figures, and an empty list of problems."""
    report = verdict()
    assert report.problems == []
    assert report.conserved
    assert (report.ticks_expected, report.ticks_stored) == (2 * TICKS, 2 * TICKS)
    assert (report.seq_missing, report.rejected, report.ticks_missed) == (0, 0, 0)
    assert report.jitter_ms == {"p50": 1.0, "p99": 1.0, "max": 1.0}
    assert report.lag_ms == {"p50": 100, "p99": 100}


@pytest.mark.parametrize("meter", METERS)
@pytest.mark.parametrize("difference", [-1, 1])
def test_a_unit_too_much_or_too_little_is_told(meter: str, difference: int) -> None:
    """Conservation is to the unit, for each meter."""
    report = verdict(report=bill(row(VM, **{meter: 7 + difference}), row(OTHER)))
    assert not report.conserved
    assert report.problems == [f"database: {meter} is billed {7 + difference}, counted 7"]


def test_totals_that_are_no_sums_are_told() -> None:
    """A customer's total belongs to the bill too."""
    report = verdict(report=bill(row(VM), row(OTHER), totals={"cpu_ns": 15}))
    assert not report.conserved
    assert report.problems == ["the customers' totals are not the sums of their VMs"]


def test_a_vm_without_usage_is_told() -> None:
    """Nobody is forgotten, and what is not billed is not conserved."""
    report = verdict(report=bill(row(VM)))
    assert not report.conserved
    assert "1 of 2 VMs have usage" in report.problems


def test_a_vm_that_the_agent_never_counted_is_told() -> None:
    """A bill needs a count beside it."""
    report = verdict(counted={VM: dict.fromkeys(METERS, 7)})
    assert not report.conserved
    assert "idle: cpu_ns is billed 7, counted None" in report.problems


def test_rejects_unsettled_vms_and_lost_ticks_are_told() -> None:
    """Each in words of its own."""
    lossy = bill(row(VM, samples=TICKS - 1, settled=False), row(OTHER))
    report = verdict(report=lossy, rejected=3)
    assert report.conserved
    assert report.problems == [
        "not every VM's final sample was stored in time",
        "3 messages were rejected",
        "only 19 of 20 ticks were stored",
    ]


def test_a_lost_frame_shows_as_a_missing_number_and_a_missing_tick() -> None:
    """The audit reads the frames themselves."""
    frames = life(new_id(), VM, OTHER)
    audit = audited(frames[:4] + frames[5:])
    assert (audit.seq_missing, audit.ticks_expected) == (1, 2 * TICKS)
    assert "1 sequence numbers are missing" in verdict(audit=audit).problems
    assert audited(frames[1:]).seq_missing == 1


def test_a_life_without_its_first_or_last_sample_is_told() -> None:
    """Both ends of a bill are samples."""
    frames = life(new_id(), VM)
    assert audited(frames).incomplete == []
    assert audited(frames[1:]).incomplete == [(VM, 1)]
    assert audited(frames[:-1]).incomplete == [(VM, 1)]
    assert "1 lives lack a first or final sample" in verdict(audit=audited(frames[:-1])).problems


def test_missed_ticks_are_expected_all_the_same() -> None:
    """What the sampler skipped was due."""
    frames = life(new_id(), VM)
    late = msgspec.structs.replace(frames[-1], tick_ms=BASE_MS + TICKS * 100, missed_ticks=1)
    audit = audited([*frames[:-1], late])
    assert (audit.ticks_expected, audit.ticks_missed, audit.seq_missing) == (TICKS + 1, 1, 0)


@given(order=st.permutations(range(TICKS)), again=st.lists(st.integers(0, TICKS - 1)))
def test_order_and_repetition_change_nothing(order: list[int], again: list[int]) -> None:
    """A stream may hold a frame twice."""
    frames = life(HOST.run_id, VM, OTHER)
    audit = audited([frames[i] for i in [*order, *again]])
    plain = audited(frames)
    assert audit.lives == plain.lives
    assert (audit.frames, audit.seq_missing, audit.ticks_expected) == (TICKS, 0, 2 * TICKS)
    assert sorted(audit.late_ms) == sorted(plain.late_ms)


def test_quantiles_are_values_that_were_measured() -> None:
    """Nearest rank; zero where nothing was."""
    assert quantiles(range(1, 101)) == (50, 99, 100)
    assert quantiles([5]) == (5, 5, 5)
    assert quantiles([]) == (0, 0, 0)
