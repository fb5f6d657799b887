"""What connecting VMs costs: one among many, comparing all of them, a boot with and without it.

Figures are merged into `.decisec/bench/network.json`, beside those of `bench_network`:

- `attach_ms`: a tap made, moved into the fabric, ruled, opened, routed, with so many there already;
- `detach_ms`: one by itself; `detach_all_ms`: all that are there, at the same time;
- `reconcile_500_ms`: comparing everything where nothing is amiss, and `repair_500_ms` where every
  route is gone;
- `read_500_ms`: the bytes of all taps, as a tick reads them;
- `create_ms`: create and boot of a real Firecracker over the bus on a host that connects its VMs,
  `create_after_delete_ms` while the kernel still clears up behind the VM before, and
  `create_unconnected_ms` on a host that connects nobody.

    python -m tests.load.bench_fabric
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from schemas.commands import BootVm, CreateVm, DeleteVm
from schemas.hosts import OperationStatus
from schemas.ids import new_id
from schemas.vms import VmSpec
from tests.load.bench_network import REPORT
from tests.load.machine import machine_facts
from tests.support.agents import running_agent
from tests.support.connected_agent import lack, surroundings
from tests.support.hypervisors import Lab, open_lab
from tests.support.wires import fabric_rig
from vm_agent.network.filtering import FilterRules

_SPEC = VmSpec(image="tiny", memory_mib=32)
_REST_S = 0.1


def spread(times: list[float]) -> dict[str, float]:
    """Median and 99th percentile."""
    ordered = sorted(times)
    return {
        "p50": round(ordered[len(ordered) // 2], 2),
        "p99": round(ordered[len(ordered) * 99 // 100], 2),
    }


async def timed(work: Callable[[], Awaitable[object]], rounds: int = 1) -> list[float]:
    """How long it took each time, in ms."""
    times = []
    for _ in range(rounds):
        before_ns = time.perf_counter_ns()
        await work()
        times.append((time.perf_counter_ns() - before_ns) / 1e6)
    return times


async def fabric(count: int) -> dict[str, Any]:
    """Many VMs on one fabric."""
    async with fabric_rig(FilterRules) as rig:
        attach: list[float] = []
        for _ in range(count):
            attach += await timed(rig.guest)
        made = rig.fabric
        found: dict[str, Any] = {"attach_ms": spread(attach[-50:]), "attach_first_ms": attach[0]}
        found[f"reconcile_{count}_ms"] = spread(await timed(made.reconcile, 20))["p50"]
        read: list[float] = []
        for _ in range(50):
            before_ns = time.perf_counter_ns()
            with made.at_once():
                for guest in rig.guests:
                    made.read(guest.vm.index)
            read.append((time.perf_counter_ns() - before_ns) / 1e6)
        found[f"read_{count}_ms"] = spread(read)
        for guest in rig.guests:
            await rig.inside("ip", "-6", "route", "flush", "dev", guest.vm.tap, "proto", "220")
        found[f"repair_{count}_ms"] = (await timed(made.reconcile))[0]
        some = rig.guests[:20]
        alone = [
            (await timed(lambda g=guest: made.detach(g.vm.tap, g.owner)))[0]  # type: ignore[misc]
            for guest in some
        ]
        found["detach_ms"] = spread(alone)

        async def leave() -> None:
            await asyncio.gather(*(made.detach(g.vm.tap, g.owner) for g in rig.guests))

        found["detach_all_ms"] = (await timed(leave))[0]
        return found


async def boots(
    lab: Lab, settings: Mapping[str, str], rounds: int, rest_s: float = _REST_S
) -> dict[str, float]:
    """Create and boot over the bus, one after the other, some time after the end of the last."""
    times = []
    with tempfile.TemporaryDirectory(prefix="decisec-bench-") as folder:
        async with running_agent(Path(folder), lab, "firecracker", **settings) as (_, client):
            client.look_s = 0.001
            for number in range(rounds + 2):
                vm_id = new_id()

                async def start(vm_id: Any = vm_id) -> None:
                    await client.do(CreateVm, vm_id, spec=_SPEC)
                    done = await client.do(BootVm, vm_id)
                    if done.status is not OperationStatus.SUCCEEDED:
                        raise RuntimeError(f"a boot failed: {done.error}")

                took = await timed(start)
                times += took if number >= 2 else []
                await client.do(DeleteVm, vm_id)
                await asyncio.sleep(rest_s)
    return spread(times)


def main(count: int, rounds: int) -> None:
    """Measure, print and merge."""
    if reason := lack():
        sys.exit(reason)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    figures = {**asyncio.run(fabric(count)), "fabric_machine": machine_facts()}
    merge(figures)
    if rounds:
        with open_lab() as lab:
            figures |= asyncio.run(create(lab, rounds))
        merge(figures)
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")


async def create(lab: Lab, rounds: int) -> dict[str, Any]:
    """With a network and without."""
    async with surroundings() as around:
        found: dict[str, Any] = {
            "create_ms": await boots(lab, around.settings, rounds),
            "create_after_delete_ms": await boots(lab, around.settings, rounds, 0.0),
        }
    return {**found, "create_unconnected_ms": await boots(lab, {}, rounds)}


def merge(figures: Mapping[str, Any]) -> None:
    """Put figures into the report; what else is in there stays."""
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(REPORT.read_text()) if REPORT.exists() else {}
    REPORT.write_text(json.dumps({**known, **figures}, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vms", type=int, default=500)
    parser.add_argument("--boots", type=int, default=30)
    arguments = parser.parse_args()
    main(arguments.vms, arguments.boots)
