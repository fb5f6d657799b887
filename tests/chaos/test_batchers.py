"""Batchers that share one stream and one ClickHouse: one dies under load, and nothing is lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from rich.progress import Progress

from decisec.dev.readiness import says_ready
from runtime.bus import Bus
from runtime.reading import count_messages
from schemas.subjects import METRICS_ENRICHED
from tests.chaos.metering import PASSWORD
from tests.load.flood.flood import flood
from tests.load.flood.plan import Plan
from tests.support.batcher import DURABLE, BatcherProcess, batcher_process
from tests.support.clickhouse_door import clickhouse_door
from tests.support.collector import collector_process
from tests.support.nats import bus_with_streams
from tests.support.ports import free_port

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]

PLAN = Plan(hosts=6, vms=5, seconds=12.0, duplicates=0.02, reorder=0.02)


async def ready(port: int) -> None:
    """Return once a batcher works."""
    check = says_ready(port)
    async with asyncio.timeout(60):
        while await check():
            await asyncio.sleep(0.1)


async def kill_amid(bus: Bus, batcher: BatcherProcess) -> None:
    """SIGKILL under load, with frames in hand; it does not come back."""
    async with asyncio.timeout(60):
        while await count_messages(bus, METRICS_ENRICHED) < PLAN.hosts * PLAN.ticks // 3:
            await asyncio.sleep(0.1)
    await batcher.kill()


async def test_one_of_two_batchers_dies_and_the_bill_is_right(tmp_path: Path) -> None:
    """Each sample is stored once and billed to the unit, whoever had it in hand."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    ports = [str(free_port()) for _ in range(2)]
    with clickhouse_door(tmp_path / "server", password=PASSWORD) as door:
        settings = {
            "store_url": door.url,
            "store_password": PASSWORD,
            "store_path": "",
            # Whenever it dies, a batcher has frames in hand.
            "flush_age_ms": "1000",
        }
        async with (
            bus_with_streams(tmp_path / "nats") as (server, bus),
            collector_process(tmp_path, server.url),
            batcher_process(tmp_path / "one", server.url, http_port=ports[0], **settings) as one,
            batcher_process(tmp_path / "two", server.url, http_port=ports[1], **settings) as two,
            asyncio.TaskGroup() as group,
        ):
            for port in ports:
                await ready(int(port))
            killing = group.create_task(kill_amid(bus, one), name="kill")
            with Progress(disable=True) as progress:
                report = await flood(bus, PLAN, progress)
            assert killing.done()
            consumer = await bus.js.consumer_info(METRICS_ENRICHED, DURABLE)
            assert await two.stop() == 0
    # Some frames were delivered twice: the dead one had them.
    assert consumer.delivered.consumer_seq > consumer.delivered.stream_seq
    assert report["problems"] == []
    assert report["conserved"]
