"""What a host must have to connect VMs: looked at when an agent starts, tried out when one asks.

A kernel does not say what it can; so a fabric with a tap is made as an agent makes it, in
namespaces of its own, and taken away again.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv6Network
from pathlib import Path

from schemas.ids import new_id
from vm_agent import namespace
from vm_agent.network import taps
from vm_agent.network.attachment import Attachment
from vm_agent.network.fabric import Fabric
from vm_agent.network.filtering import FilterRules
from vm_agent.network.layout import Layout, Owner
from vm_agent.network.lease import mac_of
from vm_agent.network.leases import Ranges
from vm_agent.network.settings import NetworkSettings
from vm_agent.network.taps import NetworkError
from vm_agent.network.trials import absent

_IPV6 = Path("/proc/net/if_inet6")
_FORWARDING = {"ipv6": "ipv6/conf/all/forwarding", "ipv4": "ipv4/ip_forward"}
_NOWHERE = IPv6Network("100::/64")
"""Nobody is there (RFC 6666)."""


@dataclass(frozen=True, slots=True)
class Lack:
    """Something that a host has not and VMs' network needs.

    Attributes:
        what: In a few words, with what the kernel says.
        remedy: What to do.
    """

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}: {self.remedy}"


def lacks() -> Iterator[Lack]:
    """What is missing on this machine. Blocks for some 100 ms; changes nothing."""
    if os.geteuid() != 0:
        yield Lack("the agent does not run as root", "run it as root")
        return
    if reason := taps.available():
        yield Lack(reason, "load the module `tun`")
    if not _IPV6.exists():
        yield Lack("the kernel has no IPv6", "boot without ipv6.disable=1")
    for part in absent():
        yield Lack(f"{part.part} ({part.reason})", part.remedy)


async def try_out() -> Lack | None:
    """Make a fabric, connect a tap, take both away; what went wrong. Takes some 200 ms."""
    who = secrets.token_hex(4)
    outside = f"decisec-trial-{who}"
    layout = Layout(identity=who, ranges=Ranges(_NOWHERE))
    fabric = Fabric(layout, FilterRules(layout), outside)
    vm = Attachment(
        slot=1,
        vm_id=new_id(),
        customer_id="trial",
        tenant=1 << 20,
        mac=mac_of(1),
        addresses=(IPv6Network("100::1:0:0:1/128"),),
        incarnation=1,
        rx_bytes_per_s=1_000_000,
        tx_bytes_per_s=1_000_000,
    )
    nic = replace(taps.nic_of(vm.vm_id, 1), fabric=vm.tap)
    try:
        await namespace.in_own_thread(lambda: namespace.make(outside))
        await fabric.open()
        await taps.create(nic)
        await fabric.attach(nic, vm)
        repairs = await fabric.reconcile()
        await fabric.detach(vm.tap, Owner(who, vm.vm_id, 1))
        if repairs.kinds or repairs.lost:
            return Lack(f"what was put in place does not stand ({repairs.kinds})", "report it")
    except (NetworkError, OSError) as error:
        return Lack(str(error), "Linux 5.13 or newer is needed; look at the kernel's log")
    finally:
        await fabric.close()
        await taps.destroy(nic)
        for name in (layout.netns, outside):
            await asyncio.to_thread(namespace.remove, name)
    return None


async def advice(settings: NetworkSettings) -> list[Lack]:
    """What would keep VMs of these settings from the world, though they could be connected."""
    ranges = settings.ranges
    if ranges is None:
        return [Lack("VMs are not to be connected", "set DECISEC_AGENT_NET_PREFIX")]
    if settings.net_uplink:
        return []

    def look() -> list[Lack]:
        if settings.net_outside:
            namespace.enter(settings.net_outside)
        families = ("ipv6", "ipv4") if ranges.ipv4 else ("ipv6",)
        names = [_FORWARDING[family] for family in families]
        return [
            Lack("the host does not route", f"sysctl -w net.{name.replace('/', '.')}=1")
            for name in names
            if Path("/proc/sys/net", name).read_text().strip() == "0"
        ]

    try:
        return await namespace.in_own_thread(look)
    except OSError as error:
        return [Lack(f"where the way out leads cannot be seen ({error})", "see NET_OUTSIDE")]
