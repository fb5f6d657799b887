"""A batcher in a process of its own that tests can kill."""

from __future__ import annotations

import asyncio
from pathlib import Path

import nats.js.errors

from runtime.bus import Bus
from schemas.subjects import METRICS_ENRICHED
from tests.support.service_process import ServiceProcess, python_module, settings_env

DURABLE = "batcher"


class BatcherProcess(ServiceProcess):
    """`python -m batcher` over an embedded store in `folder`."""

    def __init__(self, folder: Path, nats_url: str, **settings: str) -> None:
        self.store_path = folder / "store"
        super().__init__(
            *python_module("batcher"),
            log_path=folder / "batcher.log",
            env=settings_env("batcher", nats_url, {"store_path": str(self.store_path), **settings}),
        )


def batcher_process(folder: Path, nats_url: str, **settings: str) -> BatcherProcess:
    """A started batcher for the length of an `async with`."""
    return BatcherProcess(folder, nats_url, **settings)


async def all_stored(bus: Bus, *, timeout_s: float = 60.0) -> None:
    """Return once the batcher has answered for every enriched frame."""
    async with asyncio.timeout(timeout_s):
        await answered(bus, METRICS_ENRICHED, DURABLE)


async def answered(bus: Bus, stream: str, durable: str) -> None:
    """Return once a consumer is there and has answered for every message of its stream."""
    while True:
        try:
            info = await bus.js.consumer_info(stream, durable)
        except nats.js.errors.NotFoundError:
            await asyncio.sleep(0.05)
            continue
        if not info.num_pending and not info.num_ack_pending:
            return
        await asyncio.sleep(0.05)


async def begun(bus: Bus, stream: str, durable: str, *, after: int) -> None:
    """Return once a consumer has answered for more than the first `after` messages."""
    while True:
        try:
            info = await bus.js.consumer_info(stream, durable)
        except nats.js.errors.NotFoundError:
            await asyncio.sleep(0.05)
            continue
        if info.ack_floor and info.ack_floor.stream_seq > after:
            return
        await asyncio.sleep(0.05)
