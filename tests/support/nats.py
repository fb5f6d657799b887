"""A real nats-server on loopback that tests can kill and start again."""

from __future__ import annotations

import asyncio
import shutil
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from runtime.bus import Bus
from runtime.settings import CommonSettings
from runtime.streams import apply, declared


def free_port() -> int:
    """A TCP port on loopback that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def nats_server_binary() -> str:
    """Path of the nats-server that the package brings."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise FileNotFoundError("nats-server: install the extra 'embedded'")
    return found


class NatsServer:
    """One server process with JetStream on a file store of its own."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start, and wait until the server takes connections."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._process = await asyncio.create_subprocess_exec(
            nats_server_binary(),
            "--addr=127.0.0.1",
            f"--port={self.port}",
            "--jetstream",
            f"--store_dir={self._folder / 'jetstream'}",
            f"--log={self._folder / 'nats.log'}",
        )
        async with asyncio.timeout(10):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    await writer.wait_closed()
                    return

    async def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        if self._process is not None:
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()
            self._process = None

    def settings(self) -> CommonSettings:
        """Settings that lead to this server."""
        return CommonSettings(nats_url=self.url)


@asynccontextmanager
async def nats_server(folder: Path) -> AsyncIterator[NatsServer]:
    """A running server for the length of the block."""
    server = NatsServer(folder)
    await server.start()
    try:
        yield server
    finally:
        await server.kill()


@asynccontextmanager
async def bus_with_streams(folder: Path) -> AsyncIterator[tuple[NatsServer, Bus]]:
    """A server on which all streams and buckets stand, and a connection to it."""
    async with (
        nats_server(folder) as server,
        Bus.connect(server.settings(), name="test") as bus,
    ):
        await apply(bus, declared())
        yield server, bus
