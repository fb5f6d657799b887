"""Lists over HTTP: VMs, operations, images."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from runtime.buckets import Bucket
from runtime.clock import utc_now
from schemas.errors import ErrorCode
from schemas.hosts import Customer, decode_customer
from schemas.ids import new_id
from schemas.subjects import CUSTOMERS
from tests.support.gateway import (
    TINY,
    WAIT,
    ScriptedAgent,
    Stack,
    made,
    refusing,
    running_gateway,
    shared_stack,
    until,
)
from tests.support.nats import bus_with_streams
from tests.support.tokens import bearer, sighted

shared_loop = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """One stack for most tests here; each test is a customer of its own."""
    async with shared_stack(tmp_path_factory.mktemp("gateway")) as running:
        yield running


@shared_loop
async def test_lists_are_filtered_and_sorted(shared: Stack) -> None:
    """Over HTTP, with what is wrong named; hosts are for operators only."""
    async with shared.client(headers=bearer("lists")) as api:
        a = await made(api, name="b", labels={"team": "x"})
        b = await made(api, name="a", labels={"team": "x", "tier": "1"})
        c = await made(api, name="a")

        async def ids(headers: dict[str, str] | None = None, **query: Any) -> list[str]:
            page = await api.get("/v1/vms", params=query, headers=headers)
            assert page.status_code == 200, page.text
            return [vm["vm_id"] for vm in page.json()["vms"]]

        assert await ids(sort="-created_at") == [c, b, a]
        assert await ids(sort="name") == [b, c, a]
        assert await ids(sort="-name") == [a, c, b]
        assert await ids(label="team") == [a, b]
        assert await ids(label=["team:x", "tier"]) == [b]
        assert await ids(label=["team", "team:x"]) == [a, b]
        assert await ids(label="team:y") == []
        assert await ids(image="tiny", name="a", state="created") == [b, c]
        assert await ids(image="linux") == []
        operator = bearer("lists", scopes=("vms:read", "admin"))
        assert await ids(operator, host="h1") == [a, b, c]
        assert await ids(operator, host="h2") == []
        denied = await api.get("/v1/vms", params={"host": "h1"})
        assert (denied.status_code, denied.json()["code"]) == (403, "forbidden")
        first = (await api.get("/v1/vms", params={"limit": 1})).json()["next_cursor"]
        for wrong, field in (
            ({"sort": "size"}, "sort"),
            ({"label": ["a:1", "a:2"]}, "label"),
            ({"label": ["a"] * 33}, "label"),
            ({"cursor": first, "sort": "name"}, "cursor"),
            ({"cursor": first, "label": "team"}, "cursor"),
            ({"cursor": first + "A"}, "cursor"),
            ({"cursor": str(new_id())}, "cursor"),
        ):
            refused = await api.get("/v1/vms", params=wrong)
            assert (refused.status_code, refused.json()["errors"][0]["field"]) == (400, field)
        other = await api.get("/v1/vms", params={"cursor": first, "sort": "name"})
        assert "another query" in other.json()["detail"]


@shared_loop
async def test_operations_are_listed_newest_first(shared: Stack) -> None:
    """One's own, by VM and by status, in pages; a gateway that starts later knows them too."""
    async with shared.client(headers=bearer("ops")) as api:
        vm_id = await made(api)
        for verb in ("boot", "pause", "resume"):
            await api.post(f"/v1/vms/{vm_id}/{verb}", headers=WAIT)
        shared.agent.gate.clear()
        try:
            await api.post(f"/v1/vms/{vm_id}/shutdown")
            pending = await api.get("/v1/operations", params={"status": "pending"})
            assert [one["verb"] for one in pending.json()["operations"]] == ["shutdown"]
        finally:
            shared.agent.gate.set()
        await made(api)

        async def verbs(api: httpx.AsyncClient, **query: Any) -> list[str]:
            found: list[str] = []
            while True:
                page = (await api.get("/v1/operations", params=query)).json()
                found += [one["verb"] for one in page["operations"]]
                if not page["next_cursor"]:
                    return found
                query["cursor"] = page["next_cursor"]

        wanted = ["create", "shutdown", "resume", "pause", "boot", "create"]
        assert await verbs(api, limit=2) == wanted
        assert await verbs(api, vm_id=vm_id, limit=1) == wanted[1:]
        assert await verbs(api, vm_id=str(new_id())) == []
        assert (await api.get("/v1/operations", headers=bearer("opsthief"))).json() == {
            "operations": [], "next_cursor": ""
        }  # fmt: skip

        async with (
            running_gateway(shared.server) as (_, _, url),
            httpx.AsyncClient(base_url=url, headers=bearer("ops"), timeout=30) as later,
        ):

            async def remembered() -> bool:
                return await verbs(later) == wanted

            await until(remembered)


async def test_a_create_that_went_on_elsewhere_is_one_operation(tmp_path: Path) -> None:
    """The list shows what the caller was told of, with its end on the second host."""
    async with bus_with_streams(tmp_path) as (server, bus):
        first, second = ScriptedAgent(bus, "h1"), ScriptedAgent(bus, "h2")
        for agent in (first, second):
            await agent.beat()
        first.script = refusing(ErrorCode.NO_CAPACITY, "create")
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(agent.run(), name=agent.host_id) for agent in (first, second)
            ]
            async with (
                running_gateway(server) as (_, _, url),
                httpx.AsyncClient(base_url=url, headers=sighted(), timeout=30) as api,
            ):
                created = await api.post("/v1/vms", json=TINY, headers=WAIT)
                assert created.json()["vm"]["host_id"] == "h2"
                listed = (await api.get("/v1/operations")).json()["operations"]
                assert listed == [created.json()["operation"]]
            for task in tasks:
                task.cancel()


@shared_loop
async def test_images_are_those_of_the_customers_pool(shared: Stack) -> None:
    """Of hosts that take VMs; none is named, and another pool's images are not told."""
    customers = Bucket(shared.bus, CUSTOMERS, decode_customer)
    await customers.put(
        "secluded", Customer(customer_id="secluded", pool="secret", created_at=utc_now())
    )
    special = ScriptedAgent(shared.bus, "h-secret")
    async with shared.client() as api:
        await special.beat(pool="secret", images=("zeta", "alpha"))

        async def images(customer: str) -> list[str]:
            answer = await api.get("/v1/images", headers=bearer(customer))
            assert "h-secret" not in answer.text
            return [image["name"] for image in answer.json()["images"]]

        async def theirs() -> bool:
            return await images("secluded") == ["alpha", "zeta"]

        await until(theirs)
        assert await images("anybody") == ["tiny"]
        await special.beat(pool="secret", images=("alpha",), draining=True)

        async def none() -> bool:
            return await images("secluded") == []

        await until(none)
