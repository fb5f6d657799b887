"""A bus with the configuration of production: accounts, roles, nkeys, TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from nats.aio.client import Client

from decisec.bus.folder import BusFolder, BusSettings
from runtime.bus import Bus
from runtime.client import ServiceClient
from runtime.credentials import Credentials, read_credentials, tls_context
from runtime.settings import CommonSettings
from runtime.streams import apply, declared
from tests.support.nats import nats_server_binary
from tests.support.ports import free_port
from tests.support.service_process import ServiceProcess

_GIB = 1024**3


async def all_sent(client: Client) -> None:
    """Return once the server has taken all that the client has sent.

    nats-py's ping may overtake what was sent just before it; the second one cannot.
    """
    await client.flush()
    await client.flush()


class SecuredBus:
    """A folder of `decisec bus`, and the server that runs by it.

    Args:
        root: The folder.
        port: Where the server listens.
        client_certificates: Whether it wants some.
    """

    def __init__(self, root: Path, port: int = 0, *, client_certificates: bool = False) -> None:
        self.port = port or free_port()
        self.url = f"tls://127.0.0.1:{self.port}"
        self.folder = BusFolder(root)
        self.folder.init(
            BusSettings(
                server_name="test",
                listen=f"127.0.0.1:{self.port}",
                monitor=f"127.0.0.1:{free_port()}",
                store_dir=str(root / "jetstream"),
                max_storage_bytes=32 * _GIB,
                client_certificates=client_certificates,
            ),
            ["127.0.0.1"],
        )
        self.command = (nats_server_binary(), "-c", str(self.folder.config))
        self._process = ServiceProcess(*self.command, log_path=root / "nats.log")
        self._issued: dict[tuple[str, str], Path] = {}

    def issue(self, role: str, name: str) -> Path:
        """Credentials of a role, the same ones each time."""
        if (role, name) not in self._issued:
            issued, _ = self.folder.issue(role, name)
            assert issued.path is not None
            self._issued[role, name] = Path(issued.path)
        return self._issued[role, name]

    def settings(self, role: str, name: str) -> CommonSettings:
        """Settings that lead here."""
        return CommonSettings(
            nats_url=self.url,
            nats_credentials=str(self.issue(role, name)),
            nats_ca=str(self.folder.authority),
        )

    def env(self, role: str, name: str) -> dict[str, str]:
        """The same as variables."""
        found = self.settings(role, name)
        return {
            f"DECISEC_{setting.upper()}": getattr(found, setting)
            for setting in ("nats_url", "nats_credentials", "nats_ca")
        }

    async def start(self) -> None:
        """Start the server, and wait until it takes connections."""
        await self._process.start()
        async with asyncio.timeout(20):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    await writer.wait_closed()
                    return

    async def end(self) -> None:
        """Kill the server."""
        await self._process.kill()

    @asynccontextmanager
    async def bus(self, role: str, name: str) -> AsyncIterator[Bus]:
        """A connection as a service has it."""
        async with Bus.connect(self.settings(role, name), name=role) as connected:
            yield connected

    @asynccontextmanager
    async def intruder(self, role: str, name: str) -> AsyncIterator[Intruder]:
        """Somebody who has these credentials and tries what he likes."""
        settings = self.settings(role, name)
        credentials = read_credentials(settings.nats_credentials)
        client = ServiceClient(encrypted=True)
        found = Intruder(client, credentials)
        await client.connect(
            settings.nats_url,
            tls=tls_context(settings),
            nkeys_seed_str=credentials.seed,
            inbox_prefix=credentials.inbox_prefix,
            error_cb=found.hear_error,
        )
        try:
            yield found
        finally:
            await client.close()


@dataclass
class Intruder:
    """Sends things and learns which the server refuses.

    Attributes:
        errors: What the server said, in lower case as nats-py has it.
    """

    client: Client
    credentials: Credentials
    errors: list[str] = field(default_factory=list)

    async def hear_error(self, error: Exception) -> None:
        """Note what the server says."""
        self.errors.append(str(error).lower())

    async def refused_publishes(self, *subjects: str) -> set[str]:
        """Those on which it may not publish; on the others it has done so."""
        return await self._refused("publish", subjects)

    async def refused_subscriptions(self, *subjects: str) -> set[str]:
        """Those to which it may not subscribe; to the others it has for a moment."""
        return await self._refused("subscription", subjects)

    async def send(
        self, subject: str, data: bytes = b"", *, reply: str = "", **headers: str
    ) -> list[str]:
        """Send one message, and return what the server had against it."""
        self.errors.clear()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        await self.client.publish(subject, data, reply=reply, headers=named or None)
        await all_sent(self.client)
        return list(self.errors)

    async def _refused(self, what: str, subjects: tuple[str, ...]) -> set[str]:
        self.errors.clear()
        subscriptions = []
        for subject in subjects:
            if what == "publish":
                await self.client.publish(subject, b"")
            else:
                subscriptions.append(await self.client.subscribe(subject))
        # The server answers in order, so that by then it has said all that it has to say.
        await all_sent(self.client)
        for subscription in subscriptions:
            await subscription.unsubscribe()
        await all_sent(self.client)
        return {
            subject
            for subject in subjects
            if any(f'{what} to "{subject.lower()}"' in error for error in self.errors)
        }


@asynccontextmanager
async def secured_bus(root: Path) -> AsyncIterator[SecuredBus]:
    """A running server with all streams and buckets for the length of the block."""
    bus = SecuredBus(root)
    bus.issue("operator", "ops")
    await bus.start()
    try:
        async with bus.bus("operator", "ops") as operator:
            await apply(operator, declared())
        yield bus
    finally:
        await bus.end()
