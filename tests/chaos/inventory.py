"""What an agent has on its host, against what its records say that it has."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import UUID

from schemas.vms import METERED_STATES, VmState
from tests.chaos.connected import disconnections
from tests.support.hypervisors import processes_in
from vm_agent.cgroups import Cgroups
from vm_agent.data_dir import identity
from vm_agent.network import taps
from vm_agent.ports import incarnation_name
from vm_agent.process import is_alive
from vm_agent.store import Record, RecordStore

_GONE = VmState.DELETED


def discrepancies(data_dir: Path, *, uid_base: int, vm_ids: frozenset[UUID]) -> list[str]:
    """Everything that is there and should not be, or should be and is not; for people.

    Args:
        data_dir: The agent's; it must be at rest.
        uid_base: First of its user ids.
        vm_ids: All VMs that it ever had; namespaces of others are another agent's.
    """
    records = RecordStore(data_dir / "vms").load()
    running = [r for r in records if r.state in METERED_STATES]
    present = [r for r in records if r.state is not _GONE]
    names = {incarnation_name(r.vm_id, r.incarnation) for r in running}
    found: list[str] = []

    def compare(what: str, there: set[str], owned: set[str]) -> None:
        found.extend(f"{what} without an owner: {name}" for name in sorted(there - owned))
        found.extend(f"{what} missing: {name}" for name in sorted(owned - there))

    found += [
        f"VM {r.vm_id} is {r.state}, and its VMM is not there"
        for r in running
        if r.vmm is None or not is_alive(r.vmm.pid, r.vmm.start_ticks)
    ]
    found += [f"VM {r.vm_id} has a {r.current.verb} half done" for r in records if r.current]
    compare("run directory", _names(data_dir / "run"), names)
    compare("disk", _names(data_dir / "disks"), {f"{r.vm_id}.img" for r in present if _disk(r)})
    consoles = {path.name for path in (data_dir / "consoles").glob("*.log")}
    booted = {f"{r.vm_id}.log" for r in present if r.incarnation}
    compare("console", consoles, booted)
    orphans = _names(data_dir / "snapshots") - {str(r.vm_id) for r in present}
    found += [f"snapshots without an owner: {name}" for name in sorted(orphans)]
    found.extend(
        f"unfinished: {path}" for path in data_dir.rglob("*") if path.name.startswith(".new-")
    )
    if os.geteuid() == 0:
        groups = Cgroups(identity(data_dir))
        if groups.unavailable is None:
            compare("control group", set(groups.names()), names)
        nics = {n.netns for n in taps.list_owned() if taps.owner_of(n)[0] in vm_ids}
        compare("namespace", nics, {r.nic.netns for r in running if r.nic is not None})
        found += disconnections(data_dir, records)
    pids = {r.vmm.pid for r in running if r.vmm is not None}
    found.extend(f"process without an owner: {pid}" for pid in processes(data_dir) - pids)
    uids = [r.uid for r in present if r.uid is not None]
    if len(set(uids)) != len(uids) or any(uid <= uid_base for uid in uids):
        found.append(f"user ids are not one each: {uids}")
    return found


def _disk(record: Record) -> bool:
    return bool(record.spec.disk_mib) and record.state not in (VmState.PENDING, VmState.CREATING)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def processes(data_dir: Path) -> set[int]:
    """All that work below the data directory, and all members of its control groups."""
    found = set(processes_in(data_dir / "run"))
    if os.geteuid() == 0:
        groups = Cgroups(identity(data_dir))
        for name in groups.names():
            group = groups.group(name)
            found |= group.pids() if group is not None else set()
    return found
