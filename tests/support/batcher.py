"""A batcher in a process of its own that tests can kill."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats.js.errors

from runtime.bus import Bus
from schemas.subjects import METRICS_ENRICHED

DURABLE = "batcher"


class BatcherProcess:
    """`python -m batcher` over an embedded store in `folder`."""

    def __init__(self, folder: Path, nats_url: str, **settings: str) -> None:
        self.store_path = folder / "store"
        self.log_path = folder / "batcher.log"
        self._environment = {
            **os.environ,
            "DECISEC_NATS_URL": nats_url,
            "DECISEC_BATCHER_STORE_PATH": str(self.store_path),
            **{f"DECISEC_BATCHER_{name.upper()}": value for name, value in settings.items()},
        }
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it; what it does before it is ready waits in the stream."""
        with self.log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "batcher", env=self._environment, stdout=log, stderr=log
            )

    async def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        if self._process is not None:
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()
            self._process = None

    async def stop(self) -> int:
        """SIGTERM, and wait; returns the exit code."""
        if self._process is None:
            raise RuntimeError("the batcher does not run")
        self._process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            code = await self._process.wait()
        self._process = None
        return code

    @property
    def pid(self) -> int:
        """Of the running process.

        Raises:
            RuntimeError: It does not run.
        """
        if self._process is None:
            raise RuntimeError("the batcher does not run")
        return self._process.pid

    @property
    def log(self) -> str:
        """What it said so far."""
        return self.log_path.read_text()


@asynccontextmanager
async def batcher_process(
    folder: Path, nats_url: str, **settings: str
) -> AsyncIterator[BatcherProcess]:
    """A started batcher for the length of the block."""
    process = BatcherProcess(folder, nats_url, **settings)
    await process.start()
    try:
        yield process
    finally:
        await process.kill()


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
