"""Why the host drops packets of VMs: each reason once, with its name in metrics and docs.

The rules are rendered from here: a rule says `goto drop_ra_guard`, and that chain counts under the
interface's name and the reason's mark.
"""

from __future__ import annotations

from enum import Enum

FIRST_MARK = 0xFFFF_0000
"""Packet marks from here on stand for reasons, those below for customers."""


class Reason(Enum):
    """Why a packet was dropped. The value is (number, name, what it means).

    Numbers are stable: a kernel may hold counts under them that an older agent began.
    """

    MAC = 1, "mac", "the source is not the VM's MAC address"
    MAC_DESTINATION = 2, "mac_destination", "the frame is not for the gateway"
    ETHERTYPE = 3, "ethertype", "neither IPv6, IPv4 nor ARP: a tag, LLC, SNAP, ..."
    SOURCE = 4, "source", "the IPv6 source is not the VM's"
    UNSPECIFIED = 5, "unspecified", "from :: and no duplicate address detection"
    LINK_HEADER = 6, "link_header", "extension headers to the host or the link (RFC 6980, 7113)"
    LINK_PROTOCOL = 7, "link_protocol", "to the host or the link, and no service of the host"
    RA_GUARD = 8, "ra_guard", "a router advertisement (RFC 6105)"
    REDIRECT = 9, "redirect", "an ICMP redirect"
    MLD = 10, "mld", "multicast listener reports, which the host has no use for"
    ND_MALFORMED = 11, "nd_malformed", "neighbour discovery that RFC 4861 forbids"
    ND_TARGET = 12, "nd_target", "neighbour discovery about an address of somebody else"
    ND_SOURCES = 13, "nd_sources", "too many sources in a /64 (RFC 6620)"
    CONTROL_RATE = 14, "control_rate", "more for the host itself than the VM's share"
    HOP_BY_HOP = 15, "hop_by_hop", "a hop-by-hop options header (RFC 9288)"
    ROUTING_HEADER = 16, "routing_header", "a routing header other than type 2 (RFC 9288)"
    HEADER_CHAIN = 17, "header_chain", "extension headers in an order or number nobody needs"
    ATOMIC_FRAGMENT = 18, "atomic_fragment", "a fragment that is the whole (RFC 8021)"
    TINY_FRAGMENT = 19, "tiny_fragment", "a first fragment without all headers (RFC 7112)"
    PROTOCOL = 20, "protocol", "neither TCP, UDP, SCTP, ESP nor ICMP"
    TUNNEL = 21, "tunnel", "GRE or IP in IP, which hide anybody's source"
    ICMP_TYPE = 22, "icmp_type", "ICMP that is neither an error nor a ping"
    SOURCE_V4 = 23, "source_v4", "the IPv4 source is not the VM's"
    ARP = 24, "arp", "ARP that is not about the VM and the gateway"
    OPTIONS_V4 = 25, "options_v4", "an IPv4 header with options"
    DESTINATION = 26, "destination", "to where no VM may send"
    DHCP_SERVER = 27, "dhcp_server", "answers of a DHCP server"
    QUARANTINE = 28, "quarantine", "the VM is quarantined"
    HOST = 29, "host", "to the host's own addresses, and no service of it"
    TENANT = 30, "tenant", "to a VM of a customer who is no peer"
    INBOUND = 31, "inbound", "to a VM that is closed to outsiders, and no answer"
    UPLINK = 32, "uplink", "from the uplink with a source that cannot be out there"
    UNROUTED = 33, "unrouted", "neither to the uplink nor to a VM"
    UNATTACHED = 34, "unattached", "from or to an interface that has no rules"
    HOST_CHATTER = 35, "host_chatter", "from the host itself, for nobody"
    RATE_TX = 36, "rate_tx", "sent faster than the VM's `net_tx_bytes_per_s`"
    RATE_RX = 37, "rate_rx", "came faster than the VM's `net_rx_bytes_per_s`"

    def __init__(self, number: int, label: str, meaning: str) -> None:
        self.number = number
        self.label = label
        self.meaning = meaning

    @property
    def mark(self) -> int:
        """The packet's mark while it is counted."""
        return FIRST_MARK + self.number

    @property
    def suspicious(self) -> bool:
        """Whether a well-behaved guest never gives cause for it."""
        return self not in _ORDINARY


_ORDINARY = frozenset(
    {
        Reason.MLD,  # any Linux sends reports
        Reason.LINK_PROTOCOL,  # mDNS, DHCPv6 requests, ...
        Reason.DESTINATION,  # the same over IPv4
        Reason.SOURCE_V4,  # DHCP requests
        Reason.UNSPECIFIED,
        Reason.ETHERTYPE,  # LLDP
        Reason.QUARANTINE,
        Reason.INBOUND,
        Reason.UPLINK,
        Reason.UNROUTED,
        Reason.UNATTACHED,
        Reason.HOST_CHATTER,
        Reason.RATE_TX,  # TCP finds out by this how fast it may be
        Reason.RATE_RX,  # and so does who sends to the VM
    }
)
