"""A VM with a limit of what it sends: what it may passes, and what is beyond is dropped."""

from __future__ import annotations

from tests.network.cases.base import UPLINK, Cases, address, datagram, from_outside
from tests.support import packets as p
from tests.support.fabric import OUTSIDE
from vm_agent.network.reasons import Reason

_SLOW = address("slow")

limits = Cases("Limits", at="slow")
limits.passes("a datagram of one that may send it", datagram(limits.data(), at="slow"), UPLINK)
limits.drop(
    "more than it may",
    datagram(bytes(1300) + limits.data(), at="slow"),
    Reason.RATE_TX,
    times=60,
)
limits.passes("one of another VM", datagram(limits.data(), at="bob"), UPLINK, at="bob")
limits.passes(
    "one to the VM that may send no more",
    from_outside(p.ip6(OUTSIDE, _SLOW, p.UDP, p.udp(OUTSIDE, _SLOW, 53, 4000, limits.data()))),
    "slow",
    at=UPLINK,
)

CASES = limits.all
