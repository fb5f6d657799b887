"""What the rules dropped so far, by interface and reason, and between which VMs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from vm_agent.network.reasons import Reason


class Count(NamedTuple):
    """Packets, and their bytes without Ethernet headers where they were to be routed."""

    packets: int
    bytes: int

    def plus(self, other: Count) -> Count:
        """Both together."""
        return Count(self.packets + other.packets, self.bytes + other.bytes)


@dataclass(slots=True)
class Drops:
    """Counts since the rules were installed, or since the VM was added.

    Attributes:
        by_tap: By the interface that a packet came from, or would have left through where the
            reason is about the receiver; the uplink is one of them.
        by_pair: Of the reason `tenant`: (from, to).
    """

    by_tap: dict[str, dict[Reason, Count]] = field(default_factory=dict)
    by_pair: dict[tuple[str, str], Count] = field(default_factory=dict)

    def add(self, interface: str, reason: Reason, count: Count) -> None:
        """Count more; ingress and routing count the same reason in two places."""
        reasons = self.by_tap.setdefault(interface, {})
        reasons[reason] = reasons.get(reason, Count(0, 0)).plus(count)

    def of(self, interface: str, reason: Reason) -> int:
        """Packets of one interface for one reason."""
        return self.by_tap.get(interface, {}).get(reason, Count(0, 0)).packets
