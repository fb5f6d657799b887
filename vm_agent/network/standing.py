"""What of VMs' rules is in the kernel, read from lists of libnftables-json(5) as entries."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from vm_agent.network.drops import Count, Drops
from vm_agent.network.reasons import Reason
from vm_agent.network.rules.entries import Entry

TAP_NAME = re.compile(r"vm[0-9a-f]{8}")
_OWN_NAME = re.compile(r"(?:inward|outward|flow[46]|heard[46])_(vm[0-9a-f]{8})(?:_[0-9a-f]{8})?")
_HOOKED = re.compile(r"\tchain (vm[0-9a-f]{8}) \{([^}]*)\}")
_LIMIT = re.compile(
    r"limit rate over (\d+) ([km]?)bytes/second(?: burst (\d+) ([km]?)bytes)? goto drop_rate_tx"
)
_UNITS = {None: 1, "": 1, "k": 1 << 10, "m": 1 << 20}

ELEMENTS: tuple[tuple[Literal["netdev", "inet"], str, str], ...] = (
    ("netdev", "map", "vm"),
    ("netdev", "set", "arp4"),
    ("netdev", "set", "source_arp"),
    ("inet", "set", "source6"),
    ("inet", "set", "source6_net"),
    ("inet", "set", "source4"),
    ("inet", "set", "target6"),
    ("inet", "set", "target6_net"),
    ("inet", "set", "cut"),
    ("inet", "set", "reach"),
    ("inet", "map", "inward"),
    ("inet", "map", "outward"),
)
"""The sets and maps of the base rules that VMs have elements in."""

_OWN_BLOCK = re.compile(
    r"\t(?:chain|set) (?:vm[0-9a-f]{8}|seal_\w+|(?:inward|outward|flow[46]|heard[46])_vm\w+) \{"
    r"\n(?:.*\n)*?\t\}\n+"
)

Json = Mapping[str, Any]


def by_tap(found: Iterable[Entry]) -> dict[str, frozenset[Entry]]:
    """Entries of each tap; what belongs to none is the base rules' own."""
    taps: defaultdict[str, set[Entry]] = defaultdict(set)
    for entry in found:
        tap = tap_of(entry)
        if tap is not None:
            taps[tap].add(entry)
    return {tap: frozenset(own) for tap, own in taps.items()}


def tap_of(entry: Entry) -> str | None:
    """The tap that an entry is for."""
    for part in entry.key:
        if TAP_NAME.fullmatch(part):
            return part
    if match := _OWN_NAME.fullmatch(entry.name):
        return match[1]
    return entry.name if TAP_NAME.fullmatch(entry.name) else None


def base_of(text: str) -> str:
    """A table without what VMs brought, from a list in nft(8)'s language, elements left out."""
    return re.sub(r"\n+", "\n", _OWN_BLOCK.sub("", text))


def read_elements(objects: Iterable[Json]) -> list[Entry]:
    """All elements of the sets and maps in a list."""
    found = []
    for thing in objects:
        for kind in ("set", "map"):
            if kind in thing:
                listed = thing[kind]
                found += [
                    _element(listed["family"], listed["name"], kind, element)
                    for element in listed.get("elem", [])
                ]
    return found


def read_hooks(text: str) -> list[Entry]:
    """The taps' own chains, from a list in nft(8)'s language: JSON leaves out the interface.

    One whose interface went away may stand there without a hook, in some kernels, and somebody may
    have changed its rules: it counts as another one, to be replaced.
    """
    return [
        Entry(family="netdev", kind="chain", name=match[1], value=_rate_in(match[1], match[2]))
        for match in _HOOKED.finditer(text)
    ]


def _rate_in(tap: str, body: str) -> str:
    """What a tap's chain lets through, as `entries.rate_of` has it."""
    hook, *rules = (line.strip() for line in body.strip().splitlines())
    if f'device "{tap}"' not in hook:
        return "unhooked"
    match rules:
        case ["goto vm"]:
            return ""
        case [limit, "goto vm"] if match := _LIMIT.fullmatch(limit):
            rate, unit, burst, burst_unit = match.groups()
            return f"{int(rate) * _UNITS[unit]} {int(burst or 0) * _UNITS[burst_unit]}"
        case _:
            return "changed"


def read_names(objects: Iterable[Json]) -> list[Entry]:
    """All chains and sets of routing that VMs brought, by name."""
    found = []
    for thing in objects:
        for kind in ("chain", "set"):
            if kind in thing and thing[kind]["table"] == "decisec":
                name = thing[kind]["name"]
                entry_kind: Literal["chain", "set"] = "chain" if kind == "chain" else "set"
                found.append(Entry(family="inet", kind=entry_kind, name=name))
    return [entry for entry in found if tap_of(entry) is not None]


def read_drops(objects: Iterable[Json]) -> Drops:
    """Counts in the sets `drops` and `pairs`. Marks of reasons that are unknown here are left."""
    drops = Drops()
    known = {reason.mark: reason for reason in Reason}
    for thing in objects:
        listed = thing.get("set")
        if listed is None or listed["name"] not in {"drops", "pairs"}:
            continue
        for element in listed.get("elem", []):
            first, second = _key(element["elem"]["val"])
            counter = element["elem"]["counter"]
            count = Count(counter["packets"], counter["bytes"])
            if listed["name"] == "pairs":
                drops.by_pair[first, second] = count
            elif (reason := known.get(int(second, 16))) is not None:
                drops.add(first, reason, count)
    return drops


def read_counted(objects: Iterable[Json]) -> list[tuple[str, ...]]:
    """The keys of all elements that count."""
    listed = [thing["set"] for thing in objects if "set" in thing]
    return [_key(e["elem"]["val"]) for one in listed for e in one.get("elem", [])]


def _element(family: Literal["netdev", "inet"], name: str, kind: str, element: Any) -> Entry:
    if kind == "set":
        return Entry(family=family, kind="element", name=name, key=_key(element))
    key, value = element
    if isinstance(value, dict):
        ((verdict, detail),) = value.items()
        text = f"{verdict} {detail['target']}" if detail else str(verdict)
    else:
        text = f"{int(value):#x}"
    return Entry(family=family, kind="element", name=name, key=_key(key), value=text)


def _key(element: Any) -> tuple[str, ...]:
    if isinstance(element, dict):
        return tuple(_field(part) for part in element["concat"])
    return (_field(element),)


def _field(part: Any) -> str:
    return f"{part:#x}" if isinstance(part, int) else str(part)
