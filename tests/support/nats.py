"""A real nats-server, or a cluster of three, on loopback, that tests can kill and start again."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats.errors
import nats.js.errors

from runtime.bus import Bus
from runtime.errors import FatalError, TransientError
from runtime.settings import CommonSettings
from runtime.streams import apply, declared
from tests.support.ports import free_port
from tests.support.service_process import ServiceProcess


def nats_server_binary() -> str:
    """Path of the nats-server that the package brings."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise FileNotFoundError("nats-server: install the extra 'embedded'")
    return found


class NatsServer(ServiceProcess):
    """One server process with JetStream on a file store of its own.

    Args:
        folder: For the store and the log.
        arguments: More of them.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        super().__init__(
            nats_server_binary(),
            "--addr=127.0.0.1",
            f"--port={self.port}",
            "--jetstream",
            f"--store_dir={folder / 'jetstream'}",
            *arguments,
            log_path=folder / "nats.log",
        )

    async def start(self) -> None:
        """Start, and wait until the server takes connections."""
        await super().start()
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

    def settings(self) -> CommonSettings:
        """Settings that lead to this server."""
        return CommonSettings(nats_url=self.url)


class NatsCluster:
    """Three servers that share their streams.

    Attributes:
        servers: By the names that the servers have for each other.
        url: Of all three, as settings take it.
    """

    def __init__(self, folder: Path) -> None:
        ports = {f"n{number}": free_port() for number in range(3)}
        routes = ",".join(f"nats://127.0.0.1:{port}" for port in ports.values())
        self.servers = {
            name: NatsServer(
                folder / name,
                f"--server_name={name}",
                "--cluster_name=tests",
                f"--cluster=nats://127.0.0.1:{port}",
                f"--routes={routes}",
            )
            for name, port in ports.items()
        }
        self.url = ",".join(server.url for server in self.servers.values())

    def settings(self) -> CommonSettings:
        """Settings that lead to any of the servers."""
        return CommonSettings(nats_url=self.url)

    async def whole(self, bus: Bus) -> None:
        """Return once all servers are there, and know all that the streams hold."""
        async with asyncio.timeout(60):
            while not await self._is_whole(bus):
                await asyncio.sleep(0.1)

    async def leader(self, bus: Bus, stream: str) -> str:
        """Name of the server that leads a stream; waits while they elect one."""
        async with asyncio.timeout(60):
            while True:
                try:
                    info = await bus.js.stream_info(stream)
                except (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError):
                    await asyncio.sleep(0.1)
                    continue
                if info.cluster and info.cluster.leader:
                    return info.cluster.leader
                await asyncio.sleep(0.1)

    async def _is_whole(self, bus: Bus) -> bool:
        try:
            streams = await bus.js.streams_info()
        except (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError):
            return False
        clusters = [info.cluster for info in streams]
        return all(
            cluster
            and cluster.leader
            and all(peer.current and not peer.offline for peer in cluster.replicas or ())
            for cluster in clusters
        )


@asynccontextmanager
async def nats_cluster(folder: Path) -> AsyncIterator[tuple[NatsCluster, Bus]]:
    """A cluster on which all streams and buckets stand three times, and a connection to it."""
    cluster = NatsCluster(folder)
    try:
        async with asyncio.TaskGroup() as group:
            for name, server in cluster.servers.items():
                group.create_task(server.start(), name=name)
        async with Bus.connect(cluster.settings(), name="test") as bus:
            await _applied(bus)
            await cluster.whole(bus)
            yield cluster, bus
    finally:
        for server in cluster.servers.values():
            await server.kill()


async def _applied(bus: Bus) -> None:
    """Apply as soon as the servers have found each other."""
    async with asyncio.timeout(60):
        while True:
            try:
                await apply(bus, declared(replicas=3))
            except (TransientError, FatalError):
                await asyncio.sleep(0.2)
            else:
                return


@asynccontextmanager
async def nats_server(folder: Path) -> AsyncIterator[NatsServer]:
    """A running server for the length of the block."""
    async with NatsServer(folder) as server:
        yield server


@asynccontextmanager
async def bus_with_streams(folder: Path) -> AsyncIterator[tuple[NatsServer, Bus]]:
    """A server on which all streams and buckets stand, and a connection to it."""
    async with (
        nats_server(folder) as server,
        Bus.connect(server.settings(), name="test") as bus,
    ):
        await apply(bus, declared())
        yield server, bus
