"""What a host's fabric is, as plain values: all that rules need to know besides VMs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from vm_agent.network.attachment import GATEWAY_IPV4, GATEWAY_LINK_LOCAL

_NAME = re.compile(r"(?!vm)[A-Za-z][A-Za-z0-9_.-]{0,14}")

NEVER_GLOBAL_V6 = tuple(
    IPv6Network(text)
    for text in (
        "::/96",  # unspecified, loopback, IPv4-compatible
        "::ffff:0:0/96",  # IPv4-mapped
        "64:ff9b:1::/48",  # local-use translation
        "100::/64",  # discard-only
        "2001::/32",  # Teredo
        "2002::/16",  # 6to4
        "3ffe::/16",  # former 6bone
        "5f00::/16",  # segment routing SIDs
        "fc00::/7",  # unique local
        "fec0::/10",  # former site-local
    )
)
"""IPv6 that VMs do not reach through the uplink (RFC 6890 and its registry)."""

NEVER_GLOBAL_V4 = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local, metadata services
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "224.0.0.0/3",  # multicast, reserved, broadcast
    )
)
"""IPv4 that VMs do not reach through the uplink."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostService:
    """Something on the host that VMs may ask, such as a name server.

    Attributes:
        address: One of the gateway's.
        protocol: `tcp` or `udp`.
        port: From 1 to 65535.
    """

    address: IPv6Address | IPv4Address
    protocol: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FabricPlan:
    """What a host's fabric is.

    Attributes:
        uplink: The fabric's interface to the world.
        prefix: All that is routed to this host; nothing out there may send from it.
        gateways: The host's addresses in the fabric, of which VMs may ping any.
        services: What VMs may ask of the host besides.
        protected: Where VMs must not send through the uplink: the host's own addresses outside
            the fabric, the operator's networks.
        denied: The same, for what is not routed on the Internet at all; fewer where VMs are to
            reach private networks.
        prefix_v4: As `prefix`, where VMs have IPv4.
    """

    uplink: str
    prefix: IPv6Network
    gateways: tuple[IPv6Address | IPv4Address, ...] = (GATEWAY_LINK_LOCAL, GATEWAY_IPV4)
    services: tuple[HostService, ...] = ()
    protected: tuple[IPv6Network | IPv4Network, ...] = ()
    denied: tuple[IPv6Network | IPv4Network, ...] = NEVER_GLOBAL_V6 + NEVER_GLOBAL_V4
    prefix_v4: IPv4Network | None = None

    def __post_init__(self) -> None:
        """See that nothing gets into the language of rules that is more than a name."""
        if _NAME.fullmatch(self.uplink) is None:
            raise ValueError(f"{self.uplink!r} is no name of an uplink")
        for service in self.services:
            if service.protocol not in {"tcp", "udp"} or not 0 < service.port < 65536:
                raise ValueError(f"{service} is no service")
