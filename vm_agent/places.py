"""Where an incarnation lives: run directory, console, user, network interface, control group.

Made before its VMM and removed after it. Everything is named after the VM and the incarnation,
so whoever finds a half-made place can remove it without having been told of it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from schemas.vms import VmSpec
from vm_agent.cgroups import Limits, memory_limit
from vm_agent.consoles import Consoles
from vm_agent.drivers.abc import Driver, MachinePlan, Nic, Vmm
from vm_agent.drivers.paths import CONSOLE
from vm_agent.fleet import Vm
from vm_agent.ports import Host, incarnation_name
from vm_agent.store import Record, Start
from vm_agent.wishes import require, shares

_TASKS = 160
"""Threads of one VMM: QEMU's pool of I/O threads alone may have 64."""


class Places:
    """Makes and removes places. Errors: NetworkError, CgroupError, RefusedError, OSError.

    Args:
        host: The host.
        consoles: The consoles of its VMs.
    """

    def __init__(self, host: Host, consoles: Consoles) -> None:
        self._host = host
        self._consoles = consoles

    def uid_of(self, vm_id: UUID) -> int | None:
        """The user of a VM, reserved for it; None where the agent cannot change users."""
        return self._host.uids.take(vm_id) if self._host.uids is not None else None

    async def make(self, vm: Vm, nic: Nic | None, snapshot: Path | None) -> MachinePlan:
        """Make the place of a VM's current incarnation, whatever is left of an earlier attempt.

        Args:
            vm: Whose.
            nic: Its interface, to be made.
            snapshot: Where its guest goes on from; None to boot it.
        """
        host, record = self._host, vm.record
        require(record.spec, host.driver, connects=host.networks.connects)
        image = await host.images.prepare(host.driver.name, record.spec)
        run_dir = host.run_dir(record.vm_id, record.incarnation)
        await asyncio.to_thread(self._furnish, run_dir, record)
        if nic is not None:
            # Not connected yet: `Connecting.attach` does that, once the VMM holds it.
            await host.networks.create(nic, record.uid)
        limits = limits_of(record.spec, host.driver)
        group = await asyncio.to_thread(host.groups.create, run_dir.name, limits)
        disk = host.disk(record.vm_id)
        return MachinePlan(
            vm_id=record.vm_id,
            incarnation=record.incarnation,
            vcpus=record.spec.vcpus,
            memory_mib=record.spec.memory_mib,
            kernel=image.kernel,
            kernel_args=_kernel_args(image.kernel_args, record),
            initrd=image.initrd,
            disk=disk if record.spec.disk_mib else None,
            nic=nic,
            run_dir=run_dir,
            snapshot=snapshot,
            track_memory=record.spec.track_memory,
            metadata=record.spec.metadata,
            balloon_mib=record.spec.balloon_mib,
            limits=shares(record.spec.limits, host.driver)[0],
            uid=record.uid,
            group=group,
        )

    async def clear(self, vm_id: UUID, incarnation: int, nic: Nic | None) -> None:
        """Remove a place, and end what may still run in it. Nothing happens if it is gone."""
        folder = self._host.run_dir(vm_id, incarnation)
        await asyncio.to_thread(self._host.groups.destroy, folder.name)
        if nic is not None:
            await self._host.networks.destroy(nic)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def forget(self, vm_id: UUID) -> None:
        """Remove what outlives the incarnations of a VM, its disk excepted."""
        await self._consoles.remove(vm_id)
        if self._host.uids is not None:
            self._host.uids.release(vm_id)
        self._host.networks.release(vm_id)

    def cpu_base_ns(self, vmm: Vmm) -> int:
        """What its control group has used beside a VMM whose guest does not run yet.

        The clock first: what the VMM uses between the two readings then counts as not its own.
        """
        own_ns = self._host.processes.cpu_ns(vmm)
        used_ns = self._host.groups.cpu_ns(incarnation_name(vmm.vm_id, vmm.incarnation))
        return 0 if own_ns is None or used_ns is None else max(0, used_ns - own_ns)

    def settled_cpu(self, vmm: Vmm, start: Start) -> Callable[[], int | None]:
        """CPU time of a VMM by its control group, for when its own clock is gone."""
        name = incarnation_name(vmm.vm_id, vmm.incarnation)

        def read() -> int | None:
            used_ns = self._host.groups.cpu_ns(name)
            return None if used_ns is None else max(0, used_ns - start.cpu_base_ns)

        return read

    def starved(self, vmm: Vmm) -> bool:
        """Whether the kernel killed a VMM for want of memory."""
        return self._host.groups.oom_kills(incarnation_name(vmm.vm_id, vmm.incarnation)) > 0

    def _furnish(self, run_dir: Path, record: Record) -> None:
        shutil.rmtree(run_dir, ignore_errors=True)
        run_dir.mkdir(mode=0o700, parents=True)
        # One console for all incarnations: a crash can be read after the restart.
        console = self._host.console(record.vm_id)
        console.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        console.touch(mode=0o600)
        os.link(console, run_dir / CONSOLE)


def _kernel_args(args: str, record: Record) -> str:
    """The image's, and the IPv4 address, which no router advertisement can tell a guest."""
    address = record.lease.ipv4 if record.lease is not None else ""
    return f"{args} decisec.ipv4={address}".lstrip() if address else args


def limits_of(spec: VmSpec, driver: Driver) -> Limits:
    """What a VMM for this spec may take."""
    memory_bytes = memory_limit(spec.memory_mib, driver.memory_overhead_mib)
    return Limits(cpus=spec.vcpus, memory_bytes=memory_bytes, tasks=_TASKS + spec.vcpus)
