"""`python -m gateway` as a process, to be killed or maltreated."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from tests.support.gateway import until
from tests.support.nats import NatsServer
from tests.support.ports import free_port
from tests.support.service_process import ServiceProcess
from tests.support.tokens import KEY, bearer


class GatewayProcess(ServiceProcess):
    """A gateway on a server.

    Args:
        server: Its streams stand.
        folder: For the log.
        name: Of the log.
        settings: Of the gateway, by name.
    """

    def __init__(
        self, server: NatsServer, folder: Path, name: str = "gateway", **settings: Any
    ) -> None:
        self.port = free_port()
        self.probe_port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        super().__init__(
            sys.executable,
            "-m",
            "gateway",
            log_path=folder / f"{name}.log",
            env={
                "DECISEC_NATS_URL": server.url,
                "DECISEC_HTTP_PORT": str(self.probe_port),
                "DECISEC_GATEWAY_JWT_KEY": KEY.decode(),
                "DECISEC_GATEWAY_API_PORT": str(self.port),
                **{f"DECISEC_GATEWAY_{key.upper()}": str(v) for key, v in settings.items()},
            },
        )

    async def serving(self) -> None:
        """Return once it answers."""

        async def answers() -> bool:
            try:
                async with httpx.AsyncClient(headers=bearer()) as api:
                    return (await api.get(f"{self.url}/v1/whoami")).status_code == 200
            except httpx.TransportError:
                return False

        await until(answers, timeout_s=90)

    async def metric(self, name: str, label: str) -> float:
        """A value out of `/metrics`; 0 where there is none."""
        async with httpx.AsyncClient() as http:
            text = (await http.get(f"http://127.0.0.1:{self.probe_port}/metrics")).text
        for line in text.splitlines():
            if line.startswith(name) and label in line:
                return float(line.rpartition(" ")[2])
        return 0.0

    async def talk(self, *parts: bytes, within_s: float = 15.0) -> bytes:
        """Send bytes as they are; returns all that comes until the server closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            # It may close before it has taken all of it.
            with suppress(ConnectionError):
                for part in parts:
                    writer.write(part)
                    await writer.drain()
            answer = b""
            with suppress(ConnectionError):
                async with asyncio.timeout(within_s):
                    while chunk := await reader.read(65_536):
                        answer += chunk
            return answer
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
