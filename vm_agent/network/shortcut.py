"""Transactions of entries that need no compiler: elements, and a tap's chain on its hook.

The same in force as what `filter.py` says in nft(8)'s language, some ten times as fast.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Collection, Iterable
from ipaddress import IPv4Address, IPv6Address

from vm_agent.network.nfnetlink import (
    APPEND,
    CREATE,
    DELETE_CHAIN,
    DELETE_ELEMENTS,
    NEW_CHAIN,
    NEW_ELEMENTS,
    NEW_RULE,
    Message,
    attribute,
    nested,
    number,
    text,
)
from vm_agent.network.rules.entries import HOOK_PRIORITY, Entry

MOST = 256
"""Entries in one transaction; beyond, messages get too long."""

_TABLE = "decisec"
_INTERFACE_BYTES = 16
_KEYS = {
    "vm": ("interface", "mac"),
    "arp4": ("interface", "ipv4"),
    "source_arp": ("interface", "mac"),
    "source6": ("interface", "ipv6"),
    "source6_net": ("interface", "ipv6"),
    "source4": ("interface", "ipv4"),
    "target6": ("interface", "octets16"),
    "target6_net": ("interface", "octets8"),
    "cut": ("interface",),
    "reach": ("mark", "interface"),
    "inward": ("interface",),
    "outward": ("interface",),
}
_VERDICTS = {"jump": -3, "goto": -4}
_BYTES, _INVERTED = 1, 1
"""Of a limit: what it counts, and that it is over."""


def possible(entries: Collection[Entry]) -> bool:
    """Whether these can be put in force this way."""
    return len(entries) <= MOST and all(
        e.kind == "element" or (e.kind == "chain" and e.family == "netdev") for e in entries
    )


def messages(gone: Iterable[Entry], new: Iterable[Entry]) -> list[Message]:
    """What takes the ones away and brings the others."""
    gone, new = list(gone), list(new)
    return [
        *(_without_hook(entry) for entry in gone if entry.kind == "chain"),
        *_elements(DELETE_ELEMENTS, gone),
        *(message for entry in new if entry.kind == "chain" for message in _with_hook(entry)),
        *_elements(NEW_ELEMENTS, new),
    ]


def _without_hook(entry: Entry) -> Message:
    attributes = text(1, _TABLE) + text(3, entry.name)
    return Message(DELETE_CHAIN, entry.family, f"chain {entry.name}", attributes)


def _with_hook(entry: Entry) -> list[Message]:
    """A base chain that drops, on its interface's ingress, and the rule that goes to `vm`."""
    hook = nested(4, number(1, 0), number(2, HOOK_PRIORITY), text(3, entry.name))
    chain = text(1, _TABLE) + text(3, entry.name) + hook + number(5, 0) + text(7, "filter")
    rules = [[_goto("vm")]]
    if entry.value:
        rules.insert(0, [_over(*map(int, entry.value.split())), _goto("drop_rate_tx")])
    what = f"chain {entry.name}"
    place = text(1, _TABLE) + text(2, entry.name)
    return [
        Message(NEW_CHAIN, entry.family, what, chain, CREATE),
        *(
            Message(NEW_RULE, entry.family, what, place + nested(4, *rule), CREATE | APPEND)
            for rule in rules
        ),
    ]


def _goto(chain: str) -> bytes:
    immediate = nested(2, number(1, 0), nested(2, _verdict(f"goto {chain}")))
    return nested(1, text(1, "immediate"), immediate)


def _over(rate: int, burst: int) -> bytes:
    """Goes on where more bytes come than this in a second, and this in a burst."""
    limit = nested(
        2,
        attribute(1, struct.pack(">Q", rate)),
        attribute(2, struct.pack(">Q", 1)),
        number(3, burst),
        number(4, _BYTES),
        number(5, _INVERTED),
    )
    return nested(1, text(1, "limit"), limit)


def _elements(kind: int, entries: Iterable[Entry]) -> list[Message]:
    places: defaultdict[tuple[str, str], list[bytes]] = defaultdict(list)
    for entry in entries:
        if entry.kind == "element":
            places[entry.family, entry.name].append(_element(entry, data=kind == NEW_ELEMENTS))
    flags = CREATE if kind == NEW_ELEMENTS else 0
    return [
        Message(
            kind, family, f"set {name}", text(1, _TABLE) + text(2, name) + nested(3, *own), flags
        )
        for (family, name), own in places.items()
    ]


def _element(entry: Entry, *, data: bool) -> bytes:
    fields = zip(_KEYS[entry.name], entry.key, strict=True)
    key = b"".join(_field(kind, value) for kind, value in fields)
    parts = [nested(1, attribute(1, key))]
    if entry.value and data:
        value = (
            attribute(1, _field("mark", entry.value))
            if entry.name == "vm"
            else _verdict(entry.value)
        )
        parts.append(nested(2, value))
    return nested(1, *parts)


def _verdict(words: str) -> bytes:
    verb, _, chain = words.partition(" ")
    return nested(2, number(1, _VERDICTS[verb]), text(2, chain))


def _field(kind: str, value: str) -> bytes:
    """A field of a key, filled up to 32 bits."""
    match kind:
        case "interface":
            return value.encode().ljust(_INTERFACE_BYTES, b"\0")
        case "mac":
            return bytes.fromhex(value.replace(":", "")) + bytes(2)
        case "ipv4":
            return IPv4Address(value).packed
        case "ipv6":
            return IPv6Address(value).packed
        case "mark":
            return struct.pack("=I", int(value, 16))
        case _:
            return int(value, 16).to_bytes(int(kind.removeprefix("octets")), "big")
