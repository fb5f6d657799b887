"""A collector in a process of its own that tests can kill, freeze and stop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path


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
        """Send one, such as SIGSTOP."""
        os.kill(self.pid, number)

    @property
    def pid(self) -> int:
        """Of the running process.

        Raises:
            RuntimeError: It does not run.
        """
        if self._process is None:
            raise RuntimeError("the collector does not run")
        return self._process.pid

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
