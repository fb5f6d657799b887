"""A cluster of three NATS servers loses leaders and members under load: nothing else is lost."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from rich.progress import Progress

from runtime.bus import Bus
from runtime.reading import count_messages
from schemas.subjects import METRICS_ENRICHED, METRICS_RAW
from tests.load.flood.flood import flood
from tests.load.flood.plan import Plan
from tests.support.batcher import batcher_process
from tests.support.collector import collector_process
from tests.support.nats import NatsCluster, nats_cluster

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]

PLAN = Plan(hosts=6, vms=5, seconds=25.0, duplicates=0.02, reorder=0.02, malformed=0.01)


async def move_leader(cluster: NatsCluster, bus: Bus, stream: str) -> None:
    """Another server leads the stream."""
    before = await cluster.leader(bus, stream)
    async with asyncio.timeout(30):
        while await cluster.leader(bus, stream) == before:
            answer = await bus.request(f"$JS.API.STREAM.LEADER.STEPDOWN.{stream}", b"", timeout_s=5)
            assert "error" not in json.loads(answer.data)


async def kill_leader(cluster: NatsCluster, bus: Bus, stream: str) -> None:
    """The server that leads the stream dies, the others go on, and it comes back."""
    name = await cluster.leader(bus, stream)
    await cluster.servers[name].kill()
    async with asyncio.timeout(30):
        while await cluster.leader(bus, stream) == name:
            await asyncio.sleep(0.1)
    await cluster.servers[name].start()
    await cluster.whole(bus)


async def under_load(bus: Bus) -> None:
    """Return once a second's worth of frames has come."""
    enough = await count_messages(bus, METRICS_RAW) + 10 * PLAN.hosts
    async with asyncio.timeout(30):
        while await count_messages(bus, METRICS_RAW) < enough:
            await asyncio.sleep(0.1)


async def besiege(cluster: NatsCluster, bus: Bus) -> None:
    """One bad thing after the other, with load in between."""
    for stream in (METRICS_RAW, METRICS_ENRICHED):
        await under_load(bus)
        await move_leader(cluster, bus, stream)
    await under_load(bus)
    await kill_leader(cluster, bus, METRICS_RAW)


async def test_a_cluster_loses_nothing_with_a_leader_or_a_server(tmp_path: Path) -> None:
    """Leaders are moved and servers killed under load; all is stored once and billed right."""
    async with (
        nats_cluster(tmp_path / "nats") as (cluster, bus),
        collector_process(tmp_path, cluster.url, name="collector-1"),
        collector_process(tmp_path, cluster.url, name="collector-2"),
        batcher_process(tmp_path, cluster.url),
        asyncio.TaskGroup() as group,
    ):
        besieging = group.create_task(besiege(cluster, bus), name="besiege")
        with Progress(disable=True) as progress:
            report = await flood(bus, PLAN, progress)
        await besieging
    assert report["problems"] == []
    assert report["conserved"]
