"""What the network's filter costs: a VM's rules among others, and each packet. Prints JSON.

A fabric of its own, with a tap per VM. Packets go from one VM's tap to the same customer's other
one, which the kernel does within the `write`; what rules add is the difference to none at all.
Figures are merged into `.decisec/bench/network.json`.

    python -m tests.load.bench_network --vms 1,500,1000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.load.machine import machine_facts
from tests.network.cases.base import framed
from tests.support import packets as p
from tests.support.fabric import PLAN, VNET_HEADER_BYTES, Fabric, Guest, available, fabric, vm
from vm_agent.network.attachment import Attachment
from vm_agent.network.filter import Filter
from vm_agent.network.nft import Nft

REPORT = Path(__file__).resolve().parents[2] / ".decisec" / "bench" / "network.json"

_CUSTOMERS = 100
_ROUNDS, _BATCHES, _BATCH = 60, 150, 200
_MORE = 100_000
"""Slots from here on come and go while the time is taken."""


def attachments(count: int) -> list[Attachment]:
    """VMs of many customers; the first two are of one."""
    return [
        vm(slot, f"c{n}", n) for slot in range(1, count + 1) for n in [1 + slot // 3 % _CUSTOMERS]
    ]


async def main(counts: list[int]) -> None:
    """Measure at each number of VMs."""
    if reason := available():
        sys.exit(reason)
    vms = attachments(max(counts[-1], 2))
    extra = [vm(_MORE + number, "more", 200) for number in range(_ROUNDS)]
    figures: dict[str, Any] = {"nft": {}, "packet_us": {}}
    with fabric([]) as place:
        nft = Nft(place.netns)
        rules = Filter(nft)
        try:
            await rules.install(PLAN)  # before the taps: the library needs a low descriptor
            place.plug(*vms, *extra)
            for count in counts:
                await rules.install(PLAN)
                await rules.reconcile(vms[: max(count, 2)])
                figures["nft"][str(count)] = await _nft(rules, extra)
                figures["packet_us"][str(count)] = await _packets(
                    place, rules, vms[: max(count, 2)]
                )
            some = vms[:500]
            await rules.reconcile(some)
            figures["filter_reconcile_500_ms"] = await _times(lambda: rules.reconcile(some), 10)
            figures["drops_500_ms"] = await _times(rules.drops, 10)
        finally:
            await nft.close()
    figures["nft_ms"] = figures["nft"][str(counts[-1])]["add"]["p50"]
    _write(figures)
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")


async def _nft(rules: Filter, extra: list[Attachment]) -> dict[str, Any]:
    """A VM comes, is quarantined, and goes; the same for one that is closed."""
    found: dict[str, list[float]] = {}

    async def timed(name: str, work: Awaitable[None]) -> None:
        before = time.perf_counter_ns()
        await work
        found.setdefault(name, []).append((time.perf_counter_ns() - before) / 1e6)

    for one in extra:
        closed = replace(one, open_inbound=False)
        await timed("add", rules.add(one))
        await timed("quarantine", rules.change(replace(one, quarantined=True)))
        await timed("remove", rules.remove(one.tap))
        await timed("add_closed", rules.add(closed))
        await timed("remove_closed", rules.remove(one.tap))
    return {name: _spread(times) for name, times in found.items()}


async def _packets(place: Fabric, rules: Filter, vms: list[Attachment]) -> dict[str, float]:
    """What rules add to a packet of 128 octets and one of 1400, from tap to tap."""
    one, other = place.guests[1], place.guests[2]
    found: dict[str, float] = {}
    for size in (128, 1400):
        to = other.address
        data = p.udp(one.address, to, 4000, 4001, bytes(size - 48))
        packet = p.ip6(one.address, to, p.UDP, data)
        frame = bytes(VNET_HEADER_BYTES) + framed(packet, "alice 1")
        found[f"with_{size}"] = _per_packet_us(one, other, frame)
        await rules.uninstall()
        found[f"without_{size}"] = _per_packet_us(one, other, frame)
        await rules.install(PLAN, vms)
        found[f"added_{size}"] = round(found[f"with_{size}"] - found[f"without_{size}"], 2)
    return found


def _per_packet_us(one: Guest, other: Guest, frame: bytes) -> float:
    """Median over batches of the time of one write."""
    times = []
    for _ in other.received():  # what the host said when there were no rules
        pass
    for _ in range(_BATCHES):
        before = time.perf_counter_ns()
        for _ in range(_BATCH):
            os.write(one.descriptor, frame)
        times.append((time.perf_counter_ns() - before) / 1000 / _BATCH)
        arrived = sum(1 for received in other.received() if frame[-64:] in received)
        if arrived != _BATCH:
            raise RuntimeError("packets did not arrive, so their cost says nothing")
    return round(statistics.median(times), 2)


async def _times(work: Callable[[], Awaitable[object]], count: int) -> dict[str, float]:
    times = []
    for _ in range(count):
        before = time.perf_counter_ns()
        await work()
        times.append((time.perf_counter_ns() - before) / 1e6)
    return _spread(times)


def _spread(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    return {
        "p50": round(ordered[len(ordered) // 2], 2),
        "p99": round(ordered[len(ordered) * 99 // 100], 2),
    }


def _write(figures: dict[str, Any]) -> None:
    """Merge: what else there is of the network is measured elsewhere."""
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(REPORT.read_text()) if REPORT.exists() else {}
    packet_us = {n: packet["added_128"] for n, packet in figures["packet_us"].items()}
    known |= figures | {"packet_us": packet_us, "packets": figures["packet_us"]}
    known["filter_machine"] = machine_facts()
    REPORT.write_text(json.dumps(known, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vms", default="1,500,1000")
    arguments = parser.parse_args()
    asyncio.run(main([int(count) for count in arguments.vms.split(",")]))
