"""How one VM's path is examined: what stands is compared, probes are sent, drops are counted.

Nothing is changed. What was found are facts; `verdicts` makes words of them.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path
from typing import Protocol

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from schemas.network_checks import Probed
from vm_agent.network.attachment import Attachment, interface_id
from vm_agent.network.differences import Differences, differences, missing
from vm_agent.network.items import Standing, read_all
from vm_agent.network.layout import UPLINK, Layout
from vm_agent.network.netlink import opened
from vm_agent.network.probes import Probe, ping, ping_from_outside, solicitation, syn
from vm_agent.network.probing import Sent, send_all
from vm_agent.network.resident import Resident
from vm_agent.network.taps import NetworkError

_FORWARDING = Path("/proc/sys/net/ipv6/conf/all/forwarding")


class ReadRules(Protocol):
    """What is asked of the packet filter; errors are `NetworkError`."""

    async def wrong(self, vm: Attachment) -> tuple[str, ...]:
        """What of a VM's rules, and of those below them, does not stand as it should, in words."""

    async def drops(self) -> Mapping[str, Mapping[str, int]]:
        """Packets dropped so far, by tap and reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was found of a VM.

    Attributes:
        carrier: Its VMM holds the tap.
        amiss: What of links, addresses and routes is not as it should be.
        rules: What of its rules is not.
        host: What on the host's side of the way out is not.
        beyond: The way out is a pair of ours, so probes can come through it.
        sent: All probes.
        stopped: Packets that the rules dropped of it or for it meanwhile, by reason.
    """

    vm: Attachment
    carrier: bool
    amiss: Differences
    rules: tuple[str, ...]
    host: tuple[str, ...]
    beyond: bool
    sent: tuple[Sent, ...]
    stopped: Mapping[str, int]


async def examine(
    vm: Attachment, layout: Layout, inside: Resident, outside: Resident, rules: ReadRules
) -> Facts:
    """Find out. Takes at most two seconds; nobody else waits for it.

    Raises:
        NetworkError, OSError, NetlinkError: The kernel refuses.
    """
    standing, carrier = await inside.run(lambda route: (_read(), _carrier(route, vm)))
    host = await outside.run(lambda _: _host(layout))
    try:
        wrong = await rules.wrong(vm)
    except NetworkError as error:
        wrong = (f"they cannot be read: {error}",)
    amiss = differences(layout, vm, standing)
    before = await _dropped(rules, vm)
    sent: list[Sent] = []
    if carrier is not None:
        uplink = next((link.mac for link in standing.links.values() if link.name == UPLINK), "")
        sent = await send_all(probes_of(vm, layout, uplink), vm, layout, inside, outside, uplink)
    after = await _dropped(rules, vm)
    stopped = {reason: count - before.get(reason, 0) for reason, count in after.items()}
    return Facts(
        vm=vm,
        carrier=bool(carrier),
        amiss=amiss,
        rules=wrong,
        host=host,
        beyond=not layout.interface,
        sent=tuple(sent),
        stopped={reason: count for reason, count in stopped.items() if count > 0},
    )


async def _dropped(rules: ReadRules, vm: Attachment) -> Mapping[str, int]:
    try:
        return (await rules.drops()).get(vm.tap, {})
    except NetworkError:
        return {}  # there are no rules, which is said already


def probes_of(vm: Attachment, layout: Layout, uplink_mac: str) -> list[Probe]:
    """All that a VM is asked. Pure but for the tokens.

    Args:
        vm: Whose addresses they go to; to no other.
        layout: Of its fabric.
        uplink_mac: Of the way out, inside; empty where there is none.
    """
    address = address_of(vm)
    reached = not vm.quarantined
    found = [
        solicitation(address, passes=reached),
        ping(Probed.GATEWAY, address, passes=reached),
    ]
    if vm.ipv4 is not None:
        found.append(ping(Probed.GATEWAY_IPV4, vm.ipv4, passes=reached))
    beyond = bool(uplink_mac) and not layout.interface
    entered = reached and vm.open_inbound
    if beyond:
        found.append(ping_from_outside(Probed.OUTSIDE, address, uplink_mac, passes=entered))
        if vm.ipv4 is not None:
            outside = Probed.OUTSIDE_IPV4
            found.append(ping_from_outside(outside, vm.ipv4, uplink_mac, passes=entered))
    if not reached:
        return found
    size = min(vm.mtu, layout.mtu)
    if beyond and entered:
        found.append(ping_from_outside(Probed.MTU, address, uplink_mac, size=size))
    else:
        found.append(ping(Probed.MTU, address, size=size))
    if beyond and not vm.open_inbound:
        runs = [port for port in vm.ports if port.protocol == "tcp"]
        if runs:
            opened = runs[0].first
            found.append(syn(Probed.OPEN_PORT, address, opened, uplink_mac, passes=True))
        closed = next((n for n in range(65_535, 0, -1) if not _within(n, vm)), None)
        if closed is not None:
            found.append(syn(Probed.CLOSED_PORT, address, closed, uplink_mac, passes=False))
    return found


def address_of(vm: Attachment) -> IPv6Address:
    """The address that a guest takes by itself: its only one, or that of its MAC in its /64."""
    network = vm.addresses[0]
    if network.prefixlen == network.max_prefixlen:
        return network.network_address
    return network.network_address + int(interface_id(vm.mac))


def _within(number: int, vm: Attachment) -> bool:
    tcp = (port for port in vm.ports if port.protocol == "tcp")
    return any(port.first <= number <= port.last for port in tcp)


def _read() -> Standing:
    with opened() as netlink:
        return read_all(netlink)


def _carrier(route: IPRoute, vm: Attachment) -> bool | None:
    """Whether somebody holds the tap; None if there is none."""
    try:
        (link,) = route.get_links(vm.index)
    except NetlinkError as error:
        if error.code != errno.ENODEV:
            raise
        return None
    return bool(link.get_attr("IFLA_CARRIER"))


def _host(layout: Layout) -> tuple[str, ...]:
    found = missing(layout.outside(), _read())
    if not layout.interface and _FORWARDING.read_text().strip() == "0":
        found = (*found, "the host does not route")
    return found
