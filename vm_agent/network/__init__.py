"""What connects VMs: an interface for each, and later its addresses, routes and rules.

A VM's interface is a tap (`taps`). Until a fabric takes it, what its guest sends goes nowhere.
"""

from vm_agent.network.taps import (
    NETNS_PREFIX,
    TAP,
    NetworkError,
    TapCounters,
    available,
    create,
    destroy,
    list_owned,
    nic_of,
    owner_of,
)

__all__ = [
    "NETNS_PREFIX",
    "TAP",
    "NetworkError",
    "TapCounters",
    "available",
    "create",
    "destroy",
    "list_owned",
    "nic_of",
    "owner_of",
]
