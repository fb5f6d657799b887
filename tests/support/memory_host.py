"""A host in memory: VMMs that are objects, for tests of the agent's logic.

The machines outlive the agent objects, as processes outlive an agent that is killed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from runtime.errors import TransientError
from schemas.errors import ErrorCode
from schemas.events import VmEvent
from schemas.hosts import Operation, OperationStatus
from schemas.vms import ExitReason, VmSpec, VmStatus
from tests.support.memory_kernel import Machine, MemoryKernel
from vm_agent.drivers.abc import (
    Ability,
    DeviceCounters,
    Driver,
    DriverError,
    MachinePlan,
    Vmm,
    VmmState,
)
from vm_agent.ports import BootImage, Host
from vm_agent.reporter import Report, event_msg_id, is_waited_for
from vm_agent.states import RefusedError
from vm_agent.uids import UidPool


class MemoryDriver(Driver):
    """A driver that can be told to fail and to hang.

    Attributes:
        fails: Verbs that raise.
        hangs: Verbs that do not return until `release` is set.
        hanging: Verbs that hang at the moment.
        obeys: Whether a guest ends when it is asked to.
        deaf: VMs whose VMM does not answer questions.
    """

    name = "memory"
    abilities = frozenset({Ability.PAUSE})

    def __init__(self, kernel: MemoryKernel) -> None:
        self.kernel = kernel
        self.fails: set[str] = set()
        self.hangs: set[str] = set()
        self.hanging: list[str] = []
        self.release = asyncio.Event()
        self.obeys = True
        self.deaf: set[UUID] = set()
        self.finals: dict[int, DeviceCounters] = {}

    async def _verb(self, name: str) -> None:
        # Everywhere a driver waits, the agent may be killed.
        await asyncio.sleep(0)
        if name in self.hangs:
            self.hanging.append(name)
            await self.release.wait()
            self.hanging.remove(name)
        if name in self.fails:
            raise DriverError(f"{name} fails as told")

    async def probe_version(self) -> str:
        """A version."""
        return "1"

    async def create(self, plan: MachinePlan) -> Vmm:
        """A new machine."""
        await self._verb("create")
        kernel = self.kernel
        pid = len(kernel.machines) + 1000
        vmm = Vmm(
            vm_id=plan.vm_id,
            incarnation=plan.incarnation,
            driver=self.name,
            pid=pid,
            start_ticks=kernel.now_ns // 10**7,
            run_dir=str(plan.run_dir),
        )
        kernel.machines[pid] = Machine(vmm)
        await asyncio.sleep(0)
        return vmm

    async def boot(self, vmm: Vmm) -> None:
        """Let the guest run."""
        await self._verb("boot")
        machine = self._machine(vmm)
        if machine.state is VmmState.CREATED:
            machine.boots += 1
            machine.state = VmmState.RUNNING

    async def shutdown(self, vmm: Vmm) -> None:
        """Ask the guest."""
        await self._verb("shutdown")
        if self.obeys:
            self.kernel.machines[vmm.pid].die(0)

    async def pause(self, vmm: Vmm) -> None:
        """Stop the guest."""
        await self._verb("pause")
        self._machine(vmm).state = VmmState.PAUSED

    async def resume(self, vmm: Vmm) -> None:
        """Let the guest go on."""
        await self._verb("resume")
        self._machine(vmm).state = VmmState.RUNNING

    async def kill(self, vmm: Vmm) -> None:
        """End the machine."""
        await self._verb("kill")
        self.kernel.machines[vmm.pid].die(-9)

    async def inspect(self, vmm: Vmm) -> VmmState:
        """The machine's state."""
        await self._verb("inspect")
        if vmm.vm_id in self.deaf:
            raise DriverError("no answer")
        machine = self.kernel.machines[vmm.pid]
        return machine.state if machine.alive else VmmState.GONE

    async def counters(self, vmm: Vmm) -> DeviceCounters:
        """The machine's device counters."""
        await self._verb("counters")
        if vmm.vm_id in self.deaf and self.kernel.machines[vmm.pid].alive:
            raise DriverError("no answer")
        return self.kernel.machines[vmm.pid].device

    def exit_reason(self, vmm: Vmm, exit_code: int | None) -> ExitReason:
        """By the exit code."""
        del vmm
        match exit_code:
            case 0:
                return ExitReason.GUEST_SHUTDOWN
            case -9:
                return ExitReason.KILLED
            case None:
                return ExitReason.UNKNOWN
            case _:
                return ExitReason.CRASHED

    def last_words(self, vmm: Vmm) -> str:
        """What every machine says before it dies."""
        del vmm
        return "it panicked"

    async def destroy(self, vmm: Vmm) -> None:
        """Nothing is left of a machine."""
        await self._verb("destroy")

    def console(self, run_dir: Path) -> Path:
        """A file that is not there."""
        return run_dir / "console.log"

    def _machine(self, vmm: Vmm) -> Machine:
        machine = self.kernel.machines[vmm.pid]
        if not machine.alive:
            raise DriverError("the machine has ended")
        return machine


class MemoryImages:
    """`Images` with one image.

    Attributes:
        rootfs: What its VMs' disks begin with; None for empty ones.
        gate: Cleared: looking it up takes until it is set.
        waiting: How many wait for it.
    """

    def __init__(self, rootfs: Path | None = None) -> None:
        self.rootfs = rootfs
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = 0

    def names(self) -> tuple[str, ...]:
        """Its name."""
        return ("tiny",)

    async def prepare(self, driver: str, spec: VmSpec) -> BootImage:
        """The image."""
        del driver
        self.waiting += 1
        await self.gate.wait()
        self.waiting -= 1
        if spec.image != "tiny":
            raise RefusedError(ErrorCode.UNKNOWN_IMAGE, "there is no such image")
        return BootImage(
            kernel=Path("kernel"),
            initrd=None,
            kernel_args="",
            rootfs=self.rootfs,
            rootfs_bytes=self.rootfs.stat().st_size if self.rootfs else 0,
        )

    async def prepare_new(self, driver: str, spec: VmSpec) -> BootImage:
        """The image."""
        return await self.prepare(driver, spec)


class MemoryDesk:
    """`Desk` that keeps everything, stores an event once per id, and can be away."""

    def __init__(self) -> None:
        self.statuses: list[VmStatus] = []
        self.operations: dict[UUID, list[Operation]] = {}
        self.events: dict[str, VmEvent] = {}
        self.away = False

    async def send(self, report: Report) -> None:
        """Keep a report."""
        await asyncio.sleep(0)
        if self.away:
            raise TransientError("away")
        match report:
            case VmStatus():
                self.statuses.append(report)
            case Operation():
                self.operations.setdefault(report.operation_id, []).append(report)
            case _:
                self.events.setdefault(event_msg_id(report), report)

    async def operation(self, command_id: UUID) -> Operation | None:
        """The newest value."""
        await asyncio.sleep(0)
        if self.away:
            raise TransientError("away")
        values = self.operations.get(command_id)
        return values[-1] if values else None

    async def begin(self, command_id: UUID) -> Operation | None:
        """The newest value; a pending one becomes a running one."""
        value = await self.operation(command_id)
        if value is not None and value.status is OperationStatus.PENDING:
            value = msgspec.structs.replace(value, status=OperationStatus.RUNNING)
            self.operations[command_id].append(value)
        return value

    async def refuse(self, failure: Operation) -> None:
        """Keep a bad end, where none of another kind stands."""
        standing = await self.operation(failure.operation_id)
        if standing is None:
            self.operations[failure.operation_id] = [failure]
        elif is_waited_for(standing, failure):
            ended = msgspec.structs.replace(standing, status=failure.status, error=failure.error)
            self.operations[failure.operation_id].append(ended)


class LooseTasks:
    """Named tasks without a group, for parts under test on their own.

    Attributes:
        failures: What tasks have raised.
    """

    def __init__(self) -> None:
        self.running: set[asyncio.Task[None]] = set()
        self.failures: list[BaseException] = []

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Start a task."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self.running.add(task)
        task.add_done_callback(self._ended)
        return task

    async def cancel(self) -> None:
        """End all tasks."""
        while self.running:
            tasks = list(self.running)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failures.append(error)


def memory_host(
    kernel: MemoryKernel, driver: MemoryDriver, folder: Path, images: MemoryImages | None = None
) -> Host:
    """A host of these parts."""
    return Host(
        host_id="h1",
        driver=driver,
        drivers={driver.name: driver},
        images=images or MemoryImages(),
        networks=kernel,
        processes=kernel,
        groups=kernel.groups,
        uids=UidPool(1000, 100),
        data_dir=folder,
    )
