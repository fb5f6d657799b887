"""One suite for what drivers can do beyond a plain machine: metadata, balloon, rate limits.

What a VMM was told is read back over its own API, which is Firecracker's wherever there is one of
these abilities.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from schemas.devices import MAX_METADATA_BYTES, RateLimits
from schemas.errors import ErrorCode
from schemas.units import MIB
from schemas.vms import SnapshotKind, VmSpec
from tests.support.hypervisors import Rig, processes_in
from vm_agent.drivers.abc import Ability, DriverError, MachinePlan, Snapshots, Vmm, VmmState
from vm_agent.drivers.jail import root_of
from vm_agent.drivers.paths import API_SOCKET
from vm_agent.drivers.unix_http import Answer, UnixHttpConnection
from vm_agent.states import RefusedError
from vm_agent.wishes import require

pytestmark = pytest.mark.hypervisor

SECRET = "correct horse battery staple"
METADATA = {"hostname": "web-1", "password": SECRET, "user-data": '#!/bin/sh\n\techo "é\\"\n'}
CONTENT = {"latest": {"meta-data": METADATA}}
LIMITS = RateLimits(
    disk_bytes_per_s=50_000_000,
    disk_ops_per_s=10_000,
    net_rx_bytes_per_s=1_000_000,
    net_tx_bytes_per_s=2_000_000,
)
NIC = {"iface_id": "eth0", "host_dev_name": "tap0"}
REQUESTS: list[tuple[str, Any, int]] = [
    ("balloon", {"amount_mib": 16}, 400),
    ("balloon", {"amount_mib": -1, "deflate_on_oom": True}, 400),
    ("balloon", {"amount_mib": 65, "deflate_on_oom": True}, 400),
    ("balloon", {"amount_mib": 16, "deflate_on_oom": 1}, 400),
    ("balloon", {"amount_mib": 16, "deflate_on_oom": True, "more": 1}, 400),
    ("balloon", {"amount_mib": 64, "deflate_on_oom": False, "stats_polling_interval_s": 1}, 204),
    ("mmds/config", {"version": "V2"}, 400),
    ("mmds/config", {"network_interfaces": []}, 400),
    ("mmds/config", {"network_interfaces": ["eth1"]}, 400),
    ("mmds/config", {"network_interfaces": [1]}, 400),
    ("mmds/config", {"network_interfaces": ["eth0"], "version": "V3"}, 400),
    ("mmds/config", {"network_interfaces": ["eth0"], "version": ["V2"]}, 400),
    ("mmds/config", {"network_interfaces": ["eth0"], "versio": "V2"}, 400),
    ("mmds/config", {"network_interfaces": ["eth0"], "ipv4_address": "10.0.0.1"}, 400),
    ("mmds/config", {"network_interfaces": ["eth0"], "ipv4_address": "169.254.1.1"}, 204),
    ("mmds", [1, None, 2.5, {"a": False}], 204),
    ("network-interfaces/eth0", {**NIC, "rx_rate_limiter": 5}, 400),
    ("network-interfaces/eth0", {**NIC, "rx_rate_limiter": {"bandwith": None}}, 400),
    ("network-interfaces/eth0", {**NIC, "tx_rate_limiter": {"ops": {"size": 1}}}, 400),
    ("network-interfaces/eth0",
     {**NIC, "tx_rate_limiter": {"ops": {"size": -1, "refill_time": 1}}}, 400),
    ("network-interfaces/eth0",
     {**NIC, "tx_rate_limiter": {"ops": {"size": 1, "refill_time": "1"}}}, 400),
    ("network-interfaces/eth0",
     {**NIC, "tx_rate_limiter": {"ops": {"size": 1, "refill_time": 1, "one_time_burst": 9}}}, 204),
]  # fmt: skip
WISHES = [
    ("metadata", Ability.METADATA, VmSpec(image="tiny", metadata=METADATA)),
    ("balloon_mib", Ability.BALLOON, VmSpec(image="tiny", balloon_mib=16)),
    ("limits.disk_*", Ability.DISK_LIMITS,
     VmSpec(image="tiny", disk_mib=8, limits=RateLimits(disk_ops_per_s=1))),
    ("limits.net_*", Ability.NET_LIMITS,
     VmSpec(image="tiny", limits=RateLimits(net_rx_bytes_per_s=1))),
]  # fmt: skip


def needs(bench: Rig, *abilities: Ability) -> None:
    """Skip the test for a driver without these."""
    for ability in abilities:
        if ability not in bench.driver.abilities:
            pytest.skip(f"{bench.name} cannot give a VM {ability}")


async def asked(vmm: Vmm, method: str, path: str, body: bytes = b"") -> Answer:
    """What the VMM answers to a request of our own."""
    api = UnixHttpConnection(root_of(Path(vmm.run_dir)) / API_SOCKET)
    try:
        async with asyncio.timeout(5):
            return await api.request(method, path, body)
    finally:
        await api.close()


async def told(vmm: Vmm, path: str) -> Any:
    """What the VMM answers to a GET."""
    answer = await asked(vmm, "GET", path)
    assert answer.status == 200, answer
    return msgspec.json.decode(answer.body)


def bucket(size: int) -> dict[str, int | None]:
    """A token bucket as Firecracker tells of it."""
    return {"size": size, "one_time_burst": None, "refill_time": 1000}


def limiters_of(config: dict[str, Any]) -> tuple[Any, Any, Any]:
    """The limiters of disk, receiving and sending."""
    (drive,), (nic,) = config["drives"], config["network-interfaces"]
    return drive["rate_limiter"], nic["rx_rate_limiter"], nic["tx_rate_limiter"]


async def full_plan(bench: Rig) -> MachinePlan:
    """A machine with everything, whose guest has some work."""
    plan = bench.plan(nic=await bench.nic(), blkw=64, tx=10)
    return replace(plan, metadata=METADATA, balloon_mib=16, limits=LIMITS)


@pytest.mark.parametrize(("name", "ability", "spec"), WISHES)
async def test_a_driver_can_or_the_vm_is_refused(
    bench: Rig, name: str, ability: Ability, spec: VmSpec
) -> None:
    """With the names of the driver and of the field, and nothing of what was wished for."""
    if ability in bench.driver.abilities:
        require(spec, bench.driver, connects=False)
        return
    with pytest.raises(RefusedError) as caught:
        require(spec, bench.driver, connects=False)
    assert caught.value.info.code is ErrorCode.UNSUPPORTED
    assert bench.driver.name in caught.value.info.message
    assert name in caught.value.info.message
    assert SECRET not in caught.value.info.message
    require(VmSpec(image="tiny"), bench.driver, connects=False)


async def test_a_machine_has_what_was_wished_for(bench: Rig) -> None:
    """Before it starts and while it runs; and its guest still stops when it is asked to."""
    needs(bench, Ability.METADATA, Ability.BALLOON, Ability.NET_LIMITS)
    driver = bench.driver
    vmm = await bench.create(await full_plan(bench))
    for state in (VmmState.CREATED, VmmState.RUNNING):
        assert await driver.inspect(vmm) is state
        config = await told(vmm, "/vm/config")
        assert limiters_of(config) == (
            {"bandwidth": bucket(50_000_000), "ops": bucket(10_000)},
            {"bandwidth": bucket(1_000_000), "ops": None},
            {"bandwidth": bucket(2_000_000), "ops": None},
        )
        assert config["mmds-config"] == {
            "version": "V2",
            "network_interfaces": ["eth0"],
            "ipv4_address": "169.254.169.254",
        }
        balloon = {"amount_mib": 16, "deflate_on_oom": True, "stats_polling_interval_s": 0}
        assert config["balloon"] == await told(vmm, "/balloon") == balloon
        assert await told(vmm, "/mmds") == CONTENT
        assert SECRET not in msgspec.json.encode(config).decode()
        await driver.boot(vmm)
    await bench.says(vmm, "READY" if driver.simulated else "DONE")
    if bench.exact:
        assert (await driver.counters(vmm)).disk_write_bytes == 64 * 1024
    await driver.shutdown(vmm)
    await bench.exits(vmm)
    output = b"".join(path.read_bytes() for path in regular_files(Path(vmm.run_dir)))
    assert SECRET.encode() not in output
    await driver.destroy(vmm)
    assert list(Path(vmm.run_dir).iterdir()) == []


def regular_files(folder: Path) -> list[Path]:
    """Files below a folder."""
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_requests_are_judged_as_firecracker_judges_them(bench: Rig) -> None:
    """By the real one too, or the list is wrong. What was refused has changed nothing."""
    needs(bench, Ability.METADATA, Ability.BALLOON, Ability.NET_LIMITS)
    vmm = await bench.create(await full_plan(bench))
    for path, body, status in REQUESTS:
        places = ("/vm/config", "/mmds", "/balloon")
        before = [await told(vmm, place) for place in places]
        answer = await asked(vmm, "PUT", f"/{path}", msgspec.json.encode(body))
        assert answer.status == status, (path, body, answer)
        assert ([await told(vmm, place) for place in places] == before) is (status == 400)
    assert (await asked(vmm, "PUT", "/mmds", b"")).status == 400
    assert await told(vmm, "/mmds") == [1, None, 2.5, {"a": False}]
    await bench.driver.boot(vmm)
    for path, body, status in REQUESTS:
        if status == 204 and path != "mmds":
            answer = await asked(vmm, "PUT", f"/{path}", msgspec.json.encode(body))
            assert b"after starting the microVM" in answer.body


async def test_a_plain_machine_has_none_of_it(bench: Rig) -> None:
    """No limit is a limit of nothing."""
    needs(bench, Ability.METADATA, Ability.BALLOON, Ability.NET_LIMITS)
    vmm = await bench.create(bench.plan(nic=await bench.nic()))
    config = await told(vmm, "/vm/config")
    assert limiters_of(config) == (None, None, None)
    assert (config["balloon"], config["mmds-config"]) == (None, None)
    assert await told(vmm, "/mmds") == {}


async def test_as_much_metadata_as_a_spec_may_hold_is_taken(bench: Rig) -> None:
    """Every byte of it to be escaped."""
    needs(bench, Ability.METADATA)
    metadata = {f"n{at}": '"' * 1000 for at in range(16)}
    left = MAX_METADATA_BYTES - sum(len(name) + len(value) for name, value in metadata.items())
    metadata["rest"] = "\\" * (left - 4)
    assert VmSpec(image="tiny", metadata=metadata).metadata == metadata
    vmm = await bench.create(replace(bench.plan(nic=await bench.nic()), metadata=metadata))
    assert await told(vmm, "/mmds") == {"latest": {"meta-data": metadata}}


async def test_metadata_that_a_vmm_refuses_is_in_no_error(bench: Rig) -> None:
    """Firecracker repeats what it cannot take. Nothing of the VM is left."""
    needs(bench, Ability.METADATA)
    plan = replace(bench.plan(nic=await bench.nic()), metadata={"much": SECRET * 3000})
    with pytest.raises(DriverError, match="metadata") as caught:
        await bench.create(plan)
    assert SECRET[:7] not in str(caught.value)
    assert not processes_in(plan.run_dir)
    assert list(plan.run_dir.iterdir()) == []


async def test_a_guest_is_held_to_its_limit_and_counted_to_the_byte(bench: Rig) -> None:
    """3 MiB at 1 MiB/s: the first at once, the others in two seconds, of which 1.5 are asked."""
    needs(bench, Ability.DISK_LIMITS)
    if not bench.exact:
        pytest.skip(f"{bench.name}: the guest does not write what it is told to")
    plan = replace(bench.plan(blkw=3072), limits=RateLimits(disk_bytes_per_s=MIB))
    vmm = await bench.create(plan)
    began = time.monotonic()
    await bench.driver.boot(vmm)
    await bench.says(vmm, "DONE")
    assert time.monotonic() - began >= 1.5
    await bench.driver.kill(vmm)
    assert (await bench.driver.counters(vmm)).disk_write_bytes == 3 * MIB


async def test_operations_are_limited_too(bench: Rig) -> None:
    """60 requests of 64 KiB at 20 a second: the first 20 at once, the others in two seconds."""
    needs(bench, Ability.DISK_LIMITS)
    if not bench.exact:
        pytest.skip(f"{bench.name}: the guest does not write what it is told to")
    plan = replace(bench.plan(blkw=60 * 64), limits=RateLimits(disk_ops_per_s=20))
    vmm = await bench.create(plan)
    began = time.monotonic()
    await bench.driver.boot(vmm)
    await bench.says(vmm, "DONE")
    assert time.monotonic() - began >= 1.5
    assert (await bench.driver.counters(vmm)).disk_write_bytes == 60 * 64 * 1024
    await bench.driver.kill(vmm)


async def test_a_killed_guest_has_used_no_more_than_its_limits_allow(bench: Rig) -> None:
    """Also one that is in the midst of its work, or only pretends to do any."""
    needs(bench, Ability.DISK_LIMITS)
    limits = RateLimits(
        disk_bytes_per_s=MIB, net_rx_bytes_per_s=100_000, net_tx_bytes_per_s=100_000
    )
    plan = replace(bench.plan(nic=await bench.nic(), blkw=7168), limits=limits)
    vmm = await bench.create(plan)
    began = time.monotonic()
    await bench.driver.boot(vmm)
    async with asyncio.timeout(10):
        while (await bench.driver.counters(vmm)).disk_write_bytes < MIB // 4:
            await asyncio.sleep(0.02)
    await bench.driver.kill(vmm)
    most = time.monotonic() - began + 1
    used = await bench.driver.counters(vmm)
    assert used.disk_read_bytes + used.disk_write_bytes <= most * MIB
    for moved in (used.net_rx_bytes, used.net_tx_bytes):
        assert moved is None or moved <= most * 100_000


async def test_a_vm_from_a_snapshot_has_its_devices_and_metadata_of_its_own(bench: Rig) -> None:
    """Limits, balloon and the metadata service come with the state, the content does not."""
    needs(bench, Ability.SNAPSHOT, Ability.METADATA, Ability.BALLOON, Ability.NET_LIMITS)
    driver = bench.driver
    assert isinstance(driver, Snapshots)
    plan = await full_plan(bench)
    vmm = await bench.create(plan)
    await driver.boot(vmm)
    await bench.says(vmm, "READY")
    await driver.pause(vmm)
    folder = bench.directory / "snapshot"
    folder.mkdir()
    await driver.snapshot(vmm, folder, SnapshotKind.FULL)
    assert not [p for p in regular_files(folder) if SECRET.encode() in p.read_bytes()]
    before = await told(vmm, "/vm/config")
    await driver.kill(vmm)
    other = {"hostname": "web-2"}
    successor = replace(await full_plan(bench), snapshot=folder, metadata=other)
    restored = await bench.create(successor)
    assert await told(restored, "/mmds") == {"latest": {"meta-data": other}}
    after = await told(restored, "/vm/config")
    assert limiters_of(after) == limiters_of(before)
    assert after["balloon"] == before["balloon"]
    assert after["mmds-config"] == before["mmds-config"]
    await driver.resume(restored)
    assert await driver.inspect(restored) is VmmState.RUNNING
    await driver.kill(restored)
