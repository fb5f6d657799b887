"""A collector in a process of its own that tests can kill, freeze and stop."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import UUID

import nats.errors
import nats.js.errors

from collector.crew import units_of
from collector.parting import DURABLE
from runtime.bus import Bus, Message
from schemas.collectors import CollectorAlive, decode_collector_alive
from schemas.subjects import COLLECTORS_ALIVE, METRICS_RAW, partitions_of
from tests.support.service_process import ServiceProcess, python_module, settings_env


class CollectorProcess(ServiceProcess):
    """`python -m collector` with a log in `folder`."""

    def __init__(
        self, folder: Path, nats_url: str, *, name: str = "collector", **settings: str
    ) -> None:
        super().__init__(
            *python_module("collector"),
            log_path=folder / f"{name}.log",
            env=settings_env("collector", nats_url, settings),
        )


def collector_process(
    folder: Path, nats_url: str, *, name: str = "collector", **settings: str
) -> CollectorProcess:
    """A started collector for the length of an `async with`."""
    return CollectorProcess(folder, nats_url, name=name, **settings)


async def all_collected(bus: Bus, *, timeout_s: float = 60.0) -> None:
    """Return once collectors have answered for every raw frame."""
    async with asyncio.timeout(timeout_s):
        while await unanswered(bus) != 0:
            await asyncio.sleep(0.05)


async def unanswered(bus: Bus) -> int | None:
    """Raw frames that no collector has answered for; None while nobody can say."""
    try:
        transform = (await bus.js.stream_info(METRICS_RAW)).config.subject_transform
        found = await bus.js.consumers_info(METRICS_RAW)
    except (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError):
        return None
    found = [info for info in found if info.name.startswith(DURABLE)]
    if units_of(partitions_of((transform and transform.dest) or "")).keys() - {
        info.name for info in found
    }:
        return None
    return sum((info.num_pending or 0) + (info.num_ack_pending or 0) for info in found)


class Roll:
    """What each collector says it works at."""

    def __init__(self, partitions: int) -> None:
        self._all = set(units_of(partitions))
        self.units: dict[UUID, set[str]] = {}
        self._news = asyncio.Event()

    async def hear(self, message: Message) -> None:
        """Handler of heartbeats."""
        alive: CollectorAlive = decode_collector_alive(message.data)
        if alive.leaving:
            self.units.pop(alive.collector_id, None)
        else:
            self.units[alive.collector_id] = set(alive.units)
        self._news.set()

    async def spread_over(self, collectors: int, timeout_s: float = 20.0) -> None:
        """Return once so many share all units evenly, none held by two of them."""
        async with asyncio.timeout(timeout_s):
            while not self._even(collectors):
                self._news.clear()
                await self._news.wait()

    def _even(self, collectors: int) -> bool:
        held = list(self.units.values())
        sizes = [len(units) for units in held]
        return (
            len(held) == collectors
            and sum(sizes) == len(self._all)
            and set().union(*held) == self._all
            and max(sizes) - min(sizes) <= 1
        )


async def roll_of(bus: Bus, partitions: int = 8) -> Roll:
    """One that hears all collectors from now on."""
    roll = Roll(partitions)
    await bus.subscribe(COLLECTORS_ALIVE, roll.hear)
    return roll
