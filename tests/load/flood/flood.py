"""A flood from the first record to the last purge."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import asdict
from typing import Any

from rich.progress import Progress

from runtime.buckets import Bucket
from runtime.bus import Bus
from schemas.ids import new_id
from schemas.subjects import VM_SPECS, vm_key
from schemas.vms import VmRecord, decode_vm_record
from tests.load.flood.host import FloodHost
from tests.load.flood.lags import Lags, heard
from tests.load.flood.plan import Plan
from tests.load.flood.sending import Sending
from tests.load.flood.verdict import STANDSTILL_S, Auditor

_WRITERS = 128


async def flood(
    bus: Bus,
    plan: Plan,
    progress: Progress,
    *,
    keep: bool = False,
    standstill_s: float = STANDSTILL_S,
    during: AbstractAsyncContextManager[object] | None = None,
) -> dict[str, Any]:
    """Send it all, and judge.

    Args:
        bus: With the rights of an agent and of a gateway.
        plan: What to send.
        progress: Told of all that takes time.
        keep: Leave the VMs' records in their bucket.
        standstill_s: If nothing more is stored for so long, what is missing is lost.
        during: Entered when sending begins, left when all is sent.

    Returns:
        The report, ready for JSON.

    Raises:
        TransientError: The bus is away for too long.
    """
    flood_id = new_id().hex[-8:]
    hosts = [FloodHost(plan, flood_id, number) for number in range(plan.hosts)]
    records = [record for host in hosts for record in host.records]
    bucket: Bucket[VmRecord] = Bucket(bus, VM_SPECS, decode_vm_record)
    try:
        await _each(
            progress, "VM records", records, lambda r: bucket.put(vm_key(r.customer_id, r.vm_id), r)
        )
        return await _send(bus, plan, hosts, progress, standstill_s, during or nullcontext())
    finally:
        if not keep:
            await _each(
                progress, "clearing up", records,
                lambda r: bucket.forget(vm_key(r.customer_id, r.vm_id)),
            )  # fmt: skip


async def _send(
    bus: Bus,
    plan: Plan,
    hosts: list[FloodHost],
    progress: Progress,
    standstill_s: float,
    during: AbstractAsyncContextManager[object],
) -> dict[str, Any]:
    sent_bar = progress.add_task("sent", total=plan.samples)
    stored_bar = progress.add_task("stored", total=plan.samples)

    def told(rows: int) -> None:
        behind = f"at most {sending.sent.behind_ms} ms behind"
        progress.update(sent_bar, advance=rows, note=behind)

    lags = Lags(lambda rows: progress.advance(stored_bar, rows))
    sending = Sending(bus, plan, told, lags.expect)
    began_s = time.monotonic()
    async with heard(bus, lags):
        async with during:
            await sending.run(hosts)
        sent_s = time.monotonic() - began_s
        auditor = Auditor(
            bus,
            plan,
            hosts,
            lambda n: progress.update(stored_bar, completed=n),
            standstill_s=standstill_s,
        )
        verdict = await auditor.judge(sending.sent.rubbish)
    return {
        "plan": asdict(plan),
        "sent": asdict(sending.sent),
        "samples_per_s": round(plan.samples / sent_s),
        "sent_in_s": round(sent_s, 2),
        "stored_in_s": round(time.monotonic() - began_s, 2),
        "lag_ms": lags.report(),
        **asdict(verdict),
        "conserved": not verdict.problems,
    }


async def _each(
    progress: Progress,
    what: str,
    records: Iterable[VmRecord],
    act: Callable[[VmRecord], Awaitable[object]],
) -> None:
    """Do a thing for all records, many at once."""
    waiting = iter(found := list(records))
    bar = progress.add_task(what, total=len(found))

    async def work() -> None:
        for record in waiting:
            await act(record)
            progress.advance(bar)

    async with asyncio.TaskGroup() as group:
        for number in range(_WRITERS):
            group.create_task(work(), name=f"{what}-{number}")
