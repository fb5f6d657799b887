"""A host to measure: a nats-server, an agent process, many VMs, and what is left of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from decisec.devkit import guest as guest_kit
from schemas.commands import BootVm, CreateVm, DeleteVm
from schemas.hosts import Operation, OperationStatus
from schemas.ids import new_id
from schemas.vms import VmSpec
from tests.support.agents import AgentProcess, Client, agent
from tests.support.hypervisors import find_firecracker
from tests.support.nats import NatsServer, bus_with_streams
from vm_agent.cgroups import Cgroups
from vm_agent.data_dir import identity
from vm_agent.network.taps import list_owned, owner_of
from vm_agent.process import is_alive
from vm_agent.store import RecordStore

_AT_ONCE = 8
_TRIES = 5
"""A boot may fail on a machine that has no time for it: the VM is bootable again."""
_COMMAND_S = 60.0
_REPORT_EVERY = 100


class BenchError(Exception):
    """The run is worth nothing: a VM did not start, or something was left."""


@asynccontextmanager
async def host(
    folder: Path, driver: str, vms: int, **more: str
) -> AsyncIterator[tuple[NatsServer, AgentProcess, Client]]:
    """An agent that takes so many VMs, whatever the machine has."""
    settings = {
        "driver": driver,
        "slots": str(vms),
        "vcpus": str(vms),
        "memory_mib": str(vms * 1024),
        "disk_mib": str(vms * 1024),
        "log_level": "warning",
        **more,
    }
    kernel = folder / "kernel"
    if driver == "simulator":
        kernel.write_bytes(b"\x7fELF: the simulator boots anything")
    else:
        guest_kit.build(kernel)
    if driver == "firecracker":
        binary, reason = find_firecracker()
        if binary is None:
            raise BenchError(f"no Firecracker: {reason}")
        settings["firecracker"] = str(binary)
    async with (
        bus_with_streams(folder / "nats") as (server, bus),
        agent(folder / "agent", server.url, kernel, **settings) as process,
    ):
        yield server, process, Client(bus)


@dataclass
class Fleet:
    """The VMs of a run.

    Attributes:
        client: Whose commands they are.
        say: Told of progress.
        boots_failed: Those that were tried again.
    """

    client: Client
    say: Callable[[str], None]
    vm_ids: list[UUID] = field(default_factory=list)
    boots_failed: int = 0
    _vmms: list[tuple[int, int]] = field(default_factory=list)

    async def boot(self, count: int, spec: VmSpec) -> float:
        """Create and boot VMs, a few at a time; how long that took, in s."""
        began = time.monotonic()
        self.vm_ids = [new_id() for _ in range(count)]
        await self._all("booted", lambda vm_id: self._boot(vm_id, spec))
        return time.monotonic() - began

    async def delete(self, process: AgentProcess) -> float:
        """Delete all of them; how long that took, in s."""
        records = RecordStore(process.data_dir / "vms").load()
        self._vmms = [(r.vmm.pid, r.vmm.start_ticks) for r in records if r.vmm is not None]
        began = time.monotonic()
        await self._all("deleted", lambda vm_id: self._do(DeleteVm, vm_id))
        return time.monotonic() - began

    def left_over(self, process: AgentProcess) -> list[str]:
        """What is still there of deleted VMs: processes, control groups, namespaces."""
        groups = Cgroups(identity(process.data_dir))
        mine = set(self.vm_ids)
        return [
            *(f"process {pid}" for pid, ticks in self._vmms if is_alive(pid, ticks)),
            *(f"control group {name}" for name in groups.names()),
            *(f"namespace {nic.netns}" for nic in list_owned() if owner_of(nic)[0] in mine),
        ]

    async def _boot(self, vm_id: UUID, spec: VmSpec) -> None:
        await self._do(CreateVm, vm_id, spec=spec)
        for left in reversed(range(_TRIES)):
            try:
                await self._do(BootVm, vm_id)
            except BenchError as error:
                if not left:
                    raise
                self.boots_failed += 1
                self.say(f"again: {error}")
            else:
                return

    async def _do(self, kind: type, vm_id: UUID, **fields: Any) -> None:
        async with asyncio.timeout(_COMMAND_S):
            done: Operation = await self.client.do(kind, vm_id, **fields)
        if done.status is not OperationStatus.SUCCEEDED:
            raise BenchError(f"{done.verb} of {vm_id} failed: {done.error}")

    async def _all(self, what: str, act: Callable[[UUID], Coroutine[Any, Any, None]]) -> None:
        waiting = iter(self.vm_ids)
        finished = 0

        async def work() -> None:
            nonlocal finished
            for vm_id in waiting:
                await act(vm_id)
                finished += 1
                if finished % _REPORT_EVERY == 0:
                    self.say(f"{finished} of {len(self.vm_ids)} VMs {what}")

        async with asyncio.TaskGroup() as group:
            for number in range(_AT_ONCE):
                group.create_task(work(), name=f"{what}-{number}")
