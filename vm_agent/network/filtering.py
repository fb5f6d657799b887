"""The packet filter as the fabric uses it: its errors as ours, its plan from the layout."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import TypeVar

from vm_agent.network.attachment import GATEWAY_IPV4, GATEWAY_LINK_LOCAL, Attachment
from vm_agent.network.filter import Filter
from vm_agent.network.layout import UPLINK, Layout
from vm_agent.network.nft import Nft, NftError, NftMissingError
from vm_agent.network.plan import NEVER_GLOBAL_V4, NEVER_GLOBAL_V6, FabricPlan
from vm_agent.network.taps import NetworkError

T = TypeVar("T")
AnyNetwork = IPv6Network | IPv4Network


def plan_of(layout: Layout, protected: Iterable[AnyNetwork]) -> FabricPlan:
    """What the filter has to know of a fabric.

    A host whose VMs have private addresses lets them talk to their like.
    """
    ranges = layout.ranges
    own: tuple[AnyNetwork, ...] = (ranges.prefix, *ranges.ipv4)
    never: tuple[AnyNetwork, ...] = (*NEVER_GLOBAL_V6, *NEVER_GLOBAL_V4)
    return FabricPlan(
        uplink=UPLINK,
        prefix=ranges.prefix,
        prefix_v4=next(iter(ranges.ipv4), None),
        gateways=(GATEWAY_LINK_LOCAL, GATEWAY_IPV4, ranges.gateway),
        protected=tuple(dict.fromkeys(protected)),
        denied=tuple(one for one in never if not any(_overlap(one, mine) for mine in own)),
    )


class FilterRules:
    """`vm_agent.network.fabric.Rules` by nftables."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._nft = Nft(layout.netns)
        self._filter = Filter(self._nft)
        self._open = True

    async def install(
        self, vms: Iterable[Attachment], protected: Iterable[AnyNetwork] = ()
    ) -> bool:
        """Put the base rules in force, and those of these VMs."""
        plan = plan_of(self._layout, protected)
        return await _told(self._filter.install(plan, vms))

    async def add(self, vm: Attachment) -> None:
        """Put a VM's rules in force."""
        await _told(self._filter.add(vm))

    async def change(self, vm: Attachment) -> None:
        """Put in force what is different now."""
        await _told(self._filter.change(vm))

    async def remove(self, tap: str) -> None:
        """Take a VM's rules away."""
        await _told(self._filter.remove(tap))

    async def reconcile(self, vms: Iterable[Attachment]) -> frozenset[str]:
        """Make the kernel hold just these VMs' rules."""
        return await _told(self._filter.reconcile(vms))

    async def wrong(self, vm: Attachment) -> tuple[str, ...]:
        """What of a VM's rules does not stand as it should."""
        return await _told(self._filter.wrong(vm))

    async def drops(self) -> Mapping[str, Mapping[str, int]]:
        """Packets dropped so far, by tap and reason."""
        drops = await _told(self._filter.drops())
        return {
            tap: {reason.label: count.packets for reason, count in reasons.items()}
            for tap, reasons in drops.by_tap.items()
        }

    async def close(self) -> None:
        """End the session; the rules stay in force. May be called twice."""
        if self._open:
            self._open = False
            await self._nft.close()


async def _told(asked: Awaitable[T]) -> T:
    try:
        return await asked
    except (NftError, NftMissingError, OSError) as error:
        raise NetworkError(str(error)) from error
    except ExceptionGroup as group:
        raise NetworkError("; ".join(map(str, group.exceptions))) from group


def _overlap(one: AnyNetwork, other: AnyNetwork) -> bool:
    if isinstance(one, IPv6Network) and isinstance(other, IPv6Network):
        return one.overlaps(other)
    return isinstance(one, IPv4Network) and isinstance(other, IPv4Network) and one.overlaps(other)
