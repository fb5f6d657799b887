"""A wish that the host's driver cannot fulfil is refused: when the VM is made, and at its start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from ipaddress import IPv6Network
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from msgspec.structs import replace

from runtime.clock import utc_now
from schemas.commands import BootVm, CreateVm, RebootVm
from schemas.devices import RateLimits
from schemas.errors import ErrorCode
from schemas.hosts import Operation, OperationStatus
from schemas.ids import new_id
from schemas.vms import SnapshotKind, VmSpec, VmState
from tests.support.memory_agent import CAPACITY, Mail, Run
from tests.support.memory_host import MemoryDesk, MemoryDriver
from tests.support.memory_kernel import MemoryKernel
from vm_agent.drivers.abc import Ability, MachinePlan, Vmm
from vm_agent.network.leases import Leases, Ranges
from vm_agent.network.numbers import Numbers
from vm_agent.snapshot_store import Manifest
from vm_agent.snapshotting import check_fit
from vm_agent.states import RefusedError
from vm_agent.wishes import require, shares, wishes

SECRET = "hunter2"
PLAIN = VmSpec(image="tiny", disk_mib=8)
WISHES: list[tuple[dict[str, Any], str, Ability]] = [
    ({"metadata": {"password": SECRET}}, "metadata", Ability.METADATA),
    ({"balloon_mib": 1}, "balloon_mib", Ability.BALLOON),
    ({"limits": RateLimits(disk_ops_per_s=1)}, "limits.disk_*", Ability.DISK_LIMITS),
    ({"limits": RateLimits(net_tx_bytes_per_s=1)}, "limits.net_*", Ability.NET_LIMITS),
]


class Able(MemoryDriver):
    """A driver that fulfils everything."""

    abilities = frozenset(Ability)


class Stage:
    """An agent in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.desk = MemoryDesk()
        self.kernel = MemoryKernel()
        self.run = Run(folder, self.kernel, self.desk)

    async def restart_with(self, driver: MemoryDriver) -> None:
        """Another run of the agent, with another driver."""
        await self.run.die()
        self.run = Run(self.folder, self.kernel, self.desk, driver=driver)
        await self.run.start()

    async def do(self, kind: type, vm_id: UUID, **more: Any) -> Operation:
        """The result of a command."""
        now = utc_now()
        command = kind(
            command_id=new_id(), customer_id="acme", vm_id=vm_id, host_id="h1",
            issued_at=now, deadline=now + timedelta(hours=1), **more,
        )  # fmt: skip
        self.run.inbox.queue.put_nowait(Mail(command))
        async with asyncio.timeout(20):
            while not (results := self.desk.operations.get(command.command_id)):
                assert not self.run.tasks.failures
                await asyncio.sleep(0.005)
        return results[-1]


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    made = Stage(tmp_path)
    await made.run.start()
    yield made
    await made.run.die()


@pytest.mark.parametrize(("wish", "name", "ability"), WISHES)
async def test_a_create_is_refused_without_a_trace(
    stage: Stage, wish: dict[str, Any], name: str, ability: Ability
) -> None:
    """With the names of driver and wish; nothing is held, and no secret told."""
    spec = replace(PLAIN, **wish)
    assert wishes(spec) == {name: ability}
    vm_id = new_id()
    refused = await stage.do(CreateVm, vm_id, spec=spec)
    assert refused.error is not None
    assert refused.error.code is ErrorCode.UNSUPPORTED
    assert "memory" in refused.error.message
    assert name in refused.error.message
    assert SECRET not in refused.error.message
    assert stage.run.fleet.get(vm_id) is None
    assert stage.run.admission.free == CAPACITY
    assert (await stage.do(CreateVm, new_id(), spec=PLAIN)).status is OperationStatus.SUCCEEDED


async def test_a_vm_does_not_start_on_a_driver_that_would_leave_something_out(
    stage: Stage,
) -> None:
    """Its host got another driver; with the old one it starts again."""
    vm_id = new_id()
    await stage.restart_with(Able(stage.kernel))
    spec = replace(PLAIN, metadata={"password": SECRET})
    assert (await stage.do(CreateVm, vm_id, spec=spec)).status is OperationStatus.SUCCEEDED
    await stage.restart_with(MemoryDriver(stage.kernel))
    refused = await stage.do(BootVm, vm_id)
    assert refused.error is not None
    assert refused.error.code is ErrorCode.UNSUPPORTED
    assert refused.state is VmState.STOPPED
    assert not stage.kernel.living()
    assert not stage.kernel.nics
    await stage.restart_with(Able(stage.kernel))
    assert (await stage.do(BootVm, vm_id)).state is VmState.RUNNING


async def test_limits_of_a_disk_need_one(stage: Stage) -> None:
    """Which only the host knows: an image may have a root file system."""
    await stage.restart_with(Able(stage.kernel))
    spec = VmSpec(image="tiny", limits=RateLimits(disk_bytes_per_s=1))
    refused = await stage.do(CreateVm, new_id(), spec=spec)
    assert refused.error is not None
    assert refused.error.code is ErrorCode.BAD_REQUEST
    assert "no disk" in refused.error.message
    require(replace(spec, disk_mib=1), Able(stage.kernel), connects=False)


LIMITS = RateLimits(
    disk_bytes_per_s=1, disk_ops_per_s=2, net_rx_bytes_per_s=3, net_tx_bytes_per_s=4
)


class DiskOnly(MemoryDriver):
    """A driver that holds a VM to limits of its disk, and notes what it is told."""

    abilities = frozenset({Ability.DISK_LIMITS})
    told: RateLimits | None = None

    async def create(self, plan: MachinePlan) -> Vmm:
        """Note the limits."""
        self.told = plan.limits
        return await super().create(plan)


def test_who_can_hold_a_vm_to_its_limits_is_asked_to() -> None:
    """The VMM before the host; and nothing is held twice, or by nobody."""
    kernel = MemoryKernel()
    assert shares(LIMITS, Able(kernel)) == (LIMITS, RateLimits())
    disk, network = shares(LIMITS, DiskOnly(kernel))
    assert disk == RateLimits(disk_bytes_per_s=1, disk_ops_per_s=2)
    assert network == RateLimits(net_rx_bytes_per_s=3, net_tx_bytes_per_s=4)


async def test_the_host_holds_a_vm_where_its_driver_cannot(stage: Stage, tmp_path: Path) -> None:
    """From before the guest runs, over restarts of agent and VM, and whatever drivers can then."""
    stage.kernel.leases = Leases(
        Ranges(IPv6Network("2001:db8::/64")), Numbers(tmp_path / "numbers.json")
    )
    driver = DiskOnly(stage.kernel)
    await stage.restart_with(driver)
    vm_id, spec = new_id(), replace(PLAIN, limits=LIMITS)
    assert (await stage.do(CreateVm, vm_id, spec=spec)).status is OperationStatus.SUCCEEDED
    assert (await stage.do(BootVm, vm_id)).state is VmState.RUNNING
    assert driver.told == RateLimits(disk_bytes_per_s=1, disk_ops_per_s=2)
    (held,) = stage.kernel.attached.values()
    assert (held.rx_bytes_per_s, held.tx_bytes_per_s) == (3, 4)
    # What runs is as it was begun, also if the next agent's driver of that name can do more.
    await stage.restart_with(Able(stage.kernel))
    assert list(stage.kernel.attached.values()) == [held]
    assert (await stage.do(RebootVm, vm_id)).state is VmState.RUNNING
    (free,) = stage.kernel.attached.values()
    assert (free.rx_bytes_per_s, free.tx_bytes_per_s) == (0, 0)


async def test_limits_that_nobody_would_keep_are_refused(stage: Stage) -> None:
    """Those of the network by a host that connects no VMs; those of the disk everywhere."""
    await stage.restart_with(DiskOnly(stage.kernel))
    spec = replace(PLAIN, limits=LIMITS)
    refused = await stage.do(CreateVm, new_id(), spec=spec)
    assert refused.error is not None
    assert refused.error.message == (
        "memory cannot give a VM limits of the network (limits.net_*), "
        "nor can this host, which connects no VMs"
    )
    require(spec, DiskOnly(stage.kernel), connects=True)
    with pytest.raises(RefusedError, match=r"limits of the disk \(limits.disk_\*\)$"):
        require(spec, MemoryDriver(stage.kernel), connects=True)


@pytest.mark.parametrize(
    ("have", "words"),
    [
        ({}, None),
        ({"metadata": {"password": "another"}}, None),
        ({"labels": {"a": "b"}}, None),
        ({"memory_mib": 64}, "memory_mib 128, this VM has 64"),
        ({"balloon_mib": 17}, "balloon_mib 16, this VM has 17"),
        ({"balloon_mib": 0}, "balloon_mib 16, this VM has 0"),
        ({"limits": RateLimits()}, "limits.disk_ops_per_s 5, this VM has 0"),
        ({"limits": RateLimits(disk_ops_per_s=5, net_rx_bytes_per_s=1)},
         "limits.net_rx_bytes_per_s 0, this VM has 1"),
        ({"metadata": {}}, "metadata some, this VM has none"),
    ],
)  # fmt: skip
def test_a_snapshot_fits_only_a_vm_that_has_what_comes_with_it(
    have: dict[str, Any], words: str | None
) -> None:
    """Balloon and limits come with its state, and so does whether there is metadata."""
    spec = replace(
        PLAIN, balloon_mib=16, limits=RateLimits(disk_ops_per_s=5), metadata={"password": SECRET}
    )
    found = Manifest(
        snapshot_id=new_id(), vm_id=new_id(), customer_id="acme", kind=SnapshotKind.FULL,
        spec=spec.without_secrets(), driver="memory", created_at=utc_now(),
    )  # fmt: skip
    check_fit(spec, found)
    if words is None:
        check_fit(replace(spec, **have), found)
        return
    with pytest.raises(RefusedError, match=words) as caught:
        check_fit(replace(spec, **have), found)
    assert caught.value.info.code is ErrorCode.CONFLICT
    assert SECRET not in caught.value.info.message
