"""Hosts over the operators' API: looked at, drained, declared lost and found."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import pytest_asyncio

from runtime.buckets import Bucket
from runtime.clock import utc_now
from runtime.hosts import Hosts
from runtime.publisher import Publisher
from runtime.reading import read_stream
from runtime.streams import apply, declared
from schemas.audit import OPERATOR, decode_audit_entry
from schemas.hosts import decode_host_loss, decode_host_orders
from schemas.subjects import (
    AUDIT,
    HOST_ORDERS,
    LOST_HOSTS,
    METRICS_RAW,
    metrics_raw,
)
from tests.support.gateway import (
    ROOM,
    WAIT,
    ScriptedAgent,
    Stack,
    made,
    running_gateway,
    shared_stack,
    until,
)
from tests.support.secured_bus import secured_bus
from tests.support.tokens import bearer, operator

pytestmark = pytest.mark.asyncio(loop_scope="module")
PATH = "/v1/admin/hosts"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """One stack for all tests here; each test has hosts of its own besides `h1`."""
    async with shared_stack(tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def api(shared: Stack) -> AsyncIterator[httpx.AsyncClient]:
    """An operator's client."""
    async with shared.client(headers=operator("ann")) as client:
        yield client


async def order(api: httpx.AsyncClient, host: str, what: str, **body: Any) -> dict[str, Any]:
    """The host after an order that was taken."""
    answer = await api.post(f"{PATH}/{host}/{what}", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def listed(api: httpx.AsyncClient, **query: str) -> list[str]:
    """Names of hosts."""
    answer = await api.get(PATH, params=query)
    assert answer.status_code == 200
    return [host["host_id"] for host in answer.json()["hosts"]]


async def test_a_host_is_shown_with_all_that_is_known_of_it(
    shared: Stack, api: httpx.AsyncClient
) -> None:
    """Heartbeat, room, what is on it, and whose; page by page."""
    async with shared.client(headers=bearer("zoe")) as zoe, shared.client(
        headers=bearer("abe")
    ) as abe:  # fmt: skip
        zoes = [await made(zoe, name=f"z{n}", memory_mib=64) for n in range(2)]
        abes = await made(abe)
        gone = await made(abe)
        assert (await abe.delete(f"/v1/vms/{gone}", headers=WAIT)).status_code == 200

        async def buried() -> bool:
            return bool((await api.get(f"{PATH}/h1")).json()["vms"] == 3)

        await until(buried)
        host = (await api.get(f"{PATH}/h1")).json()
        assert (host["state"], host["order"], host["loss"]) == ("up", None, None)
        assert 0 <= host["age_s"] < 5
        beat = host["heartbeat"]
        assert (beat["driver"], beat["simulated"], beat["images"]) == ("simulator", True, ["tiny"])
        assert beat["capacity"] == msgspec.to_builtins(ROOM)
        assert "h1" in await listed(api)
        seen: list[dict[str, Any]] = []
        query = {"limit": "2", "cursor": ""}
        while True:
            page = (await api.get(f"{PATH}/h1/vms", params=query)).json()
            seen += page["vms"]
            query["cursor"] = page["next_cursor"]
            if not query["cursor"]:
                break
        assert [(vm["customer_id"], vm["vm_id"]) for vm in seen] == [
            ("abe", abes), ("zoe", zoes[0]), ("zoe", zoes[1]),
        ]  # fmt: skip
        assert (seen[1]["name"], seen[1]["state"], seen[1]["memory_mib"]) == ("z0", "created", 64)
    for path in ("/nobody", "/Bad.Name"):
        assert (await api.get(PATH + path)).status_code == 404
    assert (await api.get(f"{PATH}/nobody/vms")).json() == {"vms": [], "next_cursor": ""}
    page = (await api.get(f"{PATH}/h1/vms", params={"limit": "1"})).json()
    other = await api.get(f"{PATH}/h2/vms", params={"cursor": page["next_cursor"]})
    assert other.status_code == 400


async def test_lists_filter_and_page(shared: Stack, api: httpx.AsyncClient) -> None:
    """By state and pool; a silent host is no host that is up."""
    for name, ahead_s, draining in (("l1", 0, False), ("l2", -9, False), ("l3", 0, True)):
        await ScriptedAgent(shared.bus, name).beat(
            pool="listed", draining=draining, heartbeat_at=utc_now() + timedelta(seconds=ahead_s)
        )

    async def all_there() -> bool:
        return await listed(api, pool="listed") == ["l1", "l2", "l3"]

    await until(all_there)
    assert await listed(api, pool="listed", state="silent") == ["l2"]
    assert await listed(api, pool="listed", state="empty") == ["l3"]
    assert await listed(api, pool="listed", state="up") == ["l1"]
    first = (await api.get(PATH, params={"pool": "listed", "limit": "2"})).json()
    assert [host["host_id"] for host in first["hosts"]] == ["l1", "l2"]
    rest = {"pool": "listed", "limit": "2", "cursor": first["next_cursor"]}
    assert await listed(api, **rest) == ["l3"]
    assert (await api.get(PATH, params={"cursor": first["next_cursor"]})).status_code == 400
    assert (await api.get(PATH, params={"state": "gone"})).status_code == 400


async def test_a_host_is_drained_and_takes_vms_again(shared: Stack, api: httpx.AsyncClient) -> None:
    """The order is the one that `decisec host` writes and reads, with who, why and when."""
    await ScriptedAgent(shared.bus, "d1").beat(pool="drained")
    orders = Bucket(shared.bus, HOST_ORDERS, decode_host_orders)
    host = await order(api, "d1", "drain", reason="new memory")
    assert host["order"]["draining"] is True
    entry = await orders.get("d1")
    assert entry is not None
    assert (entry.value.reason, entry.value.requested_by) == ("new memory", "ann")
    again = await order(api, "d1", "drain")
    assert again["order"] == host["order"]
    assert (await Hosts(shared.bus).get("d1")).order == entry.value
    back = await order(api, "d1", "undrain")
    assert back["order"]["draining"] is False
    entry = await orders.get("d1")
    assert entry is not None
    assert entry.value.draining is False

    unknown = await api.post(f"{PATH}/d2/drain")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "not_found")
    forced = await order(api, "d2", "drain", force=True)
    assert (forced["state"], forced["heartbeat"]) == ("not_heard", None)

    async def shown() -> bool:
        return "d2" in await listed(api, state="not_heard")

    await until(shown)
    for body in ({"reason": "x" * 201}, {"reason": "two\nlines"}, {"forced": True}):
        assert (await api.post(f"{PATH}/d1/drain", json=body)).status_code == 400


async def test_the_same_order_at_once_is_one_order(shared: Stack) -> None:
    """Whoever is first has given it; the others are told that it stands."""
    given = await asyncio.gather(
        *(
            Hosts(shared.bus).order("o1", draining=True, reason="", requested_by=f"op{n}")
            for n in range(5)
        )
    )
    assert sum(changed for _, changed in given) == 1
    assert len({order.requested_by for order, _ in given}) == 1


async def test_a_host_is_declared_lost_and_found(shared: Stack, api: httpx.AsyncClient) -> None:
    """With a reason; one that is heard of, or whose frames are on their way, only by force."""
    losses = Bucket(shared.bus, LOST_HOSTS, decode_host_loss)
    heard = await api.post(f"{PATH}/h1/lost", json={"reason": "burnt"})
    assert (heard.status_code, heard.json()["code"]) == (409, "conflict")
    for body in ({}, {"reason": ""}, {"reason": " "}, {"reason": "x\n"}):
        assert (await api.post(f"{PATH}/gone/lost", json=body)).status_code == 400
    await shared.bus.js.pull_subscribe("", durable="collector-test", stream=METRICS_RAW)
    await Publisher(shared.bus).publish(metrics_raw("gone"), b"frame", msg_id="1")
    behind = await api.post(f"{PATH}/gone/lost", json={"reason": "burnt"})
    assert behind.status_code == 409
    assert "collector-test" in behind.json()["detail"]
    assert await losses.get("gone") is None
    host = await order(api, "gone", "lost", reason="burnt", force=True)
    assert (host["loss"]["reason"], host["loss"]["requested_by"]) == ("burnt", "ann")
    again = await order(api, "gone", "lost", reason="drowned", force=True)
    assert again["loss"] == host["loss"]
    assert (await Hosts(shared.bus).losses())[0].reason == "burnt"

    async def shown() -> bool:
        return "gone" in await listed(api)

    await until(shown)
    assert (await api.get(f"{PATH}/gone")).json()["loss"] == host["loss"]
    found = await order(api, "gone", "found", reason="it was the switch")
    assert found["loss"] is None
    assert await losses.get("gone") is None
    assert (await api.post(f"{PATH}/gone/found")).status_code == 404
    assert (await order(api, "h1", "found"))["loss"] is None


async def test_orders_stand_in_the_audit_with_their_reason(
    shared: Stack, api: httpx.AsyncClient
) -> None:
    """Once before and once after, and not a second time by the code that does it."""
    async with shared.client(headers=operator("eve")) as eve:
        await order(eve, "t1", "drain", reason="why not", force=True)
        await order(eve, "t1", "lost", reason="burnt")
        await order(eve, "t1", "found")

    async def told() -> bool:
        entries = [decode_audit_entry(one.data) for one in await read_stream(shared.bus, AUDIT)]
        hers = [entry for entry in entries if entry.actor == "eve"]
        assert {entry.customer_id for entry in hers} <= {OPERATOR}
        found = [(entry.action, entry.target, entry.reason) for entry in hers]
        return sorted(found) == sorted(
            2
            * [
                ("drain-host", "host t1", "why not"),
                ("declare-host-lost", "host t1", "burnt"),
                ("declare-host-found", "host t1", "found again"),
            ]
        )

    await until(told)


async def test_a_gateway_does_all_of_it_with_its_own_rights(tmp_path: Path) -> None:
    """On a bus as in production: nothing is refused, the look for what is on its way included."""
    async with secured_bus(tmp_path / "bus") as secured:
        secured.issue("operator", "ops")
        secured.issue("gateway", "g1")
        assert secured.folder.reload()
        async with secured.bus("operator", "ops") as bus:
            await apply(bus, declared())
            given = secured.settings("gateway", "g1")
            async with running_gateway(
                secured, nats_credentials=given.nats_credentials, nats_ca=given.nats_ca
            ) as (_, health, url), httpx.AsyncClient(
                base_url=url, headers=operator(), timeout=30
            ) as api:  # fmt: skip
                await order(api, "r1", "drain", force=True)
                await order(api, "r1", "lost", reason="burnt")
                assert (await Hosts(bus).losses())[0].host_id == "r1"
                assert (await order(api, "r1", "found"))["loss"] is None
                customer = await api.post("/v1/admin/customers", json={"customer_id": "acme"})
                assert customer.status_code == 201
                assert health.problems == {}
