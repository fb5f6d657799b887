"""The rules that stand once per host, rendered from the files beside this one.

Chains `drop_<reason>`, which count by the interface a packet came from, and `drop_<reason>_to`,
by the one it would have left through, are made for whichever reasons the rules name.
"""

from __future__ import annotations

import hashlib
import re
from importlib import resources
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from string import Template

from vm_agent.network.plan import FabricPlan, HostService
from vm_agent.network.reasons import Reason

TABLES = ("netdev decisec", "inet decisec", "arp decisec")
"""All that is this agent's; nothing else of nftables is ever touched."""

PLACES = (
    "gateway6",
    "gateway4",
    "denied6",
    "denied4",
    "prefix6",
    "prefix4",
    "service6",
    "service4",
)
"""Sets of the table for packets whose elements are the plan's."""

_GOTO = re.compile(r"goto (drop_[a-z0-9_]+)")
_REASONS = {f"drop_{reason.label}": reason for reason in Reason}


def render(plan: FabricPlan) -> str:
    """The three tables, as they stand before the first VM."""
    netdev = _rules("ingress", plan)
    inet = "\n".join((_rules("packets", plan), _rules("routing", plan)))
    return "\n".join(
        (
            # What a table's rules name has to be in the same block.
            _table("netdev", [*_gateways(plan), *_drop_chains(netdev, ("",)), netdev]),
            _table("inet", [*_places(plan), *_drop_chains(inet, ("", "_to")), inet]),
            _table("arp", [_rules("arp", plan)]),
        )
    )


def fingerprint(text: str) -> str:
    """What tells one set of base rules from another."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _rules(name: str, plan: FabricPlan) -> str:
    file = resources.files("vm_agent.network.rules") / f"{name}.nft"
    return Template(file.read_text(encoding="utf-8")).substitute(
        uplink=plan.uplink, quarantine=f"{Reason.QUARANTINE.mark:#x}"
    )


def _table(family: str, lines: list[str]) -> str:
    return "\n".join((f"table {family} decisec {{", *lines, "}"))


def _drop_chains(rules: str, ends: tuple[str, ...]) -> list[str]:
    """A chain per reason that is named, with what they share."""
    lines = []
    directions = {"": "iifname", "_to": "oifname"}
    for end in ends:
        # Two rules: where the set is full, the first one fails, and the second drops all the same.
        lines.append(f"chain count{end} {{ update @drops {{ {directions[end]} . meta mark }}")
        lines.append("drop; }")
    # What only rules of VMs name is added.
    names = {*_GOTO.findall(rules), "drop_inbound_to" if "_to" in ends else "drop_rate_tx"}
    for name in sorted(names):
        end = "_to" if name.endswith("_to") else ""
        reason = _REASONS[name.removesuffix("_to")]
        lines.append(f"chain {name} {{ meta mark set {reason.mark:#x} goto count{end}; }}")
    return lines


def _gateways(plan: FabricPlan) -> list[str]:
    six = [str(a) for a in plan.gateways if isinstance(a, IPv6Address)]
    four = [str(a) for a in plan.gateways if isinstance(a, IPv4Address)]
    return [_set("gateway6", "ipv6_addr", six), _set("gateway4", "ipv4_addr", four)]


def _places(plan: FabricPlan) -> list[str]:
    """The sets of addresses that rules for packets ask for."""
    denied = (*plan.denied, *plan.protected)
    prefixes = [plan.prefix_v4] if plan.prefix_v4 is not None else []
    return [
        *_gateways(plan),
        _interval("denied6", "ipv6_addr", [n for n in denied if isinstance(n, IPv6Network)]),
        _interval("denied4", "ipv4_addr", [n for n in denied if isinstance(n, IPv4Network)]),
        _interval("prefix6", "ipv6_addr", [plan.prefix]),
        _interval("prefix4", "ipv4_addr", prefixes),
        *_services(plan.services),
    ]


def _services(services: tuple[HostService, ...]) -> list[str]:
    lines = []
    for name, kind, of in (("6", "ipv6_addr", IPv6Address), ("4", "ipv4_addr", IPv4Address)):
        keys = [f"{s.address} . {s.protocol} . {s.port}" for s in services if type(s.address) is of]
        lines.append(_set(f"service{name}", f"{kind} . inet_proto . inet_service", keys))
    return lines


def _interval(name: str, kind: str, networks: list[IPv6Network] | list[IPv4Network]) -> str:
    keys = [str(network) for network in networks]
    return _set(name, kind, keys, flags="flags interval; auto-merge; ")


def _set(name: str, kind: str, keys: list[str], flags: str = "") -> str:
    elements = f"elements = {{ {', '.join(keys)} }}; " if keys else ""
    return f"set {name} {{ type {kind}; {flags}{elements}}}"
