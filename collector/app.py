"""Puts the collector together and runs it until it is told to stop.

It promises: a raw frame is acked only after its good rows stand in `METRICS_ENRICHED` and its bad
ones in `METRICS_REJECTED`, each under an id of its content: doing it twice is doing it once. Any
number of collectors share the frames (`collector.crew`).
"""

from __future__ import annotations

import asyncio

import structlog

from collector.checks import CpuLimit
from collector.crew import Crew
from collector.expected import Expected
from collector.losses import Losses
from collector.partition import Tools
from collector.pipeline import Rules
from collector.settings import CollectorSettings
from collector.silence import SilenceLimits
from collector.specs import SpecIndex
from collector.telemetry import Instruments
from runtime.buckets import Bucket, Mirror
from runtime.clock import SystemClock
from runtime.memory import spare_the_collector
from runtime.publisher import Publisher
from runtime.service import Service
from schemas import subjects
from schemas.corrections import VmCorrections, decode_vm_corrections
from schemas.hosts import HostLoss, decode_host_loss
from schemas.ids import new_id
from schemas.units import NS_PER_MS, NS_PER_S
from schemas.vms import VmRecord, decode_vm_record

_log = structlog.get_logger("decisec.collector")

HEALTH_PART = "vm_specs"
_EARLY_S = 3600.0


def rules_of(settings: CollectorSettings) -> Rules:
    """The settings in the pipeline's units."""
    return Rules(
        max_future_ns=_ns(settings.max_future_s),
        unknown_wait_ns=_ns(settings.unknown_wait_s),
        late_tolerance_ms=_ns(settings.late_tolerance_s) // NS_PER_MS,
        cpu=CpuLimit(
            overhead_threads=settings.cpu_overhead_threads,
            tolerance_ns=settings.cpu_tolerance_ms * NS_PER_MS,
        ),
        silence=SilenceLimits(
            _ns(settings.suspect_after_s),
            _ns(settings.silent_after_s),
            _ns(settings.forget_after_s),
        ),
    )


async def main(service: Service[CollectorSettings]) -> None:
    """Run until `service.stop` is set; then finish the batches in hand and return."""
    settings = service.settings
    rules = rules_of(settings)
    specs = SpecIndex(rules.unknown_wait_ns)
    bucket: Bucket[VmRecord] = Bucket(service.bus, subjects.VM_SPECS, decode_vm_record)
    expected, losses = Expected(), Losses()

    def take(key: str, record: VmRecord | None) -> None:
        specs.change(key, record)
        if settings.host_lost_after_s:
            expected.change(key, record)

    mirror = Mirror(bucket, take)
    lost: Bucket[HostLoss] = Bucket(service.bus, subjects.LOST_HOSTS, decode_host_loss)
    lost_hosts = Mirror(lost, losses.change, on_removed=losses.removed)
    tools = Tools(
        bus=service.bus,
        rules=rules,
        specs=specs,
        losses=losses,
        expected=expected,
        lost_after_ns=_ns(settings.host_lost_after_s),
        publisher=Publisher(service.bus),
        instruments=Instruments(),
        clock=SystemClock(),
        max_batch=settings.max_batch,
        max_ack_pending=settings.max_ack_pending,
        ack_wait_s=settings.ack_wait_s,
    )
    corrected: Bucket[VmCorrections] = Bucket(
        service.bus, subjects.CORRECTIONS, decode_vm_corrections
    )
    if 0 < settings.host_lost_after_s < _EARLY_S:
        # Much shorter than what agents can hold back for NATS and send afterwards.
        _log.warning("host_loss.early", after_s=settings.host_lost_after_s)
    service.health.unready(HEALTH_PART, "the VMs' records are not read yet")
    async with asyncio.TaskGroup() as group:
        following = group.create_task(mirror.run(), name="specs")
        losing = group.create_task(lost_hosts.run(), name="losses")
        # Not waited for: a batcher stores nothing by what it says here alone.
        correcting = group.create_task(
            Mirror(corrected, specs.corrections.change).run(), name="corrections"
        )
        synced = group.create_task(_both(mirror, lost_hosts), name="buckets-synced")
        stopped = group.create_task(service.stop.wait(), name="stop")
        await asyncio.wait({synced, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if synced.done():
            service.health.ready(HEALTH_PART)
            spare_the_collector()
            await Crew(new_id(), tools).run(service.stop)
        for task in (following, losing, correcting, synced, stopped):
            task.cancel()


async def _both(specs: Mirror[VmRecord], losses: Mirror[HostLoss]) -> None:
    await specs.synced()
    await losses.synced()


def _ns(seconds: float) -> int:
    return int(seconds * NS_PER_S)
