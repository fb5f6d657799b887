"""What the world sends: to VMs that are open, to one that is closed, and in others' names."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from tests.network.cases.base import (
    HERE,
    OUTSIDE_V4,
    Cases,
    Step,
    address,
    datagram,
    four,
    from_outside,
    message,
    segment,
)
from tests.support import packets as p
from tests.support.fabric import OUTSIDE
from vm_agent.network.reasons import Reason

_CLOSED, _CLOSED_V4 = address("closed"), IPv4Address("192.0.2.5")
_SOMEBODY = IPv6Address("2001:db8:ffff::77")

outsiders = Cases("From outside", "uplink")


def _in(
    protocol: int,
    payload: bytes,
    *headers: p.Header,
    source: IPv6Address = OUTSIDE,
    to: IPv6Address = HERE,
) -> bytes:
    return from_outside(p.ip6(source, to, protocol, payload, headers))


def _udp(
    data: bytes,
    *headers: p.Header,
    source: IPv6Address = OUTSIDE,
    to: IPv6Address = HERE,
    ports: tuple[int, int] = (4001, 4000),
) -> bytes:
    return _in(p.UDP, p.udp(source, to, *ports, data), *headers, source=source, to=to)


def _tcp(
    flags: int, data: bytes, *headers: p.Header, to: IPv6Address, ports: tuple[int, int]
) -> bytes:
    return _in(p.TCP, p.tcp(OUTSIDE, to, *ports, flags, data), *headers, to=to)


for name, source in (
    ("another VM's", address("bob")),
    ("its own", HERE),
    ("this host's", IPv6Address("2001:db8:1::1")),
    ("a mapped", IPv6Address("::ffff:192.0.2.1")),
):
    outsiders.drop(f"in {name} name", _udp(outsiders.data(), source=source), Reason.UPLINK)
for name, source in (
    ("the loopback's", IPv6Address("::1")),
    ("a group's", IPv6Address("ff02::1")),
):
    outsiders.drop(f"in {name} name", _udp(outsiders.data(), source=source), None)
outsiders.drop(
    "over IPv4 in another VM's name",
    from_outside(
        p.ip4(
            IPv4Address("192.0.2.3"),
            IPv4Address("192.0.2.1"),
            p.UDP,
            p.udp(IPv4Address("192.0.2.3"), IPv4Address("192.0.2.1"), 1, 2, outsiders.data()),
        )
    ),
    Reason.UPLINK,
)
for name, kind in (("type 0", 0), ("segment routing", 4)):
    frame = _udp(outsiders.data(), p.routing(kind, HERE))
    outsiders.drop(f"a routing header, {name}", frame, Reason.ROUTING_HEADER)
for name, kind in (("a router advertisement", p.RA), ("a redirect", p.REDIRECT), ("NS", p.NS)):
    payload = p.icmp6(OUTSIDE, HERE, kind, bytes(12) + outsiders.data())
    outsiders.drop(f"{name} to a VM", _in(p.ICMP6, payload), Reason.ICMP_TYPE)
outsiders.passes(
    "to an address of this host that no VM has, which is answered",
    _udp(outsiders.data(), to=IPv6Address("2001:db8:1::dead")),
    "uplink",
)
outsiders.passes("a datagram to an open VM", _udp(outsiders.data()), "alice 1")
outsiders.passes(
    "the beginning of a connection to an open VM",
    _tcp(p.SYN, outsiders.data(), to=HERE, ports=(4000, 80)),
    "alice 1",
)
outsiders.passes(
    "a ping of an open VM",
    _in(p.ICMP6, p.icmp6(OUTSIDE, HERE, p.ECHO, p.echo(1, outsiders.data()))),
    "alice 1",
)
outsiders.passes(
    "to any address of a /64", _udp(outsiders.data(), to=IPv6Address("2001:db8:1:6::beef")), "wide"
)

closed = Cases("To a closed VM", "uplink")
for name, flags in (
    ("SYN", p.SYN),
    ("SYN and FIN", p.SYN | p.FIN),
    ("SYN and PSH", p.SYN | p.PSH),
    ("no flag", 0),
    ("FIN", p.FIN),
    ("FIN, PSH and URG", p.FIN | p.PSH | p.URG),
):
    closed.drop(
        f"TCP with {name}", _tcp(flags, closed.data(), to=_CLOSED, ports=(4000, 80)), Reason.INBOUND
    )
closed.passes(
    "TCP to an open port", _tcp(p.SYN, closed.data(), to=_CLOSED, ports=(4000, 22)), "closed"
)
closed.passes(
    "the middle of a connection", _tcp(p.ACK, closed.data(), to=_CLOSED, ports=(80, 4000)), "closed"
)
closed.passes(
    "the answer to a connection's beginning",
    _tcp(p.SYN | p.ACK, closed.data(), to=_CLOSED, ports=(80, 4000)),
    "closed",
)
closed.passes("the end of one", _tcp(p.RST, closed.data(), to=_CLOSED, ports=(80, 4000)), "closed")
closed.drop("a datagram", _udp(closed.data(), to=_CLOSED, ports=(9, 9)), Reason.INBOUND)
closed.passes(
    "a datagram to an open port", _udp(closed.data(), to=_CLOSED, ports=(9, 5005)), "closed"
)
closed.drop(
    "a datagram beside it", _udp(closed.data(), to=_CLOSED, ports=(9, 5011)), Reason.INBOUND
)


def _out(frame: bytes) -> Step:
    return closed.seen(frame, "uplink", at="closed")


def _ask(ports: tuple[int, int]) -> Step:
    return _out(datagram(closed.data(), at="closed", ports=ports))


closed.talk(
    "a datagram that answers one",
    _ask((7000, 7001)),
    closed.seen(_udp(closed.data(), to=_CLOSED, ports=(7001, 7000)), "closed"),
)
closed.talk(
    "an answer of a name server",
    _ask((7002, 53)),
    closed.seen(_udp(closed.data(), to=_CLOSED, ports=(53, 7002)), "closed"),
)
closed.talk(
    "an answer from another port",
    _ask((7003, 7004)),
    closed.dropped(_udp(closed.data(), to=_CLOSED, ports=(7005, 7003)), Reason.INBOUND),
)
closed.talk(
    "an answer from somebody else",
    _ask((7006, 7007)),
    closed.dropped(
        _udp(closed.data(), source=_SOMEBODY, to=_CLOSED, ports=(7007, 7006)), Reason.INBOUND
    ),
)
closed.talk(
    "an answer in fragments",
    _ask((7008, 7009)),
    closed.seen(
        _udp(closed.data(), p.fragment(0, more=True), to=_CLOSED, ports=(7009, 7008)), "closed"
    ),
    closed.seen(_in(p.UDP, closed.data(), p.fragment(2, more=False), to=_CLOSED), "closed"),
)
_LATER = IPv6Address("2001:db8:ffff::78")
closed.drop(
    "a ping",
    _in(p.ICMP6, p.icmp6(OUTSIDE, _CLOSED, p.ECHO, p.echo(1, closed.data())), to=_CLOSED),
    Reason.INBOUND,
)
closed.talk(
    "the answer to a ping",
    _out(
        message(p.ECHO, p.echo(1, closed.data()), at="closed", source=_CLOSED, to=OUTSIDE, hops=64)
    ),
    closed.seen(
        _in(p.ICMP6, p.icmp6(OUTSIDE, _CLOSED, p.ECHO_REPLY, p.echo(1, closed.data())), to=_CLOSED),
        "closed",
    ),
)
closed.drop(
    "the answer to no ping",
    _in(
        p.ICMP6,
        p.icmp6(_LATER, _CLOSED, p.ECHO_REPLY, p.echo(1, closed.data())),
        source=_LATER,
        to=_CLOSED,
    ),
    Reason.INBOUND,
)
closed.passes(
    "that a packet was too big",
    _in(p.ICMP6, p.icmp6(OUTSIDE, _CLOSED, p.TOO_BIG, bytes(4) + closed.data()), to=_CLOSED),
    "closed",
)
closed.drop(
    "ESP", _in(p.ESP, bytes(8) + closed.data(), source=_SOMEBODY, to=_CLOSED), Reason.INBOUND
)
closed.drop(
    "a fragment without TCP's flags",
    _in(p.TCP, b"\x10\0\0\x50" + closed.data(), p.fragment(0, more=True), to=_CLOSED),
    Reason.INBOUND,
)
closed.drop(
    "a fragment that would write TCP's flags anew",
    _in(p.TCP, b"\0\0\0\0\x50\x02" + closed.data(), p.fragment(1, more=False), to=_CLOSED),
    Reason.INBOUND,
)
closed.drop(
    "a later fragment of TCP",
    _in(p.TCP, closed.data(), p.fragment(9, more=False), source=_LATER, to=_CLOSED),
    Reason.INBOUND,
)
closed.drop(
    "a later fragment that looks like a connection's middle over IPv4",
    from_outside(
        p.ip4(
            OUTSIDE_V4,
            _CLOSED_V4,
            p.TCP,
            p.tcp(OUTSIDE_V4, _CLOSED_V4, 4000, 80, p.ACK, closed.data()),
            fragment_field=9,
        )
    ),
    Reason.INBOUND,
)
closed.passes(
    "a later fragment of UDP, since some ports are open",
    _in(p.UDP, closed.data(), p.fragment(9, more=False), source=_LATER, to=_CLOSED),
    "closed",
)
closed.drop(
    "SYN over IPv4",
    from_outside(
        p.ip4(
            OUTSIDE_V4,
            _CLOSED_V4,
            p.TCP,
            p.tcp(OUTSIDE_V4, _CLOSED_V4, 4000, 80, p.SYN, closed.data()),
        )
    ),
    Reason.INBOUND,
)
closed.talk(
    "a datagram that answers one over IPv4",
    _out(
        four(
            p.UDP,
            p.udp(_CLOSED_V4, OUTSIDE_V4, 7000, 7001, closed.data()),
            at="closed",
            source=_CLOSED_V4,
        )
    ),
    closed.seen(
        from_outside(
            p.ip4(
                OUTSIDE_V4,
                _CLOSED_V4,
                p.UDP,
                p.udp(OUTSIDE_V4, _CLOSED_V4, 7001, 7000, closed.data()),
            )
        ),
        "closed",
    ),
)
closed.talk(
    "a connection that it begins",
    _out(segment(p.SYN, closed.data(), at="closed")),
    closed.seen(_tcp(p.SYN | p.ACK, closed.data(), to=_CLOSED, ports=(80, 4000)), "closed"),
    _out(segment(p.ACK, closed.data(), at="closed")),
)

CASES = [*outsiders.all, *closed.all]
