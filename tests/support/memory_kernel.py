"""The kernel of a host in memory: processes, interfaces, control groups and a clock."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from schemas.networking import Networking
from vm_agent.cgroups import Group, Limits
from vm_agent.drivers.abc import DeviceCounters, Nic, Vmm, VmmState
from vm_agent.metering import Sources
from vm_agent.network.attachment import Attachment
from vm_agent.network.differences import Differences
from vm_agent.network.lease import Lease
from vm_agent.network.leases import Leases
from vm_agent.network.mending import Repairs
from vm_agent.network.path_check import Facts
from vm_agent.ports import Reading
from vm_agent.process import ExitStatus


@dataclass(eq=False)
class Machine:
    """One VMM."""

    vmm: Vmm
    state: VmmState = VmmState.CREATED
    cpu_ns: int = 0
    device: DeviceCounters = field(default_factory=DeviceCounters)
    net: tuple[int, int] = (0, 0)
    exit_code: int | None = None
    boots: int = 0
    waiters: list[asyncio.Event] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.exit_code is None

    def work(self, amount: int) -> None:
        """Use some of everything."""
        self.cpu_ns += 1000 * amount
        self.device = DeviceCounters(
            disk_read_bytes=self.device.disk_read_bytes + amount,
            disk_write_bytes=self.device.disk_write_bytes + 2 * amount,
        )
        self.net = (self.net[0] + 3 * amount, self.net[1] + 4 * amount)

    def die(self, exit_code: int) -> None:
        """End the process."""
        if self.alive:
            self.exit_code = exit_code
            for waiter in self.waiters:
                waiter.set()


class MemoryKernel:
    """Processes, interfaces and the clock. `Processes` and `Networks` of the agent's ports."""

    def __init__(self) -> None:
        self.now_ns = 10**9
        self.boot = "boot-1"
        self.machines: dict[int, Machine] = {}
        self.nics: set[str] = set()
        self.leases: Leases | None = None
        self.attached: dict[str, Attachment] = {}
        self.dropped: dict[str, dict[str, int]] = {}
        self.groups = MemoryGroups()

    def living(self, vm_id: UUID | None = None) -> list[Machine]:
        """VMMs that run, of one VM or of all."""
        return [m for m in self.machines.values() if m.alive and vm_id in (None, m.vmm.vm_id)]

    def boottime_ns(self) -> int:
        """A clock that a test moves."""
        return self.now_ns

    def boot_id(self) -> str:
        """The boot."""
        return self.boot

    def is_alive(self, vmm: Vmm) -> bool:
        """Whether the process runs."""
        return self.machines[vmm.pid].alive

    def cpu_ns(self, vmm: Vmm) -> int | None:
        """The process's clock."""
        machine = self.machines[vmm.pid]
        return machine.cpu_ns if machine.alive else None

    def kill(self, vmm: Vmm) -> None:
        """SIGKILL."""
        self.machines[vmm.pid].die(-9)

    async def wait_exit(self, vmm: Vmm) -> ExitStatus:
        """The end of a process."""
        machine = self.machines[vmm.pid]
        if machine.alive:
            ended = asyncio.Event()
            machine.waiters.append(ended)
            await ended.wait()
        return ExitStatus(exit_code=machine.exit_code, cpu_ns=machine.cpu_ns)

    async def sources(self, vmm: Vmm, nic: Nic | None, settled_cpu: Reading) -> Sources:
        """The kernel's numbers."""
        del settled_cpu
        return MemorySources(self.machines[vmm.pid], nic is not None)

    def end_strays(self, run_root: Path, known: frozenset[int]) -> list[int]:
        """End what no record knows."""
        del run_root
        strays = [m.vmm.pid for m in self.living() if m.vmm.pid not in known]
        for pid in strays:
            self.machines[pid].die(-9)
        return strays

    @property
    def unavailable(self) -> str | None:
        """None: there are interfaces."""
        return None

    missing = ""

    @property
    def connects(self) -> bool:
        """Whether there is a fabric."""
        return self.leases is not None

    @property
    def names(self) -> tuple[str, ...]:
        """What addresses are from."""
        return self.leases.ranges.names() if self.leases is not None else ()

    @property
    def tenants(self) -> Mapping[str, int]:
        """Numbers of customers."""
        return self.leases.tenants if self.leases is not None else {}

    async def open(self, vms: Iterable[Attachment]) -> None:
        """Only what stands already is taken over."""
        there = {vm.tap: vm for vm in vms}
        self.attached = {tap: vm for tap, vm in self.attached.items() if there.get(tap) == vm}

    async def lease(self, vm_id: UUID, customer_id: str, wish: Networking) -> Lease | None:
        """A VM's addresses."""
        if self.leases is None:
            return None
        return await self.leases.take(vm_id, customer_id, wish)

    def restore(self, vm_id: UUID, customer_id: str, lease: Lease) -> None:
        """Hold what a VM has."""
        if self.leases is not None:
            self.leases.restore(vm_id, customer_id, lease)

    def release(self, vm_id: UUID) -> None:
        """Give back what a VM has."""
        if self.leases is not None:
            self.leases.release(vm_id)

    def nic_of(self, vm_id: UUID, incarnation: int, lease: Lease | None) -> Nic | None:
        """An interface's names."""
        return Nic(
            netns=f"decisec-{vm_id.hex}-{incarnation}",
            tap="tap0",
            mac=lease.mac if lease is not None else "06:00:00:00:00:01",
            fabric=lease.tap if lease is not None else "",
        )

    async def create(self, nic: Nic, owner: int | None = None) -> None:
        """Make an interface."""
        del owner
        await asyncio.sleep(0)
        self.nics.add(nic.netns)

    async def attach(self, nic: Nic, vm: Attachment) -> None:
        """Connect an interface."""
        assert nic.netns in self.nics
        await asyncio.sleep(0)
        self.attached[vm.tap] = vm
        await asyncio.sleep(0)

    async def change(self, vm: Attachment) -> None:
        """Let other rules hold."""
        await asyncio.sleep(0)
        if vm.tap in self.attached:
            self.attached[vm.tap] = vm

    async def destroy(self, nic: Nic) -> None:
        """Remove an interface."""
        await asyncio.sleep(0)
        self.attached.pop(nic.fabric, None)
        await asyncio.sleep(0)
        self.nics.discard(nic.netns)

    def at_once(self) -> AbstractContextManager[None]:
        """All is at hand anyway."""
        return nullcontext()

    async def reconcile(self) -> Repairs:
        """Everything is as it should be, or a test will find out."""
        return Repairs({})

    async def drops(self) -> Mapping[str, Mapping[str, int]]:
        """What a test says."""
        return self.dropped

    async def examine(self, tap: str) -> Facts:
        """Nothing is amiss, and nothing is sent."""
        await asyncio.sleep(0)
        return Facts(
            vm=self.attached[tap],
            carrier=True,
            amiss=Differences(),
            rules=(),
            host=(),
            beyond=True,
            sent=(),
            stopped={},
        )


class MemoryGroups:
    """`Groups` that hold nothing but names.

    Attributes:
        made: Groups that are there.
        starved: Those in which the kernel ran out of memory.
    """

    unavailable = None

    def __init__(self) -> None:
        self.made: set[str] = set()
        self.starved: set[str] = set()

    def create(self, name: str, limits: Limits) -> Group | None:
        """Make a group."""
        del limits
        self.made.add(name)
        return Group(name, ())

    def cpu_ns(self, name: str) -> int | None:
        """Nothing is counted here."""
        del name
        return None

    def oom_kills(self, name: str) -> int:
        """One for each that is starved."""
        return int(name in self.starved)

    def names(self) -> list[str]:
        """All groups."""
        return sorted(self.made)

    def destroy(self, name: str) -> None:
        """Remove a group."""
        self.made.discard(name)


class MemorySources:
    """`Sources` of one machine."""

    def __init__(self, machine: Machine, has_nic: bool) -> None:
        self._machine = machine
        self._has_nic = has_nic

    def cpu_ns(self) -> int | None:
        """The process's clock."""
        return self._machine.cpu_ns if self._machine.alive else None

    def settled_cpu_ns(self) -> int | None:
        """None: nobody has counted."""
        return None

    def mem_bytes(self) -> int | None:
        """Resident memory."""
        return 4096 if self._machine.alive else None

    def net_bytes(self) -> tuple[int, int] | None:
        """The tap's counters."""
        return self._machine.net if self._has_nic else None

    def close(self) -> None:
        """Nothing is open."""
