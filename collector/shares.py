"""Who works at what: decided by each collector alone, from the same facts, with the same result."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from uuid import UUID


def shares(members: Iterable[UUID], units: Iterable[str]) -> dict[str, UUID]:
    """A member for each unit; none has more than one unit more than another.

    Each unit prefers members in an order of its own (rendezvous hashing), and takes the first
    one that has room. So most units stay where they are when a member comes or goes.
    """
    living, wanted = sorted(set(members)), sorted(set(units))
    if not living:
        return {}
    least, greater = divmod(len(wanted), len(living))
    held = dict.fromkeys(living, 0)
    found: dict[str, UUID] = {}
    for unit in wanted:
        for member in sorted(living, key=lambda member: _weight(unit, member)):
            if held[member] < least:
                break
            if held[member] == least and greater:
                greater -= 1
                break
        held[member] += 1
        found[unit] = member
    return found


class Members:
    """Which collectors live. Time is passed in, monotonic, in ns.

    Args:
        me: Lives always.
        lost_after_ns: One that was not heard of for this long is gone.
    """

    def __init__(self, me: UUID, lost_after_ns: int) -> None:
        self._me = me
        self._lost_after_ns = lost_after_ns
        self._heard_ns: dict[UUID, int] = {}

    def heard(self, member: UUID, now_ns: int) -> bool:
        """Note a heartbeat; whether the member is a new one."""
        new = member != self._me and member not in self._heard_ns
        if member != self._me:
            self._heard_ns[member] = now_ns
        return new

    def left(self, member: UUID) -> bool:
        """Note that a member has gone; whether it was there."""
        return self._heard_ns.pop(member, None) is not None

    def deafened(self, now_ns: int) -> None:
        """Until now nothing could be heard: that counts against nobody."""
        self._heard_ns = dict.fromkeys(self._heard_ns, now_ns)

    def living(self, now_ns: int) -> frozenset[UUID]:
        """All that live, this one included."""
        horizon = now_ns - self._lost_after_ns
        self._heard_ns = {m: at for m, at in self._heard_ns.items() if at > horizon}
        return frozenset((self._me, *self._heard_ns))


def _weight(unit: str, member: UUID) -> bytes:
    return blake2b(unit.encode() + member.bytes, digest_size=8).digest()
