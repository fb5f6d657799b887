"""From settings to connections; and what a host must have for them, tried out and named."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv6Network
from pathlib import Path

from vm_agent import namespace
from vm_agent.network import taps
from vm_agent.network.connections import Connections
from vm_agent.network.fabric import Fabric
from vm_agent.network.filtering import FilterRules
from vm_agent.network.layout import Layout, netns_of
from vm_agent.network.leases import Leases, Ranges
from vm_agent.network.nft import NftMissingError, NftSession
from vm_agent.network.numbers import Numbers
from vm_agent.network.settings import NetworkSettings

_IPV6 = Path("/proc/net/if_inet6")
_NOWHERE = Ranges(IPv6Network("100::/64"))
"""For a fabric that is only looked into (RFC 6666)."""


def make_connections(settings: NetworkSettings, identity: str, data_dir: Path) -> Connections:
    """What connects VMs of an agent. Blocks for some ms; nothing is changed on the host yet.

    Raises:
        FatalError: What was given out before cannot be read.
    """
    ranges = settings.ranges
    if ranges is None:
        # VMs that were connected under earlier settings run on, and are counted.
        left = (namespace.NETNS_DIR / netns_of(identity)).exists()
        return Connections(_fabric(settings, identity, _NOWHERE) if left else None)
    missing = "; ".join(f"{lack.what}: {lack.remedy}" for lack in lacks())
    folder = data_dir / "network"
    folder.mkdir(mode=0o700, exist_ok=True)
    leases = Leases(ranges, Numbers(folder / "numbers.json"))
    return Connections(_fabric(settings, identity, ranges), leases, missing)


def _fabric(settings: NetworkSettings, identity: str, ranges: Ranges) -> Fabric:
    layout = Layout(
        identity=identity,
        ranges=ranges,
        interface=settings.net_uplink,
        next_hop=settings.net_next_hop,
        mtu=settings.net_mtu,
    )
    return Fabric(
        layout,
        FilterRules(layout),
        settings.net_outside,
        settings.protected,
        settings.name_servers,
    )


@dataclass(frozen=True, slots=True)
class Lack:
    """Something that a host has not and VMs' network needs.

    Attributes:
        what: In a few words.
        remedy: What to do.
    """

    what: str
    remedy: str


def lacks() -> Iterator[Lack]:
    """What is missing on this machine, without changing anything on it."""
    if os.geteuid() != 0:
        yield Lack("the agent does not run as root", "run it as root, or with CAP_NET_ADMIN")
        return
    if reason := taps.available():
        yield Lack(reason, "load the module `tun`")
    if not _IPV6.exists():
        yield Lack("the kernel has no IPv6", "boot without ipv6.disable=1")
    try:
        NftSession().close()
    except NftMissingError as error:
        yield Lack("the packet filter's library", str(error))
