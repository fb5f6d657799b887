"""A user id per VM, so that a VMM that breaks out is still nobody to the others."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from schemas.errors import ErrorCode
from vm_agent.states import RefusedError


class UidPool:
    """User ids given out one after the other: an id that was given back rests the longest.

    Args:
        first: The lowest id.
        size: How many there are.
    """

    def __init__(self, first: int, size: int) -> None:
        self._first = first
        self._size = size
        self._next = 0
        self._held: dict[UUID, int] = {}

    @property
    def held(self) -> Mapping[UUID, int]:
        """Ids by VM."""
        return self._held

    def take(self, vm_id: UUID) -> int:
        """The id of a VM; a free one if it has none yet.

        Raises:
            RefusedError: With `no_capacity`: all are taken.
        """
        if (uid := self._held.get(vm_id)) is not None:
            return uid
        taken = set(self._held.values())
        for step in range(self._size):
            uid = self._first + (self._next + step) % self._size
            if uid not in taken:
                self._next = uid - self._first + 1
                self._held[vm_id] = uid
                return uid
        raise RefusedError(ErrorCode.NO_CAPACITY, "the host has no user id left for a VM")

    def restore(self, vm_id: UUID, uid: int) -> None:
        """Hold the id that a VM has already, also one from outside the pool."""
        self._held[vm_id] = uid

    def release(self, vm_id: UUID) -> None:
        """Give back a VM's id; nothing happens if it has none."""
        self._held.pop(vm_id, None)
