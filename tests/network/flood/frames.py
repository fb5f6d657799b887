"""What a VM floods its host with, by kind: some hundred frames each, to be sent again and again."""

from __future__ import annotations

import random
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

from tests.network.cases.base import (
    ALL_NODES,
    HERE_V4,
    ROUTER,
    VMS,
    address,
    datagram,
    four,
    message,
    segment,
    six,
)
from tests.support import packets as p
from tests.support.fabric import GATEWAY
from vm_agent.network.attachment import GATEWAY_IPV4

_FRAMES = 512
_WIDE = int(IPv6Address("2001:db8:1:6::"))
_ALERT = p.options(p.HOP_BY_HOP, b"\x05\x02\0\0\x01\0")


def _anybody(chance: random.Random) -> IPv6Address:
    return IPv6Address(_WIDE + chance.getrandbits(64))


def _sources(chance: random.Random) -> bytes:
    source = _anybody(chance)
    body = p.neighbor(ROUTER, VMS["wide"].mac)
    return message(p.NS, body, at="wide", source=source, to=ROUTER)


def _targets(chance: random.Random) -> bytes:
    target = _anybody(chance)
    return message(p.NA, p.neighbor(target, VMS["wide"].mac, option=2), at="wide", to=ALL_NODES)


def _unused(chance: random.Random) -> bytes:
    """To addresses of this host that nobody has."""
    to = IPv6Address(int(IPv6Address("2001:db8:1:77::")) + chance.getrandbits(64))
    return datagram(b"unused", at="wide", to=to)


def _reports(chance: random.Random) -> bytes:
    body = bytes(4) + chance.randbytes(20)
    to = IPv6Address("ff02::16")
    return message(p.MLD2_REPORT, body, [_ALERT], at="wide", to=to, hops=1)


def _syn(to: IPv6Address) -> Callable[[random.Random], bytes]:
    def one(chance: random.Random) -> bytes:
        ports = (chance.randrange(1024, 65536), chance.randrange(1, 1024))
        return segment(p.SYN, b"", at="wide", source=_anybody(chance), to=to, ports=ports)

    return one


def _fragments(to: IPv6Address) -> Callable[[random.Random], bytes]:
    def one(chance: random.Random) -> bytes:
        first = chance.random() < 0.5
        header = p.fragment(0 if first else 150, more=first, number=chance.getrandbits(32))
        return six(p.UDP, p.udp(address("wide"), to, 1, 2, bytes(1200)), [header], at="wide", to=to)

    return one


def _options(chance: random.Random) -> bytes:
    header = p.options(p.HOP_BY_HOP, chance.randbytes(254))
    return datagram(b"options", [header], at="wide")


def _pings(chance: random.Random) -> bytes:
    body = p.echo(chance.getrandbits(16), bytes(8))
    return message(p.ECHO, body, at="wide", source=address("wide"), to=GATEWAY)


def _names(chance: random.Random) -> bytes:
    ports = (chance.randrange(1024, 65536), 53)
    return datagram(b"question", at="wide", to=GATEWAY, ports=ports)


def _arp(chance: random.Random) -> bytes:
    mac = VMS["alice 1"].mac
    question = p.arp(1, (mac, HERE_V4), ("00:00:00:00:00:00", GATEWAY_IPV4))
    return p.ether(mac, "ff:ff:ff:ff:ff:ff", p.ETH_ARP, question)


def _no_hops(chance: random.Random) -> bytes:
    return datagram(b"no hops", at="wide", source=_anybody(chance), hops=1)


def _spoofed(chance: random.Random) -> bytes:
    source = IPv4Address(chance.getrandbits(32))
    return four(p.UDP, p.udp(source, IPv4Address("203.0.113.99"), 1, 2, b""), source=source)


KINDS: dict[str, tuple[str, Callable[[random.Random], bytes]]] = {
    "solicitations from many sources": ("wide", _sources),
    "advertisements of many addresses": ("wide", _targets),
    "datagrams to unused addresses": ("wide", _unused),
    "listener reports": ("wide", _reports),
    "SYN to the world": ("wide", _syn(IPv6Address("2001:db8:ffff::99"))),
    "SYN to the gateway": ("wide", _syn(GATEWAY)),
    "SYN to another customer": ("wide", _syn(address("bob"))),
    "fragments to the world": ("wide", _fragments(IPv6Address("2001:db8:ffff::99"))),
    "fragments to the gateway": ("wide", _fragments(GATEWAY)),
    "hop-by-hop options": ("wide", _options),
    "pings of the gateway": ("wide", _pings),
    "questions to the name server": ("wide", _names),
    "ARP": ("alice 1", _arp),
    "packets without a hop left": ("wide", _no_hops),
    "IPv4 from anybody": ("alice 1", _spoofed),
}
"""Who sends, and what, by name."""


def frames(kind: str, seed: int = 1) -> list[bytes]:
    """The frames of a kind."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    make = KINDS[kind][1]
    return [make(chance) for _ in range(_FRAMES)]
