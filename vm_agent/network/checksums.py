"""Checksums that guests leave to the host are computed before any rule looks at a packet.

A guest's virtio header may ask for a checksum of anything to be written anywhere, as long as it is
behind the first six octets of the IP header: into the source address, for one. The kernel does so
when the packet leaves the host, long after all rules. xt_CHECKSUM does it at once. No words of
nft(8) stand for it, so its rule goes into the kernel as a message of netlink (linux/netfilter/
nf_tables.h, xt_CHECKSUM.h). It insists on a table called `mangle`.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Mapping
from typing import Any

from vm_agent.network.nft import NftError

PRIORITY = -460
"""Before all other rules for packets."""

FAMILIES = {"ip": socket.AF_INET, "ip6": socket.AF_INET6}
_TABLE, _CHAIN = "mangle", "decisec_fill"

_NETLINK_NETFILTER = 12
_BATCH_BEGIN, _BATCH_END, _NEW_RULE = 0x10, 0x11, 10 << 8 | 6
_REQUEST, _ACK, _CREATE, _APPEND = 0x1, 0x4, 0x400, 0x800
_NESTED = 0x8000


def commands() -> str:
    """The chains, without the rule in them that `add_rules` brings."""
    return "\n".join(
        f"table {family} {_TABLE} {{\n"
        f"chain {_CHAIN} {{ }}\n"
        f"chain decisec {{ type filter hook prerouting priority {PRIORITY}; policy accept; }}\n"
        f"}}\n"
        f"flush chain {family} {_TABLE} {_CHAIN}\n"
        f"flush chain {family} {_TABLE} decisec\n"
        f'add rule {family} {_TABLE} decisec iifname "vm*" jump {_CHAIN}'
        for family in FAMILIES
    )


def standing(objects: Iterable[Mapping[str, Any]]) -> bool:
    """Whether what is listed of a family's table is as it should be."""
    rules = [thing["rule"] for thing in objects if "rule" in thing]
    said = {rule["chain"]: next(iter(rule["expr"][-1].values())) for rule in rules}
    fill = said.get(_CHAIN) or {}
    return fill.get("name") == "CHECKSUM" and said.get("decisec") == {"target": _CHAIN}


def add_rules() -> None:
    """Put the rule into both chains, in the namespace of this thread.

    Raises:
        NftError: The kernel has no xt_CHECKSUM, or refuses for another reason.
    """
    batch = _message(_BATCH_BEGIN, _REQUEST, 0, 0, 10)
    for number, family in enumerate(FAMILIES.values(), 1):
        batch += _message(
            _NEW_RULE, _REQUEST | _ACK | _CREATE | _APPEND, number, family, 0, _rule()
        )
    batch += _message(_BATCH_END, _REQUEST, len(FAMILIES) + 1, 0, 10)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as kernel:
        kernel.bind((0, 0))
        kernel.send(batch)
        answered = 0
        while answered < len(FAMILIES):
            answer = kernel.recv(1 << 16)
            while answer:
                (length, _, _, _, _, error) = struct.unpack_from("=IHHIIi", answer)
                if error:
                    raise NftError(f"no rule with xt_CHECKSUM: {os.strerror(-error)}")
                answered += 1
                answer = answer[(length + 3) & ~3 :]


def _rule() -> bytes:
    operation_fill = bytes([1]) + bytes(7)
    target = _attribute(1, b"CHECKSUM\0") + _attribute(2, bytes(4)) + _attribute(3, operation_fill)
    expression = _attribute(1, b"target\0") + _attribute(2 | _NESTED, target)
    names = _attribute(1, _TABLE.encode() + b"\0") + _attribute(2, _CHAIN.encode() + b"\0")
    return names + _attribute(4 | _NESTED, _attribute(1 | _NESTED, expression))


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _message(
    kind: int, flags: int, number: int, family: int, resource: int, attributes: bytes = b""
) -> bytes:
    body = struct.pack("=BB", family, 0) + struct.pack(">H", resource) + attributes
    return struct.pack("=IHHII", 16 + len(body), kind, flags, number, 0) + body
