"""A collector in a process of its own that tests can kill, freeze and stop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats.errors
import nats.js.errors

from collector.crew import units_of
from runtime.bus import Bus
from schemas.subjects import METRICS_RAW, partitions_of


class CollectorProcess:
    """`python -m collector` with a log in `folder`."""

    def __init__(
        self, folder: Path, nats_url: str, *, name: str = "collector", **settings: str
    ) -> None:
        self.log_path = folder / f"{name}.log"
        self._environment = {
            **os.environ,
            "DECISEC_NATS_URL": nats_url,
            **{f"DECISEC_COLLECTOR_{name.upper()}": value for name, value in settings.items()},
        }
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it; it works once it has read the VMs' records."""
        with self.log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "collector", env=self._environment, stdout=log, stderr=log
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
        self.signal(signal.SIGTERM)
        assert self._process is not None
        async with asyncio.timeout(20):
            code = await self._process.wait()
        self._process = None
        return code

    def signal(self, number: signal.Signals) -> None:
        """Send one, such as SIGSTOP.

        Raises:
            RuntimeError: It does not run.
        """
        if self._process is None:
            raise RuntimeError("the collector does not run")
        self._process.send_signal(number)

    @property
    def log(self) -> str:
        """What it said so far."""
        return self.log_path.read_text()


@asynccontextmanager
async def collector_process(
    folder: Path, nats_url: str, *, name: str = "collector", **settings: str
) -> AsyncIterator[CollectorProcess]:
    """A started collector for the length of the block."""
    process = CollectorProcess(folder, nats_url, name=name, **settings)
    await process.start()
    try:
        yield process
    finally:
        await process.kill()


async def all_collected(bus: Bus, *, timeout_s: float = 60.0) -> None:
    """Return once collectors have answered for every raw frame."""
    async with asyncio.timeout(timeout_s):
        while await unanswered(bus) != 0:
            await asyncio.sleep(0.05)


async def unanswered(bus: Bus) -> int | None:
    """Raw frames that no collector has answered for; None while nobody can say."""
    try:
        config = (await bus.js.stream_info(METRICS_RAW)).config
        transform = config.subject_transform
        durables = units_of(partitions_of((transform and transform.dest) or ""))
        found = [await bus.js.consumer_info(METRICS_RAW, durable) for durable in durables]
    except (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError):
        return None
    return sum((info.num_pending or 0) + (info.num_ack_pending or 0) for info in found)
