"""Live metrics over HTTP: one's own VMs only, newest wins, nothing is read without a reader."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import msgspec
import pytest
import pytest_asyncio

from gateway.live_hub import Watcher
from gateway.live_rows import rows_of, sample_of
from runtime.buckets import Bucket
from schemas.frames import HEADER_REPLAY, SampleFlag, encode_frame
from schemas.ids import new_id
from schemas.live import LiveSample
from schemas.subjects import VM_SPECS, metrics_enriched, vm_key
from schemas.vms import METERS, decode_vm_record
from tests.support.events import SSE, Reader, reading
from tests.support.frames import record
from tests.support.gateway import Stack, shared_stack, stack, until
from tests.support.store import Reading, enriched
from tests.support.tokens import bearer

pytestmark = pytest.mark.asyncio(loop_scope="module")
BEGIN_MS = 1_760_000_000_000


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    async with shared_stack(tmp_path_factory.mktemp("live")) as running:
        yield running


async def placed(running: Stack, customer: str, host: str = "h1", vms: int = 1) -> list[UUID]:
    """VMs of a customer that the gateway knows."""
    records = Bucket(running.bus, VM_SPECS, decode_vm_record)
    ids = [new_id() for _ in range(vms)]
    for vm_id in ids:
        await records.put(vm_key(customer, vm_id), record(vm_id, customer=customer, host=host))
    async with running.client(headers=bearer(customer)) as api:

        async def known() -> bool:
            return (await api.get(f"/v1/vms/{ids[-1]}")).status_code == 200

        await until(known)
    return ids


def read(customer: str, vm_id: UUID, tick: int, incarnation: int = 1, flags: int = 0) -> Reading:
    """A sample whose counters tell its tick."""
    counters = {meter: tick * 10 + number for number, meter in enumerate(METERS)}
    return Reading(
        vm_id, BEGIN_MS + tick * 100, incarnation, flags, counters=counters, customer=customer
    )


async def told(running: Stack, *rows: Reading, host: str = "h1", replay: str = "") -> None:
    """One frame on the bus."""
    headers = {HEADER_REPLAY: replay} if replay else {}
    data = encode_frame(enriched(rows, host=host))
    await running.bus.publish(metrics_enriched(host), data, headers)


async def sample(reader: Reader) -> LiveSample:
    """The next one."""
    event = await reader.next()
    assert (event.kind, event.place) == ("sample", "")
    return msgspec.json.decode(event.data, type=LiveSample)


async def test_samples_are_those_of_ones_own_vms(shared: Stack) -> None:
    """By the row's own column, to the unit; neighbours on the same host see theirs."""
    (mine,) = await placed(shared, "live-a")
    (theirs,) = await placed(shared, "live-b")
    async with (
        shared.client(headers=bearer("live-a")) as api,
        shared.client(headers=bearer("live-b")) as foreign,
        reading(api, f"/v1/metrics/live?vm_id={mine}") as first,
        reading(api, "/v1/metrics/live") as second,
        reading(foreign, "/v1/metrics/live") as third,
    ):
        await shared.bus.client.flush()
        for tick in range(5):
            # A row with the VM's id that is another customer's never gets through.
            forged = read("live-b", mine, 1000 + tick)
            await told(shared, read("live-b", theirs, tick), read("live-a", mine, tick), forged)
            for reader in (first, second):
                got = await sample(reader)
                assert (got.vm_id, got.state, got.skipped) == (mine, "running", 0)
                assert [getattr(got, meter) for meter in METERS] == [
                    tick * 10 + number for number in range(len(METERS))
                ]
                assert got.at.timestamp() * 1000 == BEGIN_MS + tick * 100
            assert {(await sample(third)).vm_id for _ in range(2)} == {mine, theirs}
        # What comes late, and what is replayed, is not what happens now.
        await told(shared, read("live-a", mine, 3))
        await told(shared, read("live-a", mine, 9), replay="again")
        await told(shared, read("live-a", mine, 7, 2, SampleFlag.FINAL | SampleFlag.SIMULATED))
        last = await sample(first)
        assert (last.cpu_ns, last.incarnation, last.final, last.simulated) == (71, 2, True, True)


async def test_foreign_and_missing_vms_look_the_same(shared: Stack) -> None:
    """404 for both, also among one's own; nothing is subscribed to."""
    (mine,) = await placed(shared, "live-c")
    (theirs,) = await placed(shared, "live-d")
    async with shared.client(headers=bearer("live-c")) as api:
        answers = []
        for vm_id in (theirs, new_id()):
            answer = await api.get("/v1/metrics/live", params={"vm_id": [str(mine), str(vm_id)]})
            problem = answer.json()
            problem.pop("trace_id")
            answers.append((answer.status_code, problem))
        assert answers[0] == answers[1]
        assert answers[0][0] == 404
        assert (await api.get("/v1/metrics/live?vm_id=x")).status_code == 400
    async with shared.client(headers=bearer("live-c", scopes=())) as api:
        assert (await api.get("/v1/metrics/live")).status_code == 403


async def test_a_vm_is_followed_to_where_it_goes(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """One that moves is heard on its new host; one that is deleted ends the stream."""
    async with stack(tmp_path_factory.mktemp("hosts")) as running:
        (vm_id,) = await placed(running, "mover", "h1")
        await placed(running, "mover", "h3")

        records = Bucket(running.bus, VM_SPECS, decode_vm_record)
        async with (
            running.client(headers=bearer("mover")) as api,
            reading(api, f"/v1/metrics/live?vm_id={vm_id}") as reader,
        ):
            await told(running, read("mover", vm_id, 1))
            assert (await sample(reader)).cpu_ns == 11
            entry = await records.get(vm_key("mover", vm_id))
            assert entry is not None
            moved = msgspec.structs.replace(entry.value, host_id="h2")
            await records.put(vm_key("mover", vm_id), moved)

            async def telling() -> None:
                for tick in range(2, 10_000):
                    await told(running, read("mover", vm_id, tick), host="h2")
                    await asyncio.sleep(0.05)

            async with asyncio.TaskGroup() as group:
                task = group.create_task(telling(), name="telling")
                assert (await sample(reader)).cpu_ns >= 21
                task.cancel()
            deleted = msgspec.structs.replace(moved, deleted_at=moved.created_at)
            await records.put(vm_key("mover", vm_id), deleted)
            assert (await reader.end())["code"] == "not_found"


async def test_a_slow_client_gets_the_newest_and_is_told_what_it_missed(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """It holds one sample per VM, however long it does not read; nothing is counted twice."""
    async with stack(tmp_path_factory.mktemp("slow")) as running:
        vms = await placed(running, "slow", vms=50)
        address = urlsplit(running.url)
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, (address.hostname, address.port))
        head = {"Host": "x", **SSE, **bearer("slow")}
        lines = [f"{name}: {value}" for name, value in head.items()]
        request = ["GET /v1/metrics/live HTTP/1.1", *lines, "", ""]
        await loop.sock_sendall(sock, "\r\n".join(request).encode())
        received = await loop.sock_recv(sock, 2048)
        assert b"200 OK" in received
        ticks = 400
        async with (
            running.client(headers=bearer("slow")) as api,
            reading(api, f"/v1/metrics/live?vm_id={vms[0]}") as reader,
        ):
            for tick in range(ticks):
                await told(running, *(read("slow", vm_id, tick) for vm_id in vms))
                if tick % 20 == 19:
                    got = await sample(reader)
                    while got.cpu_ns != tick * 10 + 1:
                        got = await sample(reader)
        with sock:
            last = f'"cpu_ns":{(ticks - 1) * 10 + 1},'.encode()
            while received.count(last) < len(vms):
                received += await loop.sock_recv(sock, 65_536)
        for vm_id in vms:
            found = [
                msgspec.json.decode(line.partition(b"data: ")[2], type=LiveSample)
                for line in received.split(b"\n")
                if line.startswith(b"data: ") and str(vm_id).encode() in line
            ]
            assert len(found) + sum(one.skipped for one in found) == ticks
            assert max(one.skipped for one in found) > 0
            ats = [one.at for one in found]
            assert ats == sorted(ats)


async def test_two_hundred_readers_at_once_are_served_in_bounded_memory(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Each gets every sample of its VM; what the process grows by is small."""
    async with (
        stack(
            tmp_path_factory.mktemp("crowd"), streams_per_customer=200, expensive_burst=1000
        ) as running,
        running.client(
            headers=bearer("crowd"),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        ) as api,
        AsyncExitStack() as exits,
    ):
        vms = await placed(running, "crowd", vms=20)
        readers = []
        for number in range(200):
            path = f"/v1/metrics/live?vm_id={vms[number % 20]}"
            readers.append(await exits.enter_async_context(reading(api, path)))
        before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        await running.bus.client.flush()
        for tick in range(30):
            await told(running, *(read("crowd", vm_id, tick) for vm_id in vms))
            for number, reader in enumerate(readers):
                got = await sample(reader)
                assert (got.vm_id, got.cpu_ns, got.skipped) == (vms[number % 20], tick * 10 + 1, 0)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 100_000


async def test_a_watcher_forgets_vms_that_are_gone() -> None:
    """However many come and go, it holds only those that are there."""
    watcher = Watcher("acme", None)
    for _ in range(1000):
        vm_id = new_id()
        watcher.keep_to({vm_id.bytes})
        watcher.put(vm_id.bytes, 1, _sample(vm_id))
    assert len(await watcher.take(1)) == 1


def _sample(vm_id: UUID) -> LiveSample:
    frame = enriched([read("acme", vm_id, 1)])
    (row,) = rows_of(frame, {"acme"})
    return sample_of(frame, row)
