"""How a tap comes from its own namespace into the fabric. For a thread that may go anywhere."""

from __future__ import annotations

import os
import struct

from vm_agent import namespace
from vm_agent.drivers.abc import Nic
from vm_agent.network.changes import IFLA_IFNAME, LINK, RTM_SETLINK, described
from vm_agent.network.items import Link, find_link
from vm_agent.network.netlink import Netlink, attribute
from vm_agent.network.taps import NetworkError

_IFLA_NET_NS_FD, _IFLA_NEW_IFINDEX = 28, 49


def move(nic: Nic, link: Link, index: int, netns: str) -> None:
    """Give a tap its name, index and alias in the fabric, in one step; it is closed then.

    Some 18 ms: the kernel waits until all that was to be freed before is (`rcu_barrier`), however
    the tap stands.

    Args:
        nic: Where it is.
        link: What it becomes.
        index: Its interface index from then on.
        netns: The fabric.

    Raises:
        NetworkError: It is not there.
        OSError: The kernel refuses.
    """
    namespace.enter(nic.netns)
    netlink = Netlink()
    fabric = os.open(namespace.NETNS_DIR / netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = find_link(netlink, nic.tap)
        if found is None:
            raise NetworkError(f"{nic.netns} has no {nic.tap}")
        netlink.tell(
            RTM_SETLINK,
            LINK.pack(0, 0, found[0], 0, 0)
            + attribute(_IFLA_NET_NS_FD, struct.pack("=i", fabric))
            + attribute(IFLA_IFNAME, link.name.encode() + b"\0")
            + attribute(_IFLA_NEW_IFINDEX, struct.pack("=i", index))
            + described(link),
        )
    finally:
        netlink.close()
        os.close(fabric)
