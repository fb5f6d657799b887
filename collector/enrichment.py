"""Whose the rows of a frame are: computed once per set of VMs, then reused from frame to frame.

The VMs of a host rarely change between two ticks. A layout is everything about a frame that
depends only on its VMs and incarnations: which rows are refused for that, and the columns
that enrichment adds to the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import numpy as np

from collector.checks import CpuLimit, Ints, Rows, take
from collector.corrections import correct
from collector.history import History, Where
from collector.specs import SpecIndex, missed_on
from schemas.frames import COLUMNS, EnrichedFrame, Frame, RejectReason
from schemas.vms import VmRecord


@dataclass(slots=True)
class Layout:
    """What is known of a frame's rows from its VM ids and incarnations.

    Attributes:
        kept: The other rows; None if all are.
        refused: Rows per reason.
        unknown: Of the rows refused for want of a record that names VM and host: what to wait for.
        settled: It has been waited for.
        where: Places of the kept rows in the history.
        cpus: Per kept row: vCPUs and overhead threads.
        corrections_version: Of the corrections that it goes by.
        from_ms: They say the same for all ticks from here on.
        until_ms: And before here.
    """

    vm_ids: bytes
    incarnations: bytes
    host_version: int
    missed_version: int
    generation: int
    kept: Rows | None
    refused: Mapping[RejectReason, list[int]]
    unknown: tuple[bytes, ...]
    settled: bool
    where: Where
    cpus: Ints
    region: str
    customers: tuple[str, ...]
    pools: tuple[str, ...]
    price_plans: tuple[str, ...]
    customer_index: bytes
    pool_index: bytes
    price_plan_index: bytes
    vcpus: bytes
    memory_mib: bytes
    corrections_version: int
    from_ms: int
    until_ms: int

    def fits(self, frame: Frame, specs: SpecIndex, history: History) -> bool:
        """Whether this is the layout of a frame, and still true."""
        return (
            self.vm_ids == frame.vm_ids
            and self.incarnations == frame.incarnations
            and self.generation == history.generation
            and self.host_version == specs.host_version(frame.host)
            # A row that has no record here may have got one on another host.
            and (not self.unknown or self.missed_version == specs.missed_version)
            and self.corrections_version == specs.corrections.version
            and self.from_ms <= frame.tick_ms < self.until_ms
        )


def lay_out(frame: Frame, specs: SpecIndex, history: History, limit: CpuLimit) -> Layout:
    """Look up every row of a frame; the second row of one incarnation is refused."""
    refused: dict[RejectReason, list[int]] = {}
    unknown: list[bytes] = []
    kept: list[int] = []
    keys: dict[bytes, None] = {}
    records: list[VmRecord] = []
    incarnations: list[int] = np.frombuffer(frame.incarnations, "<u4").tolist()
    for row in range(frame.rows):
        vm_id = frame.vm_ids[16 * row : 16 * row + 16]
        key = vm_id + frame.incarnations[4 * row : 4 * row + 4]
        record = specs.get(vm_id)
        if record is None:
            refused.setdefault(RejectReason.UNKNOWN_VM, []).append(row)
            unknown.append(vm_id)
        elif not record.ran_on(frame.host, incarnations[row]):
            refused.setdefault(RejectReason.FOREIGN_VM, []).append(row)
            if record.is_open(incarnations[row]):
                unknown.append(missed_on(vm_id, frame.host))
        elif key in keys:
            refused.setdefault(RejectReason.DUPLICATE_VM, []).append(row)
        else:
            keys[key] = None
            kept.append(row)
            records.append(record)
    where = history.place(tuple(keys))
    said = correct(tuple(keys), records, frame.tick_ms, specs.corrections)
    customers, customer_index = _dictionary(said.customers)
    pools, pool_index = _dictionary(said.pools)
    price_plans, price_plan_index = _dictionary(said.price_plans)
    vcpus = np.array([r.spec.vcpus for r in records], "<u2")
    return Layout(
        vm_ids=frame.vm_ids,
        incarnations=frame.incarnations,
        host_version=specs.host_version(frame.host),
        missed_version=specs.missed_version,
        generation=history.generation,
        kept=np.array(kept, np.intp) if refused else None,
        refused=refused,
        unknown=tuple(unknown),
        settled=not unknown,
        where=where,
        cpus=vcpus.astype(np.int64) + limit.overhead_threads,
        region=records[0].region if records else specs.region(frame.host),
        customers=customers,
        pools=pools,
        price_plans=price_plans,
        customer_index=customer_index,
        pool_index=pool_index,
        price_plan_index=price_plan_index,
        vcpus=vcpus.tobytes(),
        memory_mib=np.array([r.spec.memory_mib for r in records], "<u4").tobytes(),
        corrections_version=specs.corrections.version,
        from_ms=said.from_ms,
        until_ms=said.until_ms,
    )


def enrich(frame: Frame, layout: Layout, good: Rows | None, now_ns: int) -> EnrichedFrame:
    """The good rows of a frame with their owners.

    Args:
        frame: What came.
        layout: Its layout.
        good: Positions among the layout's kept rows; None for all of them.
        now_ns: The collector's wall clock, Unix ns.
    """
    rows = layout.kept
    if good is not None:
        rows = good if rows is None else rows[good]
    enriched = EnrichedFrame(
        host=frame.host,
        run_id=frame.run_id,
        seq=frame.seq,
        tick_ms=frame.tick_ms,
        sampled_at_ns=frame.sampled_at_ns,
        collected_at_ns=now_ns,
        region=layout.region,
        customers=layout.customers,
        pools=layout.pools,
        price_plans=layout.price_plans,
        vm_ids=frame.vm_ids,
        incarnations=frame.incarnations,
        states=frame.states,
        flags=frame.flags,
        mem_bytes=frame.mem_bytes,
        uptime_ms=frame.uptime_ms,
        cpu_ns=frame.cpu_ns,
        mem_kib_ms=frame.mem_kib_ms,
        disk_read_bytes=frame.disk_read_bytes,
        disk_write_bytes=frame.disk_write_bytes,
        net_rx_bytes=frame.net_rx_bytes,
        net_tx_bytes=frame.net_tx_bytes,
        customer_index=layout.customer_index,
        pool_index=layout.pool_index,
        price_plan_index=layout.price_plan_index,
        vcpus=layout.vcpus,
        memory_mib=layout.memory_mib,
        refresh_ms=frame.refresh_ms,
    )
    if rows is None:
        return enriched
    columns = {c.name: take(getattr(frame, c.name), c.dtype, rows) for c in COLUMNS}
    if good is not None:
        columns |= {
            "customer_index": take(layout.customer_index, "<u2", good),
            "pool_index": take(layout.pool_index, "<u2", good),
            "price_plan_index": take(layout.price_plan_index, "<u2", good),
            "vcpus": take(layout.vcpus, "<u2", good),
            "memory_mib": take(layout.memory_mib, "<u4", good),
        }
    return msgspec.structs.replace(enriched, **columns)


def _dictionary(words: list[str]) -> tuple[tuple[str, ...], bytes]:
    """The different words, and each word's place among them as a `<u2` column."""
    places: dict[str, int] = {}
    index = [places.setdefault(word, len(places)) for word in words]
    return tuple(places), np.array(index, "<u2").tobytes()
