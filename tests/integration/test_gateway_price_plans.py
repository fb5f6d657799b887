"""Price plans over the operators' API: entered, grown by versions, and named by customers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest
import pytest_asyncio

from runtime.buckets import Bucket
from runtime.clock import utc_now
from schemas.price_plans import decode_price_plan
from schemas.subjects import PRICE_PLANS
from tests.support.gateway import Stack, made, running_gateway, shared_stack, until
from tests.support.tokens import bearer, operator

pytestmark = pytest.mark.asyncio(loop_scope="module")
PATH = "/v1/admin/price-plans"
PRICES = {
    "uptime_ms": {"price": "0.0042", "per": "hour"},
    "mem_kib_ms": {"price": "0.006500000001", "per": "gib_hour"},
    "net_tx_bytes": {"price": "100", "per": "tib"},
}
SHOWN = (
    dict.fromkeys(("cpu_ns", "disk_read_bytes", "disk_write_bytes", "net_rx_bytes"), None) | PRICES
)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """One stack for all tests here; each test has plans of its own."""
    async with shared_stack(tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def api(shared: Stack) -> AsyncIterator[httpx.AsyncClient]:
    """An operator's client."""
    async with shared.client(headers=operator("ann")) as client:
        yield client


def hour(ahead: int) -> datetime:
    """A whole hour, so many from this one on."""
    return utc_now().replace(minute=0, second=0, microsecond=0) + timedelta(hours=ahead)


async def entered(api: httpx.AsyncClient, plan: str, **fields: Any) -> dict[str, Any]:
    """A plan that has just been entered."""
    body = {
        "plan_id": plan, "currency": "EUR", "valid_from": hour(-5).isoformat(), "prices": PRICES,
        **fields,
    }  # fmt: skip
    answer = await api.post(PATH, json=body)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def grow(
    api: httpx.AsyncClient, plan: str, at: datetime, prices: Any = None, **headers: str
) -> httpx.Response:
    """A further version."""
    body = {"valid_from": at.isoformat(), "prices": {} if prices is None else prices}
    return await api.post(f"{PATH}/{plan}/versions", json=body, headers=headers)


async def test_prices_are_kept_to_the_last_digit(shared: Stack, api: httpx.AsyncClient) -> None:
    """As text, with their units, in answers and in the bucket; a plan is entered once."""
    made_plan = await entered(api, "exact", name="Exact & simple")
    assert made_plan["versions"] == [made_plan["current"]]
    assert (made_plan["current"]["version"], made_plan["current"]["created_by"]) == (1, "ann")
    assert made_plan["current"]["prices"] == SHOWN
    answer = await api.get(f"{PATH}/exact")
    assert answer.json() == made_plan
    assert answer.headers["ETag"] == '"1"'
    entry = await Bucket(shared.bus, PRICE_PLANS, decode_price_plan).get("exact")
    assert entry is not None
    stands = entry.value.versions[0].prices
    assert stands.mem_kib_ms is not None
    assert stands.mem_kib_ms.price == "0.006500000001"
    assert stands.cpu_ns is None
    body = {"plan_id": "exact", "currency": "EUR", "valid_from": hour(0).isoformat(), "prices": {}}
    again = await api.post(PATH, json=body)
    assert (again.status_code, again.json()["code"]) == (409, "conflict")
    assert (await api.get(f"{PATH}/none")).status_code == 404
    assert (await api.get(f"{PATH}/Bad.Name")).status_code == 404


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"prices": {"cpu_ns": {"price": 0.03}}}, "$.prices.cpu_ns.price"),
        ({"prices": {"cpu_ns": {"price": "-1"}}}, "$.prices.cpu_ns.price"),
        ({"prices": {"cpu_ns": {"price": "1e3"}}}, "$.prices.cpu_ns.price"),
        ({"prices": {"cpu_ns": {"price": "1."}}}, "$.prices.cpu_ns.price"),
        ({"prices": {"cpu_ns": {"price": "01"}}}, "$.prices.cpu_ns.price"),
        ({"prices": {"cpu_ns": {"price": "NaN"}}}, "$.prices.cpu_ns.price"),
        ({"prices": {"cpu_ns": {"price": "1\n"}}}, "$.prices.cpu_ns.price"),
        ({"prices": {"cpu_ns": {"price": "1", "per": "gib_hour"}}}, "$.prices.cpu_ns.per"),
        ({"prices": {"cpus": {"price": "1"}}}, "$.prices.cpus"),
        ({"currency": "eur"}, "$.currency"),
        ({"valid_from": "2026-01-01T00:30:00Z"}, "$.valid_from"),
        ({"valid_from": "2026-01-01T00:00:00.000001Z"}, "$.valid_from"),
        ({"valid_from": "2026-01-01T00:00:00"}, "$.valid_from"),
        ({"name": "two\nlines"}, "$.name"),
    ],
)
async def test_what_is_no_price_is_refused(
    api: httpx.AsyncClient, change: dict[str, Any], field: str
) -> None:
    """No float, no exponent, no unit of another meter, no change within an hour."""
    body = {"plan_id": "bad", "currency": "EUR", "valid_from": hour(0).isoformat(), "prices": {}}
    answer = await api.post(PATH, json={**body, **change})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, field)
    assert (await api.get(f"{PATH}/bad")).status_code == 404


async def test_versions_are_added_and_never_changed(api: httpx.AsyncClient) -> None:
    """Each later than the one before, none in the past, whoever is first; all stay to be seen."""
    await entered(api, "grows")
    for at in (hour(-5), hour(-1)):
        refused = await grow(api, "grows", at)
        assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    lower = {"cpu_ns": {"price": "0.03", "per": "vcpu_hour"}}
    second = await grow(api, "grows", hour(2), lower, **{"If-Match": '"1"'})
    assert (second.status_code, second.headers["ETag"]) == (201, '"2"')
    stale = await grow(api, "grows", hour(3), **{"If-Match": '"1"'})
    assert (stale.status_code, stale.json()["code"]) == (412, "precondition_failed")
    assert (await grow(api, "grows", hour(1))).status_code == 409
    answers = await asyncio.gather(*(grow(api, "grows", hour(4)) for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]
    plan = (await api.get(f"{PATH}/grows")).json()
    assert [version["version"] for version in plan["versions"]] == [1, 2, 3]
    assert (plan["current"]["version"], plan["next"]["version"]) == (1, 2)
    assert plan["versions"][1]["prices"]["cpu_ns"] == lower["cpu_ns"]
    assert plan["generation"] == 3
    assert (await grow(api, "none", hour(1))).status_code == 404


async def test_a_key_adds_one_version(api: httpx.AsyncClient) -> None:
    """The same request again gets the same answer."""
    await entered(api, "keyed")
    headers = {"Idempotency-Key": "grow-1"}
    first = await grow(api, "keyed", hour(1), **headers)
    again = await grow(api, "keyed", hour(1), **headers)
    assert (first.status_code, again.content) == (201, first.content)
    assert len((await api.get(f"{PATH}/keyed")).json()["versions"]) == 2


async def test_a_customer_has_a_plan_that_there_is(shared: Stack, api: httpx.AsyncClient) -> None:
    """Also one that another gateway has just made; VMs take the plan of their making along."""
    customers = "/v1/admin/customers"
    for body in (
        {"customer_id": "planned", "price_plan": "nowhere"},
        {"customer_id": "planned", "price_plan": "default"},
    ):
        answer = await api.post(customers, json=body)
        assert answer.status_code == (422 if body["price_plan"] == "nowhere" else 201)
    assert answer.json()["price_plan"] == "default"
    unknown = await api.patch(f"{customers}/planned", json={"price_plan": "nowhere"})
    assert (unknown.status_code, unknown.json()["code"]) == (422, "unknown_price_plan")
    assert unknown.json()["errors"][0]["field"] == "$.price_plan"
    async with (
        running_gateway(shared.server) as (_, _, url),
        httpx.AsyncClient(base_url=url, headers=operator(), timeout=30) as other,
    ):
        await entered(other, "gold")
        given = await api.patch(f"{customers}/planned", json={"price_plan": "gold"})
        assert (given.status_code, given.json()["price_plan"]) == (200, "gold")

        async def listed() -> bool:
            page = (await api.get(customers, params={"price_plan": "gold"})).json()
            return bool([one["customer_id"] for one in page["customers"]] == ["planned"])

        await until(listed)
    async with shared.client(headers=bearer("planned")) as own:
        await made(own)
    reset = await api.patch(f"{customers}/planned", json={"price_plan": None})
    assert reset.json()["price_plan"] == "default"


async def test_lists_come_in_pages_by_id(api: httpx.AsyncClient) -> None:
    """With what is valid now and what comes next; a plan that begins later has nothing yet."""
    await entered(api, "zz-later", valid_from=hour(7).isoformat())
    for plan in ("zz-b", "zz-a"):
        await entered(api, plan)
    seen: list[dict[str, Any]] = []
    query = {"limit": "2", "cursor": ""}
    while True:
        page = (await api.get(PATH, params=query)).json()
        seen += page["price_plans"]
        query["cursor"] = page["next_cursor"]
        if not query["cursor"]:
            break
    names = [plan["plan_id"] for plan in seen]
    assert names == sorted(set(names))
    assert names[-3:] == ["zz-a", "zz-b", "zz-later"]
    assert (seen[-1]["current"], seen[-1]["next"]["version"]) == (None, 1)
    assert seen[-2]["next"] is None
    assert "versions" not in seen[-1]
    assert (await api.get(PATH, params={"cursor": "x"})).status_code == 400
