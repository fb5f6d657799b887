"""Metadata, balloon and rate limits through a whole agent: there, kept, exact, and never told."""

from __future__ import annotations

import asyncio
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
from msgspec.structs import replace

from runtime.reading import read_stream
from schemas.commands import (
    BootVm,
    CreateVm,
    DeleteVm,
    RebootVm,
    RestoreVm,
    ShutdownVm,
    SnapshotVm,
)
from schemas.devices import RateLimits
from schemas.errors import ErrorCode
from schemas.events import VmStopped
from schemas.frames import Frame
from schemas.hosts import OperationStatus
from schemas.ids import new_id
from schemas.subjects import METRICS_RAW, VM_EVENTS
from schemas.units import MIB
from schemas.vms import VmSpec, VmState
from tests.support.agents import AgentProcess, Client, booted, running_agent
from tests.support.hypervisors import Lab
from tests.support.samples import assert_exact, has_final, samples_of
from vm_agent.drivers.paths import API_SOCKET
from vm_agent.drivers.unix_http import UnixHttpConnection
from vm_agent.network import taps

pytestmark = [pytest.mark.hypervisor, pytest.mark.timeout(120)]

SECRET = "correct-horse-battery-staple"
METADATA = {"hostname": "web-1", "password": SECRET}
LIMITS = RateLimits(disk_bytes_per_s=MIB, net_tx_bytes_per_s=500_000)
SPEC = VmSpec(
    image="tiny",
    memory_mib=64,
    disk_mib=8,
    kernel_args={"blkw": "3072", "tx": "1000"},
    metadata=METADATA,
    balloon_mib=16,
    limits=LIMITS,
)
WRITTEN, SENT = 3 * MIB, 1_000_000
LEAST_S = 1.5
"""Both take two seconds after what may pass at once: 2 MiB at 1 MiB/s, and half a MB and more at
half a MB/s, one after the other."""


@pytest.fixture
async def host(tmp_path: Path, lab: Lab) -> AsyncIterator[tuple[AgentProcess, Client]]:
    """An agent with Firecracker."""
    if reason := taps.available():
        pytest.skip(reason)
    async with running_agent(tmp_path, lab, "firecracker", disk_mib="2000") as made:
        yield made


async def told(process: AgentProcess, vm_id: UUID, path: str) -> Any:
    """What the VM's one VMM answers to a GET."""
    (socket,) = [p for p in process.data_dir.rglob(API_SOCKET) if vm_id.hex in str(p)]
    api = UnixHttpConnection(socket)
    try:
        async with asyncio.timeout(5):
            answer = await api.request("GET", path)
    finally:
        await api.close()
    assert answer.status == 200, answer
    return msgspec.json.decode(answer.body)


async def check_devices(process: AgentProcess, vm_id: UUID, metadata: dict[str, str]) -> None:
    """Firecracker has what the spec says."""
    config = await told(process, vm_id, "/vm/config")
    (drive,), (nic,) = config["drives"], config["network-interfaces"]
    assert drive["rate_limiter"]["bandwidth"]["size"] == MIB
    assert drive["rate_limiter"]["ops"] is None
    assert nic["tx_rate_limiter"]["bandwidth"]["size"] == 500_000
    assert nic["rx_rate_limiter"] is None
    assert config["mmds-config"]["version"] == "V2"
    balloon = await told(process, vm_id, "/balloon")
    assert (balloon["amount_mib"], balloon["deflate_on_oom"]) == (16, True)
    assert await told(process, vm_id, "/mmds") == {"latest": {"meta-data": metadata}}


async def done(client: Client, vm_id: UUID, incarnation: int) -> None:
    """Wait until samples of an incarnation show that its guest has done its work."""

    def there(frames: list[Frame]) -> bool:
        return any(
            s.incarnation == incarnation
            and (s.counters.disk_write_bytes, s.counters.net_tx_bytes) == (WRITTEN, SENT)
            for s in samples_of(frames, vm_id)
        )

    async with asyncio.timeout(40):
        await client.frames_until(there)


async def test_a_limited_vm_is_billed_to_the_byte_and_keeps_its_devices(
    host: tuple[AgentProcess, Client],
) -> None:
    """Over a reboot and the death of its agent, as fast as its limits allow and no faster."""
    process, client = host
    vm_id = new_id()
    assert (await client.do(CreateVm, vm_id, spec=SPEC)).status is OperationStatus.SUCCEEDED
    for incarnation, verb in ((1, BootVm), (2, RebootVm)):
        began = time.monotonic()
        started = await client.do(verb, vm_id)
        assert started.status is OperationStatus.SUCCEEDED, started
        await check_devices(process, vm_id, METADATA)
        await done(client, vm_id, incarnation)
        assert time.monotonic() - began >= LEAST_S
    run_id = (await client.host()).run_id
    await process.kill()
    await process.start()
    await client.host(other_than=run_id)
    await check_devices(process, vm_id, METADATA)
    assert (await client.do(ShutdownVm, vm_id)).state is VmState.STOPPED
    frames = await client.frames_until(has_final(vm_id, 2))
    for incarnation in (1, 2):
        samples = [s for s in samples_of(frames, vm_id) if s.incarnation == incarnation]
        assert_exact(samples)
        final = samples[-1].counters
        assert (final.disk_write_bytes, final.disk_read_bytes) == (WRITTEN, 0)
        assert (final.net_tx_bytes, final.net_rx_bytes) == (SENT, 0)
    stops = [e for e in await client.events() if isinstance(e, VmStopped)]
    assert [e.final_counters.disk_write_bytes for e in stops] == [WRITTEN] * 2


async def test_metadata_is_nowhere_but_in_the_record_of_its_vm(
    host: tuple[AgentProcess, Client],
) -> None:
    """Not in a log, an event, a status, a result, a frame, a snapshot; nor after the deletion."""
    process, client = host
    spec = replace(SPEC, kernel_args={})
    vm_id, other, plain = await booted(client, spec), new_id(), new_id()
    snapshot_id = new_id()
    results = [await client.do(SnapshotVm, vm_id, snapshot_id=snapshot_id)]
    own = {"hostname": "web-2", "password": f"{SECRET}-2"}
    await client.do(CreateVm, other, spec=replace(spec, metadata=own))
    results.append(await client.do(RestoreVm, other, snapshot_id=snapshot_id))
    assert results[-1].state is VmState.RUNNING, results[-1]
    await check_devices(process, other, own)
    for lesser in (
        replace(spec, metadata={}),
        replace(spec, limits=RateLimits()),
        replace(spec, balloon_mib=0),
    ):
        vm = new_id()
        await client.do(CreateVm, vm, spec=lesser)
        results.append(await client.do(RestoreVm, vm, snapshot_id=snapshot_id))
        assert results[-1].error is not None
        assert results[-1].error.code is ErrorCode.CONFLICT
    results.append(await client.do(CreateVm, plain, spec=replace(spec, image="none")))
    results.append(await client.do(BootVm, vm_id))
    statuses = [await client.status(each) for each in (vm_id, other)]
    secret = SECRET.encode()
    assert secret not in msgspec.json.encode([results, statuses])
    for stream in (VM_EVENTS, METRICS_RAW):
        assert not [m for m in await read_stream(client.bus, stream) if secret in m.data]
    assert SECRET not in process.log()
    records = holding(process.data_dir, secret)
    assert {path.parent.name for path in records} == {"vms"}
    assert {vm_id, other} <= {UUID(path.stem) for path in records}
    assert {stat.S_IMODE(path.stat().st_mode) for path in records} == {0o600}
    for path in records:
        deleted = await client.do(DeleteVm, UUID(path.stem))
        assert deleted.state is VmState.DELETED
    async with asyncio.timeout(20):
        while holding(process.data_dir, secret):
            await asyncio.sleep(0.05)
    assert SECRET not in process.log()


def holding(folder: Path, text: bytes) -> list[Path]:
    """Files below a folder that hold a text."""
    found = []
    for path in folder.rglob("*"):
        try:
            if path.is_file() and text in path.read_bytes():
                found.append(path)
        except OSError:
            continue  # it has gone meanwhile
    return found


async def test_a_driver_without_them_refuses_and_names_itself(tmp_path: Path, lab: Lab) -> None:
    """QEMU: nothing of the VM is made, and a plain one is."""
    async with running_agent(tmp_path, lab, "qemu") as (process, client):
        plain = VmSpec(image="tiny", memory_mib=64, disk_mib=8)
        for name, wish in (
            ("metadata", {"metadata": METADATA}),
            ("balloon_mib", {"balloon_mib": 16}),
            ("limits", {"limits": LIMITS}),
        ):
            vm_id = new_id()
            refused = await client.do(CreateVm, vm_id, spec=replace(plain, **wish))
            assert refused.status is OperationStatus.FAILED
            assert refused.error is not None
            assert refused.error.code is ErrorCode.UNSUPPORTED
            assert "qemu" in refused.error.message
            assert name in refused.error.message
            assert SECRET not in refused.error.message
            assert (await client.do(BootVm, vm_id)).error is not None
        assert SECRET not in process.log()
        assert not holding(process.data_dir, SECRET.encode())
        await booted(client, plain)
