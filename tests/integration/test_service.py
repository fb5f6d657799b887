"""A service process from start to orderly end, on a real nats-server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from tests.support.nats import NatsServer, nats_server
from tests.support.ports import free_port

PROGRAM = """
import asyncio, sys
from runtime.service import Service, run
from runtime.settings import CommonSettings

class Settings(CommonSettings, frozen=True, kw_only=True):
    mode: str = "good"

async def main(service: Service[Settings]) -> None:
    service.health.ready("work")
    if service.settings.mode == "crash":
        raise ValueError("broken")
    await service.stop.wait()
    if service.settings.mode == "stuck":
        await asyncio.Event().wait()
    await service.bus.publish("finished", b"x")

sys.exit(run("probe", Settings, main))
"""


@asynccontextmanager
async def program(
    server: NatsServer, **env: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, stderr=asyncio.subprocess.PIPE,
        env=os.environ
        | {"DECISEC_NATS_URL": server.url, "DECISEC_HTTP_PORT": str(port), "DECISEC_GRACE_S": "1"}
        | env,
    )  # fmt: skip
    try:
        yield process, port
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ask(port: int, path: str) -> httpx.Response:
    async with httpx.AsyncClient() as client, asyncio.timeout(15):
        while True:
            try:
                return await client.get(f"http://127.0.0.1:{port}{path}")
            except httpx.ConnectError:
                await asyncio.sleep(0.05)


async def ready(port: int, wanted: int) -> httpx.Response:
    async with asyncio.timeout(15):
        while (answer := await ask(port, "/readyz")).status_code != wanted:
            await asyncio.sleep(0.05)
    return answer


async def test_a_service_is_ready_while_its_bus_is_and_stops_in_order(tmp_path: Path) -> None:
    """Ready with NATS, not ready without, ready again; SIGTERM ends it with 0 after the work."""
    async with nats_server(tmp_path) as server, program(server) as (process, port):
        await ready(port, 200)
        assert (await ask(port, "/healthz")).json() == {"status": "ok"}
        assert b"python_info" in (await ask(port, "/metrics")).content
        assert (await ask(port, "/other")).status_code == 404
        await server.kill()
        answer = await ready(port, 503)
        assert "lost the connection" in answer.json()["problems"]["bus"]
        await server.start()
        await ready(port, 200)
        process.send_signal(signal.SIGTERM)
        _, log = await asyncio.wait_for(process.communicate(), 10)
        assert process.returncode == 0, log.decode()
        events = [json.loads(line)["event"] for line in log.splitlines()]
        assert events.index("service.stopping") < events.index("service.stopped")


async def test_what_does_not_finish_in_time_is_cancelled_and_said(tmp_path: Path) -> None:
    """A stuck service ends after its grace period, with exit code 1 and the names of its tasks."""
    async with nats_server(tmp_path) as server:
        async with program(server, DECISEC_PROBE_MODE="stuck") as (process, port):
            await ready(port, 200)
            process.send_signal(signal.SIGTERM)
            _, log = await asyncio.wait_for(process.communicate(), 10)
        assert process.returncode == 1
        assert b'"service.abandoned"' in log
        assert b'"main"' in log


async def test_a_crash_is_logged_whole_and_ends_the_process(tmp_path: Path) -> None:
    """An error that nobody expected is in the log, with its trace, and the exit code is 1."""
    async with nats_server(tmp_path) as server:
        async with program(server, DECISEC_PROBE_MODE="crash") as (process, _):
            _, log = await asyncio.wait_for(process.communicate(), 10)
        assert process.returncode == 1
        assert b"ValueError: broken" in log


async def test_wrong_settings_end_the_process_before_anything_starts(tmp_path: Path) -> None:
    """EX_CONFIG, and one line that names the variable."""
    server = NatsServer(tmp_path)
    async with program(server, DECISEC_LOG_LEVEL="loud") as (process, _):
        _, log = await asyncio.wait_for(process.communicate(), 10)
    assert process.returncode == 78
    assert "DECISEC_LOG_LEVEL" in json.loads(log.splitlines()[-1])["error"]


async def test_a_service_waits_for_a_bus_that_is_not_there_and_can_be_stopped(
    tmp_path: Path,
) -> None:
    """Without NATS the service lives, is not ready, and still obeys SIGTERM."""
    server = NatsServer(tmp_path)
    async with program(server) as (process, port):
        async with asyncio.timeout(15):
            while "bus" not in (problems := (await ready(port, 503)).json()["problems"]):
                await asyncio.sleep(0.02)
        assert "not connected" in problems["bus"]
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.communicate(), 10)
    assert process.returncode == 1


async def test_an_occupied_port_is_a_clear_error(tmp_path: Path) -> None:
    """The message names address and port."""
    async with (
        nats_server(tmp_path) as server,
        program(server, DECISEC_HTTP_PORT=str(server.port)) as (process, _),
    ):
        _, log = await asyncio.wait_for(process.communicate(), 10)
    assert process.returncode == 1
    assert f"port {server.port}".encode() in log
