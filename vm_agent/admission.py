"""What the host has left: reserved before work begins, released when a VM is gone."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from uuid import UUID

from schemas.errors import ErrorCode
from schemas.hosts import MAX_ADMITTED, Resources
from schemas.vms import VmSpec
from vm_agent.states import RefusedError

_FIELDS = Resources.__struct_fields__

_LATELY_S = 15.0
"""Long enough for gateways to have heard of a VM's record before its host names it no more."""


def needs(spec: VmSpec) -> Resources:
    """What a VM takes; its record's spec has the disk that it really got (`disks.with_disk`)."""
    return Resources(vcpus=spec.vcpus, memory_mib=spec.memory_mib, disk_mib=spec.disk_mib, slots=1)


class Admission:
    """The reservations of all VMs on this host.

    Args:
        capacity: All there is to give out.
        now_s: Monotonic time.
    """

    def __init__(self, capacity: Resources, now_s: Callable[[], float] = time.monotonic) -> None:
        self.capacity = capacity
        self._now_s = now_s
        self._lately: deque[tuple[float, UUID]] = deque(maxlen=MAX_ADMITTED)
        self._held: dict[UUID, Resources] = {}

    @property
    def reserved(self) -> Resources:
        """What all reservations hold: more than the capacity once that was lowered."""
        return Resources(**{name: self._sum(name) for name in _FIELDS})

    @property
    def free(self) -> Resources:
        """Capacity less reservations, never below zero."""
        return Resources(
            **{name: max(0, getattr(self.capacity, name) - self._sum(name)) for name in _FIELDS}
        )

    def reserve(self, vm_id: UUID, spec: VmSpec) -> None:
        """Hold what a VM needs; nothing more happens if it holds it already.

        Raises:
            RefusedError: With `no_capacity`, naming the resource.
        """
        if vm_id not in self._held:
            self.reserve_amount(vm_id, needs(spec), "the VM")
            self._lately.append((self._now_s(), vm_id))

    def lately(self) -> tuple[UUID, ...]:
        """VMs that room was reserved for in the last 15 s, whatever became of them since."""
        oldest_s = self._now_s() - _LATELY_S
        while self._lately and self._lately[0][0] < oldest_s:
            self._lately.popleft()
        return tuple(vm_id for _, vm_id in self._lately)

    def reserve_amount(self, key: UUID, wanted: Resources, what: str) -> None:
        """Hold an amount under a key; nothing more happens if it holds one already.

        Raises:
            RefusedError: With `no_capacity`, naming the resource and `what` needs it.
        """
        if key in self._held:
            return
        free = self.free
        for name in _FIELDS:
            if getattr(wanted, name) > getattr(free, name):
                raise RefusedError(
                    ErrorCode.NO_CAPACITY,
                    f"the host has {getattr(free, name)} {name} left, "
                    f"{what} needs {getattr(wanted, name)}",
                )
        self._held[key] = wanted

    def hold(self, key: UUID, amount: Resources) -> None:
        """Hold what is in use already, even if the capacity was lowered."""
        self._held[key] = amount

    def restore(self, vm_id: UUID, spec: VmSpec) -> None:
        """Hold what a VM that is here already needs, even if the capacity was lowered."""
        self.hold(vm_id, needs(spec))

    def release(self, vm_id: UUID) -> None:
        """Give back what a VM held; nothing happens if it held nothing."""
        self._held.pop(vm_id, None)

    def _sum(self, name: str) -> int:
        return sum(getattr(held, name) for held in self._held.values())
