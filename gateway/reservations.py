"""What was placed on hosts, by whichever gateway, and is not yet in their heartbeats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from heapq import heappop, heappush
from uuid import UUID

from gateway.placement import total
from schemas.hosts import HostInfo, Resources

LINGER = timedelta(seconds=10)
"""After its deadline a create that was never answered holds nothing any more."""


@dataclass(slots=True)
class _Hold:
    """Room for one VM.

    Attributes:
        until: Afterwards it holds nothing.
        since: The host has reserved the room itself by then, by its own clock.
    """

    host_id: str
    need: Resources
    until: datetime
    since: datetime | None = None


@dataclass(slots=True)
class _Host:
    """What is held on one host, and what its last heartbeat says.

    Attributes:
        taken: The sum of what is held; None for nothing.
        heartbeat_at: Of the last heartbeat, None before the first.
        admitted: VMs whose room that heartbeat does not count as free.
    """

    vms: set[UUID] = field(default_factory=set)
    taken: Resources | None = None
    heartbeat_at: datetime | None = None
    admitted: frozenset[UUID] = frozenset()

    def shows(self, vm_id: UUID, since: datetime | None) -> bool:
        """Whether the last heartbeat counts a VM's room as used."""
        return vm_id in self.admitted or (
            since is not None and self.heartbeat_at is not None and self.heartbeat_at > since
        )


class Reservations:
    """Room that is held for VMs until their hosts show it as used: one hold per VM.

    A heartbeat shows a VM that it names as admitted. One from an agent that names none shows those
    that the host has reserved room for before; both times are that host's own.

    Args:
        on_change: Called with each host on which something else is held than before.
    """

    def __init__(self, on_change: Callable[[str], None] = lambda _: None) -> None:
        self._on_change = on_change
        self._holds: dict[UUID, _Hold] = {}
        self._hosts: dict[str, _Host] = {}
        self._ends: list[tuple[datetime, UUID]] = []

    def __len__(self) -> int:
        return len(self._holds)

    def taken(self, host_id: str) -> Resources | None:
        """What a host's heartbeat does not show yet; None for nothing."""
        host = self._hosts.get(host_id)
        return None if host is None else host.taken

    def holder(self, vm_id: UUID) -> str | None:
        """The host on which room is held for a VM."""
        hold = self._holds.get(vm_id)
        return None if hold is None else hold.host_id

    def hold(self, vm_id: UUID, host_id: str, need: Resources, until: datetime) -> None:
        """Hold room for a VM on one host and no other; doing it twice changes nothing."""
        known = self._holds.get(vm_id)
        if known is not None:
            if known.host_id == host_id:
                return
            self._drop(vm_id, known)
        host = self._hosts.setdefault(host_id, _Host())
        if vm_id in host.admitted:
            return
        self._holds[vm_id] = _Hold(host_id, need, until)
        heappush(self._ends, (until, vm_id))
        host.vms.add(vm_id)
        host.taken = need if host.taken is None else total((host.taken, need))
        self._on_change(host_id)

    def release(self, vm_id: UUID, host_id: str) -> None:
        """Hold room for a VM on this host no more."""
        hold = self._holds.get(vm_id)
        if hold is not None and hold.host_id == host_id:
            self._drop(vm_id, hold)

    def reserved(self, vm_id: UUID, host_id: str, at: datetime) -> None:
        """Note that a host has itself reserved room for a VM by a time of its own clock."""
        hold = self._holds.get(vm_id)
        if hold is None or hold.host_id != host_id:
            return
        if hold.since is None or at < hold.since:
            hold.since = at
        if self._hosts[host_id].shows(vm_id, hold.since):
            self._drop(vm_id, hold)

    def heard(self, info: HostInfo) -> None:
        """Take a heartbeat: what it shows is held no more."""
        host = self._hosts.setdefault(info.host_id, _Host())
        host.heartbeat_at = info.heartbeat_at
        host.admitted = frozenset(info.admitted)
        for vm_id in [v for v in host.vms if host.shows(v, self._holds[v].since)]:
            self._drop(vm_id, self._holds[vm_id])

    def gone(self, host_id: str) -> None:
        """Forget the heartbeat of a host; what is held there is still held."""
        host = self._hosts.get(host_id)
        if host is None:
            return
        if host.vms:
            host.heartbeat_at, host.admitted = None, frozenset()
        else:
            del self._hosts[host_id]

    def expire(self, now: datetime) -> None:
        """End the holds whose time is over."""
        ends = self._ends
        while ends and ends[0][0] < now:
            until, vm_id = heappop(ends)
            hold = self._holds.get(vm_id)
            if hold is not None and hold.until == until:
                self._drop(vm_id, hold)

    def _drop(self, vm_id: UUID, hold: _Hold) -> None:
        del self._holds[vm_id]
        host = self._hosts[hold.host_id]
        host.vms.discard(vm_id)
        if host.vms and host.taken is not None:
            host.taken = _less(host.taken, hold.need)
        else:
            host.taken = None
            if host.heartbeat_at is None:
                del self._hosts[hold.host_id]
        self._on_change(hold.host_id)


def _less(amount: Resources, part: Resources) -> Resources:
    return Resources(
        vcpus=amount.vcpus - part.vcpus,
        memory_mib=amount.memory_mib - part.memory_mib,
        disk_mib=amount.disk_mib - part.disk_mib,
        slots=amount.slots - part.slots,
    )
