"""Checksums that guests leave to the host are computed before any rule looks at a packet.

A guest's virtio header may ask for a checksum of anything to be written anywhere, as long as it is
behind the first six octets of the IP header: into the source address, for one. The kernel does so
when the packet leaves the host, long after all rules. xt_CHECKSUM does it at once. No words of
nft(8) stand for it, so its rule goes into the kernel as a message of netlink (linux/netfilter/
nf_tables.h, xt_CHECKSUM.h). It insists on a table called `mangle`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vm_agent.network.nfnetlink import (
    APPEND,
    CREATE,
    NEW_RULE,
    Message,
    attribute,
    nested,
    number,
    text,
)

PRIORITY = -460
"""Before all other rules for packets."""

FAMILIES = ("ip", "ip6")
_TABLE, _CHAIN = "mangle", "decisec_fill"


def commands() -> str:
    """The chains, without the rule in them that `rules` are for."""
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


def rules() -> list[Message]:
    """The rule for both chains; the kernel refuses it where it has no xt_CHECKSUM."""
    operation_fill = bytes([1]) + bytes(7)
    target = text(1, "CHECKSUM") + number(2, 0) + attribute(3, operation_fill)
    expression = nested(1, text(1, "target"), nested(2, target))
    rule = text(1, _TABLE) + text(2, _CHAIN) + nested(4, expression)
    flags = CREATE | APPEND
    return [Message(NEW_RULE, family, "xt_CHECKSUM", rule, flags) for family in FAMILIES]
