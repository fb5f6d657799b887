"""A connection to one QEMU: opened when needed, errors told apart, its guest's end not missed.

A QEMU that is told `-action shutdown=pause` stays when its guest has stopped, so that the last
counters can be read; somebody must then end it. A watcher per connection does, from the event
SHUTDOWN; whoever connects later (an agent after its restart) sees the state instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import structlog
from qemu.qmp import ExecuteError, QMPClient, QMPError

from vm_agent.drivers.abc import DriverError, UnreachableError
from vm_agent.drivers.paths import short_address

_log = structlog.get_logger(__name__)


class QmpRefusedError(DriverError):
    """QEMU answered a command with an error."""


class QmpSession:
    """One QMP client per socket, QEMU takes no second one.

    Args:
        socket_path: The monitor's socket.
        name: For logs and the watcher's task.
        on_shutdown: Called once when the guest has stopped, with QEMU's word for the reason.
    """

    def __init__(
        self, socket_path: Path, name: str, on_shutdown: Callable[[str], Awaitable[None]]
    ) -> None:
        self._path = socket_path
        self._name = name
        self._on_shutdown = on_shutdown
        self._client: QMPClient | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()

    async def execute(self, command: str, limit_s: float) -> Any:
        """Run a QMP command, connecting first if need be.

        Raises:
            QmpRefusedError: QEMU says no.
            UnreachableError: No answer within `limit_s` seconds, or the connection broke.
        """
        client: QMPClient | None = None
        try:
            async with asyncio.timeout(limit_s):
                client = self._client or await self._connect()
                return await client.execute(command)
        except TimeoutError as error:
            # The connection stays: the answer may only be late, and answers carry ids.
            raise UnreachableError(f"qemu did not answer {command} within {limit_s:g} s") from error
        except ExecuteError as error:
            raise QmpRefusedError(f"qemu refused {command}: {error}") from error
        except (QMPError, OSError, EOFError) as error:
            if client is not None and client is self._client:
                await self.close()
            raise UnreachableError(f"{command} failed: {error}") from error

    async def _connect(self) -> QMPClient:
        async with self._turn:
            if self._client is None:
                if not self._path.is_socket():
                    raise FileNotFoundError(f"{self._path} is not there")
                client = QMPClient(self._name)
                with short_address(self._path) as address:
                    await client.connect(address)
                self._client = client
                self._watcher = asyncio.create_task(self._watch(client), name=f"{self._name}-watch")
            return self._client

    async def _watch(self, client: QMPClient) -> None:
        with client.listener(("SHUTDOWN", "GUEST_PANICKED")) as events:
            async for event in events:
                data = event.get("data")
                reason = str(data.get("reason", "")) if isinstance(data, dict) else ""
                if event["event"] == "GUEST_PANICKED":
                    reason = "guest-panic"
                try:
                    await self._on_shutdown(reason)
                except DriverError as error:
                    _log.warning("qemu.settle_failed", vmm=self._name, error=str(error))
                else:
                    return

    async def close(self) -> None:
        """Disconnect and end the watcher. The next command connects again."""
        watcher, self._watcher = self._watcher, None
        client, self._client = self._client, None
        if watcher is not None and watcher is not asyncio.current_task():
            watcher.cancel()
            await asyncio.wait([watcher])
        if client is not None:
            try:
                await client.disconnect()
            except (QMPError, OSError, EOFError) as error:
                _log.debug("qemu.connection_broken", vmm=self._name, error=str(error))
