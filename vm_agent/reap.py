"""`python -m vm_agent reap`: end every VM of a data directory whose agent is gone for good.

Ends VMMs and removes network namespaces; records stay, so an agent that is started there later
finds its VMs stopped. Safe to repeat.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from runtime.errors import FatalError
from vm_agent import namespace
from vm_agent.cgroups import CgroupError, Cgroups
from vm_agent.data_dir import identity, owned
from vm_agent.drivers.abc import Vmm
from vm_agent.kernel import LinuxProcesses
from vm_agent.network import taps
from vm_agent.network.layout import netns_of
from vm_agent.network.taps import NetworkError
from vm_agent.process import VmmProcesses, wait_end
from vm_agent.store import Record, RecordStore

_END_S = 5.0


def reap(data_dir: Path) -> int:
    """End and remove, and say what; the process's exit code."""
    if not data_dir.is_dir():
        print(f"nothing to reap: {data_dir} does not exist")  # noqa: T201 - a command's output
        return 0
    try:
        with owned(data_dir) as folder:
            lines = asyncio.run(_reap(folder))
    except (FatalError, CgroupError) as error:
        print(f"cannot reap: {error}", file=sys.stderr)  # noqa: T201
        return 1
    for line in lines or ["nothing left to reap"]:
        print(line)  # noqa: T201
    return 0


async def _reap(folder: Path) -> list[str]:
    records = await asyncio.to_thread(RecordStore(folder / "vms").load)
    groups = Cgroups(identity(folder))
    processes = LinuxProcesses(VmmProcesses(), groups)
    lines = [
        f"ended VMM {record.vmm.pid} of VM {record.vm_id}"
        for record in records
        if record.vmm is not None and await _end(processes, record.vmm)
    ]
    strays = await asyncio.to_thread(processes.end_strays, folder / "run", frozenset())
    lines += [f"ended stray VMM {pid}" for pid in strays]
    for name in groups.names():
        await asyncio.to_thread(groups.destroy, name)
        lines.append(f"removed control group {name}")
    groups.close()
    lines += await _remove_networks(records)
    lines += await _remove_fabric(identity(folder))
    return lines


async def _end(processes: LinuxProcesses, vmm: Vmm) -> bool:
    if not processes.is_alive(vmm):
        return False
    processes.kill(vmm)
    try:
        async with asyncio.timeout(_END_S):
            await wait_end(vmm.pid, vmm.start_ticks)
    except TimeoutError as error:
        raise FatalError(f"VMM {vmm.pid} does not die of SIGKILL") from error
    return True


async def _remove_networks(records: list[Record]) -> list[str]:
    """Remove the namespaces of these VMs; those of other agents on the host stay."""
    ours = {record.vm_id for record in records}
    lines = []
    for nic in await asyncio.to_thread(taps.list_owned):
        if taps.owner_of(nic)[0] in ours:
            try:
                await taps.destroy(nic)
            except NetworkError as error:
                raise FatalError(str(error)) from error
            lines.append(f"removed network namespace {nic.netns}")
    return lines


async def _remove_fabric(who: str) -> list[str]:
    """Remove the namespace that connected them, with all taps and the way out that are in it."""
    netns = netns_of(who)
    if not (namespace.NETNS_DIR / netns).exists():
        return []
    await asyncio.to_thread(namespace.remove, netns)
    return [f"removed network namespace {netns}"]
