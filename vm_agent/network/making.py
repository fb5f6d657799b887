"""From an agent's settings to what connects its VMs."""

from __future__ import annotations

from ipaddress import IPv6Network
from pathlib import Path

from vm_agent import namespace
from vm_agent.network.connections import Connections
from vm_agent.network.examination import lacks
from vm_agent.network.fabric import Fabric
from vm_agent.network.filtering import FilterRules
from vm_agent.network.layout import Layout, netns_of
from vm_agent.network.leases import Leases, Ranges
from vm_agent.network.numbers import Numbers
from vm_agent.network.settings import NetworkSettings

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
    missing = "; ".join(map(str, lacks()))
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
