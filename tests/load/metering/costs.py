"""What a sample costs, by VMs on each host and by hosts: CPU of every part of the pipeline."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from rich.progress import Progress

from runtime.bus import Bus
from tests.load.flood.flood import flood
from tests.load.flood.plan import Plan
from tests.load.machine import Watch
from tests.load.metering import stream
from tests.support.stack import START_ORDER, KillableStack, metering_stack

_PARTS = START_ORDER[:3]
_FLEETS = ((10, 10), (10, 100), (10, 1000), (100, 10), (100, 100), (1000, 10))
"""Hosts, and VMs on each, from 1000 to 100,000 samples a second."""
_TIMEOUT_S = 300.0


async def costs(folder: Path, seconds: float, most: int, progress: Progress) -> dict[str, Any]:
    """Floods at 10 ticks a second, from the first frame sent to the last sample stored.

    Args:
        folder: For what the parts keep.
        seconds: How long each flood sends.
        most: No fleet of more VMs than this.
        progress: Told of all that takes time.
    """
    found: list[dict[str, Any]] = []
    for hosts, vms in _FLEETS:
        if hosts * vms > most:
            continue
        plan = Plan(hosts=hosts, vms=vms, seconds=seconds)
        async with metering_stack(folder / f"{hosts}-{vms}") as stack, stack.bus() as bus:
            found.append(await _cost(stack, bus, plan, progress))
    return {"fleets": found}


async def _cost(stack: KillableStack, bus: Bus, plan: Plan, progress: Progress) -> dict[str, Any]:
    watch = Watch(stack.pids(*_PARTS))
    async with stream.listening(bus) as ear:
        report = await flood(bus, plan, progress, during=_until_stored(watch, ear, plan))
    cpu_us = {name: used * 1e6 / plan.samples for name, used in watch.load().cpu_s.items()}
    return {
        "hosts": plan.hosts,
        "vms_per_host": plan.vms,
        "samples_per_s": report["samples_per_s"],
        "cpu_us_per_sample": {
            **{name: round(used, 2) for name, used in cpu_us.items()},
            "all": round(sum(cpu_us.values()), 2),
        },
        "conserved": report["conserved"],
    }


@asynccontextmanager
async def _until_stored(watch: Watch, ear: stream.Ear, plan: Plan) -> AsyncIterator[None]:
    async with watch:
        yield
        await ear.until(
            lambda heard: sum(one.rows for one in heard) >= plan.samples, timeout_s=_TIMEOUT_S
        )
