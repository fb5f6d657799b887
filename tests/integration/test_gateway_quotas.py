"""Quotas under races: many creates at once at several gateways, one of them killed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import msgspec

from runtime.buckets import Bucket
from runtime.bus import Message
from runtime.clock import utc_now
from schemas.errors import ErrorCode
from schemas.hosts import Customer, Resources, decode_customer
from schemas.ids import new_id
from schemas.quotas import Amounts, Hold, QuotaLedger, decode_quota_ledger
from schemas.subjects import CUSTOMERS, QUOTAS, VM_SPECS
from schemas.vms import decode_vm_record
from tests.support.gateway import TINY, WAIT, ScriptedAgent, refusing, running_gateway, until
from tests.support.gateway_process import GatewayProcess
from tests.support.nats import bus_with_streams
from tests.support.tokens import bearer

ROOM = Resources(vcpus=4096, memory_mib=4_194_304, disk_mib=4_194_304, slots=4096)


class Census:
    """How many VMs of a customer are recorded, at any moment, by what the bus says."""

    def __init__(self) -> None:
        self.live: set[str] = set()
        self.most = 0

    async def take(self, message: Message) -> None:
        """Count one change of a record."""
        key = message.subject.rpartition(".")[2]
        if message.headers.get("KV-Operation") or decode_vm_record(message.data).deleted_at:
            self.live.discard(key)
        else:
            self.live.add(key)
        self.most = max(self.most, len(self.live))


@asynccontextmanager
async def ground(folder: Path, customer: Customer) -> AsyncIterator[Any]:
    """A server, an agent with much room, a customer, and a census of it."""
    async with bus_with_streams(folder) as (server, bus):
        await Bucket(bus, CUSTOMERS, decode_customer).put(customer.customer_id, customer)
        census = Census()
        await bus.subscribe(f"$KV.{VM_SPECS}.{customer.customer_id}.>", census.take)
        agent = ScriptedAgent(bus, "h1")
        beat = {"capacity": ROOM, "free": ROOM}
        await agent.beat(**beat)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(agent.run(**beat), name="agent")
            try:
                yield server, bus, agent, census
            finally:
                task.cancel()


def small(**quota: int) -> Customer:
    """A customer that may have 50 VMs."""
    room = {"vcpus": 1000, "memory_mib": 1_000_000, "disk_mib": 1000, "slots": 50, **quota}
    return Customer(customer_id="acme", quota=Resources(**room), created_at=utc_now())


async def create(urls: Iterable[str], body: dict[str, Any] = TINY) -> list[int]:
    """Create a VM at each of these at once; 0 for one that did not answer."""
    limits = httpx.Limits(max_connections=300)

    async with httpx.AsyncClient(headers=bearer(), timeout=60, limits=limits) as api:

        async def one(url: str) -> int:
            try:
                return (await api.post(f"{url}/v1/vms", json=body)).status_code
            except httpx.TransportError:
                return 0

        return list(await asyncio.gather(*(one(url) for url in urls)))


async def test_racing_creates_at_two_gateways_get_the_quota_exactly(tmp_path: Path) -> None:
    """200 at once against 50: 50 are made, no more at any moment; what is freed is had again."""
    async with (
        ground(tmp_path, small()) as (server, _, agent, census),
        running_gateway(server) as (_, _, first),
        running_gateway(server) as (_, _, second),
    ):
        answers = await create([first, second] * 100)
        assert sorted(answers) == [202] * 50 + [403] * 150
        assert (len(census.live), census.most) == (50, 50)
        await until(lambda: len(agent.seen) == 50)
        async with httpx.AsyncClient(headers=bearer(), timeout=30) as api:
            shown = (await api.get(f"{second}/v1/quotas")).json()
            assert shown["limits"]["vms"] == shown["used"]["vms"] == 50
            assert shown["limits"]["snapshots"] == 100
            # What is deleted makes room, at both.
            gone = [
                (await api.delete(f"{first}/v1/vms/{vm_id}", headers=WAIT)).status_code
                for vm_id in sorted(census.live)[:10]
            ]
            assert gone == [200] * 10
            await until(lambda: len(census.live) == 40)

            async def freed() -> bool:
                shown = (await api.get(f"{second}/v1/quotas")).json()
                return bool(shown["used"]["vms"] == 40)

            await until(freed)
            answers = await create([first, second] * 15)
            assert sorted(answers) == [202] * 10 + [403] * 20
        assert (len(census.live), census.most) == (50, 50)


async def test_what_failed_comes_back(tmp_path: Path) -> None:
    """A create that its host refuses takes nothing of the quota, at any gateway, at once."""
    async with (
        ground(tmp_path, small(slots=3)) as (server, _, agent, census),
        running_gateway(server) as (_, _, first),
        running_gateway(server) as (_, _, second),
        httpx.AsyncClient(headers=bearer(), timeout=30) as api,
    ):
        agent.script = refusing(ErrorCode.UNSUPPORTED, "create")
        for url in (first, second, first):
            answers = await asyncio.gather(
                *(api.post(f"{url}/v1/vms", json=TINY, headers=WAIT) for _ in range(3))
            )
            assert [answer.status_code for answer in answers] == [422] * 3

            async def nothing_used() -> bool:
                shown = [(await api.get(f"{u}/v1/quotas")).json() for u in (first, second)]
                return all(one["used"]["vms"] == one["used"]["vcpus"] == 0 for one in shown)

            await until(nothing_used)
        agent.script = lambda _: None
        assert sorted(await create([first, second] * 3)) == [202] * 3 + [403] * 3
        assert census.most == 3


async def test_every_amount_is_limited(tmp_path: Path) -> None:
    """vCPUs, memory and disk, each by itself, with the reason."""
    for short, body in (
        ({"vcpus": 4}, {"vcpus": 2}),
        ({"memory_mib": 512}, {"memory_mib": 256}),
        ({"disk_mib": 20}, {"disk_mib": 10}),
    ):
        folder = tmp_path / next(iter(short))
        folder.mkdir()
        async with (
            ground(folder, small(**short)) as (server, _, _, _),
            running_gateway(server) as (_, _, first),
            running_gateway(server) as (_, _, second),
        ):
            answers = await create([first, second] * 5, {**TINY, **body})
            assert sorted(answers) == [202] * 2 + [403] * 8
            async with httpx.AsyncClient(headers=bearer(), timeout=30) as api:
                refused = await api.post(f"{first}/v1/vms", json={**TINY, **body})
            assert next(iter(short)) in refused.json()["detail"]


async def test_a_hold_that_a_dead_gateway_left_ends(tmp_path: Path) -> None:
    """It counts until its time, then its room is there again."""
    async with (
        ground(tmp_path, small(slots=1)) as (server, bus, _, _),
        running_gateway(server) as (_, _, url),
    ):
        left = Hold(amounts=Amounts(slots=1), until=utc_now() + timedelta(seconds=3))
        ledger = QuotaLedger(holds={str(new_id()): left})
        await Bucket(bus, QUOTAS, decode_quota_ledger).put("acme", ledger)

        async def refused() -> bool:
            async with httpx.AsyncClient(headers=bearer()) as api:
                shown = (await api.get(f"{url}/v1/quotas")).json()
                return bool(shown["used"]["vms"] == 1)

        await until(refused)
        assert await create([url]) == [403]

        async def made() -> bool:
            return await create([url]) == [202]

        await until(made)
        assert await create([url]) == [403]


async def test_a_gateway_killed_midway_loses_nothing_and_gives_nobody_more(
    tmp_path: Path,
) -> None:
    """200 at once over two, one dies among them; in the end 50 VMs are there, never more."""
    async with (
        ground(tmp_path, small()) as (server, _, agent, census),
        GatewayProcess(server, tmp_path, "first") as first,
        GatewayProcess(server, tmp_path, "second") as second,
    ):
        await first.serving()
        await second.serving()

        async def killed() -> None:
            await until(lambda: len(census.live) >= 10)
            await first.kill()

        async with asyncio.TaskGroup() as group:
            asked = group.create_task(create([first.url, second.url] * 100))
            group.create_task(killed())
        answers = asked.result()
        assert set(answers) <= {0, 202, 403}
        assert len(census.live) >= answers.count(202)
        # What it had recorded and not yet sent is gone on with by the next.
        await first.start()
        await first.serving()

        async def whole() -> bool:
            await create([first.url, second.url])
            return len(census.live) == 50 and len({c.vm_id for c in agent.seen}) == 50

        await until(whole, timeout_s=60)
        assert {str(command.vm_id) for command in agent.seen} == census.live
        assert set(await create([first.url, second.url])) == {403}
        assert census.most == 50


async def test_without_the_ledger_nothing_is_granted(tmp_path: Path) -> None:
    """The bucket cannot be reached: 503, and nothing was made."""
    async with (
        ground(tmp_path, small()) as (server, bus, _, census),
        running_gateway(server) as (_, _, url),
    ):
        await bus.js.delete_key_value(QUOTAS)
        assert await create([url]) == [503]
        assert census.most == 0


async def test_racing_snapshots_at_two_gateways_get_their_quota(tmp_path: Path) -> None:
    """Ten at once against three; what is refused by the host or thrown away makes room."""
    customer = msgspec.structs.replace(small(), max_snapshots=3)
    async with (
        ground(tmp_path, customer) as (server, _, agent, _),
        running_gateway(server) as (_, _, first),
        running_gateway(server) as (_, _, second),
        httpx.AsyncClient(headers=bearer(), timeout=30) as api,
    ):
        answers = await asyncio.gather(
            *(api.post(f"{first}/v1/vms", json={**TINY, "boot": True}, headers=WAIT)
              for _ in range(5))
        )  # fmt: skip
        vms = [answer.json()["vm"]["vm_id"] for answer in answers]

        async def take() -> list[int]:
            found = await asyncio.gather(
                *(api.post(f"{url}/v1/vms/{vm}/snapshot", headers=WAIT)
                  for vm in vms for url in (first, second))
            )  # fmt: skip
            return sorted(answer.status_code for answer in found)

        async def used(count: int) -> bool:
            shown = [(await api.get(f"{url}/v1/quotas")).json() for url in (first, second)]
            return all(one["used"]["snapshots"] == count for one in shown)

        agent.script = refusing(ErrorCode.UNSUPPORTED, "snapshot")
        # What its host refuses makes room while others still ask.
        refused = await take()
        assert set(refused) == {403, 422}
        assert refused.count(422) >= 3
        await until(lambda: used(0))
        agent.script = lambda _: None
        assert await take() == [200] * 3 + [403] * 7
        await until(lambda: used(3))
        kept = (await api.get(f"{second}/v1/snapshots")).json()["snapshots"]
        gone = await api.delete(f"{second}/v1/snapshots/{kept[0]['snapshot_id']}", headers=WAIT)
        assert gone.status_code == 200
        await until(lambda: used(2))
        assert await take() == [200] + [403] * 9
