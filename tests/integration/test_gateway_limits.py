"""Rates over real gateways and a real nats-server: who is refused, what it is told, who is not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from decisec.devkit.tokens import mint
from decisec.sdk import AsyncClient, NotFoundError, RateLimitedError
from gateway.sharing import Sharing
from runtime.buckets import Bucket
from runtime.bus import Bus
from runtime.clock import utc_now
from schemas.api import CreateVmRequest
from schemas.hosts import Customer, decode_customer
from schemas.ids import new_id
from schemas.limits import ApiRates, Rate
from schemas.subjects import CUSTOMERS, vm_request
from tests.support.gateway import Stack, made, running_gateway, stack, until
from tests.support.nats import NatsServer, nats_server
from tests.support.tokens import KEY as TOKEN_KEY
from tests.support.tokens import bearer

RATE = Rate(per_s=100, burst=200)
KEY = "acme.reads"


class Replica:
    """The limits of one gateway, on a connection of its own."""

    def __init__(self, bus: Bus, sharing: Sharing, task: asyncio.Task[None]) -> None:
        self.bus = bus
        self.sharing = sharing
        self.task = task
        self.admitted = 0

    async def ask(self, per_s: float) -> None:
        """Ask at this rate until cancelled; what the loop was late for is asked at once."""
        began = time.monotonic()
        asked = 0
        while True:
            while asked < (time.monotonic() - began) * per_s:
                asked += 1
                self.admitted += self.sharing.take(KEY, RATE).admitted
            await asyncio.sleep(0.003)

    async def kill(self) -> None:
        """End without a word to the others."""
        await self.bus.client.close()
        self.task.cancel()


class Replicas:
    """Some of them, on one server."""

    def __init__(self, server: NatsServer, group: asyncio.TaskGroup, exits: AsyncExitStack) -> None:
        self._server = server
        self._group = group
        self._exits = exits
        self.all: list[Replica] = []

    async def join(self) -> Replica:
        """One more, that knows how the buckets stand."""
        bus = await self._exits.enter_async_context(
            Bus.connect(self._server.settings(), name="gateway")
        )
        sharing = Sharing(bus, lambda _: RATE)
        task = self._group.create_task(sharing.run(), name="sharing")
        await sharing.joined()
        replica = Replica(bus, sharing, task)
        self.all.append(replica)
        return replica

    async def know_each_other(self, of: Sequence[Replica]) -> None:
        await until(lambda: all(one.sharing.members == len(of) for one in of))

    @property
    def admitted(self) -> int:
        return sum(replica.admitted for replica in self.all)


@asynccontextmanager
async def replicas(server: NatsServer, count: int) -> AsyncIterator[Replicas]:
    async with AsyncExitStack() as exits, asyncio.TaskGroup() as group:
        found = Replicas(server, group, exits)
        for _ in range(count):
            await found.join()
        await found.know_each_other(found.all)
        try:
            yield found
        finally:
            for replica in found.all:
                replica.task.cancel()


class Asking:
    """Load on some replicas for the length of the block, and how long that was."""

    def __init__(self, *loads: tuple[Replica, float]) -> None:
        self._loads = loads

    async def __aenter__(self) -> Asking:
        self._began = time.monotonic()
        self._tasks = [asyncio.create_task(replica.ask(per_s)) for replica, per_s in self._loads]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        self.took_s = time.monotonic() - self._began


@pytest.mark.parametrize("count", [2, 3])
async def test_a_steady_load_over_gateways_gets_the_limit(tmp_path: Path, count: int) -> None:
    """More than the limit is asked of all of them: within 10 % of it is admitted."""
    async with nats_server(tmp_path) as server, replicas(server, count) as found:
        async with Asking(*((one, 500 / count) for one in found.all)) as asking:
            await asyncio.sleep(6)
        limit = RATE.burst + RATE.per_s * asking.took_s
        assert 0.9 * limit <= found.admitted <= 1.1 * limit


@pytest.mark.parametrize("count", [2, 3])
async def test_bursts_at_all_gateways_at_once_get_the_burst(tmp_path: Path, count: int) -> None:
    """Ten times the bucket, at once, at each of them; again when it is full again."""
    async with nats_server(tmp_path) as server, replicas(server, count) as found:
        for _ in range(2):
            before, began = found.admitted, time.monotonic()
            for replica in found.all:
                replica.admitted += sum(
                    replica.sharing.take(KEY, RATE).admitted for _ in range(10 * RATE.burst)
                )
            await asyncio.sleep(0.05)
            for replica in found.all:
                replica.admitted += sum(
                    replica.sharing.take(KEY, RATE).admitted for _ in range(10 * RATE.burst)
                )
            limit = RATE.burst + RATE.per_s * (time.monotonic() - began)
            assert 0.9 * RATE.burst <= found.admitted - before <= 1.1 * limit
            await asyncio.sleep(RATE.burst / RATE.per_s + 0.5)


async def test_a_gateway_dies_and_one_joins_under_load(tmp_path: Path) -> None:
    """Neither gives anybody more, nor takes more than a moment's worth."""
    async with nats_server(tmp_path) as server, replicas(server, 3) as found:
        first, second, third = found.all
        async with Asking((second, 250), (third, 250)) as asking:
            async with Asking((first, 250)):
                await asyncio.sleep(2)
            await first.kill()
            await found.know_each_other([second, third])
            await asyncio.sleep(1)
            fourth = await found.join()
            async with Asking((fourth, 250)):
                await found.know_each_other([second, third, fourth])
                await asyncio.sleep(2)
        limit = RATE.burst + RATE.per_s * asking.took_s
        assert 0.9 * limit <= found.admitted <= 1.1 * limit


async def test_without_nats_each_goes_on_by_its_share(tmp_path: Path) -> None:
    """The sum stays within the limit while the server is away, and after it is back."""
    async with nats_server(tmp_path) as server, replicas(server, 2) as found:
        async with Asking(*((one, 300) for one in found.all)) as asking:
            await asyncio.sleep(1)
            await server.kill()
            before, began = [one.admitted for one in found.all], time.monotonic()
            await asyncio.sleep(4)
            alone = [one.admitted - b for one, b in zip(found.all, before, strict=True)]
            share = RATE.per_s * (time.monotonic() - began) / 2
            await server.start()
            await until(lambda: all(one.bus.connected for one in found.all))
            await found.know_each_other(found.all)
            await asyncio.sleep(2)
        limit = RATE.burst + RATE.per_s * asking.took_s
        assert all(0.75 * share <= one <= 1.25 * share for one in alone)
        assert 0.9 * limit <= found.admitted <= 1.1 * limit


async def test_a_stopped_gateway_is_forgotten_at_once(tmp_path: Path) -> None:
    """It says that it leaves, with what it has spent."""
    async with nats_server(tmp_path) as server, replicas(server, 2) as found:
        first, second = found.all
        for _ in range(50):
            first.sharing.take(KEY, RATE)
        first.task.cancel()
        await until(lambda: second.sharing.members == 1)
        assert second.sharing.take(KEY, RATE).remaining < 200


async def rated(running: Stack, customer: str, **rates: Rate) -> None:
    """Give a customer rates of its own."""
    entry = Customer(customer_id=customer, rates=ApiRates(**rates), created_at=utc_now())
    await Bucket(running.bus, CUSTOMERS, decode_customer).put(customer, entry)


SLOW = Rate(per_s=0.5, burst=3)


async def test_a_customer_over_its_rate_is_told_when_to_come_again(tmp_path: Path) -> None:
    """429 with the headers; other classes, other customers and operators' entries as they are."""
    async with stack(tmp_path) as running:
        await rated(running, "slow", reads=SLOW, mutations=SLOW, expensive=SLOW)
        async with running.client(headers=bearer("slow")) as api:
            await until(lambda: first_answer(api, "3"))
            answers = [await api.get("/v1/vms") for _ in range(6)]
            refused = answers[-1]
            assert [a.status_code for a in answers[:1]] == [200]
            assert refused.status_code == 429
            problem = refused.json()
            assert problem["code"] == "rate_limited"
            assert 1 <= int(refused.headers["Retry-After"]) <= 2
            assert refused.headers["RateLimit-Limit"] == "3"
            assert refused.headers["RateLimit-Remaining"] == "0"
            assert 1 <= int(refused.headers["RateLimit-Reset"]) <= 6
            assert refused.headers["Cache-Control"] == "no-store"
            # Another class has a bucket of its own.
            vm_id = await made(api)
            assert (await api.get("/v1/usage")).status_code == 503
            assert (await api.delete(f"/v1/vms/{vm_id}")).status_code == 202
            assert (await api.post("/v1/vms", json={"image": "tiny"})).status_code == 202
            assert (await api.delete(f"/v1/vms/{vm_id}")).status_code == 429
        async with running.client(headers=bearer("fast")) as api:
            answer = await api.get("/v1/vms")
            assert answer.status_code == 200
            assert answer.headers["RateLimit-Limit"] == "1000"
            assert answer.headers["RateLimit-Remaining"] == "999"


async def test_the_sdk_comes_again_when_it_is_told_to(tmp_path: Path) -> None:
    """Each create is done once, though some are refused at first; who asks once only is told."""
    async with stack(tmp_path) as running:
        await rated(running, "sdk", mutations=Rate(per_s=2, burst=2))
        token = mint(TOKEN_KEY, "sdk")
        async with (
            running.client(headers=bearer("sdk")) as api,
            AsyncClient(running.url, token) as patient,
            AsyncClient(running.url, token, attempts=1) as hasty,
        ):
            await until(lambda: known_rate(api))
            asked = [patient.create_vm(CreateVmRequest(image="tiny")) for _ in range(4)]
            made_vms = {found.vm.vm_id for found in await asyncio.gather(*asked)}
            assert {vm.vm_id async for vm in patient.list_vms()} == made_vms
            assert len(made_vms) == 4
            with pytest.raises(RateLimitedError) as refused:
                await delete_nothing(hasty, 100)
            assert refused.value.retry_after_s == 1


async def delete_nothing(client: AsyncClient, times: int) -> None:
    """Mutations that change nothing."""
    for _ in range(times):
        with contextlib.suppress(NotFoundError):
            await client.delete_vm(new_id())


async def known_rate(api: httpx.AsyncClient) -> bool:
    """Whether the gateway knows of the customer's rate of mutations yet."""
    answer = await api.delete(f"/v1/vms/{new_id()}")
    return answer.headers["RateLimit-Limit"] == "2"


async def first_answer(api: httpx.AsyncClient, limit: str) -> bool:
    """Whether the gateway knows of the customer's rates yet."""
    return (await api.get("/v1/whoami")).headers["RateLimit-Limit"] == limit


async def test_both_doors_spend_from_one_bucket(tmp_path: Path) -> None:
    """What was asked over the bus is gone over HTTP, at another gateway too."""
    async with (
        stack(tmp_path, reads_per_s=0.1, reads_burst=20) as running,
        running_gateway(running.server, reads_per_s=0.1, reads_burst=20) as (_, _, url),
    ):
        asked: Any = None
        for _ in range(25):
            body = json.dumps({"vm_id": str(new_id())}).encode()
            answer = await running.bus.request(vm_request("both", "get"), body, timeout_s=5)
            asked = json.loads(answer.data)["error"]["code"]
            await asyncio.sleep(0.02)
        assert asked == "rate_limited"
        async with httpx.AsyncClient(base_url=url, headers=bearer("both")) as api:
            await asyncio.sleep(0.3)
            assert (await api.get("/v1/vms")).status_code == 429
        async with httpx.AsyncClient(base_url=url, headers=bearer("else")) as api:
            assert (await api.get("/v1/vms")).status_code == 200


async def test_an_address_without_good_tokens_is_refused(tmp_path: Path) -> None:
    """No token, a bad one, documents and paths that are none; who has a good one goes on."""
    async with (
        stack(tmp_path, address_per_s=0.1, address_burst=8) as running,
        running.client() as api,
    ):
        bad = {"Authorization": "Bearer x.y.z"}
        seen = [
            (await api.get("/v1/vms")).status_code,
            (await api.get("/v1/vms", headers=bad)).status_code,
            (await api.get("/v1/nothing", headers=bad)).status_code,
            (await api.get("/openapi.json", headers=bad)).status_code,
        ]
        assert seen == [401, 401, 404, 200]
        for _ in range(8):
            await api.get("/v1/vms", headers=bad)
        for path, headers in (
            ("/v1/vms", bad),
            ("/v1/vms", {}),
            ("/v1/nothing", bad),
            ("/openapi.json", {}),
            ("/docs", bad),
        ):
            answer = await api.get(path, headers=headers)
            assert answer.status_code == 429
            assert int(answer.headers["Retry-After"]) >= 1
            assert answer.json()["code"] == "rate_limited"
        # Nobody is believed to come from elsewhere, and nobody is locked out by a neighbour.
        other = {**bad, "X-Forwarded-For": "192.0.2.1"}
        assert (await api.get("/v1/vms", headers=other)).status_code == 429
        assert (await api.get("/v1/vms", headers=bearer("good"))).status_code == 200


async def test_a_trusted_proxy_tells_addresses_apart(tmp_path: Path) -> None:
    """The last stranger in `X-Forwarded-For` counts; what he wrote himself does not."""
    async with (
        stack(
            tmp_path, address_per_s=0.1, address_burst=2, trusted_proxies="127.0.0.0/8, 10.0.0.0/8"
        ) as running,
        running.client() as api,
    ):

        async def status(forwarded: str) -> int:
            return (await api.get("/v1/vms", headers={"X-Forwarded-For": forwarded})).status_code

        assert [await status("192.0.2.1") for _ in range(3)] == [401, 401, 429]
        assert await status("192.0.2.2") == 401
        assert await status("192.0.2.3, 192.0.2.1") == 429
        assert await status("192.0.2.1, 10.1.2.3") == 429
        assert [await status(f"2001:db8:1:2::{n}") for n in range(3)] == [401, 401, 429]
        assert await status("2001:db8:1:3::1") == 401
