"""What one VM adds to the base rules: values that can be compared with what is in the kernel.

A VM is a set of entries. What is to change is the difference of two such sets, whether they come
from an `Attachment` or from the kernel.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import Literal

from vm_agent.network.attachment import Attachment, Port
from vm_agent.network.reasons import FIRST_MARK, Reason
from vm_agent.network.shaping import MOST_BYTES_PER_S

FLOWS = 8192
"""Answers that a closed VM can wait for at once, per kind; another VM's do not count."""

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_FRAGMENTS = {
    "ip6": ("frag frag-off", "frag nexthdr"),
    "ip": ("ip frag-off & 0x1fff", "ip protocol"),
}
HOOK_PRIORITY = -500
LARGEST_PACKET = 1 << 16
"""What a guest hands over in one piece, to be segmented later."""

_ERRORS = "destination-unreachable, time-exceeded, parameter-problem"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An element of a set or map, a chain, or a set of a VM's own.

    Attributes:
        family: `netdev` or `inet`; the table is `decisec`.
        name: Of the set, map or chain.
        key: An element's fields.
        value: What a map says for it; a mark in hex, or a verdict. Of a tap's chain: the rate in
            bytes per second and the burst in bytes that it lets through, if it has a limit.
        body: What a chain or set holds, which its name tells apart from others.
    """

    family: Literal["netdev", "inet"]
    kind: Literal["element", "chain", "set"]
    name: str
    key: tuple[str, ...] = ()
    value: str = ""
    body: str = field(default="", compare=False)

    def __str__(self) -> str:
        what = " . ".join((self.name, *self.key))
        return f"{self.family} {self.kind} {what}" + (f" : {self.value}" if self.value else "")


def entries(vm: Attachment) -> frozenset[Entry]:
    """All that a VM adds.

    Raises:
        ValueError: A field holds what it cannot hold.
    """
    _check(vm)
    tap = vm.tap
    rate = rate_of(vm.tx_bytes_per_s)
    found = {Entry(family="netdev", kind="chain", name=tap, value=rate, body=_hook(tap, rate))}
    if vm.quarantined:
        mark = Reason.QUARANTINE.mark
        found.add(_element("inet", "cut", tap))
        found.add(_element("inet", "inward", tap, value="goto drop_quarantine_to"))
    else:
        mark = vm.tenant
        found |= {_element("inet", "reach", f"{t:#x}", tap) for t in {vm.tenant, *vm.peers}}
        if vm.open_inbound:
            found.add(_element("inet", "inward", tap, value="goto open"))
        else:
            found |= _closed(vm)
    found.add(_element("netdev", "vm", tap, vm.mac, value=f"{mark:#x}"))
    networks = [(int(n.network_address), n.prefixlen) for n in vm.addresses]
    for address, length in [(int(vm.link_local), 128), *networks]:
        text = _ipv6(address)
        if length == 128:
            found.add(_element("inet", "source6", tap, text))
            found.add(_element("inet", "target6", tap, f"{address:#x}"))
        elif length == 64:
            found.add(_element("inet", "source6_net", tap, text))
            found.add(_element("inet", "target6_net", tap, f"{address >> 64:#x}"))
        else:
            raise ValueError(f"{text}/{length} is neither /64 nor /128")
    if vm.ipv4 is not None:
        found.add(_element("inet", "source4", tap, str(vm.ipv4)))
        found.add(_element("netdev", "arp4", tap, str(vm.ipv4)))
        found.add(_element("netdev", "source_arp", tap, vm.mac))
    return frozenset(found)


def _check(vm: Attachment) -> None:
    if _MAC.fullmatch(vm.mac) is None:
        raise ValueError(f"{vm.mac!r} is no MAC address in lower case with colons")
    for tenant in (vm.tenant, *vm.peers):
        if not 0 < tenant < FIRST_MARK:
            raise ValueError(f"{tenant} is no customer's number: those are 1 to {FIRST_MARK - 1}")
    for port in vm.ports:
        if port.protocol not in {"tcp", "udp"} or not 0 < port.first <= port.last < 65536:
            raise ValueError(f"{port} is no run of ports")


def _closed(vm: Attachment) -> set[Entry]:
    """Answers to what the VM began, and its open ports; without connection tracking.

    TCP needs no memory: what begins a connection has SYN and no ACK. For the rest the VM's own
    packets leave a note in sets of its own, so that no VM can fill those of another.
    """
    tap = vm.tap
    families = [("6", "ip6", "ipv6_addr")]
    if vm.ipv4 is not None:
        families.append(("4", "ip", "ipv4_addr"))
    found: set[Entry] = set()
    inward: list[str] = []
    outward: list[str] = []
    answers: list[str] = []
    udp_open = any(port.protocol == "udp" for port in vm.ports)
    for number, ip, kind in families:
        flow, heard = f"flow{number}_{tap}", f"heard{number}_{tap}"
        options = f"flags dynamic, timeout; size {FLOWS}; timeout 2m"
        ports = f"type {kind} . inet_service . inet_service; {options}"
        found.add(Entry(family="inet", kind="set", name=flow, body=ports))
        found.add(Entry(family="inet", kind="set", name=heard, body=f"type {kind}; {options}"))
        # Where a fragment is not the first, the kernel takes anything for the transport's header
        # (IPv6: the packet's own start), so those are dealt with before ports and flags are read.
        at, protocol = _FRAGMENTS[ip]
        inward += [
            f"{at} 1 goto drop_inbound_to",  # it could write TCP's flags anew
            f"{at} != 0 {ip} saddr @{heard} accept",
            *([f"{at} != 0 {protocol} udp accept"] if udp_open else []),
            f"{at} != 0 goto drop_inbound_to",
        ]
        key = f"{ip} daddr . udp dport . udp sport"
        outward += [
            f"meta l4proto != tcp update @{heard} {{ {ip} daddr }}",
            f"{at} != 0 return",
            f"udp dport 53 update @{flow} {{ {key} timeout 15s }}",
            f"udp dport != 53 update @{flow} {{ {key} }}",
        ]
        answers += [
            f"{ip} saddr . udp sport . udp dport @{flow} accept",
            f"meta l4proto != udp {ip} saddr @{heard} accept",
        ]
    inward += [f"{protocol} dport {{ {ports} }} accept" for protocol, ports in _ports(vm.ports)]
    inward += [
        "tcp flags & (ack | rst) != 0 accept",
        "meta l4proto tcp goto drop_inbound_to",
        f"icmpv6 type {{ packet-too-big, {_ERRORS} }} accept",
        f"icmp type {{ {_ERRORS} }} accept",
        "icmpv6 type != echo-reply goto drop_inbound_to",
        "icmp type != echo-reply goto drop_inbound_to",
        *answers,
        "goto drop_inbound_to",
    ]
    for name, rules in (("inward", inward), ("outward", outward)):
        body = "\n".join(rules)
        chain = f"{name}_{tap}_{hashlib.sha256(body.encode()).hexdigest()[:8]}"
        verb = "goto" if name == "inward" else "jump"
        found.add(Entry(family="inet", kind="chain", name=chain, body=body))
        found.add(_element("inet", name, tap, value=f"{verb} {chain}"))
    return found


def _ports(ports: tuple[Port, ...]) -> list[tuple[str, str]]:
    texts: dict[str, set[str]] = {}
    for port in ports:
        run = str(port.first) if port.first == port.last else f"{port.first}-{port.last}"
        texts.setdefault(port.protocol, set()).add(run)
    return [(protocol, ", ".join(sorted(texts[protocol]))) for protocol in sorted(texts)]


def _element(family: Literal["netdev", "inet"], name: str, *key: str, value: str = "") -> Entry:
    return Entry(family=family, kind="element", name=name, key=key, value=value)


def _ipv6(address: int) -> str:
    from ipaddress import IPv6Address

    return str(IPv6Address(address))


def rate_of(bytes_per_s: int) -> str:
    """The rate and burst of a limit; nothing for none.

    The kernel's bucket holds what one second allows, and the burst: so there is one only where a
    packet would not fit otherwise.
    """
    if not bytes_per_s:
        return ""
    rate = min(bytes_per_s, MOST_BYTES_PER_S)
    return f"{rate} {max(0, LARGEST_PACKET - rate)}"


def _hook(tap: str, rate: str) -> str:
    head = f'type filter hook ingress device "{tap}" priority {HOOK_PRIORITY}; policy drop'
    if not rate:
        return f"{head}; goto vm"
    per_s, burst = rate.split()
    more = f" burst {burst} bytes" if burst != "0" else ""
    return f"{head}; limit rate over {per_s} bytes/second{more} goto drop_rate_tx; goto vm"
