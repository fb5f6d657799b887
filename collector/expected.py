"""Hosts that usage answers wait for, as the VMs' records name them."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from schemas.vms import VmRecord


class Expected:
    """Which hosts may have something to tell of VMs, fed by a mirror of the bucket `vm_specs`."""

    def __init__(self) -> None:
        self._ends: dict[str, dict[str, datetime | None]] = {}
        self._hosts: dict[str, frozenset[str]] = {}

    @property
    def hosts(self) -> Collection[str]:
        """All of them, those of VMs that are deleted or have left included."""
        return self._ends.keys()

    def end(self, host_id: str) -> datetime | None:
        """When the last of a host's VMs was deleted or had left it; None if one may be there."""
        ends = self._ends[host_id].values()
        known = [end for end in ends if end is not None]
        return max(known) if len(known) == len(ends) else None

    def change(self, key: str, record: VmRecord | None) -> None:
        """Take over a change of the bucket; None for a key that is gone."""
        for host_id in self._hosts.pop(key, ()):
            ends = self._ends[host_id]
            del ends[key]
            if not ends:
                del self._ends[host_id]
        if record is None:
            return
        ends_here = {former.host_id: former.left_at for former in record.former_hosts}
        # A VM may have come back to a host that it had left.
        ends_here[record.host_id] = record.deleted_at
        for host_id, end in ends_here.items():
            self._ends.setdefault(host_id, {})[key] = end
        self._hosts[key] = frozenset(ends_here)
