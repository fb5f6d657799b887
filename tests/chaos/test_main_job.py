"""The main job while its parts are killed: nothing is lost, nothing is billed twice."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import httpx
import pytest

from decisec.sdk import AsyncClient, UnavailableError
from runtime.bus import Bus
from runtime.reading import read_stream
from schemas.api import CreateVmRequest, VmView
from schemas.frames import Frame, decode_frame
from schemas.subjects import METRICS_RAW
from schemas.usage import UsageReport
from schemas.vms import METERS, VmState
from tests.support.hypervisors import DRIVERS, Lab, open_lab
from tests.support.stack import KillableStack, killable_stack

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with open_lab() as opened:
        yield opened


ARGUMENTS: list[dict[str, str]] = [
    {"blkw": "3072", "blkr": "1536", "tx": "1000"},
    {"blkw": "64", "loop": "100000"},
    {"spin": "1"},
]


async def start_vms(client: AsyncClient) -> list[VmView]:
    made = await asyncio.gather(
        *(
            client.create_vm(
                CreateVmRequest(
                    image="tiny", memory_mib=32, disk_mib=8, kernel_args=arguments, boot=True
                ),
                wait_s=30,
            )
            for arguments in ARGUMENTS
        )
    )
    assert {m.vm.state for m in made} == {VmState.RUNNING}
    return [m.vm for m in made]


async def settled_usage(client: AsyncClient, since: datetime, vms: int) -> UsageReport:
    """Usage once every VM's final sample is in the store."""
    async with asyncio.timeout(60):
        while True:
            report = await usage_so_far(client, since)
            if len(report.vms) == vms and all(row.settled for row in report.vms):
                return report
            await asyncio.sleep(0.2)


async def raw_frames(bus: Bus) -> list[Frame]:
    """Every frame that stands in the raw stream."""
    return [decode_frame(message.data) for message in await read_stream(bus, METRICS_RAW)]


def ticks_of(frames: list[Frame], vm: VmView) -> list[int]:
    wanted = vm.vm_id.bytes
    return sorted(
        frame.tick_ms
        for frame in frames
        if wanted in {frame.vm_ids[i : i + 16] for i in range(0, len(frame.vm_ids), 16)}
    )


async def usage_so_far(client: AsyncClient, since: datetime) -> UsageReport:
    return await client.usage(start=since, end=datetime.now(UTC) + timedelta(seconds=1))


async def ticks_stored(client: AsyncClient, since: datetime) -> dict[UUID, int]:
    """Number of ticks in the store, per VM."""
    return {row.vm_id: row.samples for row in (await usage_so_far(client, since)).vms}


async def rows_stored(client: AsyncClient, since: datetime) -> int:
    return sum((await ticks_stored(client, since)).values())


async def grows(client: AsyncClient, since: datetime, rows: int) -> None:
    """Return once the store holds `rows` more ticks than now."""
    wanted = await rows_stored(client, since) + rows
    while await rows_stored(client, since) < wanted:
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("victims", [["nats-server"], ["collector"], ["batcher"]], ids="-".join)
async def test_a_killed_part_costs_no_tick_and_no_unit(
    tmp_path: Path, lab: Lab, victims: list[str]
) -> None:
    """Kill -9 of a part under load, started again: every tick is stored, bills are exact."""
    since = datetime.now(UTC) - timedelta(seconds=1)
    async with (
        killable_stack(
            tmp_path,
            driver=next(name for name in DRIVERS if lab.probes[name].works),
            guest=lab.image.kernel,
            firecracker=lab.firecracker,
        ) as stack,
        stack.client("acme") as client,
    ):
        vms = await start_vms(client)
        async with asyncio.timeout(60):
            await until_answered(client, since)
            await grows(client, since, 30)
            for name in victims:
                await stack.kill(name)
                await stack.start(name)
                await until_answered(client, since)
                await grows(client, since, 60)
        final = await stop_vms(client, vms)
        report = await settled_usage(client, since, len(vms))
        check_conservation(report, final)
        async with stack.bus() as bus:
            await check_ticks(stack, bus, client, since, vms)


async def until_answered(client: AsyncClient, since: datetime) -> None:
    while True:
        try:
            await rows_stored(client, since)
        except (UnavailableError, httpx.TransportError):
            await asyncio.sleep(0.1)
        else:
            return


async def stop_vms(client: AsyncClient, vms: list[VmView]) -> list[VmView]:
    await asyncio.gather(*(client.shutdown_vm(vm.vm_id, grace_s=2, wait_s=30) for vm in vms))
    return [await client.get_vm(vm.vm_id) for vm in vms]


def check_conservation(report: UsageReport, final: list[VmView]) -> None:
    """The bill of each VM is its last counters, and the totals are their sum."""
    rows = {row.vm_id: row for row in report.vms}
    for vm in final:
        assert vm.final_counters is not None
        billed = {meter: getattr(rows[vm.vm_id], meter) for meter in METERS}
        assert billed == {meter: getattr(vm.final_counters, meter) for meter in METERS}
    assert report.totals == {m: sum(getattr(r, m) for r in rows.values()) for m in METERS}
    exact = rows[final[0].vm_id]
    assert exact.disk_write_bytes == 3 * 1024 * 1024
    assert exact.disk_read_bytes == 1536 * 1024


async def check_ticks(
    stack: KillableStack, bus: Bus, client: AsyncClient, since: datetime, vms: list[VmView]
) -> None:
    """No hole in any run's sequence; each tick of each VM is stored once; nothing is rejected."""
    frames = await raw_frames(bus)
    for run in {frame.run_id for frame in frames}:
        seqs = sorted(frame.seq for frame in frames if frame.run_id == run)
        assert seqs == list(range(len(seqs)))
    missed = sum(frame.missed_ticks for frame in frames)
    ticks_by_vm = {vm.vm_id: ticks_of(frames, vm) for vm in vms}
    wanted = {vm_id: len(ticks) for vm_id, ticks in ticks_by_vm.items()}
    # What a killed batcher or collector held comes again only when its ack wait is over, and the
    # final samples may well be stored before that.
    with suppress(TimeoutError):
        async with asyncio.timeout(30):
            while await ticks_stored(client, since) != wanted:
                await asyncio.sleep(0.2)
    assert await ticks_stored(client, since) == wanted
    for ticks in ticks_by_vm.values():
        assert len(ticks) == len(set(ticks))
        assert (ticks[-1] - ticks[0]) // 100 + 1 - len(ticks) <= missed
    rejected = (await bus.js.stream_info("METRICS_REJECTED")).state.messages
    assert rejected == 0, stack.log("collector")
