"""What an operator says about the network of VMs: `DECISEC_AGENT_NET_*`, in the table `[agent]`."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Annotated, TypeVar

import msgspec

from runtime.settings import CommonSettings
from vm_agent.network.leases import Ranges

T = TypeVar("T")

_LEAST_PREFIX, _MOST_PREFIX = 40, 64
_LEAST_IPV4 = 16

_Link = Annotated[str, msgspec.Meta(pattern=r"^([A-Za-z0-9_.-]{1,15})?$(?!\n)")]
_Name = Annotated[str, msgspec.Meta(pattern=r"^([A-Za-z0-9_.-]{1,64})?$(?!\n)")]


class NetworkSettings(CommonSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How VMs are connected. Without `net_prefix` their interfaces lead nowhere.

    Attributes:
        net_prefix: IPv6 prefix that is routed to this host, a /40 to /64. VMs get addresses of
            its first /64; those that ask for a /64 get one of the others.
        net_ipv4: IPv4 network that is routed to this host, every address of it for a VM that
            asks; empty for none.
        net_uplink: The host's interface that becomes the fabric's way out, and is then the host's
            no more; empty makes a pair of interfaces, and the host routes.
        net_next_hop: Link-local IPv6 address of the router behind `net_uplink`.
        net_outside: Network namespace, by its name, that the pair leads to; empty for the agent's.
        net_mtu: The largest packet, in bytes.
        net_dns: Name servers that VMs are told of: IPv6 addresses, comma separated.
        net_protected: Networks that VMs must not reach through the uplink, comma separated, besides
            private ones and the host's own addresses, which they never do.
    """

    net_prefix: str = ""
    net_ipv4: str = ""
    net_uplink: _Link = ""
    net_next_hop: str = ""
    net_outside: _Name = ""
    net_mtu: Annotated[int, msgspec.Meta(ge=1280, le=9000)] = 1500
    net_dns: str = ""
    net_protected: str = ""

    def __post_init__(self) -> None:
        prefix = _checked("net_prefix", lambda: _prefix(self.net_prefix))
        if prefix is None:
            return
        if not _LEAST_PREFIX <= prefix.prefixlen <= _MOST_PREFIX:
            raise ValueError(f"net_prefix must be a /{_LEAST_PREFIX} to /{_MOST_PREFIX}")
        ipv4 = _checked("net_ipv4", lambda: _ipv4(self.net_ipv4))
        if ipv4 is not None and ipv4.prefixlen < _LEAST_IPV4:
            raise ValueError(f"net_ipv4 must be a /{_LEAST_IPV4} or less")
        _checked("net_dns", lambda: self.name_servers)
        _checked("net_protected", lambda: self.protected)
        hop = _checked("net_next_hop", lambda: _address(self.net_next_hop))
        if self.net_uplink and (hop is None or not hop.is_link_local):
            raise ValueError("net_uplink needs net_next_hop, the router's link-local address")

    @property
    def ranges(self) -> Ranges | None:
        """What VMs get addresses from; None where they are not connected."""
        prefix, ipv4 = _prefix(self.net_prefix), _ipv4(self.net_ipv4)
        return None if prefix is None else Ranges(prefix, () if ipv4 is None else (ipv4,))

    @property
    def name_servers(self) -> tuple[IPv6Address, ...]:
        """What `net_dns` names."""
        return tuple(IPv6Address(one) for one in _listed(self.net_dns))

    @property
    def protected(self) -> tuple[IPv6Network | IPv4Network, ...]:
        """What `net_protected` names."""
        return tuple(ip_network(one) for one in _listed(self.net_protected))


def _checked(name: str, read: Callable[[], T]) -> T:
    """What a setting says; the error names it."""
    try:
        return read()
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _prefix(text: str) -> IPv6Network | None:
    return IPv6Network(text) if text else None


def _ipv4(text: str) -> IPv4Network | None:
    return IPv4Network(text) if text else None


def _address(text: str) -> IPv6Address | None:
    return IPv6Address(text) if text else None


def _listed(text: str) -> list[str]:
    return [one.strip() for one in text.split(",") if one.strip()]
