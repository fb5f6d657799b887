"""The SDK's iterators on a real gateway: they go on by themselves, and miss nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import islice
from pathlib import Path

import httpx
import pytest

from decisec.devkit.tokens import mint
from decisec.sdk import AsyncClient, Client, NotFoundError, UnauthenticatedError
from runtime.buckets import Bucket
from runtime.bus import Bus
from schemas.events import VmEvent, VmPaused
from schemas.ids import new_id
from schemas.subjects import VM_SPECS, vm_key
from schemas.vms import decode_vm_record
from tests.support.events import created, publish, published, reading
from tests.support.frames import record
from tests.support.gateway import GatewayProcess, Stack, stack, until
from tests.support.nats import bus_with_streams
from tests.support.tokens import KEY, bearer


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Stack]:
    async with stack(tmp_path, stream_heartbeat_s=0.2) as found:
        yield found


async def steadily(bus: Bus, events: list[VmEvent]) -> None:
    for event in events:
        await publish(bus, event)
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_events_go_on_over_gateways_that_are_killed(tmp_path: Path, kind: str) -> None:
    """Each once and in order, though the gateway is killed and started again in between."""
    events = [created("sdk") for _ in range(150)]
    async with (
        bus_with_streams(tmp_path) as (server, bus),
        GatewayProcess(tmp_path, server.url) as process,
    ):
        token = mint(KEY, "sdk")
        async with AsyncClient(process.url, token) as client:
            await process.ready(client._http)
        async with (
            httpx.AsyncClient(base_url=process.url, headers=bearer("sdk")) as api,
            reading(api) as reader,
        ):
            place = reader.parser.place
        found: list[VmEvent] = []
        begun = asyncio.Event()

        async def read_async() -> None:
            async with AsyncClient(process.url, token) as client:
                async for one in client.events(after=place, patience_s=60):
                    found.append(published(one.event))
                    begun.set()
                    if len(found) == len(events):
                        return

        def read_sync() -> None:
            with Client(process.url, token) as client:
                for one in islice(client.events(after=place, patience_s=60), len(events)):
                    found.append(published(one.event))
                    loop.call_soon_threadsafe(begun.set)

        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            group.create_task(
                read_async() if kind == "async" else asyncio.to_thread(read_sync), name="read"
            )
            writing = group.create_task(steadily(bus, events), name="write")
            await begun.wait()
            for _ in range(2):
                await asyncio.sleep(0.3)
                await process.kill()
                await process.start()
                async with AsyncClient(process.url, token) as client:
                    await process.ready(client._http)
            await writing
        assert found == events


async def test_a_list_is_followed_without_a_hole(running: Stack) -> None:
    """From a place that was told once, by filters, and in both clients."""
    vm_id = new_id()
    events = [created("both", vm_id), created("both"), created("both", vm_id, VmPaused)]
    token = mint(KEY, "both")
    async with (
        running.client(headers=bearer("both")) as api,
        reading(api) as reader,
        AsyncClient(running.url, token) as client,
    ):
        place = reader.parser.place
        await publish(running.bus, *events)
        stream = client.events(after=place)
        assert [published((await anext(stream)).event) for _ in range(3)] == events
        await stream.aclose()
        narrowed = client.events(after=place, vm_ids=[vm_id], types=["vm_paused"])
        assert published((await anext(narrowed)).event) == events[2]
        await narrowed.aclose()

    def again() -> list[VmEvent]:
        with Client(running.url, token) as blocking:
            return [published(one.event) for one in islice(blocking.events(after=place), 3)]

    assert await asyncio.to_thread(again) == events


async def test_what_ends_for_good_is_raised(running: Stack) -> None:
    """An expired token, a VM that never was, and one that is deleted."""
    async with AsyncClient(running.url, mint(KEY, "ends", ttl_s=-3)) as client:
        with pytest.raises(UnauthenticatedError):
            async for _ in client.events():
                pass
    token = mint(KEY, "ends")
    vm_id = new_id()
    records = Bucket(running.bus, VM_SPECS, decode_vm_record)
    made = record(vm_id, customer="ends", host="h1")
    await records.put(vm_key("ends", vm_id), made)
    async with AsyncClient(running.url, token) as client:
        with pytest.raises(NotFoundError):
            await anext(client.live_metrics([new_id()]))

        async def known() -> bool:
            return vm_id in [vm.vm_id async for vm in client.list_vms()]

        await until(known)
        following = asyncio.ensure_future(anext(client.live_metrics([vm_id])))
        await asyncio.sleep(0.3)
        await records.delete(vm_key("ends", vm_id))
        with pytest.raises(NotFoundError):
            await following
