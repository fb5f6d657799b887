"""How a VM is connected: what its owner may ask for beside having an interface at all.

Hosts that connect VMs give each an IPv6 address; see docs/network.md. On a host that does not, an
interface leads nowhere, and whoever asks for something here is refused.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Literal

import msgspec

MAX_PORTS = 32
MIN_MTU = 1280
"""The least that IPv6 runs over (RFC 8200, section 5)."""

_PORT = r"(6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3})"
_PORTS = rf"(tcp|udp)/{_PORT}(-{_PORT})?"

PortRange = Annotated[str, msgspec.Meta(pattern=rf"^{_PORTS}$(?!\n)")]
"""A port, or a run of ports in either order: `tcp/443`, `udp/5000-5010`."""


class Inbound(StrEnum):
    """Who may begin to talk to a VM.

    Attributes:
        OPEN: Anybody.
        CLOSED: VMs of the same customer on its host, peers, and anybody to the ports it names.
            Answers to what the VM began come in always.
    """

    OPEN = "open"
    CLOSED = "closed"


class Networking(msgspec.Struct, frozen=True, kw_only=True):
    """What a VM asks of the network of its host.

    Attributes:
        ipv4: An IPv4 address as well. Hosts have few or none.
        inbound: Who may begin to talk to it.
        ports: What is open to anybody where `inbound` is closed.
        prefix: 128 for one IPv6 address, 64 for a network of its own.
        mtu: The largest packet, in bytes; the host's, where that is less.
    """

    ipv4: bool = False
    inbound: Inbound = Inbound.OPEN
    ports: Annotated[tuple[PortRange, ...], msgspec.Meta(max_length=MAX_PORTS)] = ()
    prefix: Literal[128, 64] = 128
    mtu: Annotated[int, msgspec.Meta(ge=MIN_MTU, le=9000)] = 1500


def port_range(text: str) -> tuple[str, int, int]:
    """Protocol, first and last port of a `PortRange`.

    Raises:
        ValueError: It is none.
    """
    match = re.fullmatch(_PORTS, text)
    if match is None:
        raise ValueError(f"{text!r} is no port: give tcp/443 or udp/5000-5010")
    ends = int(match[2]), int(match[4] or match[2])
    return match[1], min(ends), max(ends)
